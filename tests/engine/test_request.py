"""Requests and events cross the wire as what they are."""

from __future__ import annotations

import json

import pytest

from coe.engine.request import (
    Accepted,
    CallPiece,
    Delta,
    Event,
    Finish,
    Finished,
    GenerateRequest,
    Rejected,
    TokenLogprob,
    Tool,
    ToolUse,
    event_from_json,
    event_to_json,
)
from coe.engine.spec import Sampling, Thinking, ThinkingMode


def over_the_wire(data: object) -> dict[str, object]:
    return dict(json.loads(json.dumps(data)))


@pytest.mark.parametrize(
    "request_",
    [
        GenerateRequest("1", "math", prompt="2 + 2 =", stop=[]),
        GenerateRequest(
            "3",
            "code",
            prompt_ids=[1, 2],
            suffix="}",
            snippets=({"filename": "a.c", "text": "int a;"},),
            stop=[],
            echo=True,
            ranked=True,
            top_logprobs=0,
        ),
        GenerateRequest(
            "2",
            "math",
            messages=[
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "tool_calls": [{"id": "c", "name": "f", "arguments": {"a": [1]}}]},
                {"role": "tool", "tool_call_id": "c", "name": "f", "content": "42"},
            ],
            tools=(Tool("f", "About.", {"type": "object", "properties": {}}, strict=True), Tool("g")),
            tool_use=ToolUse(required=True, only=("f",), parallel=False, generic=True),
            thinking=Thinking(ThinkingMode.BUDGET, 100, "x"),
            sampling=Sampling(temperature=0.1, top_k=3),
            max_tokens=5,
            max_prompt_tokens=7,
            stop=["a", "b"],
            seed=3,
            logit_bias={5: -100.0},
            response_format={"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
            top_logprobs=2,
            loop_guard=None,
        ),
    ],
    ids=["least", "a text to be scored", "all fields"],
)
def test_a_request_arrives_as_it_was_sent(request_: GenerateRequest) -> None:
    assert GenerateRequest.from_json(over_the_wire(request_.to_json())) == request_


def test_fields_of_a_newer_sender_are_ignored() -> None:
    request = GenerateRequest("1", "math", prompt="x", stop=[])
    assert GenerateRequest.from_json({**over_the_wire(request.to_json()), "later": 1}) == request


@pytest.mark.parametrize(
    "event",
    [
        Accepted("1", 7),
        Delta("1", "text", "why"),
        Delta("1", calls=(CallPiece(0, "f"), CallPiece(0, None, "{}"))),
        Finished("1", Finish.LOOP, 1, 2, 3, 4, 5, "again"),
        Rejected("1", "GrammarError", "no", "do", {"n": 1}),
    ],
)
def test_an_event_arrives_as_it_was_sent(event: Event) -> None:
    assert event_from_json(over_the_wire(event_to_json(event))) == event


def test_logprobs_arrive_with_their_bytes() -> None:
    delta = Delta("1", "é", logprobs=(TokenLogprob("é", [195, 169], -0.5, [("é", [195, 169], -0.5)]),))
    arrived = event_from_json(over_the_wire(event_to_json(delta)))
    assert isinstance(arrived, Delta)
    assert arrived.logprobs[0].bytes == [195, 169]
    assert [tuple(entry) for entry in arrived.logprobs[0].top] == [("é", [195, 169], -0.5)]
