"""What this machine computes on: ggml's devices with their free memory, and processor cores."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final

import llama_cpp.llama_cpp as lib

from ..cards import cards, free_by_place
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


def devices(named: Collection[str] = (), *, ask_memory: bool = True) -> list[Device]:
    """What ggml can compute on, in its own order. Source: ggml-backend.h, ggml_backend_dev_*.

    named:      those whose memory is asked for; all of them where none is named.
    ask_memory: CUDA opens a context of some hundred MiB on a card that is asked for its memory; without, nothing is
                opened. Sizes that were not asked for are 0.
    """
    found = []
    for index in range(_count()):
        device = _get(index)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        name, description = _name(device).decode(), _description(device).decode()
        if ask_memory and (not named or name in named):
            _memory(device, ctypes.byref(free), ctypes.byref(total))
        found.append(Device(name, description, _KINDS.get(_type(device), "other"), free.value, total.value))
    return found


def has_card(named: Sequence[str] = ()) -> bool:
    """Whether llama.cpp computes on a card; see `card_handles`. Nothing is opened on it."""
    return bool(card_handles(named))


def card_handles(named: Sequence[str] = ()) -> list[Any]:
    """ggml_backend_dev_t of the cards that llama.cpp computes on, in their order; see `coe.engine.cards.cards`."""
    handles = {_name(handle).decode(): handle for handle in map(_get, range(_count()))}
    return [handles[card.name] for card in cards(devices(ask_memory=False), named)]


def free_memory(named: Sequence[str] = ()) -> dict[str, int]:
    """Free bytes by place of the cards that llama.cpp computes on. Of those that are named, no other is opened."""
    return free_by_place(devices(named), named)


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
