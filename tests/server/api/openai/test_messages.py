"""Messages with calls of tools and their results, in all the ways that clients write them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from coe.server.api.openai import messages as messages_of
from coe.server.runtime.errors import RequestError

ASK = {"role": "user", "content": "What is the weather?"}


def call(arguments: Any = "{}", *, name: str = "weather", **more: Any) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def said(*calls: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls), **more}


def result(id_: Any = "c1", content: Any = "sunny", **more: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id_, "content": content, **more}


def read_messages(messages: list[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """A conversation read. Its last calls get results, without which it would be refused, and which are left out."""
    last = messages[-1]
    calls = last.get("tool_calls") or ([last["function_call"]] if last.get("function_call") else [])
    n_calls = len(calls) if isinstance(calls, list) else 0
    found = messages_of.read_messages([*messages, *(result(None) for _ in range(n_calls))])
    return found[: len(found) - n_calls]


def arguments_of(written: Any) -> Any:
    return read_messages([ASK, said(call(written))])[1]["tool_calls"][0]["arguments"]


def test_a_call_and_its_result_come_as_the_engine_has_them() -> None:
    _, calls, results = read_messages([ASK, said(call('{"city": "Rome"}')), result()])
    assert calls == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "c1", "name": "weather", "arguments": {"city": "Rome"}}],
    }
    assert results == {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "sunny"}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('{"a": [1, {"b": null}]}', {"a": [1, {"b": None}]}),
        ({"a": 1}, {"a": 1}),
        ("", {}),
        ("  ", {}),
        (None, {}),
        ("null", {}),
        ("{}", {}),
        (json.dumps(json.dumps({"a": "é"})), {"a": "é"}),
        ('{"big": 123456789012345678901234567890}', {"big": 123456789012345678901234567890}),
    ],
)
def test_arguments_are_an_object_however_they_are_written(written: Any, read: Any) -> None:
    assert arguments_of(written) == read


@pytest.mark.parametrize(
    "written",
    [
        '{"city": "Ro', "Rome", "[1, 2]", "5", '"Rome"', "{'city': 'Rome'}", '{"a": "\\ud800"}', '{"a": "\\u0000"}',
        "[" * 5000, '{"a":' * 5000, '{"a": ' + "9" * 5000 + "}", '{"a": 1}, "b": {}', '"\\ud800"', [1, 2], 5,
    ],
    ids=lambda written: str(written)[:20],
)  # fmt: skip
def test_arguments_that_a_model_got_wrong_keep_their_text_and_end_no_conversation(written: Any) -> None:
    assert arguments_of(written) == {"arguments": written}


def test_more_values_than_a_body_may_have_are_refused_in_texts_too() -> None:
    many = json.dumps({"a": [0] * 30_000})
    with pytest.raises(RequestError, match="50,000 values") as refusal:
        read_messages([ASK, said(call(many), call(many))])
    assert refusal.value.param == "messages"
    commas = json.dumps({"text": "," * 400_000})
    assert read_messages([ASK, said(call(commas))])


@pytest.mark.parametrize("content", [None, "", [], [{"type": "text", "text": ""}]])
def test_a_call_needs_no_text_beside_it(content: Any) -> None:
    assert read_messages([said(call(), content=content)])[0]["content"] == ""
    without = said(call())
    del without["content"]
    assert read_messages([without])[0]["content"] == ""


@pytest.mark.parametrize("calls", [None, []])
def test_no_calls_are_a_plain_answer(calls: Any) -> None:
    assert read_messages([{"role": "assistant", "content": "Hi", "tool_calls": calls}]) == (
        {"role": "assistant", "content": "Hi"},
    )


def test_a_result_is_text_or_parts_of_it() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert read_messages([said(call()), result(content=parts)])[1]["content"] == "a\nb"
    assert read_messages([said(call()), result(content=None)])[1]["content"] == ""


def test_results_come_in_the_order_of_their_calls_whatever_order_they_were_sent_in() -> None:
    calls = said(call(id="a"), call(id="b"), call(name="now", id="c"))
    *_, first, second, third = read_messages([ASK, calls, result("c", "12"), result("b", "rain"), result("a", "sun")])
    assert [(r["tool_call_id"], r["content"]) for r in (first, second, third)] == [
        ("a", "sun"),
        ("b", "rain"),
        ("c", "12"),
    ]
    assert [first["name"], third["name"]] == ["weather", "now"]


def test_a_call_without_a_result_does_not_get_that_of_the_next() -> None:
    calls = said(call(id="a"), call(id="b"), call(id="c"))
    _, _, first, second = read_messages([ASK, calls, result("b", "rain")])
    assert [(r["tool_call_id"], r["content"]) for r in (first, second)] == [("a", ""), ("b", "rain")]


@pytest.mark.parametrize("id_", ["invented", None, "", 7])
def test_a_result_with_an_id_of_its_own_belongs_to_the_call_that_waits(id_: Any) -> None:
    calls = said(call(id="a"), call(name="now", id="b"))
    *_, first, second = read_messages([ASK, calls, result(id_), result(id_)])
    assert [(r["name"], r["tool_call_id"]) for r in (first, second)] == [("weather", "a"), ("now", "b")]


def test_a_result_with_a_name_alone_belongs_to_the_call_of_that_name() -> None:
    calls = said(call(id="a"), call(name="now", id="b"))
    message = {"role": "tool", "name": "now", "content": "12:00"}
    assert read_messages([calls, message])[-1] == {**message, "tool_call_id": "b"}


def test_a_result_without_a_call_is_still_one() -> None:
    for message in (result("x"), {"role": "tool", "content": "sunny"}):
        (found,) = read_messages([message])
        assert found["content"] == "sunny"
        assert found["tool_call_id"]
        assert found["name"] == "unknown"
    assert read_messages([result("x", name="now")])[0]["name"] == "now"


def test_a_result_that_comes_twice_keeps_its_call() -> None:
    *_, again = read_messages([said(call(id="a"), call(name="now", id="b")), result("a"), result("a")])
    assert (again["name"], again["tool_call_id"]) == ("weather", "a")


def test_calls_without_ids_have_the_same_at_every_turn() -> None:
    calls = said(call(id=None), call(id=None), {"function": {"name": "now"}})
    first = read_messages([ASK, calls, result(None)])
    later = read_messages([ASK, calls, result(None), result(None), result(None), said(call(id=None))])
    assert later[: len(first)] == first
    ids = [c["id"] for message in later for c in message.get("tool_calls", ())]
    assert len(set(ids)) == 4


def test_an_id_that_is_a_number_is_taken_as_text() -> None:
    calls, answer = read_messages([said(call(id=17)), result(17)])
    assert calls["tool_calls"][0]["id"] == answer["tool_call_id"] == "17"


def test_functions_are_the_same_in_older_words() -> None:
    older = [
        ASK,
        {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": '{"city": "Rome"}'}},
        {"role": "function", "name": "weather", "content": "sunny"},
    ]
    newer = read_messages([ASK, said(call('{"city": "Rome"}', id="call_0")), result("call_0")])
    assert read_messages(older) == newer


def test_a_custom_tools_call_has_its_input() -> None:
    custom = {"id": "c", "type": "custom", "custom": {"name": "run", "input": "ls"}}
    (found,) = read_messages([said(custom)])
    assert found["tool_calls"] == [{"id": "c", "name": "run", "arguments": {"input": "ls"}}]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "assistant", "tool_calls": "x"}, "messages[1].tool_calls"),
        ({"role": "assistant", "tool_calls": [{}] * 1001}, "messages[1].tool_calls"),
        ({"role": "assistant", "tool_calls": [5]}, "messages[1].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [{"id": "x"}]}, "messages[1].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": ""}}]}, "messages[1].tool_calls[0]"),
        ({"role": "assistant", "function_call": "f"}, "messages[1].function_call"),
        (result(content=5), "messages[1].content"),
        (result(content=[{"type": "image_url"}]), "messages[1].content[0]"),
        ({"role": "critic", "content": "x"}, "messages[1].role"),
        ({"role": "user", "content": None}, "messages[1].content"),
    ],
)
def test_what_is_no_message_is_refused_by_its_place(message: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refusal:
        read_messages([ASK, message])
    assert refusal.value.param == param


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_thinking_is_kept_between_the_calls_of_a_turn_and_dropped_after_it(name: str) -> None:
    turn = [ASK, said(call(), **{name: "Look it up."}), result(), said(call(id="c2"), **{name: "Once more."})]
    assert [m.get("reasoning") for m in read_messages(turn)] == [None, "Look it up.", None, "Once more."]
    over = [*turn, result("c2"), {"role": "assistant", "content": "Sunny.", name: "Done."}]
    assert read_messages(over)[-1] == {"role": "assistant", "content": "Sunny."}
    assert not any("reasoning" in message for message in read_messages([*over, ASK]))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e400"])
def test_arguments_with_numbers_that_are_none_keep_their_text(number: str) -> None:
    written = f'{{"a": {number}}}'
    assert arguments_of(written) == {"arguments": written}
