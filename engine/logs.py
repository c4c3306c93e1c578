"""The request id that stands in every log line: a context variable, and the filter that writes it into records.

A decision (a grant, a refusal, a load, an eviction, a swap, a routing decision) is one line at level DEBUG, logged by
the module that made it, with the numbers that decided. Lines of llama.cpp go to LLAMA_LOGGER, so that decisions can be
shown without them.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final

from .errors import EngineError

LLAMA_LOGGER: Final = "coe.llama"
WORKER_LOGGER: Final = "coe.engine.worker"  # decisions of workers, which send them as frames; see worker.FrameHandler

REQUEST_ID: Final[ContextVar[str]] = ContextVar("request_id", default="")


# What ends a line or steers a terminal: control characters of ASCII and of Latin-1 (C0, DEL, C1: U+009B begins a
# sequence as ESC [ does), line and paragraph separators, and marks that turn the direction of writing.
UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def one_line(text: str) -> str:
    """A text as one line that steers no terminal: what could is written as Python writes it, `\\n`, `\\x1b`."""
    return UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], text)


# Errors whose text speaks of files, code or the machine. That of others may be what a request held: KeyError and
# ValueError are made of the value that they met, pydantic's errors quote the input.
_TEXT_SHOWN: Final = (
    EngineError,
    OSError,
    AttributeError,
    NameError,
    ImportError,
    TypeError,
    MemoryError,
    RuntimeError,
)
_TEXT_HIDDEN: Final = "(its text is left out: it may be a request's)"


def traceback_of(error: BaseException) -> str:
    """A traceback as Python writes it, with its causes, but without texts that may be out of a request."""
    return "\n".join(_traceback_lines(error, set())).rstrip("\n")


def _traceback_lines(error: BaseException, seen: set[int]) -> Iterator[str]:
    seen.add(id(error))
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and id(before) not in seen:
        yield from _traceback_lines(before, seen)
        yield "\nwhich was the cause of:\n"
    if error.__traceback__ is not None:
        yield "Traceback (most recent call last):"
        yield "".join(traceback.format_tb(error.__traceback__)).rstrip("\n")
    told = str(error) if isinstance(error, _TEXT_SHOWN) else _TEXT_HIDDEN
    yield f"{type(error).__name__}: {told}" if told else type(error).__name__
    for one in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        if id(one) not in seen:
            yield from _traceback_lines(one, seen)


def print_uncaught(kind: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
    """A `sys.excepthook` for a process that holds requests: its last words reach the log, and whoever waits for it."""
    print(traceback_of(error), file=sys.stderr)


def for_request(request_id: str) -> dict[str, Any]:
    """`extra` of a log call about a request that is not the one this task serves."""
    return {"request_id": request_id}


class RequestIdFilter(logging.Filter):
    """Gives each record a `request_id`: its own, else that of the request this task serves, else an empty string."""

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter; keeps every record."""
        if not hasattr(record, "request_id"):
            record.request_id = REQUEST_ID.get()
        return True
