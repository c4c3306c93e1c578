"""Modules that a child process runs in the place of a real one, and processes that ask for one and are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from fakes.server_process import children_of, ended

PREAMBLE = """
import json, os, signal, sys
from pathlib import Path
"""


def write_module(folder: Path, monkeypatch: pytest.MonkeyPatch, main: str, name: str = "stand_in") -> str:
    """A module with this body of `main(job, report)` that children of this process can import; gives its name."""
    body = textwrap.indent(textwrap.dedent(main).strip(), "    ")
    (folder / f"{name}.py").write_text(f"{PREAMBLE}\ndef main(job, report):\n{body}\n")
    see_modules(folder, monkeypatch)
    return name


def see_modules(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have child processes of this process import from a folder first."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))


# Commands refuse a FIFO before they open it. Here one stands for a file that takes long to read, so in these processes
# that one is taken for a file, and it alone: every other path is looked at as ever. Source: Python's docs, site,
# "sitecustomize".
_ONE_FIFO_IS_A_FILE = """
import os
from coe.engine import files

require, open_ = files.require_regular, files.open_regular
is_it = lambda path: os.path.realpath(path) == {fifo!r}
files.require_regular = lambda path: os.stat(path) if is_it(path) else require(path)
files.open_regular = lambda path: open(path, "rb") if is_it(path) else open_(path)
"""


def taking_for_a_file(fifo: Path) -> dict[str, str]:
    """An environment in whose processes this FIFO is opened and read as a file is."""
    site = fifo.with_name("site")
    site.mkdir()
    (site / "sitecustomize.py").write_text(_ONE_FIFO_IS_A_FILE.format(fifo=os.path.realpath(fifo)))
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}


class KilledParent:
    """A process that has a child of ours read or write a FIFO, and is killed while the child waits for more."""

    def __init__(self, fifo: Path, beginning: str, program: str, *, written: bool = False) -> None:
        """program: what the parent runs after `beginning`; its child opens the FIFO. written: for writing."""
        os.mkfifo(fifo)
        self._fifo = fifo
        self._mode, self._other_end = ("rb", os.O_RDWR) if written else ("wb", os.O_RDONLY)
        self._other_ends: list[int] = []
        code = textwrap.dedent(beginning) + textwrap.dedent(program)
        self._errors = fifo.with_name("parent.log").open("w+b")
        self._process = subprocess.Popen([sys.executable, "-c", code], stderr=self._errors, env=taking_for_a_file(fifo))

    def child_outlives(self) -> bool:
        """Kill the parent once its child has opened the FIFO; whether the child lives on, which it could for ever."""
        threading.Thread(target=self._give_up, daemon=True).start()
        with self._fifo.open(self._mode):  # opens when the child has opened it, or when the parent has ended
            if self._other_ends:
                self._errors.seek(0)
                raise AssertionError(f"the parent ended by itself: {self._errors.read().decode()}")
            (child,) = children_of(self._process.pid)
            watched = os.pidfd_open(child)
            try:
                self._process.kill()
                return not ended(watched)
            finally:
                os.close(watched)

    def _give_up(self) -> None:
        if self._process.wait() != -signal.SIGKILL:
            self._other_ends.append(os.open(self._fifo, self._other_end | os.O_NONBLOCK))

    def close(self) -> None:
        """End what is left of it."""
        self._process.kill()
        self._process.wait()
        self._errors.close()
        for one in self._other_ends:
            os.close(one)
