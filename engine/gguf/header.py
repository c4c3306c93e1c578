"""What the header of a GGUF file says: its metadata and the list of its tensors. Values alone; `reader` reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType

from ..errors import ModelFileError
from ..text import quoted

_MOST = 2**31  # of anything that a header counts


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: shape in ggml's order (fastest dimension first), bytes from type and shape, offset in the file."""

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    n_bytes: int
    offset: int


@dataclass(frozen=True)
class Header:
    """Metadata (scalars and strings; arrays are given by their length alone) and tensors of one GGUF file."""

    path: Path
    metadata: Mapping[str, Any]
    array_lengths: Mapping[str, int]
    tensors: tuple[TensorInfo, ...]
    data_offset: int

    @property
    def architecture(self) -> str:
        """For example gemma4."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def weights_bytes(self) -> int:
        """Bytes of all tensors, padding left out."""
        return sum(tensor.n_bytes for tensor in self.tensors)

    def value(self, key: str, default: Any = None) -> Any:
        """A metadata value of this architecture, named without the architecture: value("expert_count")."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def count(self, key: str, default: int = 0) -> int:
        """A number of this architecture, from 0. Raises ModelFileError for a value that is none."""
        return self.whole_number(f"{self.architecture}.{key}", default)

    def whole_number(self, key: str, default: int) -> int:
        """A metadata value that counts something. Raises ModelFileError for one that does not."""
        found = self.metadata.get(key, default)
        if isinstance(found, float | bool | str) or not 0 <= found < _MOST:
            raise ModelFileError(
                f"{quoted(key)} of {self.path.name} is {quoted(found)}, which counts nothing.",
                "The file is damaged: fetch it again.",
            )
        return int(found)


def expert_bytes(headers: Sequence[Header]) -> list[int]:
    """Bytes of the experts of each block, 0 for one without. headers: of all parts of a model."""
    per_layer = [0] * headers[0].count("block_count")
    for header in headers:
        for tensor in header.tensors:
            block, found, rest = tensor.name.removeprefix("blk.").partition(".")
            if found and "_exps." in rest and block.isdecimal() and int(block) < len(per_layer):
                per_layer[int(block)] += tensor.n_bytes
    return per_layer
