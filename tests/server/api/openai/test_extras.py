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
        {"best_of": 1}, {"best_of": None}, {"n": 1}, {"echo": False}, {"echo": None}, {"suffix": ""}, {"suffix": None},
        {"tools": []}, {"tools": None}, {"functions": []}, {"logit_bias": {}}, {"stop": ""}, {"stop": []},
        {"function_call": "none"}, {"function_call": "auto"}, {"tool_choice": "none"}, {"audio": None},
        {"prediction": None}, {"modalities": ["text"]}, {"service_tier": "auto"}, {"store": False}, {"metadata": {}},
        {"parallel_tool_calls": True}, {"logprobs": False}, {"max_tokens": -1}, {"seed": -1}, {"min_tokens": 0},
        {"ignore_eos": False}, {"stop_token_ids": []}, {"use_beam_search": False}, {"web_search_options": None},
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
        {"best_of": 2}, {"best_of": True}, {"echo": True}, {"stop_token_ids": [2]}, {"min_tokens": 5},
        {"ignore_eos": True}, {"bad_words": ["no"]}, {"allowed_token_ids": [1]}, {"n_predict": 5},
        {"max_new_tokens": 5}, {"chat_template": "x"},
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
    ],
    ids=str,
)
def test_what_a_chat_does_not_serve_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as refusal:
        parsed("chat", **fields)
    assert refusal.value.param == next(iter(fields))


def test_as_many_as_are_wanted_is_no_choice_among_them() -> None:
    assert parsed("completion", n=3, best_of=3).request.n == 3
    with pytest.raises(RequestError, match="best_of"):
        parsed("completion", n=2, best_of=3)


def test_minus_one_is_a_random_seed_and_no_bound() -> None:
    assert parsed("chat", seed=-1).request.seed is None
    assert parsed("chat", seed=-2).request.seed == -2
    assert parsed("chat", top_k=-1).request.overrides == {"top_k": 0}
    assert parsed("chat", max_tokens=7, max_completion_tokens=-1).request.max_tokens == 7


@pytest.mark.parametrize("value", [0, -2, 1.5, True])
def test_other_lengths_than_minus_one_are_refused(value: Any) -> None:
    with pytest.raises(RequestError) as refusal:
        parsed("chat", max_tokens=value)
    assert refusal.value.param == "max_tokens"
