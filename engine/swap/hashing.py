"""Content hashing of model files in a child process at idle priority (nice, ioprio), which leaves the page cache alone.

Run by engine.child. The child asks for processor and disk only when no other process does, keeps to one core, and reads
without a trace in the page cache. It reports {"done", "total"} in bytes as it goes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from pathlib import Path
from typing import Any, Final

from ..child import Report
from ..errors import EngineError
from ..gguf.reader import read_split
from .fingerprints import fingerprint_file

_REPORT_BYTES: Final = 256 * 2**20  # a report for about so many

# Source: linux, ioprio_set(2); the number of the call by machine, asm/unistd.h.
_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30, "arm64": 30}
_PROCESS, _CLASS_IDLE, _CLASS_SHIFT = 1, 3, 13


def give_way() -> None:
    """Be served last by processor and disk, where the system knows idle priorities."""
    os.nice(19)
    number = _IOPRIO_SET.get(platform.machine())
    if sys.platform == "linux" and number is not None:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).syscall(number, _PROCESS, 0, _CLASS_IDLE << _CLASS_SHIFT)


def hash_file(path: Path, report: Report) -> None:
    """Take the fingerprints of one file, and report how far that is. Raises EngineError."""
    done = reported = 0

    def progress(count: int) -> None:
        nonlocal done, reported
        done += count
        if done - reported >= _REPORT_BYTES:
            reported = done
            report({"done": done, "total": total})

    try:
        total = sum(header.weights_bytes for header in read_split(path))
        report({"done": 0, "total": total})
        fingerprint_file(path, progress, in_background=True)
    except OSError as error:
        remedy = "Make room in the cache folder, or correct the rights of the file."
        raise EngineError(f"{path} could not be hashed: {error}.", remedy) from error


def main(job: dict[str, Any], report: Report) -> None:
    """What the child does: take the fingerprints of a file."""
    give_way()
    hash_file(Path(job["file"]), report)
