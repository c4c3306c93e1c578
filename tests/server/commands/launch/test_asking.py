"""What a server says of itself, as a client is told of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from coe.server.commands.launch.asking import LaunchError, ask_server
from coe.server.commands.launch.values import Served

URL = "http://127.0.0.1:8000"


def card(name: str, context: int = 4096, *, tools: bool = True, **coe: Any) -> dict[str, Any]:
    return {
        "id": name,
        "display_name": name.title(),
        "max_model_len": context,
        "capabilities": ["completion", "chat", *(["tools"] if tools else [])],
        "coe": {"available": True, **coe},
    }


AUTO, MATH = card("auto", 16_384), card("math", tools=False)
MATHS = {**MATH, "id": "maths", "root": "math"}
LAW = card("law", available=False, reason="Not downloaded.", remedy="Run: coe pull law")


def ask(*cards: Mapping[str, Any], model: str = "auto", key: str = "", wanted: str = "") -> Served:
    def answer(request: httpx.Request) -> httpx.Response:
        if wanted and request.headers.get("authorization") != f"Bearer {wanted}":
            return httpx.Response(401, json={"error": {"message": "no"}})
        return httpx.Response(200, json={"object": "list", "data": list(cards)})

    return ask_server(URL, key, model, httpx.MockTransport(answer))


def test_the_model_its_context_and_its_tools_are_known() -> None:
    served = ask(AUTO, MATH, MATHS, LAW)
    assert (served.model.name, served.model.context_tokens, served.model.tools) == ("auto", 16_384, True)
    assert [(one.name, one.tools) for one in served.others] == [("math", False)]


def test_auto_is_offered_beside_another_choice() -> None:
    served = ask(MATH, AUTO, card("physics"), model="math")
    assert [one.name for one in served.models] == ["math", "auto", "physics"]


def test_an_alias_may_be_chosen() -> None:
    assert ask(AUTO, MATH, MATHS, model="maths").model.name == "maths"


@pytest.mark.parametrize(
    ("model", "told"),
    [("physics", "no model 'physics'.*Served are: auto, math"), ("law", "Not downloaded.*coe pull law")],
)
def test_another_model_is_refused_with_what_to_do(model: str, told: str) -> None:
    with pytest.raises(LaunchError, match=told):
        ask(AUTO, MATH, MATHS, LAW, model=model)


def test_what_only_completes_is_not_offered() -> None:
    completes = {**card("base"), "capabilities": ["completion"]}
    assert ask(AUTO, completes).others == ()
    with pytest.raises(LaunchError, match=r"base answers no chats.*--model"):
        ask(AUTO, completes, model="base")


def test_a_model_for_embeddings_is_known_and_not_offered_for_chats() -> None:
    embeds = {**card("minilm"), "capabilities": ["embedding", "rerank"]}
    assert ask(AUTO, embeds).embeds
    assert ask(AUTO, embeds).others == ()
    assert not ask(AUTO, MATH).embeds


def test_where_nothing_can_be_served_there_is_nothing_to_launch() -> None:
    with pytest.raises(LaunchError, match="No specialist can be served"):
        ask(card("auto", 0), LAW)


def test_a_key_is_asked_for_by_name() -> None:
    assert ask(AUTO, key="k", wanted="k").key == "k"
    with pytest.raises(LaunchError, match=r"wants a key.*--key.*COE_API_KEYS"):
        ask(AUTO, wanted="k")
    with pytest.raises(LaunchError, match="wants another key"):
        ask(AUTO, key="x", wanted="k")


@pytest.mark.parametrize("key", ["", "x"])
def test_the_key_that_a_server_made_for_itself_is_told_of_where_there_is_one(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(LaunchError) as none:
        ask(AUTO, key=key, wanted="k")
    assert "api-key" not in str(none.value)
    file = tmp_path / "coe/api-key"
    file.parent.mkdir()
    file.write_text("k")
    with pytest.raises(LaunchError, match=re.escape(f"made for itself stands in {file}.")):
        ask(AUTO, key=key, wanted="k")


@pytest.mark.parametrize("key", ["two\nlines", "ключ"])
def test_a_key_that_no_header_can_hold_is_no_crash(key: str) -> None:
    with pytest.raises(LaunchError, match="no key"):
        ask(AUTO, key=key)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"data": [{"id": "gpt"}]}', b'{"data": null}'])
def test_another_server_is_told_from_ours(body: bytes) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=body))
    with pytest.raises(LaunchError, match="another server answers there"):
        ask_server(URL, "", "auto", transport)


def test_where_none_answers_the_remedy_is_to_start_one() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(LaunchError, match="coe serve"):
        ask_server(URL, "", "auto", httpx.MockTransport(refuse))


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(LaunchError, match="no address"):
        ask_server("ftp://x", "", "auto")
