"""Answers in Ollama's shapes: whole, line by line, and errors."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any, cast

import pytest

from coe.engine.request import CallPiece, Delta, Event, Finish, Finished, TokenLogprob
from coe.server.api.ollama.replies import ChatEnvelope, GenerateEnvelope, OllamaEnvelope, error_body
from coe.server.api.ollama.requests import parse_chat, parse_generate
from coe.server.roster.models import Specialist
from coe.server.runtime.answer import Answer, Outcome, Step
from coe.server.runtime.calls import ToolCall
from coe.server.runtime.choice import Choice
from coe.server.runtime.college import College
from coe.server.runtime.errors import Failure, failure_of
from coe.server.runtime.metrics import Metrics
from fakes.college import NOBODY, FakeCollege

END = Finished("", Finish.STOP, 7, 2, 3, queued_s=0.25, prompt_s=0.5, answer_s=1.5)
TOKEN = TokenLogprob("é", [195, 169], -0.5, [("é", [195, 169], -0.5), ("e", [101], -1.5)])
CALLS = (
    (CallPiece(0, "add"),),
    (CallPiece(0, None, '{"a":'),),
    (CallPiece(0, None, "1}"), CallPiece(1, "now")),
    (CallPiece(2, "sub"), CallPiece(2, None, '{"b":2}')),
)


def envelope(*, chat: bool = True, **fields: Any) -> OllamaEnvelope:
    specialist = Specialist.model_validate({"name": "math", "file": "x.gguf"})
    body = {"model": "math:latest", **fields}
    parsed = (
        parse_chat({"messages": [{"role": "user", "content": "Hi"}], **body})
        if chat
        else parse_generate({"prompt": "Hi", **body})
    )
    answer = Answer(
        cast(College, FakeCollege([])), parsed.request, Choice(specialist, 0.5, "why"), Metrics(lambda: NOBODY)
    )
    return (ChatEnvelope if chat else GenerateEnvelope)(answer, name=parsed.name)


def lines(to: OllamaEnvelope, *events: Event) -> list[dict[str, Any]]:
    """All lines of a stream; each is one line, with an end."""
    frames: list[bytes] = [*to.opening()]
    for event in events:
        frames += to.frames(Step(0, event))
    frames += to.closing()
    assert all(frame.endswith(b"\n") and frame.count(b"\n") == 1 for frame in frames)
    return [json.loads(frame) for frame in frames]


def test_a_whole_chat() -> None:
    body = envelope().body([Outcome(0, "Four", END, reasoning="2 + 2")])
    assert body["model"] == "math:latest", "as the client wrote it"
    assert body["message"] == {"role": "assistant", "content": "Four", "thinking": "2 + 2"}
    assert (body["done"], body["done_reason"]) == (True, "stop")
    assert body["created_at"].endswith("Z")
    datetime.fromisoformat(body["created_at"])
    assert body["coe"]["specialist"] == "math"


def test_counts_and_durations_are_those_of_the_answer() -> None:
    body = envelope().body([Outcome(0, "Four", END)])
    assert (body["prompt_eval_count"], body["eval_count"]) == (7, 3)
    assert (body["load_duration"], body["prompt_eval_duration"], body["eval_duration"]) == (
        250_000_000,
        500_000_000,
        1_500_000_000,
    )
    assert type(body["total_duration"]) is int
    assert body["total_duration"] > 0


def test_a_whole_response() -> None:
    body = envelope(chat=False).body([Outcome(0, "Four", END)])
    assert body["response"] == "Four"
    assert "message" not in body
    assert "thinking" not in body


def test_a_stream_of_a_chat() -> None:
    first, second, last = lines(envelope(), Delta("", "", "Hm"), Delta("", "Four"), END)
    assert first["message"] == {"role": "assistant", "content": "", "thinking": "Hm"}
    assert second["message"] == {"role": "assistant", "content": "Four"}
    assert last["message"] == {"role": "assistant", "content": ""}
    assert [line["done"] for line in (first, second, last)] == [False, False, True]
    assert "eval_count" not in first
    assert last["eval_count"] == 3


def test_a_stream_of_a_response() -> None:
    first, last = lines(envelope(chat=False), Delta("", "Four"), END)
    assert (first["response"], last["response"]) == ("Four", "")


def test_calls_come_whole_with_objects_for_arguments() -> None:
    ends = Finished("", Finish.CALLS, 7, 2, 3)
    told = lines(envelope(), *(Delta("", calls=pieces) for pieces in CALLS), ends)
    functions = [[call["function"] for call in line["message"].get("tool_calls", [])] for line in told]
    assert functions == [
        [{"index": 0, "name": "add", "arguments": {"a": 1}}],
        [{"index": 1, "name": "now", "arguments": {}}],
        [{"index": 2, "name": "sub", "arguments": {"b": 2}}],
        [],
    ]
    assert told[-1]["done_reason"] == "stop"
    whole = envelope().body(
        [Outcome(0, "", ends, calls=[ToolCall("add", '{"a":1}'), ToolCall("now", ""), ToolCall("sub", '{"b":2}')])]
    )
    assert [call["function"] for call in whole["message"]["tool_calls"]] == [one for some in functions for one in some]


def test_the_same_call_has_the_same_id_in_a_stream_and_whole() -> None:
    to = envelope()
    told = lines(to, Delta("", calls=(CallPiece(0, "now"),)), Finished("", Finish.CALLS, 7, 2, 3))
    whole = to.body([Outcome(0, "", END, calls=[ToolCall("now", "{}")])])
    assert told[0]["message"]["tool_calls"] == whole["message"]["tool_calls"]


@pytest.mark.parametrize("cut", ['{"a":', "[1]", '"a"'])
def test_a_call_that_was_cut_is_not_told_of(cut: str) -> None:
    ends = Finished("", Finish.LENGTH, 7, 2, 3)
    (last,) = lines(envelope(), Delta("", calls=(CallPiece(0, "add", cut),)), ends)
    assert "tool_calls" not in last["message"]
    assert last["done_reason"] == "length"
    assert "tool_calls" not in envelope().body([Outcome(0, "", ends, calls=[ToolCall("add", cut)])])["message"]


@pytest.mark.parametrize(("reason", "told"), [(Finish.LENGTH, "length"), (Finish.LOOP, "length")])
def test_an_answer_that_was_cut(reason: Finish, told: str) -> None:
    assert envelope().body([Outcome(0, "la la", Finished("", reason, 7, 2, 3))])["done_reason"] == told


def test_log_probabilities_only_where_they_were_asked_for() -> None:
    entries = [
        {
            "token": "é",
            "logprob": -0.5,
            "bytes": [195, 169],
            "top_logprobs": [
                {"token": "é", "logprob": -0.5, "bytes": [195, 169]},
                {"token": "e", "logprob": -1.5, "bytes": [101]},
            ],
        }
    ]
    asked = envelope(logprobs=True, top_logprobs=2)
    assert asked.body([Outcome(0, "é", END, logprobs=[TOKEN])])["logprobs"] == entries
    assert lines(asked, Delta("", "é", logprobs=(TOKEN,)))[0]["logprobs"] == entries
    assert "logprobs" not in envelope().body([Outcome(0, "é", END, logprobs=[TOKEN])])


def test_what_a_stream_waits_for_is_thinking() -> None:
    def waits(to: OllamaEnvelope) -> Iterable[dict[str, Any]]:
        return [json.loads(frame) for frame in to.waiting("loading math")]

    assert [line["message"] for line in waits(envelope())] == [
        {"role": "assistant", "content": "", "thinking": "loading math\n"}
    ]
    assert [line["thinking"] for line in waits(envelope(chat=False))] == ["loading math\n"]


def test_an_error_is_a_text_in_the_clients_words() -> None:
    assert error_body(failure_of(RuntimeError("secret"))) == {"error": failure_of(RuntimeError()).message}
    schema = Failure(400, "response_format.json_schema: no.", "invalid_request_error", "invalid_schema")
    assert error_body(schema) == {"error": "format: no."}
    unknown = Failure(404, "There is no model 'x'.", "invalid_request_error", "model_not_found")
    assert error_body(unknown) == {"error": "model not found: there is no model 'x'."}
