"""Headers read as records and put together again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.engine.errors import ModelFileError
from coe.engine.gguf.reader import read_array, read_header
from coe.surgery.cut.gguf_writer import RawHeader, Tensor, padded, read_raw_header
from fakes.random_moe import write_random_moe


def write(path: Path, header: RawHeader) -> Path:
    path.write_bytes(header.to_bytes() + bytes(header.offsets()[-1]))
    return path


@pytest.mark.parametrize("alignment", [32, 64, 4096])
def test_what_is_not_touched_is_the_same_to_the_byte(tmp_path: Path, alignment: int) -> None:
    path = write_random_moe(tmp_path / "m.gguf", alignment=alignment)
    header = read_raw_header(path)
    data = header.to_bytes()
    assert path.read_bytes().startswith(data)
    assert len(data) == read_header(path).data_offset
    assert len(data) + header.offsets()[-1] == path.stat().st_size


def test_every_kind_of_value_survives(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "test")
    writer.add_uint8("a", 1)
    writer.add_int8("b", -1)
    writer.add_uint16("c", 2)
    writer.add_int16("d", -2)
    writer.add_int32("e", -3)
    writer.add_float32("f", 0.5)
    writer.add_bool("g", True)
    writer.add_uint64("h", 2**60)
    writer.add_int64("i", -(2**60))
    writer.add_float64("j", 0.25)
    writer.add_string("k", "with a \0 in it, and ü")
    writer.add_array("l", ["", "a\0b", "ü" * 300])
    writer.add_array("m", [1.5, 2.5])
    writer.add_array("n", [True, False, True])
    writer.add_tensor("one", np.ones((1, 1, 3), np.float32))  # dimensions of 1 that ggml's own writer drops
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_raw_header(path)
    assert path.read_bytes().startswith(header.to_bytes())
    assert header.tensors == (Tensor("one", (3, 1, 1), gguf.GGMLQuantizationType.F32),)


def test_a_changed_number_keeps_its_type_and_its_place(tmp_path: Path) -> None:
    before = read_raw_header(write_random_moe(tmp_path / "m.gguf"))
    after = before.with_value("gemma4.expert_count", 5)
    assert list(after.metadata) == list(before.metadata)
    assert after.metadata["gemma4.expert_count"][0] == before.metadata["gemma4.expert_count"][0]
    assert read_header(write(tmp_path / "n.gguf", after)).metadata["gemma4.expert_count"] == 5


def test_new_values_come_last_and_ggml_reads_them(tmp_path: Path) -> None:
    header = read_raw_header(write_random_moe(tmp_path / "m.gguf"))
    header = header.with_value("x.text", "zwölf").with_value("x.count", 7).with_value("x.ratio", 0.5)
    header = header.with_value("x.list", [3, 1, 2]).with_value("general.name", "another, longer name")
    assert list(header.metadata)[-4:] == ["x.text", "x.count", "x.ratio", "x.list"]
    path = write(tmp_path / "n.gguf", header)
    read = read_header(path).metadata
    assert (read["x.text"], read["x.count"], read["x.ratio"]) == ("zwölf", 7, 0.5)
    assert read["general.name"] == "another, longer name"
    assert read_array(path, "x.list") == [3, 1, 2]


def test_keys_are_dropped_by_their_beginning(tmp_path: Path) -> None:
    header = read_raw_header(write_random_moe(tmp_path / "m.gguf", parts=2))
    assert "split.count" in header.metadata
    assert not any(key.startswith("split.") for key in header.without("split.").metadata)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.sampled_from([32, 64, 128]))
def test_offsets_are_multiples_of_the_alignment_and_tensors_do_not_overlap(sizes: list[int], alignment: int) -> None:
    tensors = tuple(Tensor(f"t{at}", (size,), gguf.GGMLQuantizationType.F32) for at, size in enumerate(sizes))
    header = RawHeader(3, {"general.alignment": (4, alignment.to_bytes(4, "little"))}, tensors)
    offsets = header.offsets()
    assert all(offset % alignment == 0 for offset in offsets)
    for tensor, offset, following in zip(tensors, offsets, offsets[1:], strict=False):
        assert offset + tensor.n_bytes <= following < offset + tensor.n_bytes + alignment
    assert len(header.to_bytes()) == padded(len(header.to_bytes()), alignment)


def test_ggml_accepts_files_of_another_alignment(tmp_path: Path) -> None:
    header = read_raw_header(write_random_moe(tmp_path / "m.gguf", alignment=128))
    smaller = dataclasses.replace(header, tensors=header.tensors[3:7])
    found = read_header(write(tmp_path / "n.gguf", smaller))
    assert [tensor.offset - found.data_offset for tensor in found.tensors] == smaller.offsets()[:-1]


def test_an_unknown_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + (9).to_bytes(4, "little") + bytes(16))
    with pytest.raises(ModelFileError, match="version 9"):
        read_raw_header(path)
