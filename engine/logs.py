"""The request id that stands in every log line: a context variable, and the filter that writes it into records.

A decision (a grant, a refusal, a load, an eviction, a swap, a routing decision) is one line at level DEBUG, logged by
the module that made it, with the numbers that decided. Lines of llama.cpp go to LLAMA_LOGGER, so that decisions can be
shown without them.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Final

from .errors import EngineError
from .text import UNPRINTABLE as UNPRINTABLE
from .text import printable

LLAMA_LOGGER: Final = "coe.llama"
WORKER_LOGGER: Final = "coe.engine.worker"  # decisions of workers, which send them as frames; see worker.FrameHandler

REQUEST_ID: Final[ContextVar[str]] = ContextVar("request_id", default="")


# A traceback of Python's, and the stack that faulthandler prints at a signal.
_STACK_BEGINS: Final = ("Traceback (most recent call last):", "Fatal Python error:")


def one_line(text: str) -> str:
    """A text as one line that steers no terminal: what could is written as Python writes it, `\\n`, `\\x1b`."""
    return printable(text, len(text))


class RemoteTraceback(Exception):
    """The traceback of another process, as `traceback_of` wrote it there: for `exc_info` of a log call here."""


# Errors whose text speaks of files, code or the machine. That of others may be what a request held: KeyError and
# ValueError are made of the value that they met, pydantic's errors quote the input.
_TEXT_SHOWN: Final = (
    EngineError,
    RemoteTraceback,
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


def print_uncaught(kind: type[BaseException], error: BaseException | None, _: TracebackType | None) -> None:
    """A `sys.excepthook` for a process that holds requests: its last words reach the log, and whoever waits for it."""
    print(traceback_of(error) if error is not None else kind.__name__, file=sys.stderr, flush=True)


def stack_in(lines: Sequence[str]) -> str:
    """What a process that died printed of its stack, from its first traceback on; "" where it printed none."""
    begins = next((at for at, line in enumerate(lines) if line.startswith(_STACK_BEGINS)), None)
    return "\n".join(lines[begins:]) if begins is not None else ""


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
