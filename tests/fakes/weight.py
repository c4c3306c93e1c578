"""How heavy a test is: markers that fixtures give to their tests, and the guard that holds tests without one to it.

    model    a GGUF is loaded by llama.cpp, here or in a process of this project
    server   `coe serve` runs in a process of its own
    device   a GPU is needed, and skipped without one (fakes/device.py)
    slow     takes more than about a second for another reason: a process of this project, training, torch

A test without a marker is fast, and `make test-fast` runs nothing else. What a fixture brings its tests need not say.
"""

from __future__ import annotations

import itertools
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import llama_cpp.llama_cpp as lib
import pytest

MARKERS: Final = ("model", "server", "slow", "device")
_GRACE_S: Final = 2.0  # that a test has to fail by itself
_F = TypeVar("_F", bound=Callable[..., Any])


def brings(marker: str) -> Callable[[_F], _F]:
    """Below `@pytest.fixture`: tests that use the fixture, directly or through others, get the marker."""
    assert marker in MARKERS

    def tag(function: _F) -> _F:
        function.__dict__["brings"] = marker
        return function

    return tag


def mark_by_fixtures(items: Sequence[pytest.Item]) -> None:
    """Give tests the markers that their fixtures bring. An overriding fixture brings what it says itself."""
    for item in items:
        found = getattr(item, "_fixtureinfo", None)
        for definitions in found.name2fixturedefs.values() if found is not None else ():
            if (marker := getattr(definitions[-1].func, "brings", None)) is not None:
                item.add_marker(marker)


def is_fast(item: pytest.Item) -> bool:
    """Whether a test has none of the markers."""
    return not any(item.get_closest_marker(marker) for marker in MARKERS)


class Guard:
    """Fails a fast test, or a fixture set up for it, that loads a model or starts a process of this project."""

    def __init__(self) -> None:
        self._item: pytest.Item | None = None  # the test that runs
        self._refused = ""

    def install(self) -> None:
        """Stand before llama.cpp's loading and before every process that Python starts, asyncio's too."""
        load, start = lib.llama_model_load_from_file, subprocess.Popen.__init__

        def guarded_load(path: bytes, params: Any) -> Any:
            self._check("loads a model", "model")
            return load(path, params)

        def guarded_start(process: subprocess.Popen[Any], args: Any, *rest: Any, **options: Any) -> None:
            if (module := _module_of(args)) is not None:
                self._check(f"starts a process of {module}", "server, model or slow")
            start(process, args, *rest, **options)

        lib.llama_model_load_from_file = guarded_load
        subprocess.Popen.__init__ = guarded_start  # type: ignore[method-assign]
        signal.signal(signal.SIGALRM, lambda *_: pytest.fail(self._refused))

    @contextmanager
    def watching(self, item: pytest.Item) -> Iterator[None]:
        """Set-up, call and teardown of a test lie within."""
        self._item = item
        try:
            yield
        finally:
            self._item = None
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _check(self, what: str, marker: str) -> None:
        if self._item is None or not is_fast(self._item):
            return
        self._refused = f"A test without a marker {what}: mark it, or its fixture, {marker} (tests/fakes/weight.py)."
        # What is raised may end a task for which the test waits: then the alarm fails the test, and again where its end
        # waits for a thread.
        signal.setitimer(signal.ITIMER_REAL, _GRACE_S, _GRACE_S)
        # Not an Exception: code under test that catches those must not swallow it.
        pytest.fail(self._refused)


def _module_of(args: Any) -> str | None:
    """`coe.x` of a command line `python -m coe.x`, None for others."""
    words = [str(word) for word in args] if isinstance(args, (list, tuple)) else str(args).split()
    pairs = itertools.pairwise(words)
    return next((word for flag, word in pairs if flag == "-m" and word.startswith("coe.")), None)
