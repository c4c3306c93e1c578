"""Fields that are left out, ask for nothing, or ask for what is not served."""

from __future__ import annotations

from typing import Any

import pytest

from coe.server.api.openai.requests import ChatBody, CompletionBody, Parsed, parse_chat, parse_completion
from coe.server.runtime.errors import RequestError

HELLO = [{"role": "user", "content": "Hello"}]
OPTIONAL = {
    "chat": sorted(name for name, field in ChatBody.model_fields.items() if not field.is_required()),
    "completion": sorted(name for name, field in CompletionBody.model_fields.items() if not field.is_required()),
}


def parsed(endpoint: str, **fields: Any) -> Parsed:
    if endpoint == "chat":
        return parse_chat({"messages": HELLO, **fields})
    return parse_completion({"prompt": "Hello", **fields})


@pytest.mark.parametrize(("endpoint", "name"), [(e, name) for e, names in OPTIONAL.items() for name in names])
def test_null_is_left_out(endpoint: str, name: str) -> None:
    assert parsed(endpoint, **{name: None}) == parsed(endpoint)


@pytest.mark.parametrize("endpoint", ["chat", "completion"])
@pytest.mark.parametrize(
    "fields",
    [
        {"stream_options": {"include_usage": None}},
        {"best_of": None}, {"n": 1}, {"echo": False}, {"echo": None}, {"suffix": ""}, {"suffix": None},
        {"tools": []}, {"tools": None}, {"functions": []}, {"logit_bias": {}}, {"stop": ""}, {"stop": []},
        {"function_call": "auto"}, {"audio": None},
        {"prediction": None}, {"modalities": ["text"]}, {"service_tier": "auto"}, {"store": False}, {"metadata": {}},
        {"parallel_tool_calls": True}, {"logprobs": False}, {"max_tokens": -1}, {"seed": -1}, {"min_tokens": 0},
        {"ignore_eos": False}, {"stop_token_ids": []}, {"use_beam_search": False}, {"web_search_options": None},
        {"mirostat": 0}, {"typical_p": 1}, {"typical_p": 1.0}, {"xtc_probability": 0}, {"options": {}}, {"system": ""},
        {"do_sample": True}, {"num_beams": 1}, {"include_stop_str_in_output": False}, {"add_generation_prompt": True},
        {"chat_template_kwargs": {"enable_thinking": None, "tools_in_user_message": False}}, {"reasoning": {}},
        {"stream_options": {"include_obfuscation": False, "continuous_usage_stats": False}}, {"thinking": None},
        {"top_logprobs": 0}, {"n_predict": -1}, {"max_completion_tokens": -1}, {"max_completion_tokens": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_value_that_asks_for_nothing_is_taken(endpoint: str, fields: dict[str, Any]) -> None:
    assert parsed(endpoint, **fields) == parsed(endpoint)


@pytest.mark.parametrize("endpoint", ["chat", "completion"])
@pytest.mark.parametrize(
    "fields",
    [
        {"best_of": True}, {"stop_token_ids": [2]},
        {"bad_words": ["no"]}, {"allowed_token_ids": [1]}, {"n_predict": 5},
        {"max_new_tokens": 5}, {"chat_template": "x"},
        {"mirostat": 2}, {"typical_p": 0.3}, {"dry_multiplier": 0.8}, {"system": "Be brief."}, {"stop_words": ["x"]},
        {"options": {"temperature": 0}}, {"do_sample": False}, {"include_stop_str_in_output": True},
        {"truncate_prompt_tokens": 3}, {"no_repeat_ngram_size": 3}, {"suppress_tokens": [1]},
        {"maxTokens": 5}, {"topP": 0.5}, {"Temperature": 0}, {"stop_sequences": ["x"]}, {"include_usage": True},
    ],
    ids=str,
)  # fmt: skip
def test_a_value_that_changes_the_answer_is_refused_by_its_name(endpoint: str, fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as refusal:
        parsed(endpoint, **fields)
    (name,) = fields
    assert refusal.value.param == name
    assert name in refusal.value.message


@pytest.mark.parametrize(
    "fields",
    [
        {"function_call": {"name": "f"}},
        {"audio": {"voice": "x"}},
        {"web_search_options": {}},
        {"prompt": "x"},
        {"documents": [{"text": "x"}]},
        {"continue_final_message": True},
        {"add_generation_prompt": False},
    ],
    ids=str,
)
def test_what_a_chat_does_not_serve_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as refusal:
        parsed("chat", **fields)
    assert refusal.value.param == next(iter(fields))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream_options": {"includeUsage": True}}, "stream_options"),
        ({"stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
        ({"chat_template_kwargs": {"persona": "pirate"}}, "chat_template_kwargs.persona"),
        ({"chat_template_kwargs": {"enable_thinking": "false"}}, "chat_template_kwargs.enable_thinking"),
        ({"enable_thinking": "false"}, "enable_thinking"),
        ({"think": 1}, "think"),
        ({"reasoning_effort": {}}, "reasoning_effort"),
        ({"reasoning": {"effort": 3}}, "reasoning.effort"),
        ({"messages": [*HELLO, {"role": "assistant", "Content": "Well"}]}, "messages[1].Content"),
    ],
    ids=str,
)
def test_what_is_not_understood_within_a_field_is_refused_by_its_place(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refusal:
        parsed("chat", **fields)
    assert refusal.value.param == param


def test_an_answer_that_is_begun_is_continued_whether_or_not_that_is_said() -> None:
    begun = [*HELLO, {"role": "assistant", "content": "Well"}]
    said = {"continue_final_message": True, "add_generation_prompt": False}
    assert parsed("chat", messages=begun, **said) == parsed("chat", messages=begun)


def test_penalties_look_as_far_back_as_is_asked() -> None:
    assert parsed("chat", repeat_last_n=8).request.overrides == {"repeat_last_n": 8}
    assert parsed("completion", repeat_last_n=-1).request.overrides["repeat_last_n"] > 10**6


@pytest.mark.parametrize("fields", [{"best_of": 2}, {"echo": True}, {"suffix": "x"}], ids=str)
def test_a_chat_has_no_field_of_a_plain_completion(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as refusal:
        parsed("chat", **fields)
    (name,) = fields
    assert refusal.value.param == name


def test_minus_one_is_a_random_seed_and_no_bound() -> None:
    assert parsed("chat", seed=-1).request.seed is None
    assert parsed("chat", seed=-2).request.seed == -2
    assert parsed("chat", top_k=-1).request.overrides == {"top_k": 0}
    assert parsed("chat", max_tokens=7, max_completion_tokens=-1).request.max_tokens == 7


@pytest.mark.parametrize("value", [-2, 1.5, True])
def test_other_lengths_than_minus_one_are_refused(value: Any) -> None:
    with pytest.raises(RequestError) as refusal:
        parsed("chat", max_tokens=value)
    assert refusal.value.param == "max_tokens"


@pytest.mark.parametrize("endpoint", ["chat", "completion"])
def test_what_is_asked_in_vain_is_noted(endpoint: str) -> None:
    asked = parsed(endpoint, ignore_eos=True, min_tokens=5, prompt_logprobs=1).request
    assert asked.notes == tuple(
        f"{name} is not served and was ignored" for name in ("ignore_eos", "min_tokens", "prompt_logprobs")
    )
    assert parsed(endpoint, ignore_eos=False, min_tokens=0, prompt_logprobs=None).request.notes == ()


@pytest.mark.parametrize("endpoint", ["chat", "completion"])
def test_nothing_at_all_may_be_asked_for(endpoint: str) -> None:
    assert parsed(endpoint, max_tokens=0).request.max_tokens == 0
    assert parsed(endpoint, top_p=0).request.overrides == {"top_p": 0}
