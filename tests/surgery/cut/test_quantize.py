"""llama.cpp's quantiser, in its own process."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Type

from coe.demo.asking import ask
from coe.engine.gguf.reader import read_header
from coe.surgery.cut.cut import KEY, cut
from coe.surgery.cut.quantize import FILE_TYPES, quantize_file, require_file_type, roughly_bytes
from coe.surgery.errors import CutError
from coe.surgery.parent import Parent
from fakes import taught
from fakes.random_moe import random_mask, write_random_moe


def types_of(path: Path) -> dict[str, Type]:
    return {tensor.name: tensor.type for tensor in read_header(path).tensors}


@pytest.mark.slow
def test_a_cut_file_is_quantised_and_keeps_its_provenance(tmp_path: Path) -> None:
    parent = Parent.open(write_random_moe(tmp_path / "parent.gguf"))
    steps: list[tuple[int, int]] = []

    def note(step: str, done: int, total: int) -> None:
        if step == "quantize":
            steps.append((done, total))

    report = cut(parent, random_mask(parent, 4), tmp_path / "out.gguf", quantize="Q8_0", progress=note)
    header, types = read_header(tmp_path / "out.gguf"), types_of(tmp_path / "out.gguf")
    assert types["blk.0.ffn_down_exps.weight"] == types["blk.1.attn_q.weight"] == Type.Q8_0
    assert types["blk.0.ffn_gate_inp.weight"] == Type.F32
    assert header.metadata[KEY + "parent_sha256"] == report.parent_sha256
    assert header.metadata["gemma4.expert_count"] == 4
    assert steps[-1] == (len(types), len(types))
    assert any("Q8_0" in note for note in report.notes)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.model
@pytest.mark.parametrize("file_type", ["Q5_0", "Q4_0"])
def test_a_specialist_of_fewer_bits_still_knows_its_domain(tmp_path: Path, file_type: str) -> None:
    cut(Parent.open(taught.PARENT), taught.mask_of("physics"), tmp_path / "out.gguf", quantize=file_type)
    answers = ask(tmp_path / "out.gguf", taught.exam("physics", 32))
    assert sum(answer.right for answer in answers) >= 28


@pytest.mark.slow
def test_rows_that_are_no_whole_blocks_go_to_a_type_that_fits(tmp_path: Path) -> None:
    # Q4_K's blocks are of 256; an expert's down projection has rows of 32 here, of 704 in Gemma 4.
    source = write_random_moe(tmp_path / "m.gguf", embedding=256)
    quantize_file(source, tmp_path / "out.gguf", "Q4_K_M")
    types = types_of(tmp_path / "out.gguf")
    assert types["blk.0.ffn_gate_exps.weight"] == Type.Q4_K
    assert types["blk.0.ffn_down_exps.weight"] in (Type.Q5_0, Type.Q8_0)


@pytest.mark.slow
def test_what_is_quantised_already_is_quantised_anew(tmp_path: Path) -> None:
    source = write_random_moe(tmp_path / "m.gguf", quantised=Type.Q8_0)
    quantize_file(source, tmp_path / "out.gguf", "Q4_0")
    assert types_of(tmp_path / "out.gguf")["blk.0.ffn_up_exps.weight"] == Type.Q4_0


def test_an_unknown_file_type_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    parent = Parent.open(write_random_moe(tmp_path / "parent.gguf"))
    steps: list[str] = []
    with pytest.raises(CutError, match=r"no file type 'Q9_X'.*Known: .*Q4_K_M.*Q8_0"):
        cut(
            parent,
            random_mask(parent, 4),
            tmp_path / "out.gguf",
            quantize="Q9_X",
            progress=lambda step, done, total: steps.append(step),
        )
    assert steps == []
    assert require_file_type("Q8_0") == 7


@pytest.mark.slow
def test_llama_cpps_own_reason_is_given(tmp_path: Path) -> None:
    source = tmp_path / "m.gguf"
    source.write_bytes(b"GGUF and no more")
    with pytest.raises(CutError, match=r"could not quantise to Q8_0: .*\w"):
        quantize_file(source, tmp_path / "out.gguf", "Q8_0")


@pytest.mark.slow
def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    parent = Parent.open(write_random_moe(tmp_path / "parent.gguf", layers=1, embedding=256, expert_ff=256))
    out = tmp_path / "out.gguf"
    out.write_bytes(b"the old one")
    with pytest.raises(CutError, match="could not quantise to IQ1_S"):  # types of so few bits want one
        cut(parent, random_mask(parent, 4), out, quantize="IQ1_S")
    assert out.read_bytes() == b"the old one"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("file_type", ["Q4_K_M", "Q8_0", "F16", "IQ3_XXS", "MXFP4_MOE"])
def test_the_room_to_look_for_is_enough_and_not_absurd(file_type: str) -> None:
    assert file_type in FILE_TYPES
    exact = {"Q4_K_M": 4.9, "Q8_0": 8.5, "F16": 16, "IQ3_XXS": 3.1, "MXFP4_MOE": 4.3}[file_type] / 8
    assert 1e9 * exact < roughly_bytes(10**9, file_type) < 1.4e9 * exact
