"""What this machine computes on: ggml's devices with their free memory, and processor cores."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

import llama_cpp.llama_cpp as lib
from llama_cpp._ggml import libggml

from ..spec import Device


def devices() -> list[Device]:
    """What ggml can compute on, in its own order. Source: ggml-backend.h, ggml_backend_dev_*."""
    libggml.ggml_backend_dev_get.restype = ctypes.c_void_p
    libggml.ggml_backend_dev_count.restype = ctypes.c_size_t
    for name in ("ggml_backend_dev_name", "ggml_backend_dev_description"):
        function = getattr(libggml, name)
        function.restype, function.argtypes = ctypes.c_char_p, [ctypes.c_void_p]
    libggml.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    size_p = ctypes.POINTER(ctypes.c_size_t)
    libggml.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p, size_p, size_p]
    libggml.ggml_backend_dev_memory.restype = None
    found = []
    for index in range(libggml.ggml_backend_dev_count()):
        device = libggml.ggml_backend_dev_get(ctypes.c_size_t(index))
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        libggml.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        kind = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accel"}.get(libggml.ggml_backend_dev_type(device), "other")
        found.append(
            Device(
                libggml.ggml_backend_dev_name(device).decode(),
                libggml.ggml_backend_dev_description(device).decode(),
                kind,
                free.value,
                total.value,
            )
        )
    return found


def system_info() -> str:
    """What llama.cpp was built for, and which of the processor's instructions it uses, as it says itself."""
    return str(lib.llama_print_system_info().decode("utf-8", "replace").strip(" |"))


def physical_cores() -> int:
    """Cores this process may use, hyper-threads counted once. Source: /proc/cpuinfo, core id within physical id."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return allowed
    cores = set(re.findall(r"physical id\s*: (\d+).*?core id\s*: (\d+)", text, re.DOTALL))
    return min(allowed, len(cores)) if cores else allowed
