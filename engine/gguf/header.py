"""What the header of a GGUF file says: its metadata and the list of its tensors. Values alone; `reader` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType


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
