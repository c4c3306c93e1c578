"""Histories: what dialects tell of, what the runtime has of it. Messages of chats are tested beside OpenAI's."""

from __future__ import annotations

import pytest

from coe.server.api.common.history import History
from coe.server.api.common.text import text_of
from coe.server.runtime.errors import RequestError


def test_a_result_finds_its_call_by_id_by_name_or_by_order() -> None:
    history = History("input")
    history.say("user", "go")
    history.answer(
        "", [history.call("a", "one", "{}"), history.call(None, "two", None), history.call("c", "three", "")]
    )
    history.result("c", None, "3")
    history.result(None, "two", "2")
    history.result("unheard-of", None, "1")
    results = [(m["tool_call_id"], m["name"], m["content"]) for m in history.read()[2:]]
    assert results == [("a", "one", "1"), ("call_1", "two", "2"), ("c", "three", "3")]


def test_reasoning_is_kept_within_the_turn_alone() -> None:
    history = History("input")
    for turn in ("first", "second"):
        history.say("user", turn)
        history.answer("", [history.call(turn, "look", "{}")], reasoning=f"thoughts of the {turn}")
        history.result(turn, None, "seen")
    assert [m.get("reasoning") for m in history.read() if m["role"] == "assistant"] == [None, "thoughts of the second"]


def test_too_many_values_name_the_field_of_the_dialect() -> None:
    history = History("input")
    many = '{"a": [' + "0," * 49_000 + "0]}"
    history.call(None, "f", many)
    with pytest.raises(RequestError, match="in input have more than") as refusal:
        history.call(None, "f", many)
    assert refusal.value.param == "input"


def test_a_dialect_says_what_its_parts_are_called() -> None:
    parts = {"input_text": "text", "output_text": "text"}
    content = [{"type": "input_text", "text": "a"}, {"type": "output_text", "text": "b"}]
    assert text_of(content, "input[0].content", optional=False, parts=parts) == "a\nb"
    with pytest.raises(RequestError, match="input_text"):
        text_of([{"type": "text", "text": "a"}], "input[0].content", optional=False, parts=parts)
