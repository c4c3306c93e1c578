"""Ollama's bodies become the internal request."""

from __future__ import annotations

from typing import Any

import pytest

from coe.server.api.ollama.requests import parse_chat, parse_generate
from coe.server.runtime.errors import RequestError
from coe.server.runtime.request import Request

USER = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {}}}}}


def chat(**fields: Any) -> Request:
    return parse_chat({"model": "math", "messages": USER, **fields}).request


def generate(**fields: Any) -> Request:
    return parse_generate({"model": "math", "prompt": "Hi", **fields}).request


def refused(parse: Any, **fields: Any) -> RequestError:
    with pytest.raises(RequestError) as refusal:
        parse(**fields)
    return refusal.value


@pytest.mark.parametrize("ask", [chat, generate])
def test_streams_are_what_comes_unless_told_otherwise(ask: Any) -> None:
    assert ask().stream
    assert ask(stream=None).stream
    assert not ask(stream=False).stream


def test_what_the_official_client_sends_with_each_chat_asks_for_nothing() -> None:
    plain = chat(stream=False)
    assert chat(stream=False, tools=[], options={}, format="", keep_alive=None, think=None) == plain
    assert chat(stream=False, messages=[{**USER[0], "images": [], "tool_calls": None, "thinking": None}]) == plain


@pytest.mark.parametrize(
    ("written", "model"),
    [("math", "math"), ("AUTO", "auto"), ("auto:latest", "auto"), ("org/math:7b", "org/math:7b"), (None, "auto")],
)
def test_names(written: str | None, model: str) -> None:
    parsed = parse_chat({"model": written, "messages": USER})
    assert (parsed.request.model, parsed.name) == (model, written or "auto")


@pytest.mark.parametrize(
    ("think", "wish"), [(True, True), (False, False), (None, None), ("low", True), ("max", True), ("none", False)]
)
def test_think(think: Any, wish: bool | None) -> None:
    assert chat(think=think).wants_thinking is wish
    assert generate(think=think).wants_thinking is wish


def test_format() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert chat(format="json").response_format == {"type": "json_object"}
    assert chat(format=schema).response_format == {"type": "json_schema", "json_schema": {"schema": schema}}
    assert chat(format="").response_format is None


def test_tools_and_a_conversation_with_them() -> None:
    request = chat(
        tools=[TOOL],
        messages=[
            *USER,
            {
                "role": "assistant",
                "content": "",
                "thinking": "Two calls.",
                "tool_calls": [
                    {"function": {"name": "add", "arguments": {"a": 1}}},
                    {"id": "theirs", "function": {"name": "sub", "arguments": '{"a": 2}'}},
                ],
            },
            {"role": "tool", "tool_name": "sub", "content": "0"},
            {"role": "TOOL", "content": "3"},
        ],
    )
    assert [tool.name for tool in request.tools] == ["add"]
    assert request.messages is not None
    said, first, second = request.messages[1:]  # in the order of their calls
    assert said["reasoning"] == "Two calls."
    assert [(call["name"], call["arguments"]) for call in said["tool_calls"]] == [("add", {"a": 1}), ("sub", {"a": 2})]
    assert (second["tool_call_id"], second["name"]) == ("theirs", "sub")
    assert (first["tool_call_id"], first["name"]) == (said["tool_calls"][0]["id"], "add")


def test_logprobs() -> None:
    assert chat().top_logprobs is None
    assert chat(top_logprobs=3).top_logprobs is None
    assert generate(logprobs=True).top_logprobs == 0
    assert generate(logprobs=True, top_logprobs=3).top_logprobs == 3


def test_a_prompt_goes_through_the_chat_template_unless_it_is_raw() -> None:
    assert generate(system="Be brief.").messages == ({"role": "system", "content": "Be brief."}, *USER)
    assert generate().messages == tuple(USER)
    raw = generate(raw=True, template="", context=[], suffix="", images=[])
    assert (raw.messages, raw.prompt) == (None, "Hi")


@pytest.mark.parametrize(
    ("body", "instead"),
    [
        ({}, "load"),
        ({"messages": [], "prompt": "", "keep_alive": "10m"}, "load"),
        ({"messages": [], "prompt": "", "keep_alive": 0}, "unload"),
        ({"messages": [], "prompt": "", "keep_alive": "0s"}, "unload"),
        ({"messages": USER, "prompt": "", "keep_alive": 0}, None),
    ],
)
def test_without_a_message_or_a_prompt_the_model_is_loaded_or_unloaded(
    body: dict[str, Any], instead: str | None
) -> None:
    assert parse_chat(body).instead == instead
    if instead:
        assert parse_generate(body | {"messages": None}).instead == instead


def test_a_keep_alive_that_ends_with_the_answer_is_noted_and_any_other_is_the_pools_matter() -> None:
    assert any("keep_alive" in note for note in chat(keep_alive=0).notes)
    for other in (-1, 300, "5m", "-1", "1h30m"):
        assert chat(keep_alive=other).notes == ()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"model": 3}, "model"),
        ({"stream": "yes"}, "stream"),
        ({"think": "often"}, "think"),
        ({"think": 1}, "think"),
        ({"format": "xml"}, "format"),
        ({"format": ["json"]}, "format"),
        ({"keep_alive": "soon"}, "keep_alive"),
        ({"options": []}, "options"),
        ({"options": {"temperature": "hot"}}, "options.temperature"),
        ({"options": {"top_k": 1.5}}, "options.top_k"),
        ({"options": {"stop": [1]}}, "options.stop"),
        ({"options": {f"o{i}": 1 for i in range(101)}}, "options"),
        ({"logprobs": "all"}, "logprobs"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": None, "prompt": "Hi"}, "prompt"),
        ({"messages": [{"role": "king", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "", "images": ["aGk="]}]}, "messages[0].images"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"name": "f"}]}]}, "messages[0].tool_calls[0]"),
        ({"messages": [{"role": "assistant", "tool_calls": "f()"}]}, "messages[0].tool_calls"),
        ({"tools": [{"type": "function", "function": {"name": "no name"}}]}, "tools[0].function.name"),
    ],
)
def test_a_wrong_chat_is_refused_by_the_name_of_its_field(fields: dict[str, Any], param: str) -> None:
    error = refused(chat, **fields)
    assert error.status == 400
    assert error.param == param
    assert param in error.message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ["Hi"]}, "prompt"),
        ({"messages": USER}, "messages"),
        ({"images": ["aGk="]}, "images"),
        ({"suffix": "the end", "system": "Be brief."}, "system"),
        ({"template": "{{ .Prompt }}"}, "template"),
        ({"context": [1, 2]}, "context"),
        ({"raw": True, "system": "Be brief."}, "system"),
        ({"raw": "yes"}, "raw"),
    ],
)
def test_what_a_prompt_cannot_have_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = refused(generate, **fields)
    assert error.param == param
    assert param in error.message


def test_a_suffix_makes_a_gap_to_be_filled() -> None:
    request = generate(prompt="def f(", suffix="): pass")
    assert (request.prompt, request.suffix, request.messages) == ("def f(", "): pass", None)
    assert parse_generate({"model": "math", "prompt": "", "suffix": "tail"}).instead is None


def test_fields_of_other_apis_are_noted() -> None:
    notes = " ".join(chat(max_tokens=3, stop=["a"], response_format={"type": "json_object"}, n=None).notes)
    assert all(said in notes for said in ("max_tokens", "options.num_predict", "options.stop", "write format"))
    assert "tools were left out" in " ".join(generate(tools=[TOOL]).notes)
    assert chat(stop=[], tools=[]).notes == ()
