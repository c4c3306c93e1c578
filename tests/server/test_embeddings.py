"""Embeddings and ranks from a running server: by the encoder that is on board, and by models of the roster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from fakes.random_encoder import WIDTH, write_decoder, write_encoder
from fakes.server_process import ServerProcess, run_coe, write_roster
from fakes.weight import brings

ENCODER = "all-MiniLM-L6-v2"
OWN: dict[str, Any] = {"package": None, "pattern": None, "domains": None, "embeddings": True, "parallel": 4}
KEYS = {"COE_API_KEYS": "asking"}
FRANCE, FRUIT = "Paris is the capital of France.", "Bananas are yellow."


@pytest.fixture(scope="module")
def roster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model, two for embeddings, and one of which the roster does not say so."""
    folder = tmp_path_factory.mktemp("embeddings")
    bert, decoder = write_encoder(folder / "bert.gguf"), write_decoder(folder / "qwen3.gguf")
    specialists = {
        "general": {},
        "short": {**OWN, "file": str(bert), "aliases": ["text-embedding-3-large"], "dimensions": [16, 8]},
        "long": {**OWN, "file": str(decoder), "context_tokens": 1024},
        "mistaken": {**OWN, "file": str(bert), "embeddings": False},
    }
    router = {"encoder": "auto", "encoder_aliases": ["text-embedding-3-small"]}
    return write_roster(folder, specialists, router=router)


@pytest.fixture(scope="module")
@brings("server")
def served(roster: Path) -> Iterator[ServerProcess]:
    """A server of that roster, with keys."""
    with ServerProcess(roster, env=KEYS) as server:
        server.http.headers["authorization"] = "Bearer asking"
        yield server


@pytest.fixture
def client(served: ServerProcess) -> openai.OpenAI:
    return served.openai(api_key="asking")


def post(server: ServerProcess, path: str, **body: Any) -> httpx.Response:
    return server.http.post(path, json=body)


def vectors(answer: Any) -> np.ndarray[Any, Any]:
    return np.array([one.embedding for one in answer.data])


@pytest.mark.parametrize(("model", "width"), [(ENCODER, 384), ("short", WIDTH), ("long", WIDTH)])
def test_the_openai_package_reads_floats_and_base64_alike(client: openai.OpenAI, model: str, width: int) -> None:
    texts = ["red rose", "the sky is blue", "grass"]
    plain = client.embeddings.create(model=model, input=texts, encoding_format="float")
    packed = client.embeddings.create(model=model, input=texts)  # the package asks for base64, and decodes it
    assert vectors(plain).shape == (3, width)
    assert np.allclose(np.linalg.norm(vectors(plain), axis=1), 1, atol=1e-5)
    assert np.abs(vectors(plain) - vectors(packed)).max() < 1e-6
    assert plain.model == model
    assert plain.usage.prompt_tokens == plain.usage.total_tokens > 3
    one = client.embeddings.create(model=model, input=texts[1], encoding_format="float")
    assert np.abs(vectors(one)[0] - vectors(plain)[1]).max() < 2e-3, "whatever it is asked with"


def test_a_client_may_ask_for_base64_itself(served: ServerProcess) -> None:
    (one,) = post(served, "/v1/embeddings", input="red", model="short", encoding_format="base64").json()["data"]
    assert isinstance(one["embedding"], str)


def test_aliases_name_models_and_the_encoder_and_auto_is_the_rosters_first(client: openai.OpenAI) -> None:
    def asked(model: str) -> str:
        return client.embeddings.create(model=model, input="red").model

    assert asked("text-embedding-3-large") == "short"
    assert asked("text-embedding-3-small") == ENCODER
    assert asked("auto") == "short"


def test_a_batch_of_many_frames_comes_back_in_order(client: openai.OpenAI) -> None:
    texts = [f"{'red ' * (index % 7)}rose {index}" for index in range(150)]
    found = vectors(client.embeddings.create(model="short", input=texts))
    picked = vectors(client.embeddings.create(model="short", input=[texts[70], texts[149]]))
    assert np.abs(found[[70, 149]] - picked).max() < 2e-3


def test_vectors_are_shortened_where_the_roster_says_that_they_may_be(served: ServerProcess) -> None:
    def embedded(**fields: Any) -> Any:
        return np.array(post(served, "/v1/embeddings", input="red", **fields).json()["data"][0]["embedding"])

    whole, half = embedded(model="short"), embedded(model="short", dimensions=16)
    assert np.allclose(half, whole[:16] / np.linalg.norm(whole[:16]), atol=1e-5)
    assert len(embedded(model="short", dimensions=WIDTH)) == WIDTH
    assert len(embedded(model=ENCODER, dimensions=384)) == 384
    for model, dimensions in (("short", 12), ("short", 64), ("long", 16), (ENCODER, 128)):
        reply = post(served, "/v1/embeddings", input="red", model=model, dimensions=dimensions)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "dimensions"), reply.text


@pytest.mark.parametrize(("model", "most"), [(ENCODER, 512), ("short", 64), ("long", 1024)])
def test_a_text_too_long_is_refused_by_its_place_or_cut_with_a_note(
    served: ServerProcess, model: str, most: int
) -> None:
    texts = ["red", "red " * 2000]
    reply = post(served, "/v1/embeddings", input=texts, model=model)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (400, "input[1]", "context_length_exceeded")
    assert f"maximum context length is {most} tokens" in error["message"]
    cut = post(served, "/v1/embeddings", input=texts, model=model, truncate=True)
    assert cut.status_code == 200, cut.text
    assert cut.headers["x-coe-note"] == "the end was left out of input[1]"
    assert cut.headers["x-coe-specialist"] == model
    one = post(served, "/v1/embeddings", input="red", model=model)
    assert cut.json()["usage"]["prompt_tokens"] == most + one.json()["usage"]["prompt_tokens"]
    assert "x-coe-note" not in one.headers


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"input": []}, 400, "input"),
        ({"input": ["red", ""]}, 400, "input[1]"),
        ({"input": [[1, 2, 3]]}, 400, "input"),
        ({"input": "red", "encoding_format": "int8"}, 400, "encoding_format"),
        ({"input": "red", "model": "nobody"}, 404, "model"),
        ({"input": "red", "model": "general"}, 400, "model"),
        ({"input": "red", "model": "mistaken"}, 400, "model"),
    ],
)
def test_bad_input_is_refused_by_its_field(served: ServerProcess, body: Any, status: int, param: str) -> None:
    reply = post(served, "/v1/embeddings", **body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (status, param), reply.text


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize"])
@pytest.mark.parametrize("model", ["short", "text-embedding-3-large", ENCODER, "text-embedding-3-small"])
def test_what_embeds_answers_no_chats(served: ServerProcess, path: str, model: str) -> None:
    asked: dict[str, Any] = {"prompt": "Hi"}
    if path == "/v1/chat/completions":
        asked = {"messages": [{"role": "user", "content": "Hi"}]}
    reply = post(served, path, model=model, **asked)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "model"), reply.text
    assert "/v1/embeddings" in reply.json()["error"]["message"]


def test_an_encoder_without_embeddings_true_says_what_to_write(served: ServerProcess) -> None:
    reply = served.chat(model="mistaken")
    assert reply.status_code == 503
    assert "embeddings: true" in reply.json()["error"]["message"]


def test_auto_is_never_sent_there(served: ServerProcess) -> None:
    assert served.chat(model="auto").headers["x-coe-specialist"] == "general"


def test_models_are_listed_with_what_they_give(served: ServerProcess) -> None:
    cards = {card["id"]: card for card in served.http.get("/v1/models").json()["data"]}
    for name in ("short", "long", ENCODER, "text-embedding-3-small"):
        assert cards[name]["capabilities"] == ["embedding", "rerank"]
        assert served.http.get(f"/v1/models/{name}").json()["id"] == name
    assert cards["text-embedding-3-small"]["root"] == ENCODER
    assert (cards["short"]["context_length"], cards["short"]["coe"]["dimensions"]) == (64, WIDTH)
    assert cards["long"]["context_length"] == 1024
    assert cards["short"]["coe"]["chats"] is False
    assert "embedding" not in cards["auto"]["capabilities"]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_documents_are_ranked_by_their_nearness_to_the_query(served: ServerProcess, path: str) -> None:
    documents = [FRUIT, {"text": FRANCE}, "Lyon is a city in France."]
    asked = {"model": ENCODER, "query": "What is the capital of France?", "documents": documents}
    reply = post(served, path, **asked, return_documents=True)
    assert reply.status_code == 200, reply.text
    ranked = reply.json()
    assert [one["index"] for one in ranked["results"]] == [1, 2, 0]
    scores = [one["relevance_score"] for one in ranked["results"]]
    assert 1 >= scores[0] > scores[1] > scores[2] >= 0
    assert ranked["results"][0]["document"] == {"text": FRANCE}
    assert ranked["usage"]["total_tokens"] > 20
    (best,) = post(served, path, **asked, top_n=1).json()["results"]
    assert set(best) == {"index", "relevance_score"}


def test_a_model_of_the_roster_ranks_and_texts_come_back_as_a_list(served: ServerProcess) -> None:
    ranked = post(served, "/rerank", query="red rose", texts=["green grass", "red rose"], return_text=True).json()
    assert [one["index"] for one in ranked] == [1, 0]
    assert ranked[0]["text"] == "red rose"
    assert ranked[0]["score"] == pytest.approx(1, abs=1e-3)


def test_a_key_for_asking_asks_and_none_does_not(served: ServerProcess) -> None:
    for path in ("/v1/embeddings", "/v1/rerank"):
        body = {"input": "red", "query": "red", "documents": ["red"]}
        assert httpx.post(served.url + path, json=body, timeout=60).status_code == 401
        assert post(served, path, **body).status_code == 200
        refused = served.http.get(path)
        assert (refused.status_code, "POST" in refused.headers["allow"]) == (405, True)


def test_the_ledger_has_their_workers(served: ServerProcess) -> None:
    assert post(served, "/v1/embeddings", input="red", model="long").status_code == 200
    residents = served.http.get("/v1/pool").json()["residents"]
    booked = {name: one for one in residents for name in one["specialists"]}
    assert booked["long"]["vram_bytes"] > 0
    assert served.metric("coe_prompt_tokens_total", specialist="long") > 0
    assert post(served, "/v1/pool/unload", model="long").status_code == 403, "a key for asking"


def test_many_clients_at_once_have_each_their_own(served: ServerProcess) -> None:
    def ask(index: int) -> Any:
        model = ("short", "long", ENCODER)[index % 3]
        reply = post(served, "/v1/embeddings", input=[f"red {index}"] * 5, model=model)
        return np.array([one["embedding"] for one in reply.json()["data"]])

    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(ask, range(12)))
    for index in (0, 1, 2, 11):
        assert np.abs(together[index] - ask(index)).max() < 2e-3


def test_without_anything_that_embeds_the_remedy_is_named(college: ServerProcess) -> None:
    reply = college.http.post("/v1/embeddings", json={"input": "red"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "specialist_unavailable")
    assert "router.encoder: auto" in reply.json()["error"]["message"]
    named = college.http.post("/v1/rerank", json={"query": "a", "documents": ["b"], "model": "general"})
    assert (named.status_code, named.json()["error"]["param"]) == (400, "model")
    assert ENCODER not in json.dumps(college.http.get("/v1/models").json())


def test_check_says_what_they_give(served: ServerProcess, roster: Path) -> None:
    report = run_coe("check", str(roster)).stdout
    assert f"embeddings: short: {WIDTH} dimensions, texts of up to 64 tokens" in report
    assert "Write embeddings: true in its entry" in report
