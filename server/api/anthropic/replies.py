"""Answers, streams and errors as Anthropic writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from coe.engine.logs import REQUEST_ID
from coe.engine.request import Delta, Finish, Finished

from ...runtime.answer import Answer, Outcome, Step
from ...runtime.calls import ToolCall
from ...runtime.errors import Failure, Part, RequestError
from ..common.calls import call_id, in_pieces
from ..common.frames import data_frame
from ..json_body import parse_json
from .blocks import Blocks, Event, signature

_NAMES: Final[Mapping[Part, str]] = {
    Part.INPUT: "messages",
    Part.FORMAT: "output_config.format",
    Part.TOOLS: "tools",
    Part.TOOL_CHOICE: "tool_choice",
    Part.MODEL: "model",
}
_ERRORS: Final[Mapping[int, str]] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
# No reason is one for a loop: the answer was cut, which is what `max_tokens` tells every client, and it may be begun
# again. The `coe` object says what it was.
_REASONS: Final[Mapping[Finish, str]] = {
    Finish.STOP: "end_turn",
    Finish.CALLS: "tool_use",
    Finish.LENGTH: "max_tokens",
    Finish.LOOP: "max_tokens",
    Finish.CANCELLED: "end_turn",
}
_CUT: Final = (Finish.LENGTH, Finish.LOOP, Finish.CANCELLED)
PING: Final = data_frame({"type": "ping"}, event="ping")


class MessageEnvelope:
    """One answer: a message, whole or as events."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self._blocks = Blocks(self._call_id)
        self._end: Finished | None = None

    def _call_id(self, number: int) -> str:
        return call_id(self.answer, 0, number, "toolu_")

    def body(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """See api.dialect.Envelope."""
        outcome = outcomes[0]
        content: list[dict[str, Any]] = []
        if outcome.reasoning.strip() and self.answer.thinks:
            thought = outcome.reasoning
            content.append({"type": "thinking", "thinking": thought, "signature": signature(thought)})
        if outcome.text.strip():
            content.append({"type": "text", "text": outcome.text})
        for number, call in enumerate(outcome.calls):
            given = _input(call)
            if given is None and number == len(outcome.calls) - 1 and outcome.end.reason in _CUT:
                continue  # with nothing as its arguments a client would run it, and do what nobody wanted
            given = {"arguments": call.arguments} if given is None else given
            content.append({"type": "tool_use", "id": self._call_id(number), "name": call.name, "input": given})
        return {
            **self._message(content),
            **self._stop(outcome.end),
            "usage": _usage(outcome.end),
            "coe": self.answer.provenance.facts([outcome.end]),
        }

    def opening(self) -> Iterable[bytes]:
        """See api.dialect.Envelope. How much of the prompt was in the cache is told at the end."""
        usage = {"input_tokens": self.answer.prompt_tokens, **_cache(0), "output_tokens": 0}
        started = {**self._message([]), "stop_reason": None, "stop_sequence": None, "usage": usage}
        yield _frame({"type": "message_start", "message": started})

    def frames(self, step: Step) -> Iterable[bytes]:
        """See api.dialect.Envelope."""
        event = step.event
        if isinstance(event, Delta):
            if self.answer.thinks:
                yield from map(_frame, self._blocks.think(event.reasoning))
            yield from map(_frame, self._blocks.say(event.text))
            for piece in in_pieces(event.calls):
                yield from map(_frame, self._blocks.call(piece))
        elif isinstance(event, Finished):
            yield from map(_frame, self._blocks.end())
            facts = self.answer.provenance.facts([event])
            told = {"type": "message_delta", "delta": self._stop(event), "usage": _usage(event), "coe": facts}
            yield _frame(told)

    def waiting(self, text: str) -> Iterable[bytes]:
        """See api.dialect.Envelope. Clients give back what they were told as thinking: it would be read as such."""
        return ()

    def closing(self) -> Iterable[bytes]:
        """See api.dialect.Envelope."""
        yield _frame({"type": "message_stop"})

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"msg_{self.answer.id}",
            "type": "message",
            "role": "assistant",
            "model": self.answer.answered_by.name,
            "content": content,
        }

    def _stop(self, end: Finished) -> dict[str, Any]:
        """Why the answer ended. One that was cut because the context is full is not to be asked for again with more
        tokens, which clients do at max_tokens."""
        reason = _REASONS[end.reason]
        if end.stop is not None:
            reason = "stop_sequence"
        elif end.reason is Finish.LENGTH and self._is_full(end):
            reason = "model_context_window_exceeded"
        return {"stop_reason": reason, "stop_sequence": end.stop}

    def _is_full(self, end: Finished) -> bool:
        most = self.answer.rules.max_tokens
        room = self.answer.answered_by.context_tokens - end.prompt_tokens - end.completion_tokens
        return room <= 0 and (most is None or end.completion_tokens < most)


def error_body(failure: Failure) -> dict[str, Any]:
    """Anthropic's error envelope. It has no place for the field at fault: the message names it."""
    message = failure.message
    if failure.tokens is not None:  # by these very words clients know that they have to shorten the conversation
        message = f"prompt is too long: {failure.tokens[0]} tokens > {failure.tokens[1]} maximum"
    elif failure.status < 500:
        message = failure.message_in("output_config.format.schema")
        named = failure.param_in(_NAMES)
        if named is not None and named not in message:
            message = f"{named}: {message}"
    if failure.status == 503 and "retry-after" not in failure.headers:
        kind = "api_error"  # it will not pass by itself, and clients that are told of overload ask again
    else:
        kind = _ERRORS.get(failure.status, "invalid_request_error" if failure.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": REQUEST_ID.get() or None}


def error_frame(failure: Failure) -> bytes:
    """An error after a stream's first byte."""
    return _frame(error_body(failure))


def _usage(end: Finished) -> dict[str, Any]:
    """Token counts. What was in the cache is not counted among the input, as OpenAI would."""
    return {
        "input_tokens": end.prompt_tokens - end.cached_tokens,
        **_cache(end.cached_tokens),
        "output_tokens": end.completion_tokens,
        "output_tokens_details": {"thinking_tokens": end.reasoning_tokens},
    }


def _cache(read: int) -> dict[str, int]:
    """Writing to the cache costs nothing, and is not counted."""
    return {"cache_creation_input_tokens": 0, "cache_read_input_tokens": read}


def _input(call: ToolCall) -> dict[str, Any] | None:
    """The arguments of a call; None where they are no object that can be written."""
    try:
        return parse_json(call.arguments.encode())
    except (RequestError, UnicodeEncodeError):
        return None


def _frame(event: Event) -> bytes:
    return data_frame(event, event=event["type"])
