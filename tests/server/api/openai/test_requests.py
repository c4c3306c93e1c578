"""The OpenAI dialect: wire bodies in, one internal request out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe.server.api.body import parse_json
from coe.server.api.openai.requests import Parsed, parse_chat, parse_completion
from coe.server.runtime.errors import RequestError
from coe.server.runtime.request import Request, with_system_prompt

HELLO = [{"role": "user", "content": "Hello"}]


def asked(**fields: Any) -> Request:
    return parse_chat({"messages": HELLO, **fields}).request


def test_what_a_client_does_not_say_stays_open() -> None:
    found = asked()
    assert found.model == "auto"
    assert found.max_tokens is None
    assert found.seed is None
    assert found.overrides == {}
    assert found.n == 1
    assert not found.stream
    assert found.top_logprobs is None
    assert found.wants_thinking is None


def test_only_the_sampling_that_a_client_sets_overrides() -> None:
    assert asked(temperature=0, top_k=None, min_p=0.1).overrides == {"temperature": 0, "min_p": 0.1}


def test_both_names_of_the_repeat_penalty_are_known_and_ours_goes_first() -> None:
    assert asked(repetition_penalty=1.1).overrides == {"repeat_penalty": 1.1}
    assert asked(repetition_penalty=1.1, repeat_penalty=1.2).overrides == {"repeat_penalty": 1.2}


def test_stop_is_one_text_or_several_and_empty_ones_stop_nothing() -> None:
    assert asked(stop="END").stop == ("END",)
    assert asked(stop=["a", "", "b"]).stop == ("a", "b")
    assert asked(stop=None).stop == ()


@pytest.mark.parametrize(
    ("asked", "found"),
    [(None, None), (True, None), ("normal", None), (False, False), ("strict", "strict"), ("patient", "patient")],
)
def test_chats_and_completions_say_how_patient_the_loop_guard_is(asked: Any, found: Any) -> None:
    chat = parse_chat({"messages": [{"role": "user", "content": "Hi"}], "loop_guard": asked})
    completion = parse_completion({"prompt": "Hi", "loop_guard": asked})
    assert (chat.request.loop_guard, completion.request.loop_guard) == (found, found)


@pytest.mark.parametrize("asked", ["off", "", 0, 1, 2.5, [], {"patience": 1}])
def test_another_loop_guard_is_refused_by_name(asked: Any) -> None:
    with pytest.raises(RequestError, match="loop_guard: give false, strict or patient") as refusal:
        parse_completion({"prompt": "Hi", "loop_guard": asked})
    assert refusal.value.param == "loop_guard"


@pytest.mark.parametrize("stop", [5, [5], ["a"] * 17, "x" * 1001, ["a", "x" * 1001], {"a": 1}])
def test_a_stop_that_is_none_or_too_much_is_refused_by_name(stop: Any) -> None:
    with pytest.raises(RequestError, match=r"stop: give (a text|at most 16 texts)") as refusal:
        asked(stop=stop)
    assert refusal.value.param == "stop"


def test_logprobs_alone_give_no_rivals_and_rivals_need_logprobs() -> None:
    assert asked(logprobs=True).top_logprobs == 0
    assert asked(logprobs=True, top_logprobs=5).top_logprobs == 5
    with pytest.raises(RequestError) as refusal:
        asked(top_logprobs=5)
    assert refusal.value.param == "top_logprobs"


def test_logit_bias_has_token_ids_and_those_beyond_any_vocabulary_go() -> None:
    assert asked(logit_bias={"17": -100, str(2**32 + 17): 5}).logit_bias == {17: -100}


@pytest.mark.parametrize("key", ["x", "-1", "1.5", "", " 1", "٣", "9" * 20])
def test_a_logit_bias_for_something_else_is_refused(key: str) -> None:
    with pytest.raises(RequestError) as refusal:
        asked(logit_bias={key: 1})
    assert refusal.value.param == "logit_bias"


def test_text_as_response_format_is_no_format() -> None:
    assert asked(response_format={"type": "text"}).response_format is None
    assert asked(response_format={"type": "json_object"}).response_format == {"type": "json_object"}


def test_a_json_schema_arrives_as_it_was_sent() -> None:
    schema = {"type": "object", "properties": {"schema": {"type": "string"}}}
    sent = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    assert asked(response_format=sent).response_format == sent


@pytest.mark.parametrize(
    ("wish", "wanted"),
    [
        ({"think": True}, True),
        ({"think": False}, False),
        ({"think": "high"}, True),
        ({"enable_thinking": False}, False),
        ({"chat_template_kwargs": {"enable_thinking": True}}, True),
        ({"chat_template_kwargs": {"thinking": False}}, False),
        ({"reasoning_effort": "low"}, True),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning": {"effort": "high"}}, True),
        ({"reasoning": {"enabled": False}}, False),
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": True}, True),
        ({"chat_template_kwargs": {}}, None),
    ],
)
def test_every_way_to_ask_for_thinking_is_understood(wish: dict[str, Any], wanted: bool | None) -> None:
    assert asked(**wish).wants_thinking is wanted


def test_other_modalities_than_text_are_refused() -> None:
    assert asked(modalities=["text"]).messages is not None
    with pytest.raises(RequestError, match="only text"):
        asked(modalities=["text", "audio"])


def test_a_forced_tool_is_refused_and_none_is_fine() -> None:
    assert asked(tool_choice="none", tools=[]).messages is not None
    with pytest.raises(RequestError) as refusal:
        asked(tool_choice="required")
    assert refusal.value.param == "tool_choice"


def test_an_assistant_message_without_text_is_empty() -> None:
    found = asked(messages=[*HELLO, {"role": "assistant", "content": None}])
    assert found.messages is not None
    assert found.messages[-1] == {"role": "assistant", "content": ""}


@pytest.mark.parametrize(
    ("prompt", "texts", "ids"),
    [
        ("Once", ["Once"], [None]),
        (["Once"], ["Once"], [None]),
        (["Once", "Twice"], ["Once", "Twice"], [None, None]),
        ([5, 6], [None], [(5, 6)]),
        ([[5, 6], [7]], [None, None], [(5, 6), (7,)]),
        (["Once", [5, 6]], ["Once", None], [None, (5, 6)]),
    ],
)
def test_a_prompt_is_a_text_or_ids_or_several_of_them(prompt: Any, texts: list[Any], ids: list[Any]) -> None:
    parsed = parse_completion({"prompt": prompt, "n": 2, "model": "math"})
    requests = [parsed.request, *parsed.others]
    assert [request.prompt for request in requests] == texts
    assert [request.prompt_ids for request in requests] == ids
    assert {request.n for request in requests} == {2}


@pytest.mark.parametrize(
    "prompt",
    [[], [[]], [5, "x"], [5, -1], [5.0], [True], {"text": "x"}, 5, [["x"]], [[5], []], [2**31], ["x"] * 257],
    ids=str,
)
def test_what_is_no_prompt_is_refused(prompt: Any) -> None:
    with pytest.raises(RequestError) as refusal:
        parse_completion({"prompt": prompt})
    assert refusal.value.param == "prompt"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 9}, "best_of"),
        ({"suffix": "x", "echo": True}, "echo"),
        ({"suffix": "x", "prompt": [5]}, "prompt"),
        ({"echo": 1}, "echo"),
        ({"suffix": ["x"]}, "suffix"),
    ],
    ids=str,
)
def test_fields_of_scoring_that_cannot_be_are_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refusal:
        parse_completion({"prompt": "Once", **fields})
    assert refusal.value.param == param


def test_the_best_of_as_many_as_are_wanted_is_each_of_them() -> None:
    assert parse_completion({"prompt": "Once", "n": 3, "best_of": 3}).request.n_made == 3
    assert parse_completion({"prompt": "Once", "n": 2, "best_of": 5}).request.n_made == 5
    assert parse_completion({"prompt": "Once", "n": 2}).request.n_made == 2


@pytest.mark.parametrize("field", ["response_format", "max_completion_tokens"])
def test_a_completion_field_that_is_not_supported_is_named(field: str) -> None:
    with pytest.raises(RequestError) as refusal:
        parse_completion({"prompt": "Once", field: 3})
    assert refusal.value.param == field


def test_the_specialists_system_prompt_goes_before_the_clients() -> None:
    messages = [HELLO[0], {"role": "system", "content": "Be kind."}]
    assert with_system_prompt(messages, "You count.\n") == [
        {"role": "system", "content": "You count.\n\nBe kind."},
        HELLO[0],
    ]
    assert with_system_prompt(HELLO, None) == HELLO


def test_a_path_in_a_refusal_says_where_the_character_stands() -> None:
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "a\0"}]}]}
    with pytest.raises(RequestError) as refusal:
        parse_json(json.dumps(body).encode())
    assert refusal.value.param == "messages[0].content[0].text"


def test_a_path_of_long_keys_is_not_repeated_at_length() -> None:
    body = {"k" * 100_000: {"l" * 100_000: "\0"}}
    with pytest.raises(RequestError) as refusal:
        parse_json(json.dumps(body).encode())
    assert len(refusal.value.message) < 300


def test_a_written_out_backslash_u0000_is_no_nul() -> None:
    assert parse_json(rb'{"a": "\\u0000"}') == {"a": "\\u0000"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    ["messages", "role", "content", "model", "stop", "n", "logit_bias", "response_format", "type", "think", "seed",
     "prompt", "stream_options", "json_schema", "schema", "tools", "logprobs", "top_logprobs", "chat_template_kwargs"]
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.dictionaries(FIELDS | st.text(max_size=5), JSON | st.lists(st.dictionaries(FIELDS, JSON))))
def test_any_object_is_a_request_or_a_refusal(body: dict[str, Any]) -> None:
    for parse in (parse_chat, parse_completion):
        try:
            parsed = parse(parse_json(json.dumps(body).encode()))
        except RequestError:
            continue
        assert isinstance(parsed, Parsed)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_an_object_or_a_refusal(body: bytes) -> None:
    try:
        value = parse_json(body)
    except RequestError:
        return
    assert isinstance(value, dict)


@pytest.mark.parametrize("field", ["max_tokens", "top_k", "seed", "n", "repeat_last_n", "max_completion_tokens"])
def test_a_whole_number_may_be_written_with_a_point(field: str) -> None:
    assert asked(**{field: 3.0}) == asked(**{field: 3})
    with pytest.raises(RequestError, match="whole number"):
        asked(**{field: 3.5})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"messages": []}, "messages: give at least 1."),
        ({"messages": "Hello"}, "messages: give a list."),
        ({"messages": ["Hello"]}, "messages[0]: give an object."),
        ({"temperature": "hot"}, "temperature: give a number."),
        ({"temperature": 3}, "temperature: give at most 2"),
        ({"stream": "yes"}, "stream: give true or false."),
        ({"model": 7}, "model: give a text."),
        ({"messages": [{"content": "Hello"}]}, "messages[0].role is missing: give one of system, user,"),
        ({"best_of": 2}, "best_of is not supported. Remove it from the request."),
    ],
)
def test_refusals_are_said_in_words_of_the_api(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError) as refusal:
        asked(**fields)
    assert refusal.value.message.startswith(said)


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e400"])
def test_numbers_that_are_none_are_refused_wherever_they_stand(number: str) -> None:
    with pytest.raises(RequestError) as refusal:
        parse_json(b'{"tools": [{"x": %s}]}' % number.encode())
    assert refusal.value.param == "tools[0].x"
