"""Headers read by ggml say what the gguf package says, and damaged files are named as what they are."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import pytest
from random_model import Shape, write_random_model

from coe.engine.errors import ModelFileError
from coe.engine.gguf.reader import read_header, read_split
from coe.engine.pool import memory
from coe.engine.spec import LoadSpec


@pytest.fixture(scope="module")
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("q8") / "q8.gguf", quantise=True)


@pytest.mark.parametrize("model", ["random_gemma4", "quantised"])
def test_tensors_are_those_of_the_gguf_package(model: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(model)
    theirs = [
        (t.name, t.tensor_type, tuple(int(n) for n in t.shape), int(t.n_bytes), int(t.data_offset))
        for t in gguf.GGUFReader(path).tensors
    ]
    ours = [(t.name, t.type, t.shape, t.n_bytes, t.offset) for t in read_header(path).tensors]
    assert ours == theirs


def test_metadata_is_that_of_the_gguf_package(random_gemma4: Path) -> None:
    header = read_header(random_gemma4)
    for key, field in gguf.GGUFReader(random_gemma4).fields.items():
        if key.startswith("GGUF."):
            continue
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            assert header.array_lengths[key] == len(field.data)
        else:
            assert header.metadata[key] == pytest.approx(field.contents())


def test_values_are_named_without_the_architecture(random_gemma4: Path) -> None:
    header = read_header(random_gemma4)
    assert header.architecture == "gemma4"
    assert header.value("expert_count") == Shape().experts
    assert header.value("no_such_key", 7) == 7


def test_a_truncated_file_is_named_with_both_sizes(random_gemma4: Path, tmp_path: Path) -> None:
    whole = random_gemma4.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[:-1000])
    with pytest.raises(ModelFileError, match=rf"truncated: it has {len(whole) - 1000:,} bytes and its tensors need"):
        read_header(path)


def test_a_file_that_ends_in_its_header_is_damaged(random_gemma4: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(random_gemma4.read_bytes()[:3000])
    with pytest.raises(ModelFileError, match="damaged"):
        read_header(path)


@pytest.mark.parametrize("content", [b"", b"GX", b"<html>not found</html>", b"PK\x03\x04"])
def test_what_is_no_gguf_is_said_to_be_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="not a GGUF"):
        read_header(path)


def test_an_absurd_header_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "absurd.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**62, 2**62))
    with pytest.raises(ModelFileError, match="damaged"):
        read_header(path)


def test_an_absent_file_and_a_folder_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot be read: No such file"):
        read_header(tmp_path / "absent.gguf")
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_header(tmp_path)


def write_part(folder: Path, number: int, count: int) -> Path:
    path = folder / f"m-{number:05d}-of-{count:05d}.gguf"
    writer = gguf.GGUFWriter(path, "gemma4")
    writer.add_uint16("split.count", count)
    writer.add_uint16("split.no", number - 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_all_parts_of_a_split_file_are_read(tmp_path: Path) -> None:
    parts = [write_part(tmp_path, number, 3) for number in (1, 2, 3)]
    assert [header.path for header in read_split(parts[0])] == parts


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    first = write_part(tmp_path, 1, 3)
    write_part(tmp_path, 3, 3)
    with pytest.raises(ModelFileError, match=r"m-00002-of-00003\.gguf is missing"):
        read_split(first)


def test_a_part_under_another_name_cannot_find_the_others(tmp_path: Path) -> None:
    renamed = write_part(tmp_path, 1, 2).rename(tmp_path / "model.gguf")
    with pytest.raises(ModelFileError, match="one of 2 parts"):
        read_split(renamed)


@pytest.mark.model
async def test_an_architecture_that_llama_cpp_does_not_know_is_named(tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "new.gguf", architecture="gemma99")
    with pytest.raises(ModelFileError, match="gemma99"):
        await memory.predict(LoadSpec(path, context_tokens=256))
