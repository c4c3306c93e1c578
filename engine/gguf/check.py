"""The header of a stranger's GGUF, looked through before ggml or any other reader trusts it: what is wrong is named,
and nothing is allocated, looped over or looked up by a number that the file cannot back.

ggml and the readers here take counts and lengths as the file gives them, some of them once a pair of keys or tensors.
So everything that a header can say is held against the file's size and against bounds far above any real model's; one
pass over the header, 0.1 s for a vocabulary of 262,144.

Source: docs/gguf.md of ggml; gguf.cpp, gguf_init_from_reader.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from ..errors import ModelFileError
from ..files import open_regular, stamp
from ..text import quoted

# Kinds of metadata values, and the scalar ones as `struct` writes them. Source: gguf.h, enum gguf_type.
STRING: Final = 8
ARRAY: Final = 9
FORMATS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

VERSIONS: Final = (2, 3)

# Bounds far above any real file: ggml compares all keys, and all names, pair by pair.
_MOST_KEYS: Final = 10_000
_MOST_TENSORS: Final = 20_000
_MOST_VALUES: Final = 2**23  # of all arrays together; a vocabulary of 262,144 with its merges has some 1.3 million
_MOST_HEADER_BYTES: Final = 2**28
_MOST_ALIGNMENT: Final = 2**20
_LONGEST_KEY: Final = 65_535
_LONGEST_NAME: Final = 63  # ggml.h, GGML_MAX_NAME
_MOST_DIMENSIONS: Final = 4

_AGAIN: Final = "The file is damaged: fetch it again."
_WIDTHS: Final = {kind: struct.calcsize(f"<{code}") for kind, code in FORMATS.items()}
_TYPES: Final = {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}
_U64, _U32 = struct.Struct("<Q").unpack_from, struct.Struct("<I").unpack_from
_PREAMBLE: Final = 24

# Stamps of files whose headers hold together: several readers ask for one file after the other.
_passed: Final[dict[str, None]] = {}
_REMEMBERED: Final = 256

# What comes in place of a model, by its first bytes, and what to do about it.
_GGUF: Final = "Give a .gguf model."
_KNOWN: Final = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the model", "Fetch the model: git lfs pull, or coe pull."),
    (b"<!DOCTYPE", "a web page", "Fetch the file itself, not the page about it; or use coe pull."),
    (b"<!doctype", "a web page", "Fetch the file itself, not the page about it; or use coe pull."),
    (b"<html", "a web page", "Fetch the file itself, not the page about it; or use coe pull."),
    (b"PK\x03\x04", "a zip archive, as PyTorch's checkpoints are", "Unpack it, or convert the checkpoint to GGUF."),
    (b"\x80\x02", "a pickle, as PyTorch's old checkpoints are", "Convert the checkpoint to GGUF."),
    (b"\x1f\x8b", "compressed by gzip", "Unpack it first."),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "Unpack it first."),
    (b"\xfd7zXZ\0", "compressed by xz", "Unpack it first."),
    (b"BZh", "compressed by bzip2", "Unpack it first."),
    (b"\x89HDF\r\n", "an HDF5 file", "Convert the model to GGUF."),
    (b"\x93NUMPY", "an array of numpy", _GGUF),
    (b"lmgg", "of a format before GGUF (ggml)", "Fetch a newer file: llama.cpp reads GGUF alone."),
    (b"fmgg", "of a format before GGUF (ggmf)", "Fetch a newer file: llama.cpp reads GGUF alone."),
    (b"tjgg", "of a format before GGUF (ggjt)", "Fetch a newer file: llama.cpp reads GGUF alone."),
    (b"algg", "a LoRA adapter of a format before GGUF (ggla)", "Fetch a GGUF."),
    (b"FUGG", "a GGUF whose bytes are swapped", "Fetch a little-endian file."),
)  # fmt: skip


@contextmanager
def checked(path: Path) -> Iterator[mmap.mmap]:
    """A file's bytes, mapped, with a header that holds together. Raises ModelFileError, which says what does not."""
    with _mapped(path) as content:
        found = stamp(path)
        if found not in _passed:
            try:
                _Check(path, content, len(content)).run()
            except (struct.error, IndexError, OverflowError):
                raise _ends_early(path) from None
            _passed[found] = None
            while len(_passed) > _REMEMBERED:
                _passed.pop(next(iter(_passed)))
        yield content


def header_end(path: Path, begin: bytes, n_bytes: int) -> int | None:
    """Where the header of a file ends whose first bytes these are; None where it goes on beyond them.

    begin:   of a file that is elsewhere; `checked` looks through one that is here.
    n_bytes: of the whole file: what the header says is held against that.
    path:    what messages call it. Raises ModelFileError, which says what does not hold together.
    """
    if not begin.startswith(b"GGUF"):
        raise _no_gguf(path, begin)
    check = _Check(path, begin, n_bytes)
    try:
        end = check.run()
        return end if end <= len(begin) else None
    except (struct.error, IndexError, OverflowError):
        if check.at > n_bytes or len(begin) >= n_bytes:
            raise _ends_early(path) from None
        return None


def unreadable(path: Path, error: OSError) -> ModelFileError:
    """A model's file that cannot be opened, with the system's reason."""
    remedy = "Name the GGUF file in it." if isinstance(error, IsADirectoryError) else "Check the path and its rights."
    return ModelFileError(f"{path} cannot be read: {error.strerror or error}.", remedy)


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    try:
        with open_regular(path) as file:
            begin, size = file.read(512), os.fstat(file.fileno()).st_size
            if not begin.startswith(b"GGUF"):
                raise _no_gguf(path, begin)
            if size < _PREAMBLE:
                raise _ends_early(path)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise unreadable(path, error) from error
    with mapped:
        yield mapped


def _ends_early(path: Path) -> ModelFileError:
    return ModelFileError(f"{path} ends within its header.", f"The download is not whole. {_AGAIN}")


def _no_gguf(path: Path, begin: bytes) -> ModelFileError:
    """What a file is that is no GGUF. Never what it says: a link may lead to any file of this machine."""
    if not begin:
        return ModelFileError(f"{path} is not a GGUF file: it is empty.", "Fetch it again (coe pull).")
    if b"GGUF".startswith(begin):
        return _ends_early(path)
    stripped = begin.lstrip(b"\xef\xbb\xbf \t\r\n")
    for magic, what, remedy in _KNOWN:
        if begin.startswith(magic) or (magic.startswith(b"<") and stripped.startswith(magic)):
            return ModelFileError(f"{path} is not a GGUF file: it is {what}.", remedy)
    if len(begin) > 9 and begin[8:9] == b"{" and 2 <= int.from_bytes(begin[:8], "little") < 2**32:
        return ModelFileError(f"{path} is not a GGUF file: it is in the safetensors format.", "Convert it to GGUF.")
    if stripped[:1] in (b"{", b"["):
        return ModelFileError(f"{path} is not a GGUF file: it is JSON.", _GGUF)
    if not begin.strip(b"\0"):
        return ModelFileError(f"{path} is not a GGUF file: it begins with zeros.", "Fetch it again (coe pull).")
    return ModelFileError(f"{path} is not a GGUF file.", _GGUF)


class _Check:
    """One pass over a header. Raises ModelFileError, or struct.error where the content ends too early.

    content: the file, or its beginning; size: of the whole file; at: how far it has come.
    """

    def __init__(self, path: Path, content: mmap.mmap | bytes, size: int) -> None:
        self._path = path
        self._content = content
        self._size = size
        self.at = 4
        self._values = 0
        self._alignment = 32

    def run(self) -> int:
        """Where the header ends."""
        version = self._number(_U32, 4)
        self._require_version(version)
        n_tensors, n_keys = self._number(_U64, 8), self._number(_U64, 8)
        self._require_count(n_keys, _MOST_KEYS, "metadata values", 13)
        self._require_count(n_tensors, _MOST_TENSORS, "tensors", 24)
        self._keys(n_keys)
        self._tensors(n_tensors)
        return self.at

    def _wrong(self, what: str, remedy: str = _AGAIN) -> ModelFileError:
        return ModelFileError(f"The header of {self._path} is damaged: {what}.", remedy)

    def _number(self, unpack: object, width: int) -> int:
        at, self.at = self.at, self.at + width
        return int(unpack(self._content, at)[0])  # type: ignore[operator]  # one of the two above

    def _require_version(self, version: int) -> None:
        if version in VERSIONS:
            return
        if version & 0xFFFF == 0 and version:
            raise ModelFileError(
                f"{self._path} is a big-endian GGUF, and this machine is little-endian.",
                "Fetch a little-endian file, or convert it: gguf-convert-endian FILE little.",
            )
        if version == 1:
            raise ModelFileError(
                f"{self._path} is a GGUF of version 1, which llama.cpp no longer reads.",
                "Fetch a newer file, or convert the model again.",
            )
        if 3 < version < 100:
            raise ModelFileError(
                f"{self._path} is a GGUF of version {version}; this program reads 2 and 3.",
                "Update this program, or fetch a file of an older converter.",
            )
        raise self._wrong(f"it gives its version as {version}")

    def _require_count(self, count: int, most: int, what: str, least_bytes: int) -> None:
        if count * least_bytes > self._size - self.at:
            raise self._wrong(f"it announces {count:,} {what}, which the file has no room for")
        if count > most:
            raise ModelFileError(
                f"{self._path} has {count:,} {what}, more than the {most:,} that any model has.",
                "Fetch a file of a known converter.",
            )

    def _string(self, what: str, longest: int) -> bytes:
        length = self._number(_U64, 8)
        if length > self._size - self.at:
            raise self._wrong(f"{what} of {length:,} bytes does not fit into the file")
        if length > longest:
            raise self._wrong(f"{what} has {length:,} bytes, and {longest:,} are the most")
        begin, self.at = self.at, self.at + length
        if self.at > len(self._content):
            raise struct.error  # of a beginning: half a name could be another's
        return self._content[begin : self.at]

    def _keys(self, count: int) -> None:
        seen: set[bytes] = set()
        for _ in range(count):
            key = self._string("a key", _LONGEST_KEY)
            if key in seen:
                raise self._wrong(f"it has the key {_shown(key)} twice")
            seen.add(key)
            kind = self._number(_U32, 4)
            begin = self.at
            self._skip(kind, key)
            if key == b"general.alignment":
                self._take_alignment(kind, begin)

    def _skip(self, kind: int, key: bytes) -> None:
        """Go past a value, held against the file's end."""
        if kind in _WIDTHS:
            self.at += _WIDTHS[kind]
        elif kind == STRING:
            length = self._number(_U64, 8)
            if length > self._size - self.at:
                raise self._wrong(f"the value of {_shown(key)} has {length:,} bytes, which are not there")
            self.at += length
        elif kind == ARRAY:
            self._skip_array(key)
        else:
            raise self._wrong(f"the value of {_shown(key)} is of the unknown type {kind}")
        if self.at > self._size:
            raise struct.error
        if self.at > _MOST_HEADER_BYTES:
            raise ModelFileError(
                f"The metadata of {self._path} take more than {_MOST_HEADER_BYTES // 2**20} MiB.",
                "Fetch a file of a known converter.",
            )

    def _skip_array(self, key: bytes) -> None:
        inner, count = self._number(_U32, 4), self._number(_U64, 8)
        if inner not in _WIDTHS and inner != STRING:
            what = "arrays" if inner == ARRAY else f"the unknown type {inner}"
            raise self._wrong(f"the array {_shown(key)} is one of {what}, which llama.cpp does not read")
        if count * _WIDTHS.get(inner, 8) > self._size - self.at:
            raise self._wrong(f"the array {_shown(key)} announces {count:,} values, which are not there")
        self._values += count
        if self._values > _MOST_VALUES:
            raise ModelFileError(
                f"{self._path} has more than {_MOST_VALUES:,} values in the arrays of its metadata.",
                "Fetch a file of a known converter.",
            )
        if inner in _WIDTHS:
            self.at += count * _WIDTHS[inner]
            return
        at, content = self.at, self._content
        try:
            for _ in range(count):  # a length beyond the file ends the next read, or the test behind the loop
                at += 8 + _U64(content, at)[0]
        finally:
            self.at = at

    def _take_alignment(self, kind: int, begin: int) -> None:
        if kind != 4:
            raise self._wrong("its alignment is no 32-bit number")
        alignment = _U32(self._content, begin)[0]
        if not alignment or alignment & (alignment - 1) or alignment > _MOST_ALIGNMENT:
            raise self._wrong(f"its alignment is {alignment}, which is no power of two up to {_MOST_ALIGNMENT}")
        self._alignment = alignment

    def _tensors(self, count: int) -> None:
        seen: set[bytes] = set()
        sizes: list[tuple[bytes, int, int]] = []
        for _ in range(count):
            name = self._string("the name of a tensor", _LONGEST_NAME)
            if name in seen:
                raise self._wrong(f"it has the tensor {_shown(name)} twice")
            seen.add(name)
            n_dimensions = self._number(_U32, 4)
            if not 1 <= n_dimensions <= _MOST_DIMENSIONS:
                raise self._wrong(f"the tensor {_shown(name)} has {n_dimensions} dimensions")
            shape = [self._number(_U64, 8) for _ in range(n_dimensions)]
            kind, offset = self._number(_U32, 4), self._number(_U64, 8)
            sizes.append((name, self._tensor_bytes(name, kind, shape), offset))
        expected = 0
        for name, n_bytes, offset in sizes:
            if offset != expected:
                raise self._wrong(f"the tensor {_shown(name)} begins at {offset:,} of the data, not at {expected:,}")
            expected = -(-(expected + n_bytes) // self._alignment) * self._alignment
        begin = -(-self.at // self._alignment) * self._alignment
        end = begin + max((offset + n_bytes for _, n_bytes, offset in sizes), default=0)
        if sizes and self._size < end:
            raise ModelFileError(
                f"{self._path} is truncated: it has {self._size:,} bytes and its tensors need {end:,}.",
                "Fetch it again (coe pull).",
            )

    def _tensor_bytes(self, name: bytes, kind: int, shape: list[int]) -> int:
        if kind not in _TYPES:
            known = f"Tensor {_shown(name)} of {self._path} has the type {kind}, which this program does not know."
            raise ModelFileError(known, "Update this program, or fetch another quantisation.")
        block, block_bytes = _TYPES[kind]
        if any(not 0 < size < 2**63 for size in shape) or math.prod(shape) >= 2**63:
            raise self._wrong(f"the tensor {_shown(name)} has a shape that no memory holds")
        if shape[0] % block:
            raise self._wrong(f"rows of {_shown(name)} are no whole blocks of {GGMLQuantizationType(kind).name}")
        return shape[0] // block * block_bytes * math.prod(shape[1:])


def _shown(name: bytes) -> str:
    return quoted(name.decode("utf-8", "replace"))
