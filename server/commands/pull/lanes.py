"""Waiting for work on threads, so that a Ctrl-C ends it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Final, TypeVar

Result = TypeVar("Result")

_WAKES_S: Final = 0.2


def completed(work: Iterable[Future[Result]]) -> Iterator[Future[Result]]:
    """Work as it ends, like `as_completed`, waking up in between.

    A signal that comes while the interpreter gives way to other threads, before it waits for a lock, is not looked at
    until that wait has ended: with many threads at work a Ctrl-C was lost so.
    """
    waiting = set(work)
    while waiting:
        done, waiting = wait(waiting, timeout=_WAKES_S, return_when=FIRST_COMPLETED)
        yield from done
