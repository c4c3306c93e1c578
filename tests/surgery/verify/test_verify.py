"""Verification: whatever is wrong with a cut file is found, and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from coe.engine.errors import ModelFileError
from coe.engine.gguf.header import TensorInfo
from coe.engine.gguf.reader import read_header
from coe.engine.spec import LoadSpec
from coe.surgery.cut.cut import cut
from coe.surgery.cut.gguf_writer import RawHeader, read_raw_header
from coe.surgery.errors import ParentMismatchError, VerificationError
from coe.surgery.mask import Mask
from coe.surgery.parent import Parent
from coe.surgery.verify import verify as verifying
from coe.surgery.verify.agreement import Agreement, agree
from coe.surgery.verify.verify import Verification, distance_of, norm_of, verify
from fakes.random_moe import quantise, random_mask, write_random_moe
from fakes.weight import brings

TOKENS = list(range(20, 60))


@pytest.fixture
@brings("model")
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Agreement]:
    """Runs the models in this process, which is quicker, and keeps what was found."""
    found: list[Agreement] = []

    def here(parent: Path | None, specialist: Path, order: Any, **options: Any) -> Agreement:
        options["load"] = LoadSpec(specialist, gpu_layers=0, threads=1)
        found.append(agree(parent, specialist, order, **options))
        return found[-1]

    monkeypatch.setattr(verifying, "agree_apart", here)
    return found


@pytest.fixture
def parent(tmp_path: Path) -> Parent:
    return Parent.open(write_random_moe(tmp_path / "parent.gguf"))


@pytest.fixture
def mask(parent: Parent) -> Mask:
    return Mask(parent.identity(), {0: (0, 2, 3, 5, 7), 1: (1, 2, 4, 6, 7)})


@pytest.fixture
def out(tmp_path: Path, parent: Parent, mask: Mask) -> Path:
    """A specialist cut as it should be."""
    cut(parent, mask, tmp_path / "out.gguf")
    return tmp_path / "out.gguf"


def tensor_of(path: Path, name: str) -> TensorInfo:
    return next(tensor for tensor in read_header(path).tensors if tensor.name == name)


def overwrite(path: Path, tensor: TensorInfo, slot: int, change: Callable[[bytes], bytes]) -> None:
    """Change one expert's bytes in a file."""
    one = tensor.n_bytes // tensor.shape[-1]
    with path.open("r+b") as file:
        file.seek(tensor.offset + slot * one)
        changed = change(file.read(one))
        assert len(changed) == one
        file.seek(tensor.offset + slot * one)
        file.write(changed)


def with_header(path: Path, change: Callable[[RawHeader], RawHeader]) -> None:
    header = read_raw_header(path)
    data = path.read_bytes()[len(header.to_bytes()) :]
    path.write_bytes(change(header).to_bytes() + data)


def problems(parent: Parent, out: Path, mask: Mask, **options: Any) -> str:
    found = verify(parent.path, out, mask, text_tokens=TOKENS, **options)
    assert not found.ok
    assert found.agreement is None
    with pytest.raises(VerificationError, match=r"out\.gguf is not what its mask says"):
        found.require()
    return "\n".join(found.problems)


# --- what is right ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cut_file_is_what_its_mask_says(parent: Parent, out: Path, mask: Mask) -> None:
    steps: dict[str, tuple[int, int]] = {}
    found = verify(parent.path, out, mask, progress=lambda step, done, total: steps.__setitem__(step, (done, total)))
    found.require()
    assert found.ok
    assert found.tensors == len(read_header(out).tensors)
    assert found.compared_bytes == read_header(out).weights_bytes == steps["tensors"][0] == steps["tensors"][1]
    assert found.agreement is not None
    assert found.agreement.positions > 200  # of a text of its own
    assert found.agreement.generated
    assert steps["logits"][0] == steps["logits"][1]


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ({"parts": 3}, {}),
        ({"fused": True, "quantised": Type.Q8_0}, {}),
        ({"architecture": "deepseek2", "groups": 2, "groups_used": 1, "draft": True}, {}),
        ({"architecture": "gpt-oss", "quantised": Type.MXFP4}, {"provenance": False}),
        ({}, {"slots": {0: (7, 6, 5, 3)}}),
        ({"quantised": Type.Q4_K, "embedding": 256, "expert_ff": 256}, {}),
    ],
    ids=str,
)
def test_all_kinds_of_cut_files_are(
    tmp_path: Path, runs: list[Agreement], variant: dict[str, Any], options: dict[str, Any]
) -> None:
    parent = Parent.open(write_random_moe(tmp_path / "parent.gguf", **variant))
    mask = random_mask(parent, 4)
    if "slots" in options:
        mask = Mask(mask.parent, {**mask.keep, 0: tuple(sorted(options["slots"][0]))})
    cut(parent, mask, tmp_path / "out.gguf", **options)
    found = verify(parent.path, tmp_path / "out.gguf", mask, text_tokens=TOKENS)
    assert found.problems == ()
    assert found.agreement is runs[0]
    assert runs[0].positions >= len(TOKENS)


def test_a_scaled_shared_expert_is_allowed_for(
    tmp_path: Path, runs: list[Agreement], parent: Parent, mask: Mask
) -> None:
    out = tmp_path / "out.gguf"
    cut(parent, mask, out, shared_scale=1.2)
    found = verify(parent.path, out, mask, text_tokens=TOKENS)
    assert found.problems == ()
    assert runs[0].positions == 0
    assert runs[0].generated
    assert any("its shared expert is scaled" in note for note in found.notes)
    cut(parent, mask, out, shared_scale=1.2, provenance=False)
    assert verify(parent.path, out, mask, text_tokens=TOKENS, shared_scale=1.2).problems == ()
    assert "blk.0.post_ffw_norm_1.weight has other bytes" in problems(parent, out, mask)


def test_a_file_quantised_anew_is_held_to_the_parents_values(
    tmp_path: Path, runs: list[Agreement], parent: Parent, mask: Mask
) -> None:
    out = tmp_path / "out.gguf"
    cut(parent, mask, out, quantize="Q8_0")
    found = verify(parent.path, out, mask, text_tokens=TOKENS)
    assert found.problems == ()
    assert any("quantised anew" in note for note in found.notes)
    up = tensor_of(out, "blk.0.ffn_up_exps.weight")
    overwrite(out, up, 2, lambda data: data[:1000] + bytes(len(data) - 1000))
    said = problems(parent, out, mask)
    assert "too far from the parent's values, Expert 3 (the parent's number) of layer 0 in" in said


def test_exchanged_experts_are_seen_in_a_file_quantised_anew(
    tmp_path: Path, runs: list[Agreement], parent: Parent, mask: Mask
) -> None:
    out = tmp_path / "out.gguf"
    cut(parent, mask, out, quantize="Q8_0")
    up = tensor_of(out, "blk.0.ffn_up_exps.weight")
    held: list[bytes] = []
    overwrite(out, up, 0, lambda data: held.append(data) or data)
    overwrite(out, up, 1, lambda data: held.append(data) or held[0])
    overwrite(out, up, 0, lambda data: held[1])
    assert "too far from the parent's values" in problems(parent, out, mask)


# --- what is wrong ------------------------------------------------------------------------------------------------


def test_rotated_router_rows_are_found_and_named(parent: Parent, out: Path, mask: Mask) -> None:
    router = tensor_of(out, "blk.1.ffn_gate_inp.weight")
    data = out.read_bytes()
    rows = data[router.offset : router.offset + router.n_bytes]
    one = len(rows) // 5
    out.write_bytes(data[: router.offset] + rows[one:] + rows[:one] + data[router.offset + router.n_bytes :])
    said = problems(parent, out, mask)
    assert said == (
        "blk.1.ffn_gate_inp.weight has for expert 1 those of expert 2; for expert 2 those of expert 4; "
        "for expert 4 those of expert 6; for expert 6 those of expert 7; for expert 7 those of expert 1."
    )


@pytest.mark.model
def test_rotated_router_rows_are_found_by_what_they_compute_too(parent: Parent, out: Path, mask: Mask) -> None:
    rotated = {**mask.keep, 1: (*mask.keep[1][1:], mask.keep[1][0])}
    found = agree(parent.path, out, rotated, tokens=TOKENS, load=LoadSpec(out, gpu_layers=0, threads=1))
    assert any("router's scores in layer 1" in problem for problem in found.problems)


def test_one_changed_bit_is_found(parent: Parent, out: Path, mask: Mask) -> None:
    overwrite(out, tensor_of(out, "blk.0.ffn_down_exps.weight"), 3, lambda data: bytes([data[0] ^ 1]) + data[1:])
    said = problems(parent, out, mask)
    assert said == "blk.0.ffn_down_exps.weight has for expert 5 bytes that no expert of the parent has."


def test_a_change_outside_the_experts_is_found(parent: Parent, out: Path, mask: Mask) -> None:
    overwrite(out, tensor_of(out, "token_embd.weight"), 300, lambda data: data[::-1])
    assert problems(parent, out, mask) == "token_embd.weight has other bytes than the parent's."


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_named_even_if_the_parent_has_them(
    tmp_path: Path, parent: Parent, value: float
) -> None:
    bad = np.full(1, value, np.float32).tobytes()
    overwrite(parent.path, tensor_of(parent.path, "blk.1.ffn_up_exps.weight"), 6, lambda data: bad + data[4:])
    parent = Parent.open(parent.path)
    mask = Mask(parent.identity(), {0: (0, 1, 2), 1: (1, 5, 6)})
    cut(parent, mask, tmp_path / "out.gguf")
    said = problems(parent, tmp_path / "out.gguf", mask)
    assert said == "Expert 6 (the parent's number) of layer 1 in blk.1.ffn_up_exps.weight holds NaN or Inf."


@pytest.mark.parametrize("name", ["blk.0.ffn_gate_exps.weight", "blk.0.ffn_down_exps.scale"])
def test_an_expert_of_zeros_is_named(parent: Parent, out: Path, mask: Mask, name: str) -> None:
    overwrite(out, tensor_of(out, name), 4, lambda data: bytes(len(data)))
    said = problems(parent, out, mask)
    assert f"Expert 7 (the parent's number) of layer 0 in {name} is all zero." in said


def test_an_expert_that_is_zero_in_the_parent_is_noted(tmp_path: Path, runs: list[Agreement], parent: Parent) -> None:
    overwrite(parent.path, tensor_of(parent.path, "blk.0.ffn_up_exps.weight"), 2, lambda data: bytes(len(data)))
    parent = Parent.open(parent.path)
    mask = random_mask(parent, 8)
    cut(parent, mask, tmp_path / "out.gguf")
    found = verify(parent.path, tmp_path / "out.gguf", mask, text_tokens=TOKENS)
    assert found.problems == ()
    assert found.notes == (
        "Expert 2 (the parent's number) of layer 0 in blk.0.ffn_up_exps.weight is all zero, as in the parent.",
    )


def test_biases_may_be_zero(tmp_path: Path, runs: list[Agreement]) -> None:
    path = write_random_moe(tmp_path / "parent.gguf", architecture="gpt-oss")
    overwrite(path, tensor_of(path, "blk.0.ffn_up_exps.bias"), 0, lambda data: bytes(len(data)))
    parent = Parent.open(path)
    mask = random_mask(parent, 8)
    cut(parent, mask, tmp_path / "out.gguf")
    found = verify(path, tmp_path / "out.gguf", mask, text_tokens=TOKENS)
    assert (found.problems, found.notes) == ((), ())


def test_metadata_must_be_the_parents(parent: Parent, out: Path, mask: Mask) -> None:
    def change(header: RawHeader) -> RawHeader:
        header = header.with_value("gemma4.attention.sliding_window", 16).with_value("gemma4.expert_count", 6)
        return header.without("tokenizer.chat_template").with_value("gemma4.rope.scaling.type", "linear")

    with_header(out, change)
    said = problems(parent, out, mask)
    assert "say something else than the parent's about gemma4.attention.sliding_window" in said
    assert "The metadata lack tokenizer.chat_template." in said
    assert "The metadata have gemma4.rope.scaling.type, the parent's do not." in said
    assert "gemma4.expert_count is not the mask's 5." in said


def test_tensors_must_be_the_parents(parent: Parent, out: Path, mask: Mask) -> None:
    def change(header: RawHeader) -> RawHeader:
        renamed = [
            replace(tensor, name="blk.0.odd.weight") if tensor.name == "blk.0.attn_q.weight" else tensor
            for tensor in header.tensors
        ]
        return replace(header, tensors=tuple(renamed))

    with_header(out, change)
    said = problems(parent, out, mask)
    assert "The file lacks blk.0.attn_q.weight." in said
    assert "The file has, and the parent has not, blk.0.odd.weight." in said


def test_a_file_of_another_number_of_experts_is_said_to_be_that(tmp_path: Path, parent: Parent, mask: Mask) -> None:
    out = tmp_path / "out.gguf"
    cut(parent, random_mask(parent, 4), out, provenance=False)
    with pytest.raises(VerificationError) as raised:
        verify(parent.path, out, mask)
    assert raised.value.message == f"{out} keeps 4 experts a layer, and the mask 5."
    assert raised.value.remedy == "Give the mask that it was cut with."  # this one ranks none


@pytest.mark.parametrize("provenance", [True, False])
def test_the_remedy_names_the_number_that_a_ranking_was_cut_at(
    tmp_path: Path, parent: Parent, mask: Mask, provenance: bool
) -> None:
    ranking = {layer: (*kept, *sorted(set(range(8)) - set(kept))) for layer, kept in mask.keep.items()}
    ranked, out = replace(mask, ranking=ranking), tmp_path / "out.gguf"
    cut(parent, ranked.keeping(6), out, provenance=provenance)
    with pytest.raises(VerificationError, match="If it was cut with --experts 6, verify it with --experts 6 as well"):
        verify(parent.path, out, ranked)


def test_the_remedy_names_no_number_where_the_file_says_that_it_keeps_others(
    tmp_path: Path, parent: Parent, mask: Mask
) -> None:
    ranking = {layer: (*kept, *sorted(set(range(8)) - set(kept))) for layer, kept in mask.keep.items()}
    out = tmp_path / "out.gguf"
    cut(parent, Mask(mask.parent, {0: (0, 1, 2, 3, 4, 5), 1: (0, 1, 2, 3, 4, 5)}), out)
    with pytest.raises(VerificationError, match="Give the mask that it was cut with"):
        verify(parent.path, out, replace(mask, ranking=ranking))


def test_one_tensor_of_another_number_of_experts_is_named(parent: Parent, out: Path, mask: Mask) -> None:
    def change(header: RawHeader) -> RawHeader:
        fewer = [
            replace(tensor, shape=(*tensor.shape[:-1], 4)) if tensor.name == "blk.0.ffn_gate_inp.weight" else tensor
            for tensor in header.tensors
        ]
        return replace(header, tensors=tuple(fewer))

    with_header(out, change)
    assert "blk.0.ffn_gate_inp.weight has the shape [64, 4], not [64, 5]." in problems(parent, out, mask)


def test_a_file_of_another_mask_is_found_by_what_it_says_itself(parent: Parent, out: Path, mask: Mask) -> None:
    other = Mask(mask.parent, {**mask.keep, 1: (0, 1, 2, 3, 4)})
    assert "keeps other experts than the mask, in the layers [1]" in problems(parent, out, other)


def test_slots_that_the_file_does_not_tell_are_taken_for_ascending(tmp_path: Path, parent: Parent, mask: Mask) -> None:
    out = tmp_path / "out.gguf"
    cut(parent, mask, out, slots={0: (2, 0, 3, 5, 7)}, provenance=False)
    assert "blk.0.ffn_gate_inp.weight has for expert 0 those of expert 2" in problems(parent, out, mask)


def test_a_file_that_does_not_run_is_a_problem(
    parent: Parent, out: Path, mask: Mask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any, **__: Any) -> Agreement:
        raise VerificationError("The process that runs the two models ended by SIGABRT.")

    monkeypatch.setattr(verifying, "agree_apart", die)
    assert "SIGABRT" in problems(parent, out, mask)


def test_the_parent_must_be_the_masks(tmp_path: Path, out: Path, mask: Mask) -> None:
    other = write_random_moe(tmp_path / "other.gguf", seed=1)
    with pytest.raises(ParentMismatchError):
        verify(other, out, mask)


def test_a_file_that_cannot_be_read_is_said_to_be_so(tmp_path: Path, parent: Parent, out: Path, mask: Mask) -> None:
    out.write_bytes(out.read_bytes()[:-5000])
    with pytest.raises(ModelFileError, match="truncated"):
        verify(parent.path, out, mask)


def test_many_problems_are_told_in_short() -> None:
    many = Verification(Path("out.gguf"), 1, 1, tuple(f"Problem {n}." for n in range(9)), (), None)
    with pytest.raises(VerificationError, match=r"Problem 4\. And 4 more\."):
        many.require()


# --- numbers ------------------------------------------------------------------------------------------------------


def packed(kind: Type, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    if kind in (Type.F32, Type.F16, Type.BF16):
        return np.ascontiguousarray(gguf.quants.quantize(rows, kind)).view(np.uint8)
    return quantise(rows, kind)


@pytest.mark.parametrize(
    "kind", [Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q5_0, Type.Q4_K, Type.Q6_K, Type.MXFP4, Type.IQ4_NL]
)
def test_norms_are_those_of_the_values(kind: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifying, "_PIECE_WEIGHTS", 1024)
    rows = np.random.default_rng(0).standard_normal((7, 512)).astype(np.float32)
    data = packed(kind, rows)
    values = rows if kind == Type.F32 else gguf.quants.dequantize(data, kind)
    assert norm_of(data.tobytes(), kind) == pytest.approx(np.linalg.norm(values.astype(np.float64)), rel=1e-4)


def test_large_numbers_are_numbers() -> None:
    assert norm_of(np.full(4, 1e30, np.float32).tobytes(), Type.F32) == pytest.approx(2e30, rel=1e-6)
    assert norm_of(np.full(4, 1e-30, np.float32).tobytes(), Type.F32) == pytest.approx(2e-30, rel=1e-6)
    assert norm_of(bytes(64), Type.F32) == 0


def test_distances_are_those_of_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coe.surgery.verify.verify._PIECE_WEIGHTS", 1024)
    rows = np.random.default_rng(0).standard_normal((6, 512)).astype(np.float32)
    packed = gguf.quants.quantize(rows, Type.Q4_0)
    exact = np.linalg.norm(gguf.quants.dequantize(packed, Type.Q4_0) - rows) / np.linalg.norm(rows)
    found = distance_of(packed.tobytes(), Type.Q4_0, rows.tobytes(), Type.F32)
    assert found == pytest.approx(exact, rel=1e-4)
    assert 0.05 < found < 0.2
    assert distance_of(bytes(64), Type.F32, bytes(64), Type.F32) == 0
    assert distance_of(rows.tobytes(), Type.F32, bytes(rows.nbytes), Type.F32) == 1
