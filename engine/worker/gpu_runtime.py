"""What a GPU's runtime takes of the card for a process, before any model: measured once a machine, and kept.

A process cannot see what it takes itself: asking for the card's memory may already have opened it. So the process that
wants to know, which has opened the card, looks at what is free before and after a child of its own opens it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import signal
from collections.abc import Mapping, Sequence
from typing import Any, Final

import llama_cpp

from .. import child
from ..cards import cards
from ..child import Report
from ..errors import EngineError
from ..files import cache_folder, private_folder, read_bounded, written_beside
from ..llama.devices import card_handles, devices, free_memory, system_info
from ..llama.ggml import F16, F32, ggml_function
from ..llama.log import start
from ..spec import Device

# Where nothing was measured: what CUDA takes for its context, modules and library workspaces.
ESTIMATE_BYTES: Final = 420 * 2**20

# CUDA and ROCm load the code of a kernel when it is first used, and the child uses two of the dozens that a model does.
_LATER_BYTES: Final = 64 * 2**20
_LOADS_LATER: Final = ("CUDA", "ROCm", "MUSA")

_MOST_BYTES: Final = 2 * 2**30  # no runtime takes more: a model was loaded meanwhile
_MOST_KEPT_BYTES: Final = 64 * _MOST_BYTES  # of as many cards
_WITHIN_S: Final = 60.0
_MOST_FILE_BYTES: Final = 2**20
_FILE: Final = "gpu-runtime.json"
_pointer = ctypes.c_void_p


def runtime_bytes(named: Sequence[str] = ()) -> int:
    """What a process takes of the GPUs that it computes on, all together: what was measured with this build on this
    machine, measured now where nothing was, and the estimate where that tells nothing. named: see `cards`."""
    gpus = cards(devices(named), named)
    if not gpus:
        return ESTIMATE_BYTES
    key, kept = _key(gpus), _kept()
    if key not in kept:
        try:
            lost = asyncio.run(_measure(named))
        except EngineError:
            return ESTIMATE_BYTES * len(gpus)
        taken = believed(lost, gpus)
        if taken is None:
            return ESTIMATE_BYTES * len(gpus)
        _keep(kept := {**kept, key: taken})
    return kept[key] or ESTIMATE_BYTES * len(gpus)


def believed(lost_bytes: int, gpus: Sequence[Device]) -> int | None:
    """What a runtime takes, by what the GPUs lost while one was opened; 0 for drivers whose figure does not move.

    None where it tells nothing: other programs took or gave back memory meanwhile.
    """
    if not 0 <= lost_bytes <= _MOST_BYTES * len(gpus):
        return None
    return lost_bytes and lost_bytes + _LATER_BYTES * sum(gpu.name.startswith(_LOADS_LATER) for gpu in gpus)


class _Opened(Exception):
    """The child has opened the GPUs, and holds them."""


async def _measure(named: Sequence[str]) -> int:
    """What the GPUs lose while a child has them open, in bytes."""

    def opened(progress: Any) -> None:
        raise _Opened

    before = _free_bytes(named)
    async with child.started(__name__, {"named": named}, title="The process that opens the GPU") as one:
        with contextlib.suppress(_Opened):
            await one.answer(opened, within_s=_WITHIN_S)
        return before - _free_bytes(named)


def _free_bytes(named: Sequence[str]) -> int:
    return sum(free_memory(named).values())


def main(job: Mapping[str, Any], report: Report) -> None:
    """What the child does: it multiplies two matrices on each GPU, tells that it has, and waits for its end."""
    start()
    for card in card_handles(job["named"]):
        _multiply(card)
    report("opened")
    while True:
        signal.pause()


def _multiply(card: Any) -> None:
    """Run a small graph, with which a backend has all that it keeps beside a model's own buffers."""

    class Params(ctypes.Structure):
        _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", _pointer), ("no_alloc", ctypes.c_bool))

    i64, integer = ctypes.c_int64, ctypes.c_int
    backend = ggml_function("ggml_backend_dev_init", _pointer, _pointer, ctypes.c_char_p)(card, None)
    if not backend:
        raise EngineError("The GPU cannot be opened.")
    matrix = ggml_function("ggml_new_tensor_2d", _pointer, _pointer, integer, i64, i64)
    context = ggml_function("ggml_init", _pointer, Params)(Params(2**20, None, True))
    product = ggml_function("ggml_mul_mat", _pointer, _pointer, _pointer, _pointer)(
        context, matrix(context, F16, 256, 256), matrix(context, F32, 256, 64)
    )
    graph = ggml_function("ggml_new_graph", _pointer, _pointer)(context)
    ggml_function("ggml_build_forward_expand", None, _pointer, _pointer)(graph, product)
    if not ggml_function("ggml_backend_alloc_ctx_tensors", _pointer, _pointer, _pointer)(context, backend):
        raise EngineError("The GPU has no room for its own runtime.")
    ggml_function("ggml_backend_graph_compute", integer, _pointer, _pointer)(backend, graph)


def _key(gpus: Sequence[Device]) -> str:
    """Of these GPUs with this build of llama.cpp."""
    names = ", ".join(f"{gpu.name} {gpu.description}, {gpu.total_bytes} bytes" for gpu in gpus)
    return f"{names}; llama-cpp-python {llama_cpp.__version__}; {system_info()}"


def _kept() -> dict[str, int]:
    try:
        kept = json.loads(read_bounded(cache_folder() / _FILE, _MOST_FILE_BYTES))
    except (OSError, ValueError):
        return {}
    if not isinstance(kept, dict):
        return {}
    return {key: size for key, size in kept.items() if type(size) is int and 0 <= size <= _MOST_KEPT_BYTES}


def _keep(kept: dict[str, int]) -> None:
    # What cannot be kept is measured again, which takes a second.
    with contextlib.suppress(OSError):
        private_folder(cache_folder())
        with written_beside(cache_folder() / _FILE, private=True) as beside:
            beside.write_text(json.dumps(kept, indent=1))
