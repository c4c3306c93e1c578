"""llama-server's /infill: what stands in the gap between two texts, whole or as it comes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from coe.engine.request import Delta, Finish, Finished

from ...runtime.answer import Answer, Outcome, Step
from ...runtime.errors import Failure, Part
from ..common.frames import data_frame
from ..dialect import EVENT_STREAM, Call, Described, StreamFormat
from ..openapi import body_schema
from .requests import InfillBody, parse_infill

_NAMES: Final[Mapping[Part, str]] = {
    Part.INPUT: "input_prefix",
    Part.SUFFIX: "input_suffix",
    Part.MODEL: "model",
}
_STOPS: Final = {Finish.STOP: "eos", Finish.LENGTH: "limit", Finish.LOOP: "limit"}
_TEXT: Final = {"type": "string"}
_WHOLE: Final = {"type": "integer", "minimum": 0}


class InfillEnvelope:
    """{"content": ..., "stop": ...}: one object, or a frame for each piece, the last of which has the counts."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    def body(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """See api.dialect.Envelope."""
        (outcome,) = outcomes
        return self._last(outcome.text, outcome.end)

    def opening(self) -> Iterable[bytes]:
        """Nothing."""
        return ()

    def frames(self, step: Step) -> Iterable[bytes]:
        """See api.dialect.Envelope."""
        if isinstance(step.event, Delta) and step.event.text:
            yield data_frame({"index": 0, "content": step.event.text, "stop": False})
        elif isinstance(step.event, Finished):
            yield data_frame(self._last("", step.event))

    def waiting(self, text: str) -> Iterable[bytes]:
        """Nothing: all text is code."""
        return ()

    def closing(self) -> Iterable[bytes]:
        """Nothing: the last frame says that it is the last."""
        return ()

    def _last(self, content: str, end: Finished) -> dict[str, Any]:
        return {
            "index": 0,
            "content": content,
            "stop": True,
            "stop_type": _STOPS.get(end.reason, "none"),
            "model": self.answer.answered_by.name,
            "tokens_predicted": end.completion_tokens,
            "tokens_evaluated": end.prompt_tokens,
            "tokens_cached": end.cached_tokens,
            "truncated": False,
            "coe": self.answer.provenance.facts([end]),
        }


class InfillDialect:
    """POST /infill."""

    stream_format: StreamFormat = EVENT_STREAM
    described = Described(
        summary="What stands between two texts, whole or as a stream",
        body=body_schema(InfillBody),
        answer={
            "type": "object",
            "required": ["content", "stop", "model", "tokens_predicted", "tokens_evaluated", "coe"],
            "properties": {
                "content": _TEXT,
                "stop": {"type": "boolean"},
                "stop_type": _TEXT,
                "model": _TEXT,
                "tokens_predicted": _WHOLE,
                "tokens_evaluated": _WHOLE,
                "tokens_cached": _WHOLE,
                "coe": {"type": "object"},
            },
        },
        error={
            "type": "object",
            "required": ["error"],
            "properties": {
                "error": {
                    "type": "object",
                    "required": ["code", "message", "type"],
                    "properties": {"code": {"type": "integer"}, "message": _TEXT, "type": _TEXT},
                }
            },
        },
    )

    def parse(self, body: Mapping[str, Any]) -> Call:
        """See Dialect."""
        return Call(parse_infill(body), InfillEnvelope)

    def error_body(self, failure: Failure) -> dict[str, Any]:
        """llama-server's: the status as its code."""
        error = {"code": failure.status, "message": failure.message, "type": failure.type}
        return {"error": {**error, "param": failure.param_in(_NAMES)}}

    def error_frame(self, failure: Failure) -> bytes:
        """See Dialect."""
        return data_frame(self.error_body(failure))


INFILL: Final = InfillDialect()
