"""The process that a model's chat template runs in (sandbox): bounded time and memory, nothing of its parent's.

A template is a stranger's program, and Python can end no thread: a loop of 10^12 turns ends with its process alone.
So every template has a process that renders it and nothing else. Processor time and address space are bounded by the
kernel, rendering by rendering; a process over a bound is gone, and the next conversation gets a new one.

Frames, over an inherited socket (engine/frames.py):

    {"op": "compile", "source": ...}                                first and once
    {"op": "render", "messages": [...], "own": {...}, "flags": {...}}
    {"text": ..., "spans": [[begin, end], ...]}                     answers both; a compiled source has an empty text
    {"error": "refused" | "failed" | "memory" | "size", "message": ...}

Started as `python -m coe.engine.generate.render_process FD PARENT_PID CPU_S TOTAL_CPU_S MEMORY_BYTES`. It imports no
llama.cpp: a process takes some 12 MB of its own and 60 ms to start.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final, NoReturn

import jinja2

from .. import frames
from ..process import be_killed_before_parent, call_process, die_with
from .jinja import RefusedError, compiled, rendered, told
from .origin import spans_of

# An honest template writes what it was given and some lines about it. The bound keeps its parent from reading more.
_MOST_TIMES: Final = 4
_MOST_EXTRA_CHARS: Final = 1_000_000
_MOST_WORDS: Final = 2_000  # characters of what it says when it fails, which may be as long as its memory allows


def _allow_cpu(seconds: int, total_seconds: int) -> None:
    """From now on this process may take so many seconds of processor time, and so many since its start (0: no bound);
    then the kernel ends it (SIGXCPU)."""
    allowed = int(time.process_time()) + 1 + seconds
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (min(allowed, total_seconds or allowed), hard))


def _bound(memory_bytes: int) -> None:
    """Bound what this process may take beside what it has already, and let the kernel end it first of all."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory_bytes,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    be_killed_before_parent(1000)


class _Rendering:
    """A template, and what it makes of conversations."""

    _template: jinja2.Template

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        try:
            if asked["op"] == "compile":
                self._template = compiled(asked["source"])
                return {"text": "", "spans": []}
            text = rendered(self._template, asked["messages"], asked["own"], asked["flags"])
            given = sum(len(value) for message in asked["messages"] for value in message.values() if value)
            if len(text) > _MOST_TIMES * given + _MOST_EXTRA_CHARS:
                said = f"it makes {len(text)} characters of a conversation of {given}"
                return {"error": "size", "message": said}
            return {"text": str.__str__(text), "spans": spans_of(text)}
        except MemoryError:
            return {"error": "memory", "message": ""}
        except RefusedError as error:
            return {"error": "refused", "message": str(error)[:_MOST_WORDS]}
        except Exception as error:  # a template is a program: it may fail in any way
            return {"error": "failed", "message": told(error)[:_MOST_WORDS]}


def main() -> NoReturn:
    """Entry point of the process."""
    descriptor, parent_pid, cpu_s, total_cpu_s, memory_bytes = map(int, sys.argv[1:6])
    die_with(parent_pid)
    call_process("coe template")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = socket.socket(fileno=descriptor)
    rendering = _Rendering()
    _bound(memory_bytes)
    while (asked := frames.receive(connection)) is not None:
        _allow_cpu(cpu_s, total_cpu_s)
        answer = rendering.answer(asked)
        try:
            connection.sendall(frames.pack(answer))
        except MemoryError:
            connection.sendall(frames.pack({"error": "memory", "message": ""}))
        if answer.get("error") == "memory":
            break  # what it holds comes back with its end
    os._exit(0)


if __name__ == "__main__":
    main()
