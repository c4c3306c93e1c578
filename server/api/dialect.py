"""What a dialect is: one API's way of writing requests, answers, streams and errors. Each lies in a folder of its own.

A dialect is a thin translation. It parses a body into the internal request and writes what an answer yields; choosing,
leasing, sampling bounds, thinking, loops, headers and limits are the runtime's, and all dialects share them. The
writing is pure: it returns bytes and JSON values, and `answers.py` sends them.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from ..runtime.answer import Answer, Outcome, Step
from ..runtime.college import College
from ..runtime.errors import Failure
from ..runtime.request import Request


class Envelope(Protocol):
    """The answer to one request, as its dialect writes it.

    A whole answer is one `body`. A streamed one is `opening`, then `frames` of each step, then `closing`; frames of an
    answer are asked for in order, and may keep count of what has gone out.
    """

    def body(self, outcomes: Sequence[Outcome]) -> Mapping[str, Any]:
        """The JSON body of a whole answer, one outcome a choice."""
        ...

    def opening(self) -> Iterable[bytes]:
        """Frames before the first text; where waiting is told of, before the lease is there."""
        ...

    def frames(self, step: Step) -> Iterable[bytes]:
        """Frames of one step: a Delta of some choice, or a choice's Finished. Other events have none."""
        ...

    def waiting(self, text: str) -> Iterable[bytes]:
        """Frames that tell a user what the answer waits for; none where the dialect has no place for it."""
        ...

    def closing(self) -> Iterable[bytes]:
        """Frames after every choice has finished."""
        ...


@runtime_checkable
class TellsFailure(Protocol):
    """An envelope whose errors have their place in the order of its frames; of others the dialect writes them."""

    def failed(self, failure: Failure) -> Iterable[bytes]:
        """Frames of an error after the stream's first byte, with which it ends."""
        ...


@dataclass(frozen=True)
class Call:
    """A parsed body: the request, and how its answer is written.

    others: further requests that differ from the first in their prompts alone. They are answered by its specialist, in
    one envelope with it: its choices come first, then theirs, numbered on.
    """

    request: Request
    envelope: Callable[[Answer], Envelope]
    others: tuple[Request, ...] = ()


@dataclass(frozen=True)
class Errand:
    """A parsed body that wants no answer, but something of the college done. model: what it is about.

    run: does it, for the request of this ASGI scope, and gives the response. Raises RequestError or EngineError.
    """

    model: str
    run: Callable[[College, Scope], Coroutine[Any, Any, Response]]


@dataclass(frozen=True)
class StreamFormat:
    """How a dialect's frames travel. keep_alive: a frame that says nothing, for streams that wait; None for none."""

    media_type: str
    keep_alive: bytes | None


@dataclass(frozen=True)
class Described:
    """What the OpenAPI document says of a dialect: a line, and the JSON Schemas of its bodies."""

    summary: str
    body: Mapping[str, Any]
    answer: Mapping[str, Any]
    error: Mapping[str, Any]


CODE_KEY: Final = "coe.code"  # of the ASGI scope: why a request was refused, in one word
EVENT_STREAM: Final = StreamFormat("text/event-stream", b": waiting\n\n")


class Dialect(Protocol):
    """One API."""

    @property
    def stream_format(self) -> StreamFormat:
        """Of its streamed answers."""
        ...

    @property
    def described(self) -> Described:
        """Its bodies, for the OpenAPI document."""
        ...

    def parse(self, body: Mapping[str, Any]) -> Call | Errand:
        """The call in a body, or the errand. Raises RequestError that names the field at fault."""
        ...

    def error_body(self, failure: Failure) -> Mapping[str, Any]:
        """The JSON body of an error."""
        ...

    def error_frame(self, failure: Failure) -> bytes:
        """An error after a stream's first byte; the stream ends with it. Not of an envelope that TellsFailure."""
        ...


def error_response(dialect: Dialect, failure: Failure, scope: Scope) -> JSONResponse:
    """An error in place of an answer, with the headers that belong to it. The scope gets its code, for the journal."""
    scope[CODE_KEY] = failure.code or failure.type
    return JSONResponse(dialect.error_body(failure), failure.status, dict(failure.headers))
