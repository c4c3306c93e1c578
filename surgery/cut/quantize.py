"""llama.cpp's own quantiser, in a process of its own: it may abort, and it takes a tensor's memory.

Started as `python -m coe.surgery.cut.quantize SOURCE OUT FILE_TYPE PARENT_PID`; it prints "done all", a line a tensor.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import llama_cpp.llama_cpp as lib
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from coe.engine.process import die_with

from ..errors import CutError

_PREFIX: Final = re.compile("LLAMA_FTYPE_(?:MOSTLY|ALL)_")

# llama.h, enum llama_ftype: the names that llama-quantize takes.
FILE_TYPES: Final[dict[str, int]] = {
    _PREFIX.sub("", name): int(getattr(lib, name)) for name in dir(lib) if _PREFIX.match(name)
}


def require_file_type(name: str) -> int:
    """llama.cpp's number of a file type. Raises CutError, naming the known, for another name."""
    if name not in FILE_TYPES:
        raise CutError(f"llama.cpp has no file type {name!r}.", f"Known: {', '.join(sorted(FILE_TYPES))}.")
    return FILE_TYPES[name]


def roughly_bytes(n_weights: int, file_type: str) -> int:
    """What a file of this type takes at most, about: some of its tensors are held in larger types."""
    name = file_type
    while name and name not in GGMLQuantizationType.__members__:  # Q4_K_M, Q4_K
        name = name.rpartition("_")[0]
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[name or "Q4_K"]]
    return int(1.2 * n_weights * block_bytes / block) + 2**20


def quantize_file(
    source: Path, out: Path, file_type: str, *, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write a GGUF again in another file type; tensors whose rows are no whole blocks go to the next that fits.

    What is quantised already is quantised anew, from its own values. progress: called with tensors done, of how many.

    Raises CutError with llama.cpp's own reason.
    """
    number = require_file_type(file_type)
    command = [sys.executable, "-m", "coe.surgery.cut.quantize", str(source), str(out), str(number), str(os.getpid())]
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}  # which would bury the reason of a failed assertion
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, stdin=nothing, stdout=pipe, stderr=errors, env=environment, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                done, total = map(int, line.split())
                if progress is not None:
                    progress(done, total)
        except BaseException:
            process.kill()
            raise
        if process.wait() != 0:
            errors.seek(0)
            lines = [line for line in errors.read().decode("utf-8", "replace").splitlines() if line.strip()]
            raise CutError(
                f"llama.cpp could not quantise to {file_type}: {lines[-1] if lines else f'exit {process.returncode}'}",
                "Choose another type, or cut without quantising.",
            )


def main() -> None:
    """Entry point of the process."""
    source, out, number, parent = sys.argv[1:]
    die_with(int(parent))
    # llama.cpp writes to stdout as it likes: keep the real one for the progress.
    reports = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def log(level: int, text: bytes, _: Any) -> None:
        line = text.decode("utf-8", "replace")
        if match := re.match(r"\[ *(\d+)/ *(\d+)\]", line):
            reports.write(f"{match[1]} {match[2]}\n")
        elif level >= 4:  # an error
            sys.stderr.write(line)

    callback = lib.llama_log_callback(log)
    lib.llama_log_set(callback, ctypes.c_void_p(0))
    lib.llama_backend_init()
    params = lib.llama_model_quantize_default_params()
    params.ftype = int(number)
    params.allow_requantize = True
    sys.exit(lib.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params)))


if __name__ == "__main__":
    main()
