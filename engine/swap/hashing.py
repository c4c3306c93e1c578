"""Files' contents hashed in a process that gives way: `python -m coe.engine.swap.hashing PARENT_PID FILE...`.

It asks for the processor and the disk only when nobody else does, keeps to one core, leaves the page cache as it was,
and ends with the process that started it. Lines of JSON on stdout tell of each file: {"file", "done", "total"} in bytes
as it goes, {"file", "state": "done"}, or {"file", "error", "remedy"}.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any, Final

from ..errors import EngineError
from ..gguf.header import read_split
from ..process import die_with
from .fingerprints import hash_contents

_TELL_BYTES: Final = 256 * 2**20  # a line of progress for about so many

# Source: linux, ioprio_set(2); the number of the call by machine, asm/unistd.h.
_IOPRIO_SET: Final = {"x86_64": 251, "aarch64": 30, "arm64": 30}
_WHO_PROCESS, _CLASS_IDLE, _CLASS_SHIFT = 1, 3, 13


def give_way() -> None:
    """Be served last by processor and disk, as far as the system knows such a thing."""
    os.nice(19)
    number = _IOPRIO_SET.get(platform.machine())
    if sys.platform == "linux" and number is not None:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).syscall(number, _WHO_PROCESS, 0, _CLASS_IDLE << _CLASS_SHIFT)


def hash_file(path: Path, say: Any) -> None:
    """Hash one file and tell of it: `say` takes what a line says."""
    done = told = 0

    def progress(count: int) -> None:
        nonlocal done, told
        done += count
        if done - told >= _TELL_BYTES:
            told = done
            say({"file": str(path), "done": done, "total": total})

    try:
        total = sum(header.weights_bytes for header in read_split(path))
        say({"file": str(path), "done": 0, "total": total})
        hash_contents(path, progress, in_background=True)
    except EngineError as error:
        say({"file": str(path), "error": error.message, "remedy": error.remedy})
    except OSError as error:
        remedy = "Make room in the cache folder, or correct the rights of the file."
        say({"file": str(path), "error": f"{path} could not be hashed: {error}.", "remedy": remedy})
    else:
        say({"file": str(path), "state": "done"})


def main() -> None:
    """Entry point of the process."""
    answer_to = os.fdopen(os.dup(1), "w")  # ggml writes to stdout as it likes
    os.dup2(2, 1)
    die_with(int(sys.argv[1]))
    give_way()

    def say(line: dict[str, Any]) -> None:
        print(json.dumps(line), file=answer_to, flush=True)

    for name in sys.argv[2:]:
        hash_file(Path(name), say)


if __name__ == "__main__":
    main()
