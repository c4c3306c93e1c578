"""Messages, events and errors as Anthropic writes them."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given

from coe.engine.errors import (
    EngineError,
    PromptTooLongError,
    QueueFullError,
    UnavailableError,
    WaitTimeoutError,
    WorkerDiedError,
)
from coe.engine.request import Accepted, CallPiece, Delta, Finish, Finished
from coe.server.api.anthropic.blocks import signature
from coe.server.api.anthropic.described import ERROR, MESSAGES_DESCRIBED
from coe.server.api.anthropic.replies import error_body, error_frame
from coe.server.runtime.answer import Outcome, Step
from coe.server.runtime.calls import Calls, ToolCall
from coe.server.runtime.errors import NoKeyError, Part, RequestError, UnknownModelError, failure_of
from fakes.message_stream import PIECES, THINKS, end, envelope, events, put_together, scripted, streamed


def test_a_whole_message() -> None:
    outcome = Outcome(
        0, "Yes.", end(Finish.CALLS, reasoning_tokens=1), "Hm.", calls=[ToolCall("Bash", '{"command":"ls"}')]
    )
    body = envelope(thinking=THINKS).body([outcome])
    jsonschema.validate(body, MESSAGES_DESCRIBED.answer)
    thought, text, called = body["content"]
    assert thought == {"type": "thinking", "thinking": "Hm.", "signature": signature("Hm.")}
    assert text == {"type": "text", "text": "Yes."}
    assert called["id"].startswith("toolu_")
    assert (called["name"], called["input"]) == ("Bash", {"command": "ls"})
    assert (body["stop_reason"], body["stop_sequence"]) == ("tool_use", None)
    assert body["usage"] == {
        "input_tokens": 5,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 2,
        "output_tokens": 3,
        "output_tokens_details": {"thinking_tokens": 1},
    }
    assert body["coe"]["specialist"] == "math"


@pytest.mark.parametrize("text", ["", "\n\n "])
def test_no_text_is_no_block(text: str) -> None:
    assert envelope().body([Outcome(0, text, end())])["content"] == []


def test_a_call_that_was_cut_is_left_out() -> None:
    calls = [ToolCall("a", "{}"), ToolCall("b", '{"path": "/')]
    content = envelope().body([Outcome(0, "", end(Finish.LENGTH), calls=calls)])["content"]
    assert [block["name"] for block in content] == ["a"]


@pytest.mark.parametrize("arguments", ["[1]", '{"a": "\\ud800"}', '{"a": NaN}'])
def test_arguments_that_are_no_object_keep_their_text(arguments: str) -> None:
    body = envelope().body([Outcome(0, "", end(Finish.CALLS), calls=[ToolCall("a", arguments)])])
    assert body["content"][0]["input"] == {"arguments": arguments}
    json.dumps(body, ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.parametrize(
    ("finish", "reason", "sequence"),
    [
        (end(), "end_turn", None),
        (end(stop="END"), "stop_sequence", "END"),
        (end(Finish.CALLS), "tool_use", None),
        (end(Finish.LENGTH), "max_tokens", None),
        (end(Finish.LENGTH, prompt=500, completion=12), "model_context_window_exceeded", None),
        (end(Finish.LENGTH, prompt=412, completion=100), "max_tokens", None),
        (end(Finish.LOOP, loop="la"), "max_tokens", None),
        (end(Finish.CANCELLED), "end_turn", None),
    ],
)
def test_why_it_ended(finish: Finished, reason: str, sequence: str | None) -> None:
    one = envelope(max_tokens=100)
    body = one.body([Outcome(0, "x", finish)])
    assert (body["stop_reason"], body["stop_sequence"]) == (reason, sequence)
    (delta,) = [event for event in events(one.frames(Step(0, finish))) if event["type"] == "message_delta"]
    assert delta["delta"] == {"stop_reason": reason, "stop_sequence": sequence}


def test_a_loop_says_so_beside() -> None:
    body = envelope().body([Outcome(0, "la la", end(Finish.LOOP, loop="la"))])
    assert body["coe"]["loop"] == {"ended": True, "repeated": "la"}


def test_the_events_of_a_message_are_exactly_these() -> None:
    script = [
        Accepted("", 7),
        Delta("", reasoning="Hm."),
        Delta("", "\n"),
        Delta("", "Yes."),
        Delta("", "\n", calls=(CallPiece(0, "Bash"), CallPiece(0, None, '{"command":'), CallPiece(0, None, '"ls"'))),
        Delta("", calls=(CallPiece(0, None, "}"), CallPiece(1, "Read"), CallPiece(1, None, "{}"))),
        end(Finish.CALLS),
    ]
    one = envelope(thinking=THINKS)
    found = streamed(one, script)
    started, *middle = found
    assert started["message"]["content"] == []
    assert started["message"]["stop_reason"] is None
    ids = [e["content_block"]["id"] for e in middle if e.get("content_block", {}).get("type") == "tool_use"]

    def start(index: int, block: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_start", "index": index, "content_block": block}

    def delta(index: int, kind: str, **what: str) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **what}}

    def stop(index: int) -> dict[str, Any]:
        return {"type": "content_block_stop", "index": index}

    assert middle[:-2] == [
        start(0, {"type": "thinking", "thinking": "", "signature": ""}),
        delta(0, "thinking_delta", thinking="Hm."),
        delta(0, "signature_delta", signature=signature("Hm.")),
        stop(0),
        start(1, {"type": "text", "text": ""}),
        delta(1, "text_delta", text="\nYes."),
        delta(1, "text_delta", text="\n"),
        stop(1),
        start(2, {"type": "tool_use", "id": ids[0], "name": "Bash", "input": {}}),
        delta(2, "input_json_delta", partial_json=""),
        delta(2, "input_json_delta", partial_json='{"command":"ls"'),
        delta(2, "input_json_delta", partial_json="}"),
        stop(2),
        start(3, {"type": "tool_use", "id": ids[1], "name": "Read", "input": {}}),
        delta(3, "input_json_delta", partial_json=""),
        delta(3, "input_json_delta", partial_json="{}"),
        stop(3),
    ]
    assert middle[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert middle[-2]["usage"]["cache_read_input_tokens"] == 2
    assert middle[-1] == {"type": "message_stop"}


@given(PIECES)
def test_a_stream_put_together_says_what_the_whole_message_says(pieces: list[tuple[str, Any]]) -> None:
    deltas, finish, calls = scripted(pieces), end(), Calls()
    for delta in deltas:
        calls.add(delta.calls)
    one = envelope(thinking=THINKS)
    outcome = Outcome(
        0, "".join(d.text for d in deltas), finish, "".join(d.reasoning for d in deltas), calls=calls.whole()
    )
    whole = one.body([outcome])
    found = put_together(streamed(one, [*deltas, finish]))
    jsonschema.validate(found, MESSAGES_DESCRIBED.answer)

    def blocks(message: dict[str, Any], kind: str) -> list[Any]:
        return [block for block in message["content"] if block["type"] == kind]

    assert blocks(found, "tool_use") == blocks(whole, "tool_use")
    for kind in ("text", "thinking"):
        texts = [block[kind] for block in blocks(found, kind)]
        assert not any(map(str.isspace, texts))
        said = "".join(block[kind] for block in blocks(whole, kind))
        assert "".join("".join(texts).split()) == "".join(said.split())  # blank text between blocks is in none of them
    assert found["usage"] == whole["usage"]


def test_nothing_of_thinking_is_told_where_there_is_none() -> None:
    found = streamed(envelope(), [Delta("", reasoning="Hm."), Delta("", "Yes."), end()])
    assert [block["type"] for block in put_together(found)["content"]] == ["text"]


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (RequestError("max_tokens: give at least 0.", param="max_tokens"), "invalid_request_error", "max_tokens: give"),
        (RequestError("It is wrong.", param=Part.TOOL_CHOICE), "invalid_request_error", "tool_choice: It is wrong."),
        (
            RequestError("response_format.json_schema.type is odd.", param=Part.FORMAT),
            "invalid_request_error",
            "output_config.format.schema.type is odd.",
        ),
        (NoKeyError("A key is needed."), "authentication_error", "A key"),
        (UnknownModelError("There is no model x.", param=Part.MODEL), "not_found_error", "There is no model x."),
        (PromptTooLongError(9000, 8192), "invalid_request_error", "prompt is too long: 9000 tokens > 8191 maximum"),
        (
            PromptTooLongError(9000, 8192, by_roster=True),
            "invalid_request_error",
            "prompt is too long: 9000 tokens > 8192 maximum",
        ),
        (QueueFullError("Too many wait."), "rate_limit_error", "Too many wait."),
        (WaitTimeoutError("It took too long."), "overloaded_error", "It took too long."),
        (ValueError("secret"), "api_error", "The server failed on this request; its log says why."),
    ],
)
def test_errors(error: Exception, kind: str, words: str) -> None:
    body = error_body(failure_of(error))
    jsonschema.validate(body, ERROR)
    assert body["type"] == "error"
    assert body["error"]["type"] == kind
    assert body["error"]["message"].startswith(words)
    assert events([error_frame(failure_of(error))]) == [body]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (QueueFullError("Too many wait.", "Ask later."), "rate_limit_error"),
        (WorkerDiedError("It died.", "Ask again."), "overloaded_error"),
        (UnavailableError("The file is not there.", "Download it."), "api_error"),
    ],
)
def test_what_will_not_pass_by_itself_is_no_overload(error: EngineError, kind: str) -> None:
    assert error_body(failure_of(error))["error"]["type"] == kind
