"""Tensors of a model by name: where they lie in its files, their bytes, and their values."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize
from numpy.typing import NDArray

from coe.engine.errors import ModelFileError
from coe.engine.files import open_regular
from coe.engine.gguf.architectures import CHOICE_BIAS, ROUTER
from coe.engine.gguf.header import Header, TensorInfo

ROUTER_BIASES: Final = ("ffn_gate_inp.bias", CHOICE_BIAS)
PLAIN: Final = (Type.F32, Type.F16, Type.BF16)  # their values are floats exactly


@dataclass(frozen=True)
class ByteRange:
    """Bytes that lie together in a file."""

    path: Path
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class Weights:
    """A model's tensors. places: name -> its file and what the header says of it."""

    places: dict[str, tuple[Path, TensorInfo]]

    @classmethod
    def of(cls, headers: Sequence[Header]) -> Weights:
        """Those of all parts."""
        return cls({tensor.name: (header.path, tensor) for header in headers for tensor in header.tensors})

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def info(self, name: str) -> TensorInfo:
        """What the header says of a tensor."""
        return self.places[name][1]

    def whole(self, name: str) -> ByteRange:
        """Where a tensor lies."""
        path, tensor = self.places[name]
        return ByteRange(path, tensor.offset, tensor.n_bytes)

    def slab(self, name: str, at: int, count: int = 1) -> ByteRange:
        """Where some of a tensor's outermost dimension lie: experts, or rows of a matrix."""
        path, tensor = self.places[name]
        one = tensor.n_bytes // tensor.shape[-1]
        return ByteRange(path, tensor.offset + at * one, count * one)

    def router(self, layer: int) -> list[str]:
        """The tensors of a layer's router: its rows, and what is added to their product where there is any."""
        names = [f"blk.{layer}.{tensor}" for tensor in (ROUTER, *ROUTER_BIASES)]
        return [name for name in names if name in self]

    def values(self, name: str) -> NDArray[np.float32]:
        """A tensor's values, [outermost, all others]. Raises ModelFileError for a type that numpy cannot read."""
        tensor = self.info(name)
        count = tensor.shape[-1] if len(tensor.shape) > 1 else 1
        return values(read(self.whole(name)), tensor.type, name).reshape(count, -1)


def read(place: ByteRange) -> bytes:
    """The bytes of a range. Raises OSError, ModelFileError where the file is shorter."""
    with open_regular(place.path) as file:
        file.seek(place.offset)
        found = file.read(place.n_bytes)
    if len(found) < place.n_bytes:
        raise ModelFileError(f"{place.path} ends early.", "Fetch it again (coe pull).")
    return found


def values(data: bytes, kind: Type, name: str) -> NDArray[np.float32]:
    """Whole blocks as numbers. Raises ModelFileError for a type that cannot be read here."""
    if kind == Type.F32:
        return np.frombuffer(data, np.float32)
    if kind == Type.F16:
        return np.frombuffer(data, np.float16).astype(np.float32)
    if kind == Type.BF16:
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    try:
        return np.asarray(dequantize(np.frombuffer(data, np.uint8), kind), np.float32)
    except NotImplementedError:
        raise ModelFileError(
            f"{name} is of the type {kind.name}, which cannot be read as numbers here.", "Give another quantisation."
        ) from None


def router_sha256(weights: Weights, layers: Sequence[int]) -> str:
    """The hash of a model's routers as F32, layer by layer: the same for every quantisation of one checkpoint, since
    converters leave routers alone. "" for one of a type that cannot be read. Raises OSError, ModelFileError."""
    digest = hashlib.sha256()
    for name in (name for layer in layers for name in weights.router(layer)):
        tensor = weights.info(name)
        if tensor.type not in PLAIN:
            return ""
        digest.update(f"{name} {tensor.shape}\n".encode())
        digest.update(weights.values(name).astype("<f4").tobytes())
    return digest.hexdigest()
