"""llama.cpp's own quantiser, in a child process of engine.child: it may abort, and it takes a tensor's memory."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import llama_cpp.llama_cpp as lib
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from coe.engine import child
from coe.engine.child import Report
from coe.engine.errors import ChildError
from coe.engine.files import share_like

from ..errors import CutError

_PROCESS: Final = "coe.surgery.cut.quantize"
_SILENT_S: Final = 3600.0  # between two tensors: the largest take minutes where a type of few bits is searched for
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
    job = {"source": str(source), "out": str(out), "file_type": require_file_type(file_type)}
    quantizing = child.run(
        _PROCESS,
        job,
        title=f"The process that quantises to {file_type}",
        on_progress=lambda step: progress(*step) if progress is not None else None,
        silent_s=_SILENT_S,
    )
    try:
        asyncio.run(quantizing)
    except ChildError as error:
        why = error.words or error.how
        raise CutError(
            f"llama.cpp could not quantise to {file_type}: {why}", "Choose another type, or cut without quantising."
        ) from None


def main(job: dict[str, Any], report: Report) -> None:
    """What the child does; it reports [tensors done, of how many]. Its last words are llama.cpp's reason."""

    def log(level: int, text: bytes, _: Any) -> None:
        line = text.decode("utf-8", "replace")
        if match := re.match(r"\[ *(\d+)/ *(\d+)\]", line):
            report([int(match[1]), int(match[2])])
        elif level >= 4:  # an error
            sys.stderr.write(line)

    callback = lib.llama_log_callback(log)
    lib.llama_log_set(callback, ctypes.c_void_p(0))
    lib.llama_backend_init()
    params = lib.llama_model_quantize_default_params()
    params.ftype = job["file_type"]
    params.allow_requantize = True
    if code := lib.llama_model_quantize(os.fsencode(job["source"]), os.fsencode(job["out"]), ctypes.byref(params)):
        sys.exit(code)
    share_like(Path(job["out"]), Path(job["source"]))
