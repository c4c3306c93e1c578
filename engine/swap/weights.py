"""A loaded model's weights, found through the graph that reads them, so that parts of them can be overwritten.

llama.cpp has no call that names a model's tensors. Its public hook for graph nodes shows each node's sources, and the
weights are among them: two decodes in a context of no further use name all that text generation reads.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import llama_cpp.llama_cpp as lib

from ..errors import SharingError
from ..llama.context import Context
from ..llama.ggml import GgmlTensor, buffer_is_host, buffer_name, n_bytes, require_layout, tensor_get
from ..llama.model import Model
from ..spec import LoadSpec
from .plan import Place, Weights

# Buffers that take a part of a tensor as it is in the file. Source: the set_tensor functions of ggml's backends: the
# CPU, CUDA (ROCm and MUSA are the same code), Vulkan and Metal's shared buffers copy bytes to an offset. OpenCL turns
# quantised tensors about and reads them whole, SYCL reorders them at first use, CANN and the CPU's own other layouts
# (REPACK, AMX, KleidiAI) transform them. Mapped files cannot be written.
_WRITABLE: Final = re.compile(r"CPU|(CUDA|ROCm|MUSA|Vulkan|MTL)\d+|(CUDA|ROCm|MUSA|Vulkan)_Host")

_LOOK_BYTES: Final = 256  # of each end of a tensor, when it is held against its file
_TRIAL_CELLS: Final = 256


@dataclass(frozen=True)
class LoadedTensor:
    """A tensor in memory. address: of its struct. data: of its bytes, where the processor can reach them, else None."""

    address: int
    data: int | None
    n_bytes: int
    type: int
    shape: tuple[int, ...]
    buffer: str


Loaded = Mapping[str, tuple[LoadedTensor, ...]]  # a name may stand for several: a tied output is a copy on a GPU


def find_weights(model: Model, spec: LoadSpec) -> Loaded:
    """The tensors that text generation reads from a loaded model, by name.

    Raises LayoutError for another build of llama.cpp, SharingError where a tensor is only reached through a copy,
    LoadError when there is no memory for a small context.
    """
    require_layout()
    found: dict[str, dict[int, LoadedTensor]] = {}
    copied: set[str] = set()
    failures: list[BaseException] = []

    def on_node(address: int, asked: bool, _: Any) -> bool:
        try:
            for source in GgmlTensor.from_address(address).src:
                if source:
                    _note(source, found, copied)
        except BaseException as error:  # ctypes would print and forget it
            failures.append(error)
        return not asked  # no node's values are wanted, and nothing is to be left out

    # One thread: where other processes want the cores, many that wait for each other take longer.
    small = replace(spec, context_tokens=_TRIAL_CELLS, cache_tokens=0, parallel=1, threads=1)
    context = Context(model, small, on_node=lib.ggml_backend_sched_eval_callback(on_node))
    try:
        token = max(model.vocab.bos, 0)
        for entries in ([(token, 0, 0, False), (token, 1, 0, True)], [(token, 2, 0, True)]):
            if result := context.decode(entries):
                raise SharingError(f"A trial decode failed with {result}.", "Load the specialists unshared.")
    finally:
        context.close()
    if failures:
        raise failures[0]
    if hidden := sorted(copied - found.keys()):
        raise SharingError(f"{hidden[0]} is only read through a copy.", "Keep all layers on one device.")
    return {name: tuple(tensors.values()) for name, tensors in found.items()}


def _note(source: int, found: dict[str, dict[int, LoadedTensor]], copied: set[str]) -> None:
    tensor = GgmlTensor.from_address(source)
    if tensor.view_src:  # a part of another: that one counts
        source = tensor.view_src
        tensor = GgmlTensor.from_address(source)
    name = tensor.name.decode("utf-8", "replace")
    # The scheduler calls a copy of a tensor on another device DEVICE#NAME#NUMBER.
    if match := re.fullmatch(r".+#(.+)#\d+", name):
        if match[1].endswith((".weight", ".bias", ".scale")):
            copied.add(match[1])
        return
    if tensor.op or not tensor.data or not tensor.buffer:  # an operation's result, or the input of a decode
        return
    if name in found and tensor.data in found[name]:
        return
    shape = list(tensor.ne)
    while len(shape) > 1 and shape[-1] == 1:
        shape.pop()
    found.setdefault(name, {})[tensor.data] = LoadedTensor(
        source,
        tensor.data if buffer_is_host(tensor.buffer) else None,
        n_bytes(source),
        tensor.type,
        tuple(shape),
        buffer_name(tensor.buffer).decode(),
    )


def require_match(loaded: Loaded, weights: Weights) -> None:
    """Raises SharingError where what is loaded is not the specialist's tensors by type, shape and size, or lies in a
    buffer that takes no parts.

    A tensor that generation never reads (of blocks that predict further tokens, say) need not be found; a router or a
    matrix of experts in a layer that is read must be.
    """
    read_layers = {place.layer for place in weights.places if place.layer is not None and place.name in loaded}
    for place in weights.places:
        tensors = loaded.get(place.name, ())
        kind, shape = weights.shape.tensors[place.name]
        if not tensors and place.layer in read_layers and place.name.endswith(".weight"):
            raise SharingError(f"{place.name} was not found in the loaded model.", "Load the specialists unshared.")
        for tensor in tensors:
            if not _WRITABLE.fullmatch(tensor.buffer):
                raise SharingError(
                    f"{place.name} lies in a buffer of {tensor.buffer}, which takes no parts of a tensor.",
                    "Load the specialists unshared.",
                )
            if (tensor.type, tensor.shape, tensor.n_bytes) != (kind, shape, place.total_bytes):
                raise SharingError(f"{place.name} is loaded in another form than its file's.", "Load it unshared.")
    if not read_layers:
        raise SharingError("No experts were found in the loaded model.", "Load the specialists unshared.")


def require_same_bytes(loaded: Loaded, weights: Weights) -> None:
    """Raises SharingError where the ends of a loaded tensor are not those in the specialist's file.

    Cheap, and tells whether names and layout mean what they are taken for.
    """
    files: dict[Any, int] = {}
    try:
        for place in weights.places:
            if place.path not in files:
                files[place.path] = os.open(place.path, os.O_RDONLY)
            for tensor in loaded.get(place.name, ()):
                _compare_ends(tensor, place, files[place.path])
    finally:
        for file in files.values():
            os.close(file)


def _compare_ends(tensor: LoadedTensor, place: Place, file: int) -> None:
    first, last = (place.experts[0], place.experts[-1]) if place.experts else (0, 0)
    size = min(_LOOK_BYTES, place.n_bytes)
    starts = place.offset + first * place.n_bytes
    ends = place.offset + (last + 1) * place.n_bytes - size
    buffer = ctypes.create_string_buffer(size)
    for at, offset in ((0, starts), (tensor.n_bytes - size, ends)):
        tensor_get(tensor.address, buffer, at, size)
        if buffer.raw != os.pread(file, size, offset):
            raise SharingError(f"{place.name} in memory is not what its file holds.", "Load the specialists unshared.")
