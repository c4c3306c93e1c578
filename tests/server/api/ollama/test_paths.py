"""Ollama's paths under the application: the dialects, loading and unloading, errors, the root of its port."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, cast

import pytest

from coe.engine.errors import UnavailableError
from coe.engine.request import Accepted, Delta, Finish, Finished
from coe.server.api.app import make_app
from coe.server.api.keys import Keys
from coe.server.runtime.college import College
from fakes.asgi import Client, until
from fakes.college import SAID, FakeLease, ServedCollege, asking, post
from fakes.listed_college import Listed, answered

USER = [{"role": "user", "content": "Hi"}]
STREAMED = [Accepted("", 5), Delta("", "Hel"), Delta("", "lo"), Finished("", Finish.STOP, 5, 0, 2)]
KEYS = Keys(frozenset({"chat-key"}), frozenset({"admin-key"}))


# --- the dialects ---------------------------------------------------------------------------------------------


async def test_a_chat_streams_by_itself() -> None:
    status, headers, told = await answered(
        ServedCollege([FakeLease([STREAMED], "math")]), "/api/chat", {"messages": USER}
    )
    assert (status, headers["x-coe-specialist"]) == (200, "math")
    assert [line["message"]["content"] for line in told] == ["Hel", "lo", ""]
    assert told[-1]["done"] is True


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_whole_answers(path: str) -> None:
    lease = FakeLease([SAID], "math")
    _, headers, told = await answered(
        ServedCollege([lease]),
        path,
        {"messages": USER if path == "/api/chat" else None, "prompt": "Hi", "stream": False},
    )
    assert headers["content-type"] == "application/json"
    assert "Hello" in (told.get("response"), told.get("message", {}).get("content"))
    assert lease.requests[0].messages == USER


async def test_a_late_lease_keeps_the_stream_alive_without_a_line_of_its_own() -> None:
    late = asyncio.Event()

    class Late(ServedCollege):
        async def lease(self, *asked: Any) -> FakeLease:
            await late.wait()
            return await super().lease(*asked)

    client = asking({"messages": USER})
    running = asyncio.create_task(post(Late([FakeLease([STREAMED], "math")], first_byte_s=0.001), client, "/api/chat"))
    await until(lambda: client.body == b" ")
    late.set()
    await running
    assert [json.loads(line)["done"] for line in client.body.splitlines()] == [False, False, True]


async def test_a_refusal_has_its_code_in_the_journal(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "coe.journal")
    await answered(ServedCollege([]), "/api/chat", {"model": "AUTO:latest", "messages": USER, "think": "often"})
    assert any(
        line.startswith("refused POST /api/chat with 400 invalid_request_error: model auto") for line in caplog.messages
    )


async def test_an_error_after_the_first_line_is_the_last_line() -> None:
    broken = FakeLease([[Accepted("", 5), Delta("", "Hel"), RuntimeError("a secret")]], "math")
    status, _, told = await answered(ServedCollege([broken]), "/api/generate", {"prompt": "Hi"})
    assert status == 200
    assert told[-1].keys() == {"error"}
    assert "secret" not in str(told)


async def test_an_error_before_it_has_its_status() -> None:
    lease = FakeLease([[UnavailableError("Not now.")]], "math")
    status, headers, told = await answered(ServedCollege([lease]), "/api/chat", {"messages": USER})
    assert (status, headers["content-type"]) == (503, "application/json")
    assert told == {"error": "Not now."}


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [("/api/chat", "GET", 405), ("/api/chta", "POST", 404), ("/api/tags", "POST", 405), ("/api", "GET", 404),
     ("/api/blobs/sha256:ab", "HEAD", 404), ("/api/show", "POST", 400)],
)  # fmt: skip
async def test_errors_below_api_are_texts(path: str, method: str, status: int) -> None:
    client = asking({})
    await post(ServedCollege([]), client, path, method=method)
    assert client.got[0]["status"] == status
    if method != "HEAD":
        assert isinstance(json.loads(client.body)["error"], str)


async def test_where_others_have_openais_api_its_errors_stay_openais() -> None:
    _, _, told = await answered(ServedCollege([]), "/api/v1/chat/completions", {})
    assert told["error"]["code"] == "unknown_url"
    assert "POST /v1/chat/completions" in told["error"]["message"]


# --- loading and unloading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_a_body_without_text_loads_the_model(path: str) -> None:
    lease = FakeLease([], "math", residency="loaded")
    college = Listed([lease])
    status, headers, told = await answered(college, path, {"model": "math:latest"})
    assert (status, told["done"], told["done_reason"], told["model"]) == (200, True, "load", "math:latest")
    assert headers["content-type"] == "application/json", "though a stream was wanted"
    assert headers["x-coe-residency"] == "loaded"
    assert (college.asked, bool(lease.releases)) == (["math"], True)


async def test_what_cannot_be_loaded_says_why() -> None:
    status, _, told = await answered(Listed(), "/api/generate", {"model": "gone"})
    assert (status, told) == (503, {"error": "gone cannot be served."})


async def test_keep_alive_0_unloads() -> None:
    college = Listed()
    _, headers, told = await answered(college, "/api/generate", {"model": "Math", "keep_alive": 0, "prompt": ""})
    assert (told["done_reason"], told["response"]) == ("unload", "")
    assert college.unloaded == ["math"]
    assert "x-coe-note" not in headers
    _, headers, _ = await answered(college, "/api/chat", {"model": "law", "keep_alive": "0s", "messages": []})
    assert "stays" in headers["x-coe-note"], "it is busy"


@pytest.mark.parametrize(("model", "status"), [("auto", 400), ("all-minilm", 400), ("nobody", 404)])
async def test_what_cannot_be_unloaded(model: str, status: int) -> None:
    college = Listed()
    got, _, told = await answered(college, "/api/generate", {"model": model, "keep_alive": 0})
    assert (got, isinstance(told["error"], str), college.unloaded) == (status, True, [])


async def test_unloading_wants_a_key_for_administering_and_loading_does_not(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "coe.journal")
    college = Listed([FakeLease([], "math")])
    unload = {"model": "math", "keep_alive": 0}
    status, _, told = await answered(college, "/api/generate", unload, keys=KEYS, key="chat-key")
    assert (status, college.unloaded) == (403, [])
    assert "administering" in told["error"]
    assert (await answered(college, "/api/generate", {"model": "math"}, keys=KEYS, key="chat-key"))[0] == 200
    caplog.clear()
    assert (await answered(college, "/api/generate", unload, keys=KEYS, key="admin-key"))[0] == 200
    assert college.unloaded == ["math"]
    assert any(line.startswith("administration: POST /api/generate of math") for line in caplog.messages)


@pytest.mark.parametrize("path", ["/api/show", "/api/embed", "/api/pull", "/api/tags", "/api/ps", "/api/version"])
async def test_what_changes_nothing_takes_a_key_for_asking_and_wants_one(path: str, tmp_path: Path) -> None:
    method = "GET" if path in ("/api/tags", "/api/ps", "/api/version") else "POST"
    body = {"model": "math"}
    status, _, _ = await answered(Listed(folder=tmp_path), path, body, keys=KEYS, key="chat-key", method=method)
    assert status == 200
    status, _, told = await answered(Listed(folder=tmp_path), path, body, keys=KEYS, method=method)
    assert (status, isinstance(told["error"], str)) == (401, True)


# --- the root -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("port", "kind"), [(11434, "text/plain; charset=utf-8"), (8000, "application/json")])
async def test_the_root_of_ollamas_port_says_what_its_clients_look_for(port: int, kind: str) -> None:
    client = Client()
    app = make_app(cast(College, ServedCollege([])), ollama_port=11434)
    scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": "/", "query_string": b"", "headers": []}
    await app({**scope, "server": ("127.0.0.1", port)}, client.receive, client.send)
    assert dict(client.got[0]["headers"])[b"content-type"].decode() == kind
    assert (client.body == b"Ollama is running") == (port == 11434)


@pytest.mark.parametrize(("port", "is_text"), [(11434, True), (8000, False)])
async def test_errors_at_ollamas_port_are_in_its_words_at_paths_that_are_nobodys(port: int, is_text: bool) -> None:
    client = Client()
    app = make_app(cast(College, ServedCollege([])), ollama_port=11434)
    scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": "/foo", "query_string": b"", "headers": []}
    await app({**scope, "server": ("127.0.0.1", port)}, client.receive, client.send)
    assert client.got[0]["status"] == 404
    assert isinstance(json.loads(client.body)["error"], str) == is_text
