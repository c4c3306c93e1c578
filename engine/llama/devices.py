"""What this machine computes on: ggml's devices with their free memory, and processor cores."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path
from typing import Any, Final

import llama_cpp.llama_cpp as lib

from ..spec import Device
from .ggml import ggml_function

_pointer, _size_p = ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t)
_count: Final = ggml_function("ggml_backend_dev_count", ctypes.c_size_t)
_get: Final = ggml_function("ggml_backend_dev_get", _pointer, ctypes.c_size_t)
_name: Final = ggml_function("ggml_backend_dev_name", ctypes.c_char_p, _pointer)
_description: Final = ggml_function("ggml_backend_dev_description", ctypes.c_char_p, _pointer)
_type: Final = ggml_function("ggml_backend_dev_type", ctypes.c_int, _pointer)
_memory: Final = ggml_function("ggml_backend_dev_memory", None, _pointer, _size_p, _size_p)

_KINDS: Final = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accel"}  # ggml-backend.h, enum ggml_backend_dev_type


def devices() -> list[Device]:
    """What ggml can compute on, in its own order. Source: ggml-backend.h, ggml_backend_dev_*.

    CUDA opens a context of some hundred MiB on a card that is asked for its memory; `has_gpu` opens nothing.
    """
    found = []
    for device in _handles():
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        _memory(device, ctypes.byref(free), ctypes.byref(total))
        name, description = _name(device).decode(), _description(device).decode()
        found.append(Device(name, description, _kind(device), free.value, total.value))
    return found


def has_gpu() -> bool:
    """Whether there is a GPU. Nothing is opened on it."""
    return bool(gpu_handles())


def gpu_handles() -> list[Any]:
    """ggml_backend_dev_t of every GPU."""
    return [device for device in _handles() if _kind(device) == "gpu"]


def _handles() -> list[Any]:
    return [_get(index) for index in range(_count())]


def _kind(device: Any) -> str:
    return _KINDS.get(_type(device), "other")


def system_info() -> str:
    """What llama.cpp was built for, and which of the processor's instructions it uses, as it says itself."""
    return str(lib.llama_print_system_info().decode("utf-8", "replace").strip(" |"))


def gpu_free_bytes() -> int | None:
    """Free memory of all GPUs together, None where there is none."""
    gpus = [device for device in devices() if device.kind == "gpu"]
    return sum(device.free_bytes for device in gpus) if gpus else None


def physical_cores() -> int:
    """Cores this process may use, hyper-threads counted once. Source: /proc/cpuinfo, core id within physical id."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return allowed
    cores = set(re.findall(r"physical id\s*: (\d+).*?core id\s*: (\d+)", text, re.DOTALL))
    return min(allowed, len(cores)) if cores else allowed
