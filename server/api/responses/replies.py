"""Answers, streams and errors as the Responses API writes them.

A stream's events are numbered, and the last one is response.completed, response.incomplete or, for what goes wrong
after the first byte, response.failed: clients pass over any other event that tells of an error.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from coe.engine.request import CallPiece, Delta, Finish, Finished

from ...runtime.answer import Answer, Outcome, Step
from ...runtime.errors import Failure, Part
from ..common.calls import call_id
from ..common.frames import data_frame
from .events import COMPLETED, INCOMPLETE, Event, OutputItems
from .requests import Parsed

NAMES: Final[Mapping[Part, str]] = {
    Part.INPUT: "input",
    Part.FORMAT: "text.format",
    Part.TOOLS: "tools",
    Part.TOOL_CHOICE: "tool_choice",
    Part.MODEL: "model",
}
# OpenAI's words for why a response failed; what they have no word for is the server's error or the request's.
_CODES: Final = {
    "context_length_exceeded": "context_length_exceeded",
    "queue_full": "rate_limit_exceeded",
    "schema_violated": "server_error",
}
# It knows of no loop: the answer was cut, and the `coe` object says why.
_CUT: Final = (Finish.LENGTH, Finish.LOOP)


def usage(end: Finished) -> dict[str, Any]:
    """Token counts, every field that typed clients want. Nothing is charged for what goes into the cache."""
    return {
        "input_tokens": end.prompt_tokens,
        "input_tokens_details": {"cached_tokens": end.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": end.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": end.reasoning_tokens},
        "total_tokens": end.prompt_tokens + end.completion_tokens,
    }


def error_body(failure: Failure) -> dict[str, Any]:
    """OpenAI's error envelope."""
    param = failure.param_in(NAMES)
    return {
        "error": {
            "message": failure.message_in("text.format.schema"),
            "type": failure.type,
            "param": param,
            "code": failure.code,
        }
    }


class ResponsesEnvelope:
    """One answer. keep: stores a response that has ended; False where it could not."""

    def __init__(self, answer: Answer, *, parsed: Parsed, keep: Callable[[Mapping[str, Any]], bool]) -> None:
        self._answer = answer
        self._parsed = parsed
        self._keep = keep
        self._created = int(time.time())
        self._items = OutputItems(self._item_id, lambda number: call_id(answer, 0, number), parsed.tools.named)
        self._number = 0  # of the next event
        self._end: Finished | None = None

    def body(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """See api.dialect.Envelope."""
        (outcome,) = outcomes
        named = [CallPiece(number, call.name, call.arguments) for number, call in enumerate(outcome.calls)]
        whole = Delta("", outcome.text, outcome.reasoning, tuple(outcome.logprobs), tuple(named))
        for events in (self._items.add(whole), self._ended(outcome.end)):
            for _ in events:
                pass
        return self._last()[1]

    def opening(self) -> Iterable[bytes]:
        """See api.dialect.Envelope."""
        for kind in ("response.created", "response.in_progress"):
            yield self._frame({"type": kind, "response": self._response("in_progress", self._parsed.stores)})

    def frames(self, step: Step) -> Iterable[bytes]:
        """See api.dialect.Envelope."""
        if isinstance(step.event, Delta):
            yield from map(self._frame, self._items.add(step.event))
        elif isinstance(step.event, Finished):
            yield from map(self._frame, self._ended(step.event))

    def waiting(self, text: str) -> Iterable[bytes]:
        """See api.dialect.Envelope. It is told in the summary of a thinking item, which no model reads again."""
        yield from map(self._frame, self._items.tell(f"{text}\n"))

    def closing(self) -> Iterable[bytes]:
        """See api.dialect.Envelope."""
        status, response = self._last()
        yield self._frame({"type": f"response.{status}", "response": response})

    def failed(self, failure: Failure) -> Iterable[bytes]:
        """See api.dialect.TellsFailure."""
        if self._number == 0:
            yield from self.opening()
        yield from map(self._frame, self._items.finish(INCOMPLETE))
        error = {"code": _code(failure), "message": failure.message}
        facts = {"coe": {"code": failure.code, "param": failure.param_in(NAMES)}}
        yield self._frame(
            {"type": "response.failed", "response": self._response("failed", False) | {"error": error} | facts}
        )

    def _ended(self, end: Finished) -> Iterator[Event]:
        self._end = end
        yield from self._items.finish(INCOMPLETE if end.reason in _CUT else COMPLETED)

    def _last(self) -> tuple[str, dict[str, Any]]:
        """The response with which an answer ends, which is kept where the client wants that; its status first."""
        assert self._end is not None, "a choice finishes before its answer"
        status = INCOMPLETE if self._end.reason in _CUT else COMPLETED
        response = self._response(status, self._parsed.stores)
        response["usage"] = usage(self._end)
        response["coe"] = self._answer.provenance.facts([self._end])
        if status == INCOMPLETE:
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            response["completed_at"] = int(time.time())
        if self._parsed.stores and not self._keep(response):
            response["store"] = False
        return status, response

    def _response(self, status: str, stores: bool) -> dict[str, Any]:
        sampling = self._answer.rules.sampling
        return {
            "id": f"resp_{self._answer.id}",
            "object": "response",
            "created_at": self._created,
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            # Not kept from the beginning: after a loop another specialist may have answered.
            "model": self._answer.answered_by.name,
            "output": list(self._items.done),
            "usage": None,
            "store": stores,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            **self._parsed.echo,
        }

    def _item_id(self, prefix: str, place: int) -> str:
        return call_id(self._answer, 0, place, prefix)

    def _frame(self, event: Event) -> bytes:
        number, self._number = self._number, self._number + 1
        return data_frame({**event, "sequence_number": number}, event=event["type"])


def _code(failure: Failure) -> str:
    known = _CODES.get(failure.code or "")
    return known or ("invalid_prompt" if failure.status < 500 else "server_error")
