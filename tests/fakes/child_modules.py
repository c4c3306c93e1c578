"""Modules that a child process runs in the place of a real one, and processes that ask for one and are killed."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

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


@contextmanager
def parent_process(
    beginning: str, program: str, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that runs a program, for tests that kill it; its children are what they watch."""
    code = textwrap.dedent(beginning) + textwrap.dedent(program)
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **(env or {})})
    try:
        yield process
    finally:
        process.kill()
        process.wait()
