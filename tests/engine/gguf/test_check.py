"""Headers made to hurt are refused before anything is allocated or looped over, and the cause is named."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from coe.engine.errors import ModelFileError
from coe.engine.gguf.check import header_end
from coe.engine.gguf.reader import read_header, read_split
from coe.engine.gguf.records import read_records
from coe.surgery.cut.gguf_writer import read_raw_header

U32, STRING, ARRAY = 4, 8, 9


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: bytes, shape: Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf(keys: Sequence[bytes] = (), tensors: Sequence[bytes] = (), *, version: int = 3, tail: int = 256) -> bytes:
    begin = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys))
    return begin + b"".join([*keys, *tensors]) + bytes(tail)


def array(inner: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", inner, count) + values


HURTING = {
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64), "big-endian"),
    "version 1": (gguf(version=1), "version 1, which llama.cpp no longer reads"),
    "version 4": (gguf(version=4), "version 4; this program reads 2 and 3"),
    "version 77777": (gguf(version=77777), "its version as 77777"),
    "keys": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63) + bytes(64), "no room for"),
    "tensors": (b"GGUF" + struct.pack("<IQQ", 3, 2**40, 0) + bytes(64), "no room for"),
    "key length": (gguf([struct.pack("<Q", 2**62) + b"a"]), "does not fit"),
    "key twice": (gguf([key(b"a", U32, bytes(4))] * 2), "'a' twice"),
    "type": (gguf([key(b"a", 77, bytes(4))]), "unknown type 77"),
    "value length": (gguf([key(b"a", STRING, struct.pack("<Q", 2**63))]), "which are not there"),
    "array of numbers": (gguf([key(b"a", ARRAY, array(4, 2**61))]), "which are not there"),
    "array of texts": (gguf([key(b"a", ARRAY, array(STRING, 2**60))]), "which are not there"),
    "text in an array": (
        gguf([key(b"a", ARRAY, array(STRING, 2, text(b"") + struct.pack("<Q", 2**63)))]),
        "ends within",
    ),
    "array of arrays": (gguf([key(b"a", ARRAY, array(ARRAY, 1, array(ARRAY, 1)))]), "one of arrays"),
    "alignment 0": (gguf([key(b"general.alignment", U32, bytes(4))]), "alignment is 0"),
    "alignment 3": (gguf([key(b"general.alignment", U32, struct.pack("<I", 3))]), "alignment is 3"),
    "alignment 2^31": (gguf([key(b"general.alignment", U32, struct.pack("<I", 2**31))]), "alignment is"),
    "alignment text": (gguf([key(b"general.alignment", STRING, text(b"32"))]), "alignment is no"),
    "dimensions": (gguf([], [tensor(b"t", [1] * 5)]), "5 dimensions"),
    "shape 0": (gguf([], [tensor(b"t", [0])]), "no memory holds"),
    "shape product": (gguf([], [tensor(b"t", [2**32, 2**32])]), "no memory holds"),
    "tensor type": (gguf([], [tensor(b"t", [32], 999)]), "type 999"),
    "tensor twice": (gguf([], [tensor(b"t", [1]), tensor(b"t", [1], 0, 32)]), "'t' twice"),
    "overlap": (gguf([], [tensor(b"t", [32]), tensor(b"u", [32], 0, 0)]), "begins at 0 of the data, not at 128"),
    "outside": (gguf([], [tensor(b"t", [1], 0, 2**62)]), "begins at"),
    "half a block": (gguf([], [tensor(b"t", [33], 2)]), "no whole blocks of Q4_0"),
    "data": (gguf([], [tensor(b"t", [10_000])]), "truncated"),
    "name": (gguf([], [tensor(b"t" * 64, [1])]), "64 bytes, and 63 are the most"),
}


@pytest.mark.parametrize("what", HURTING)
@pytest.mark.parametrize("read", [read_header, read_records, read_raw_header])
def test_what_is_wrong_is_named(tmp_path: Path, what: str, read: object) -> None:
    content, why = HURTING[what]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=why):
        read(path)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("begin", "what"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS"),
        (b"\n <!DOCTYPE html>", "a web page"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\x1f\x8b\x08", "gzip"),
        (struct.pack("<Q", 20) + b'{"a": {"dtype": "F32"}}', "safetensors"),
        (b'{"a": 1}', "JSON"),
        (bytes(64), "zeros"),
        (b"tjgg\x03", "before GGUF"),
    ],
)
def test_what_comes_in_a_models_place_is_named(tmp_path: Path, begin: bytes, what: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(begin)
    with pytest.raises(ModelFileError, match=f"not a GGUF file: .*{what}"):
        read_header(path)


@pytest.mark.parametrize("n_bytes", [1, 2, 3, 4, 11, 23])
def test_a_file_that_ends_within_its_first_words_is_told_so(tmp_path: Path, n_bytes: int) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes((b"GGUF" + (3).to_bytes(4, "little") + bytes(16))[:n_bytes])
    with pytest.raises(ModelFileError, match="ends within its header"):
        read_header(path)


def test_of_other_files_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2:0:0")
    link = tmp_path / "model.gguf"
    link.symlink_to(tmp_path / "secret")
    with pytest.raises(ModelFileError) as told:
        read_header(link)
    assert "hunter2" not in str(told.value)


def test_names_out_of_a_header_are_quoted(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf([key(b"\x1b[2J\n", U32, bytes(4))] * 2))
    with pytest.raises(ModelFileError, match=r"the key '\\x1b\[2J\\n' twice"):
        read_header(path)


@pytest.mark.parametrize("value", [struct.pack("<Q", 10**10), struct.pack("<Q", 2**64 - 1)])
def test_a_count_of_parts_lists_no_paths(tmp_path: Path, value: bytes) -> None:
    path = tmp_path / "m-00001-of-00002.gguf"
    path.write_bytes(gguf([key(b"split.count", 10, value)]))
    with pytest.raises(ModelFileError, match=r"which counts nothing|are the most"):
        read_split(path)


def test_a_count_that_is_a_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf([key(b"split.count", STRING, text(b"two"))]))
    with pytest.raises(ModelFileError, match=r"'split.count' of m.gguf is 'two', which counts nothing"):
        read_split(path)


WHOLE = gguf(
    [
        key(b"general.a", STRING, text(b"a text")),
        key(b"general.ab", ARRAY, array(STRING, 3, text(b"one") + text(b"") + text(b"three"))),
        key(b"general.abc", ARRAY, array(U32, 2, bytes(8))),
        key(b"b", U32, bytes(4)),
    ],
    [tensor(b"t", [32]), tensor(b"tt", [16], 0, 128)],
    tail=4096,
)
BEHIND = len(WHOLE) - 4096


@pytest.mark.parametrize("n_bytes", range(4, BEHIND + 40))
def test_a_header_ends_where_it_ends_however_much_of_it_is_there(n_bytes: int) -> None:
    """The beginning of each name is that of another: half of one is no name twice."""
    found = header_end(Path("m.gguf"), WHOLE[:n_bytes], len(WHOLE))
    assert found == (BEHIND if n_bytes >= BEHIND else None)


def test_a_header_that_ends_with_a_value_is_whole_with_its_last_byte() -> None:
    content = gguf([key(b"a", U32, bytes(4))], tail=64)
    assert header_end(Path("m.gguf"), content[:-65], len(content)) is None
    assert header_end(Path("m.gguf"), content[:-64], len(content)) == len(content) - 64


@pytest.mark.parametrize("what", HURTING)
def test_what_is_wrong_is_named_of_a_file_that_is_elsewhere(what: str) -> None:
    content, why = HURTING[what]
    with pytest.raises(ModelFileError, match=why):
        header_end(Path("m.gguf"), content, len(content))


def test_a_length_beyond_a_file_that_is_elsewhere_is_known_by_its_beginning() -> None:
    texts = array(STRING, 2, text(b"") + struct.pack("<Q", 2**40))
    content = gguf([key(b"a", ARRAY, texts), key(b"b", U32, bytes(4))], tail=2**16)
    with pytest.raises(ModelFileError, match="ends within its header"):
        header_end(Path("m.gguf"), content[:100], len(content))
