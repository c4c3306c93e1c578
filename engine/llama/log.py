"""llama.cpp's log, captured; and the start of llama.cpp in this process."""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any, Final

import llama_cpp.llama_cpp as lib

from ..last_words import is_device_error

_MOST_ERRORS: Final = 200
_ERROR: Final = 4  # ggml.h, enum ggml_log_level


class Log:
    """Keeps the last lines that llama.cpp logs, and its errors.

    llama.cpp calls it from its own threads; appending to a list is atomic.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.errors: list[str] = []
        self._callback = lib.llama_log_callback(self._receive)
        lib.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _receive(self, level: int, text: bytes, _: Any) -> None:
        line = text.decode("utf-8", "replace").rstrip("\n")
        if not line or line == ".":
            return
        self.lines.append(line)
        if level >= _ERROR:
            self.errors.append(line)
            del self.errors[:-_MOST_ERRORS]
            if is_device_error(line):
                # The backend may be about to end this process, and this log with it: whoever reads the output hears.
                os.write(2, f"{line}\n".encode("utf-8", "replace"))
        if len(self.lines) > 4000:
            del self.lines[:2000]

    def reason(self, default: str) -> str:
        """The most telling error line so far, without the name of the C function it came from."""
        for line in self.errors:
            if "error loading model" in line or "unknown model architecture" in line:
                return line.split(": ", 1)[-1]
        return self.errors[-1].split(": ", 1)[-1] if self.errors else default


@functools.cache
def capture() -> Log:
    """The log of llama.cpp and ggml in this process. Nothing is initialised for it: headers are read without that."""
    return Log()


@functools.cache
def start() -> Log:
    """Initialise llama.cpp once for this process, with its log captured."""
    log = capture()
    lib.llama_backend_init()
    return log
