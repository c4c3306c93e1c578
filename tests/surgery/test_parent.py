"""A parent's identity: its file's bytes, and its routers, which other quantisations of it have in common."""

from __future__ import annotations

from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Type

from coe.engine.gguf.reader import read_header
from coe.surgery.formats import read_mask
from coe.surgery.mask import Mask
from coe.surgery.parent import Identity, Parent
from coe.surgery.study.compare import compare
from fakes.random_moe import ARCHITECTURES, DRAFTING, random_mask, write_random_moe

SHAPE = {"embedding": 256, "expert_ff": 256, "layers": 1}


def identity(path: Path, **changes: object) -> Identity:
    return Parent.open(write_random_moe(path, **changes)).identity()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_quantisations_of_one_checkpoint_have_one_router(architecture: str, tmp_path: Path) -> None:
    full = identity(tmp_path / "a.gguf", **SHAPE, architecture=architecture)
    small = identity(tmp_path / "b.gguf", **SHAPE, architecture=architecture, quantised=Type.Q8_0)
    other = identity(tmp_path / "c.gguf", **SHAPE, architecture=architecture, seed=1)
    assert len(full.router_sha256) == 64
    assert full.sha256 != small.sha256
    assert full.router_sha256 == small.router_sha256 != other.router_sha256
    assert full.is_checkpoint_of(small)
    assert not full.is_checkpoint_of(other)


def test_parts_make_no_difference(tmp_path: Path) -> None:
    whole = identity(tmp_path / "a.gguf", layers=3)
    assert identity(tmp_path / "b.gguf", layers=3, parts=4).router_sha256 == whole.router_sha256


@pytest.mark.parametrize("tensor", ["ffn_gate_inp.weight", "ffn_gate_inp.bias"])
def test_every_tensor_of_every_router_counts(tensor: str, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    before = identity(path, architecture="gpt-oss")
    [last] = [one for one in read_header(path).tensors if one.name == f"blk.1.{tensor}"]
    with path.open("r+b") as file:
        file.seek(last.offset + last.n_bytes - 4)
        file.write(b"\0\0\0\1")
    assert Parent.open(path).identity().router_sha256 != before.router_sha256


def test_models_without_a_known_router_are_known_by_their_bytes_alone() -> None:
    one, other = (Identity(name, name, "gemma4", (0,), 8, 2) for name in ("one", "other"))
    assert not one.is_checkpoint_of(other)
    assert one.is_checkpoint_of(one)


def test_drafting_blocks_make_no_difference(tmp_path: Path) -> None:
    for architecture in DRAFTING:
        plain = identity(tmp_path / "a.gguf", architecture=architecture)
        assert identity(tmp_path / "b.gguf", architecture=architecture, draft=True).router_sha256 == plain.router_sha256


def test_an_old_mask_is_read_and_learns_its_router_from_its_own_file(tmp_path: Path) -> None:
    parent = Parent.open(write_random_moe(tmp_path / "a.gguf", **SHAPE))
    content = random_mask(parent, 4).to_json()
    del content["parent"]["router_sha256"]
    old = Mask.from_json(content)
    assert old.parent.router_sha256 == ""
    old.save(tmp_path / "old.json")
    read_mask(tmp_path / "old.json", parent.identity()).save(tmp_path / "new.json")
    small = Parent.open(write_random_moe(tmp_path / "b.gguf", **SHAPE, quantised=Type.Q8_0)).identity()
    assert read_mask(tmp_path / "new.json", small).keep == old.keep


def test_masks_of_several_quantisations_can_be_compared(tmp_path: Path) -> None:
    full = Parent.open(write_random_moe(tmp_path / "a.gguf", **SHAPE))
    small = Parent.open(write_random_moe(tmp_path / "b.gguf", **SHAPE, quantised=Type.Q8_0))
    assert compare({"a": random_mask(full, 4), "b": random_mask(small, 4)}).jaccard[0, 1] == 1
