"""Outlines: the header of a cut that keeps so many experts, and a hole as long as its tensors."""

from __future__ import annotations

from pathlib import Path

import pytest

from coe.engine.gguf.reader import read_header
from coe.surgery.cut.cut import cut, write_outline
from coe.surgery.errors import CutError, SurgeryError
from coe.surgery.parent import Parent
from fakes.random_moe import ARCHITECTURES, random_mask, write_random_moe


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_outline_is_the_cut_file_without_its_weights(architecture: str, tmp_path: Path) -> None:
    parent = Parent.open(write_random_moe(tmp_path / "parent.gguf", architecture=architecture))
    cut(parent, random_mask(parent, 4), tmp_path / "cut.gguf", provenance=False)
    write_outline(parent, 4, tmp_path / "outline.gguf")
    real, outline = read_header(tmp_path / "cut.gguf"), read_header(tmp_path / "outline.gguf")
    assert outline.tensors == real.tensors
    assert outline.metadata == real.metadata
    assert (tmp_path / "outline.gguf").stat().st_size == (tmp_path / "cut.gguf").stat().st_size
    assert not any((tmp_path / "outline.gguf").read_bytes()[outline.data_offset :])


def test_an_outline_of_a_split_parent_is_one_file(tmp_path: Path) -> None:
    parent = Parent.open(write_random_moe(tmp_path / "parent.gguf", parts=3))
    write_outline(parent, 4, tmp_path / "outline.gguf")
    outline = read_header(tmp_path / "outline.gguf")
    assert len(outline.tensors) == sum(len(header.tensors) for header in parent.headers)
    assert "split.count" not in outline.metadata


@pytest.mark.parametrize("n_keep", [1, 9])
def test_a_number_of_experts_that_no_mask_keeps_is_refused(n_keep: int, tmp_path: Path) -> None:
    parent = Parent.open(write_random_moe(tmp_path / "parent.gguf"))
    with pytest.raises(CutError, match=f"No mask keeps {n_keep} of 8 experts"):
        write_outline(parent, n_keep, tmp_path / "outline.gguf")


def test_a_parent_is_not_written_over(tmp_path: Path) -> None:
    parent = Parent.open(write_random_moe(tmp_path / "parent.gguf"))
    with pytest.raises(SurgeryError, match="is itself read"):
        write_outline(parent, 4, parent.path)
