"""Ollama's API of a running server, at its port and at the other."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes.server_process import GIVE_UP_S, GREEDY, ServerProcess, run_coe, write_roster
from fakes.weight import brings

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
SHORT = {"num_predict": 8, **GREEDY}


@pytest.fixture(scope="module")
@brings("server")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One that listens where its environment says clients look for Ollama: here at a free port."""
    roster = write_roster(tmp_path_factory.mktemp("ollama"), {"general": {}, "law": {"context_tokens": 256}}, router={})
    with ServerProcess(roster, env={"COE_OLLAMA_PORT": "0"}) as running:
        yield running


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    """Of its second port."""
    (line,) = (line for line in server.announcement.splitlines() if line.startswith("Ollama:"))
    with httpx.Client(base_url=line.split()[1], timeout=GIVE_UP_S) as found:
        yield found


def told(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def test_both_ports_serve_everything(server: ServerProcess, client: httpx.Client) -> None:
    assert client.get("/").text == "Ollama is running"
    assert client.head("/").status_code == server.http.head("/").status_code == 200
    assert server.http.get("/").json()["name"]
    for one in (client, server.http):
        assert one.get("/api/version").json()["version"]
        names = [model["id"] for model in one.get("/v1/models").json()["data"]]
        listed = [model["model"] for model in one.get("/api/tags").json()["models"]]
        assert listed == [f"{name}:latest" for name in names]


def test_a_chat_in_lines_is_the_whole_chat_and_what_openais_api_says(
    server: ServerProcess, client: httpx.Client
) -> None:
    body = {"model": "general:latest", "messages": CAPITAL, "options": SHORT}
    lines = told(client.post("/api/chat", json=body))
    whole = client.post("/api/chat", json={**body, "stream": False}).json()
    text = "".join(line["message"]["content"] for line in lines)
    assert text == whole["message"]["content"]
    same = server.chat(CAPITAL[0]["content"], max_tokens=8).json()["choices"][0]["message"]
    assert text == same["content"]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    for end in (lines[-1], whole):
        assert (end["eval_count"], end["done_reason"]) == (8, "length")
        parts = [end[f"{part}_duration"] for part in ("load", "prompt_eval", "eval")]
        assert all(type(part) is int and part >= 0 for part in parts)
        assert 0 < sum(parts) <= end["total_duration"]


def test_a_prompt_goes_through_the_template_unless_it_is_raw(client: httpx.Client) -> None:
    body = {"model": "general", "prompt": CAPITAL[0]["content"], "options": SHORT, "stream": False}
    asked = client.post("/api/generate", json=body).json()
    chatted = client.post("/api/chat", json={**body, "messages": CAPITAL, "prompt": None}).json()
    assert asked["response"] == chatted["message"]["content"]
    raw = client.post("/api/generate", json={**body, "raw": True}).json()
    assert 0 < raw["prompt_eval_count"] < asked["prompt_eval_count"]


def test_auto_is_answered_by_whom_the_headers_name(client: httpx.Client) -> None:
    response = client.post("/api/chat", json={"model": "auto", "messages": CAPITAL, "options": SHORT, "stream": False})
    assert response.headers["x-coe-specialist"] == response.json()["coe"]["specialist"] == "general"
    assert response.json()["model"] == "auto"


def test_an_answer_keeps_to_a_schema(client: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    body = {"model": "general", "messages": CAPITAL, "format": schema, "options": {"temperature": 0}, "stream": False}
    assert type(json.loads(client.post("/api/chat", json=body).json()["message"]["content"])["age"]) is int


def test_a_model_is_loaded_shown_and_unloaded(client: httpx.Client) -> None:
    assert client.post("/api/generate", json={"model": "law"}).json()["done_reason"] == "load"
    running = {model["name"]: model for model in client.get("/api/ps").json()["models"]}
    assert running["law:latest"]["context_length"] == 256
    shown = client.post("/api/show", json={"model": "law:latest"}).json()
    info = shown["model_info"]
    assert (info["general.architecture"], info["llama.context_length"]) == ("llama", 256)
    assert info["general.parameter_count"] == 134_515_008
    assert shown["details"]["parameter_size"] == "134.5M"
    assert client.post("/api/chat", json={"model": "law", "keep_alive": 0}).json()["done_reason"] == "unload"
    assert "law:latest" not in [model["name"] for model in client.get("/api/ps").json()["models"]]


def test_more_context_than_there_is_is_noted_and_a_longer_prompt_refused(client: httpx.Client) -> None:
    body = {"model": "law", "messages": CAPITAL, "options": {**SHORT, "num_ctx": 4096}, "stream": False}
    assert "4096" in client.post("/api/chat", json=body).headers["x-coe-note"]
    long = [{"role": "user", "content": "a b " * 400}]
    refusal = client.post("/api/chat", json={**body, "stream": True, "messages": long})
    assert refusal.status_code == 400
    assert "256" in refusal.json()["error"]


def test_texts_are_embedded_by_the_encoder_that_is_on_board(server: ServerProcess, client: httpx.Client) -> None:
    of_openai = server.http.post("/v1/embeddings", json={"model": "auto", "input": ["a cat", "a dog"]}).json()
    encoder = of_openai["model"]
    told = client.post("/api/embed", json={"model": f"{encoder}:latest", "input": ["a cat", "a dog"]}).json()
    for vector, one in zip(told["embeddings"], of_openai["data"], strict=True):
        assert vector == pytest.approx(one["embedding"])
    assert told["prompt_eval_count"] == of_openai["usage"]["prompt_tokens"]
    one = client.post("/api/embeddings", json={"model": encoder, "prompt": "a dog"}).json()
    assert one["embedding"] == pytest.approx(told["embeddings"][1])
    assert client.post("/api/show", json={"model": encoder}).json()["capabilities"] == ["embedding"]
    assert client.post("/api/embed", json={"model": "general", "input": "a cat"}).status_code == 400
    assert "input[1]" in client.post("/api/embed", json={"model": encoder, "input": ["a", ""]}).json()["error"]


def test_curl_needs_no_header_and_errors_are_texts(client: httpx.Client) -> None:
    curl = {"user-agent": "curl/8.5.0", "content-type": "application/x-www-form-urlencoded"}
    whole = client.post("/api/generate", content=b'{"model":"general","prompt":"Hi","stream":false}', headers=curl)
    assert whole.json()["response"]
    unknown = client.post("/api/chat", json={"model": "llama3", "messages": CAPITAL})
    assert (unknown.status_code, "not found" in unknown.json()["error"]) == (404, True)


@pytest.mark.slow
def test_a_port_where_something_listens_stops_the_start_with_a_remedy(tmp_path: Path) -> None:
    roster = write_roster(tmp_path, {"general": {}})
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ended = run_coe("serve", "--roster", str(roster), "--port", "0", "--ollama-port", str(port))
    assert ended.returncode == 1
    said = " ".join((ended.stdout + ended.stderr).split())
    assert "Ollama itself may be running there" in said
    assert "--ollama-port" in said


@pytest.mark.server
def test_one_port_may_be_both(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    roster = write_roster(tmp_path, {"general": {}}, server={"ollama_port": port})
    with ServerProcess(roster, "--port", str(port)) as server:
        assert server.url.endswith(f":{port}")
        assert server.http.get("/").text == "Ollama is running"
        assert server.http.get("/v1/models").status_code == 200
