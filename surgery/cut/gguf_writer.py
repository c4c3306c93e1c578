"""GGUF headers, written record by record so that nothing changes but what is meant to change.

A header is read into its records, each metadata record as the bytes it has in the file, and put together again. What
is not touched is the same to the byte: key order, strings with zeros in them, arrays of 262,144 tokens. ggml's own
gguf_set_kv loses strings at their first zero byte and takes no notice of general.alignment, and moves changed keys to
the end.

Source: docs/gguf.md of ggml; gguf.cpp, gguf_init_from_reader and gguf_writer_base.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from coe.engine.gguf.check import ARRAY, FORMATS, STRING, checked
from coe.engine.gguf.records import Records, parse_records, read_string

_ALIGNMENT_KEY: Final = "general.alignment"
_DEFAULT_ALIGNMENT: Final = 32

Value = str | int | float | Sequence[int]


@dataclass(frozen=True)
class Tensor:
    """A tensor's record: shape in ggml's order, with as many dimensions as the file gives."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType

    @property
    def n_bytes(self) -> int:
        """Bytes of its data, from type and shape; the last block of a row is whole."""
        block, block_bytes = GGML_QUANT_SIZES[self.type]
        return self.shape[0] // block * block_bytes * math.prod(self.shape[1:])


@dataclass(frozen=True)
class RawHeader:
    """A header's records in the file's order.

    metadata: key -> the value's type and bytes, as in the file.
    """

    version: int
    metadata: Records
    tensors: tuple[Tensor, ...]

    @property
    def alignment(self) -> int:
        """What tensors' offsets are multiples of."""
        found = self.metadata.get(_ALIGNMENT_KEY)
        return int.from_bytes(found[1], "little") if found else _DEFAULT_ALIGNMENT

    def offsets(self) -> list[int]:
        """Where each tensor begins, from the beginning of the data; one more for where the next would."""
        found = [0]
        for tensor in self.tensors:
            found.append(padded(found[-1] + tensor.n_bytes, self.alignment))
        return found

    def with_value(self, key: str, value: Value) -> RawHeader:
        """The same with one value changed or added at the end.

        A number keeps the type that the key has. Lists of whole numbers become arrays of int32, new numbers uint32 or
        float32.
        """
        kind = self.metadata[key][0] if key in self.metadata else None
        return replace(self, metadata={**self.metadata, key: _encoded(value, kind)})

    def without(self, prefix: str) -> RawHeader:
        """The same without the keys that begin so."""
        kept = {key: value for key, value in self.metadata.items() if not key.startswith(prefix)}
        return replace(self, metadata=kept)

    def to_bytes(self) -> bytes:
        """The header as a file begins with it, padded to where the data begins."""
        parts = [b"GGUF", struct.pack("<IQQ", self.version, len(self.tensors), len(self.metadata))]
        for key, (kind, value) in self.metadata.items():
            parts += [_string(key), struct.pack("<I", kind), value]
        for tensor, offset in zip(self.tensors, self.offsets(), strict=False):
            parts.append(_string(tensor.name))
            parts.append(struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape))
            parts.append(struct.pack("<IQ", tensor.type, offset))
        size = sum(map(len, parts))
        parts.append(bytes(padded(size, self.alignment) - size))
        return b"".join(parts)


def padded(size: int, alignment: int) -> int:
    """The next multiple of the alignment."""
    return -(-size // alignment) * alignment


def read_raw_header(path: Path) -> RawHeader:
    """Read a header's records. Raises ModelFileError for what is no sound header."""
    with checked(path) as content:
        version, n_tensors, n_keys = struct.unpack_from("<IQQ", content, 4)
        metadata, at = parse_records(content, n_keys)
        tensors = []
        for _ in range(n_tensors):
            name, at = read_string(content, at)
            (n_dimensions,) = struct.unpack_from("<I", content, at)
            *shape, kind, _offset = struct.unpack_from(f"<{n_dimensions}QIQ", content, at + 4)
            tensors.append(Tensor(name, tuple(shape), GGMLQuantizationType(kind)))
            at += 16 + 8 * n_dimensions
        return RawHeader(version, metadata, tuple(tensors))


def _string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def _encoded(value: Value, kind: int | None) -> tuple[int, bytes]:
    if isinstance(value, str):
        return STRING, _string(value)
    if isinstance(value, int | float):
        if kind not in FORMATS:
            kind = 4 if isinstance(value, int) else 6
        return kind, struct.pack(f"<{FORMATS[kind]}", value)
    return ARRAY, struct.pack(f"<IQ{len(value)}i", 5, len(value), *value)
