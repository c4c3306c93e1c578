"""A mask is won back from the specialist that it made; what is no cut of the parent is refused, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from coe.engine.gguf.header import TensorInfo
from coe.engine.gguf.reader import read_split
from coe.surgery.cut.cut import cut, write_skeleton
from coe.surgery.cut.shared_scale import scaling
from coe.surgery.errors import MaskError, ParentMismatchError, SurgeryError
from coe.surgery.files import sha256_of
from coe.surgery.mask import Mask
from coe.surgery.parent import Parent
from coe.surgery.recover.recover import Quantisation, SharedScale, recover
from coe.surgery.weights import ByteRange
from fakes.random_moe import ARCHITECTURES, DRAFTING, random_mask, write_random_moe

DEMO = Path(__file__).parents[3] / "demo"


def parent_of(folder: Path, name: str = "parent", **changes: Any) -> Parent:
    return Parent.open(write_random_moe(folder / f"{name}.gguf", **{"experts": 16, "layers": 3} | changes))


def cut_of(parent: Parent, mask: Mask, **options: Any) -> Path:
    out = parent.path.with_name("specialist.gguf")
    cut(parent, mask, out, **options)
    return out


def change(path: Path, name: str, edit: Callable[[bytes, TensorInfo], bytes]) -> Path:
    """Alter a tensor in place."""
    for header in read_split(path):
        for tensor in header.tensors:
            if tensor.name == name:
                with header.path.open("r+b") as file:
                    file.seek(tensor.offset)
                    altered = edit(file.read(tensor.n_bytes), tensor)
                    assert len(altered) == tensor.n_bytes
                    file.seek(tensor.offset)
                    file.write(altered)
                return path
    raise AssertionError(name)


def floats(edit: Callable[[NDArray[np.float32]], None]) -> Callable[[bytes, TensorInfo], bytes]:
    """An edit of a tensor in F32, as numpy sees it: the outermost dimension first."""

    def altered(data: bytes, tensor: TensorInfo) -> bytes:
        array = np.frombuffer(data, np.float32).reshape(tensor.shape[::-1]).copy()
        edit(array)
        return array.tobytes()

    return altered


def twice(expert: int, other: int) -> Callable[[bytes, TensorInfo], bytes]:
    """An edit that gives one expert another's part of a tensor."""

    def altered(data: bytes, tensor: TensorInfo) -> bytes:
        one = tensor.n_bytes // tensor.shape[-1]
        source = data[other * one : (other + 1) * one]
        return data[: expert * one] + source + data[(expert + 1) * one :]

    return altered


@pytest.mark.parametrize("path", sorted((DEMO / "masks").glob("*.json")), ids=lambda path: path.stem)
def test_every_mask_of_the_demo_is_won_back(path: Path, tmp_path: Path) -> None:
    parent, mask = Parent.open(DEMO / "college-parent.gguf"), Mask.load(path)
    cut(parent, mask, tmp_path / "specialist.gguf")
    found = recover(parent, tmp_path / "specialist.gguf")
    assert found.mask.keep == mask.keep
    assert found.mask.parent == parent.identity()
    assert found.quantisation is Quantisation.SAME
    assert (found.lowest_cosine, found.differences, found.scales, found.notes) == (None, (), (), ())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_masks_of_every_architecture_are_won_back(architecture: str, tmp_path: Path) -> None:
    groups = {"groups": 4, "groups_used": 2} if architecture == "deepseek2" else {}
    parent = parent_of(tmp_path, architecture=architecture, draft=architecture in DRAFTING, **groups)
    mask = random_mask(parent, 8)
    found = recover(parent, cut_of(parent, mask))
    assert found.mask.keep == mask.keep
    assert found.quantisation is Quantisation.SAME


def test_a_split_specialist_of_a_split_parent_is_read(tmp_path: Path) -> None:
    (tmp_path / "split").mkdir()
    parent = parent_of(tmp_path, parts=3)
    whole = Parent.open(write_random_moe(tmp_path / "split" / "s.gguf", experts=16, layers=3, parts=2))
    found = recover(parent, whole.path)
    assert found.mask.keep == Mask.everything(parent.identity()).keep
    assert "it was not cut" in found.notes[0]


def test_slots_in_any_order_give_the_same_mask(tmp_path: Path) -> None:
    parent = parent_of(tmp_path)
    mask = random_mask(parent, 6)
    specialist = cut_of(parent, mask, slots={layer: kept[::-1] for layer, kept in mask.keep.items()})
    assert recover(parent, specialist).mask.keep == mask.keep


@pytest.mark.parametrize("kind", [Type.F16, Type.BF16, Type.Q4_K, Type.Q2_K])
def test_a_specialist_of_another_quantisation_is_won_back(kind: Type, tmp_path: Path) -> None:
    wide = {"embedding": 256, "expert_ff": 256, "layers": 2, "experts": 8}
    parent = parent_of(tmp_path, **wide, quantised=kind)
    other = parent_of(tmp_path, "other", **wide, quantised=Type.Q8_0)
    mask = random_mask(other, 4)
    found = recover(parent, cut_of(other, mask))
    assert found.mask.keep == mask.keep
    assert found.quantisation is Quantisation.OTHER
    assert (found.differences, found.scales, found.lowest_cosine) == ((), (), None)
    assert found.mask.parent.sha256 == sha256_of(parent.paths)


def test_the_mask_says_where_it_comes_from(tmp_path: Path) -> None:
    parent = parent_of(tmp_path)
    specialist = cut_of(parent, random_mask(parent, 6))
    recipe = recover(parent, specialist).mask.provenance.recipe
    assert recipe["name"] == "mask-of"
    assert recipe["source"] == {"file": "specialist.gguf", "sha256": sha256_of((specialist,))}
    assert recipe["rows"] == "the same bytes"
    assert recover(parent, specialist, source={"repository": "a/b"}).mask.provenance.recipe["source"] == {
        "repository": "a/b"
    }


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    """The rest of the specialist is a hole, as of a file of which single ranges were fetched."""
    parent = parent_of(tmp_path, embedding=256, expert_ff=256)
    mask = random_mask(parent, 8)
    whole = cut_of(parent, mask)
    hole = tmp_path / "hole.gguf"
    [header] = read_split(whole)
    data = whole.read_bytes()
    fetched = 0

    def fetch(ranges: Sequence[ByteRange]) -> None:
        nonlocal fetched
        with hole.open("r+b") as file:
            for one in ranges:
                assert one.path == hole
                file.seek(one.offset)
                file.write(data[one.offset : one.offset + one.n_bytes])
                fetched += one.n_bytes

    hole.write_bytes(data[: header.data_offset] + bytes(len(data) - header.data_offset))
    assert recover(parent, hole, fetch=fetch).mask.keep == mask.keep
    assert fetched < len(data) / 8


# --- alpha --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Type.F32, Type.Q8_0])
def test_a_scaled_projection_of_the_shared_ffn_is_recognised(kind: Type, tmp_path: Path) -> None:
    parent = parent_of(tmp_path, embedding=256, expert_ff=256, experts=8, layers=2, quantised=kind)
    mask = random_mask(parent, 4)
    specialist = cut_of(parent, mask)
    for layer in parent.experts.layers:
        name = f"blk.{layer}.ffn_down.weight"
        change(specialist, name, lambda data, tensor: scaling(tensor.name, tensor.type, 1.2)(data))
    found = recover(parent, specialist)
    assert found.mask.keep == mask.keep
    assert found.scales == (SharedScale("ffn_down.weight", 1.2, cancelled=True),)
    assert "without effect" in found.notes[0]


def test_a_scale_is_recognised_across_quantisations(tmp_path: Path) -> None:
    wide = {"embedding": 256, "expert_ff": 256, "layers": 2, "experts": 8}
    parent = parent_of(tmp_path, **wide, quantised=Type.Q4_K)
    other = parent_of(tmp_path, "other", **wide, quantised=Type.Q8_0)
    specialist = cut_of(other, random_mask(other, 4))
    for layer in (0, 1):
        name = f"blk.{layer}.ffn_down.weight"
        change(specialist, name, lambda data, tensor: scaling(tensor.name, tensor.type, 1.2)(data))
    assert recover(parent, specialist).scales == (SharedScale("ffn_down.weight", 1.2, cancelled=True),)


@pytest.mark.parametrize("architecture", ["gemma4", "granitemoe", "glm4moe"])
def test_a_scale_of_our_own_that_has_an_effect_is_told_with_its_remedy(architecture: str, tmp_path: Path) -> None:
    parent = parent_of(tmp_path, architecture=architecture)
    found = recover(parent, cut_of(parent, random_mask(parent, 6), shared_scale=1.2))
    [scale] = found.scales
    assert (scale.factor, scale.cancelled) == (1.2, False)
    assert "coe cut --shared-scale 1.2" in found.notes[0]


# --- twins --------------------------------------------------------------------------------------------------------


def with_twins(folder: Path, **changes: Any) -> Parent:
    """A parent whose experts 2 and 9 of layer 1 have the same row."""
    parent = parent_of(folder, **changes)
    change(parent.path, "blk.1.ffn_gate_inp.weight", twice(9, 2))
    return Parent.open(parent.path)


def keeping(parent: Parent, *experts: int) -> Mask:
    return Mask(parent.identity(), {layer: tuple(sorted(experts)) for layer in parent.experts.layers})


@pytest.mark.parametrize("kept", [2, 9])
def test_twins_are_told_apart_by_their_bytes(kept: int, tmp_path: Path) -> None:
    parent = with_twins(tmp_path)
    mask = keeping(parent, 1, kept, 12)
    assert recover(parent, cut_of(parent, mask)).mask.keep == mask.keep


def test_twins_that_are_both_kept_need_no_bytes(tmp_path: Path) -> None:
    parent = with_twins(tmp_path)
    mask = keeping(parent, 2, 9, 12)
    assert recover(parent, cut_of(parent, mask)).mask.keep == mask.keep


def test_twins_in_another_quantisation_are_refused(tmp_path: Path) -> None:
    wide = {"embedding": 256, "expert_ff": 256}
    (tmp_path / "other").mkdir()
    parent = with_twins(tmp_path, **wide, quantised=Type.F16)
    other = with_twins(tmp_path / "other", **wide, quantised=Type.Q8_0)
    with pytest.raises(MaskError, match=r"Experts 2, 9 of layer 1 have the same row.*same quantisation"):
        recover(parent, cut_of(other, keeping(other, 1, 2, 12)))


def test_twins_of_whose_bytes_there_are_none_are_refused(tmp_path: Path) -> None:
    parent = with_twins(tmp_path)
    specialist = cut_of(parent, keeping(parent, 1, 2, 12))
    change(specialist, "blk.1.ffn_down_exps.weight", twice(1, 0))
    with pytest.raises(MaskError, match=r"slot 1 .* has the bytes of none"):
        recover(parent, specialist)


def test_a_row_that_the_specialist_has_twice_is_refused(tmp_path: Path) -> None:
    parent = parent_of(tmp_path)
    specialist = cut_of(parent, random_mask(parent, 6))
    change(specialist, "blk.2.ffn_gate_inp.weight", twice(3, 0))
    with pytest.raises(MaskError, match=r"Slots 0, 3 of layer 2 .* keeps an expert once"):
        recover(parent, specialist)


# --- what is not the parent's -------------------------------------------------------------------------------------


def noise(scale: float) -> Callable[[bytes, TensorInfo], bytes]:
    rng = np.random.default_rng(1)

    def add(array: NDArray[np.float32]) -> None:
        array += scale * array.std() * rng.standard_normal(array.shape, np.float32)

    return floats(add)


@pytest.mark.parametrize(
    ("scale", "says", "bound"),
    [(1e-4, "another number format", 0.998), (0.1, "another checkpoint.*quantisation-aware", 0.9)],
)
def test_a_forged_row_is_refused_and_accepted_when_near_enough(
    scale: float, says: str, bound: float, tmp_path: Path
) -> None:
    parent = parent_of(tmp_path)
    mask = random_mask(parent, 6)
    specialist = cut_of(parent, mask)
    change(specialist, "blk.1.ffn_gate_inp.weight", noise(scale))
    with pytest.raises(ParentMismatchError, match=rf"6 of 18 rows .*{says}.*--nearest"):
        recover(parent, specialist)
    found = recover(parent, specialist, nearest=bound)
    assert found.mask.keep == mask.keep
    assert found.lowest_cosine is not None
    assert bound <= found.lowest_cosine < 1
    recipe = found.mask.provenance.recipe
    assert (recipe["rows"], recipe["nearest"]) == ("nearest", bound)
    with pytest.raises(ParentMismatchError, match=r"below 1\."):
        recover(parent, specialist, nearest=1)


def test_another_model_is_refused_as_one(tmp_path: Path) -> None:
    parent, other = parent_of(tmp_path), parent_of(tmp_path, "other", seed=1)
    with pytest.raises(ParentMismatchError, match="another model"):
        recover(parent, cut_of(other, random_mask(other, 6)))


def test_twins_leave_their_experts_to_rows_that_are_only_near(tmp_path: Path) -> None:
    parent = with_twins(tmp_path)
    mask = keeping(parent, *(set(range(16)) - {9}))
    specialist = cut_of(parent, mask)
    change(specialist, "blk.1.ffn_gate_inp.weight", floats(lambda rows: rows.__setitem__(5, rows[5] * 1.01)))
    assert recover(parent, specialist, nearest=0.99).mask.keep == mask.keep


@pytest.mark.parametrize(
    "tensor",
    ["blk.1.attn_norm.weight", "output_norm.weight", "blk.0.ffn_gate_inp.scale", "blk.2.ffn_down_exps.scale"],
)
def test_weights_beside_the_router_that_were_trained_are_refused(tensor: str, tmp_path: Path) -> None:
    parent = parent_of(tmp_path)
    mask = random_mask(parent, 6)
    specialist = change(cut_of(parent, mask), tensor, noise(0.01))
    with pytest.raises(ParentMismatchError, match=rf"{tensor} is another.*trained after it was cut"):
        recover(parent, specialist)
    found = recover(parent, specialist, nearest=1)
    assert found.mask.keep == mask.keep
    assert found.differences == (f"{tensor} is another",)
    assert found.mask.provenance.recipe["differences"] == [f"{tensor} is another"]


@pytest.mark.parametrize("tensor", ["blk.0.ffn_down_exps.weight", "blk.2.ffn_down.weight"])
def test_weights_of_another_model_behind_the_parent_s_router_are_refused(tensor: str, tmp_path: Path) -> None:
    parent = parent_of(tmp_path)
    specialist = change(cut_of(parent, random_mask(parent, 6)), tensor, noise(100))
    with pytest.raises(ParentMismatchError, match=r"is another \(cosine"):
        recover(parent, specialist)


def test_biases_of_a_router_count(tmp_path: Path) -> None:
    parent = parent_of(tmp_path, architecture="gpt-oss")
    specialist = change(cut_of(parent, random_mask(parent, 6)), "blk.0.ffn_gate_inp.bias", noise(1))
    with pytest.raises(ParentMismatchError, match="other biases"):
        recover(parent, specialist)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"architecture": "olmoe"}, "architecture gemma4"),
        ({"experts": 4}, "has 4: it cannot be the parent.*not one that was cut"),
        ({"layers": 4}, "in other layers"),
        ({"embedding": 96}, "another width"),
    ],
)
def test_a_parent_that_cannot_be_is_refused_by_its_header(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    specialist = parent_of(tmp_path, "specialist", experts=8)

    def fetch(ranges: Sequence[ByteRange]) -> None:
        raise AssertionError("nothing is to be fetched")

    with pytest.raises(SurgeryError, match=says):
        recover(parent_of(tmp_path, **changes), specialist.path, fetch=fetch)


def test_a_skeleton_has_nothing_to_match(tmp_path: Path) -> None:
    parent = parent_of(tmp_path)
    write_skeleton(parent, 6, tmp_path / "skeleton.gguf")
    with pytest.raises(ParentMismatchError, match="skeleton"):
        recover(parent, tmp_path / "skeleton.gguf")


@pytest.mark.parametrize("bound", [0.0, -1.0, 1.5, float("nan")])
def test_a_bound_that_is_no_cosine_is_refused(bound: float, tmp_path: Path) -> None:
    parent = parent_of(tmp_path)
    with pytest.raises(MaskError, match="no bound"):
        recover(parent, parent.path, nearest=bound)


def test_another_number_of_experts_a_token_is_told(tmp_path: Path) -> None:
    parent = parent_of(tmp_path, experts_used=2)
    other = parent_of(tmp_path, "other", experts_used=4)
    assert "uses 4 experts a token" in recover(parent, cut_of(other, random_mask(other, 6))).notes[0]
