"""Inspection: what a file is made of, and that masks save what is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from random_model import Shape, write_random_model

from coe.engine.errors import ModelFileError
from coe.engine.gguf.reader import read_header
from coe.engine.pool import memory
from coe.engine.pool.memory import Prediction
from coe.engine.spec import Footprint, LoadSpec
from coe.surgery.cut.cut import cut
from coe.surgery.errors import MaskError
from coe.surgery.mask import Mask
from coe.surgery.parent import Parent
from coe.surgery.study.inspect import TensorKind, inspect, kind_of
from fakes.random_moe import ARCHITECTURES, write_random_moe


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[LoadSpec]:
    """Dry runs that cost nothing: one byte a token of context beside 10 MB of weights."""
    specs: list[LoadSpec] = []

    async def predict(spec: LoadSpec, policies: Any = None) -> Prediction:
        specs.append(spec)
        return Prediction(Footprint(10_000_000, spec.context_tokens, 0, 0, 1, ("a note",)), {})

    monkeypatch.setattr(memory, "predict", predict)
    return specs


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        ("token_embd.weight", TensorKind.EMBEDDING),
        ("output.weight", TensorKind.EMBEDDING),
        ("output_norm.weight", TensorKind.NORMS),
        ("rope_freqs.weight", TensorKind.OTHER),
        ("blk.3.attn_q.weight", TensorKind.ATTENTION),
        ("blk.3.attn_q_norm.weight", TensorKind.NORMS),
        ("blk.3.attn_sinks.weight", TensorKind.ATTENTION),
        ("blk.3.ssm_conv1d.weight", TensorKind.ATTENTION),
        ("blk.3.ffn_gate_inp.weight", TensorKind.ROUTER),
        ("blk.3.ffn_gate_inp.scale", TensorKind.ROUTER),
        ("blk.3.ffn_gate_inp_shexp.weight", TensorKind.SHARED),
        ("blk.3.exp_probs_b.bias", TensorKind.ROUTER),
        ("blk.3.ffn_gate_up_exps.weight", TensorKind.EXPERTS),
        ("blk.3.ffn_down_exps.scale", TensorKind.EXPERTS),
        ("blk.3.ffn_down_shexp.weight", TensorKind.SHARED),
        ("blk.3.ffn_down.weight", TensorKind.SHARED),
        ("blk.3.post_ffw_norm_1.weight", TensorKind.NORMS),
        ("blk.3.layer_output_scale.weight", TensorKind.OTHER),
    ],
)
def test_tensors_have_kinds(tensor: str, kind: TensorKind) -> None:
    assert kind_of(tensor) is kind


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.usefixtures("asked")
async def test_files_are_as_large_as_the_cut_makes_them(tmp_path: Path, architecture: str) -> None:
    path = write_random_moe(tmp_path / "parent.gguf", architecture=architecture)
    found = await inspect(path, keep=[8, 4])
    assert (found.architecture, found.n_expert, found.n_used) == (architecture, 8, 2)
    assert sum(found.bytes_by_kind.values()) == read_header(path).weights_bytes
    parent = Parent.open(path)
    identity = parent.identity()
    everything, half = found.savings
    assert everything.file_bytes == found.file_bytes == path.stat().st_size
    assert everything.saved_bytes == 0
    mask = Mask(identity, dict.fromkeys(identity.layers, (0, 1, 2, 3)))
    report = cut(parent, mask, tmp_path / "half.gguf", provenance=False)
    assert half.file_bytes == report.n_bytes
    gone = read_header(path).weights_bytes - read_header(report.path).weights_bytes
    assert half.saved_bytes == gone
    assert half.vram_bytes == {16384: 10_016_384 - gone, 65536: 10_065_536 - gone}


@pytest.mark.usefixtures("asked")
async def test_a_split_parent_is_one(tmp_path: Path) -> None:
    path = write_random_moe(tmp_path / "parent.gguf", architecture="qwen3moe", parts=2)
    found = await inspect(path, keep=[4])
    parent = Parent.open(path)
    identity = parent.identity()
    mask = Mask(identity, dict.fromkeys(identity.layers, (0, 2, 4, 6)))
    assert found.savings[0].file_bytes == cut(parent, mask, tmp_path / "half.gguf", provenance=False).n_bytes
    assert found.file_bytes == sum(part.stat().st_size for part in parent.paths)


async def test_the_usual_counts_are_three_quarters_half_three_eighths_and_a_quarter(
    tmp_path: Path, asked: list[LoadSpec]
) -> None:
    path = write_random_model(tmp_path / "a.gguf", Shape(experts=32, experts_used=4))
    found = await inspect(path)
    assert [saving.n_keep for saving in found.savings] == [24, 16, 12, 8]
    assert found.layers == (0, 1, 2)
    assert found.notes == ("a note",)
    assert found.on_gpu
    assert {spec.context_tokens for spec in asked} == {16384, 65536}
    assert {(spec.path, spec.parallel) for spec in asked} == {(path, 1)}


@pytest.mark.usefixtures("asked")
async def test_counts_that_no_mask_can_have_are_left_out_and_refused(tmp_path: Path) -> None:
    few = write_random_model(tmp_path / "few.gguf", Shape(experts=8, experts_used=4))
    assert [saving.n_keep for saving in (await inspect(few)).savings] == [6, 4]
    with pytest.raises(MaskError, match="Keep at least 4"):
        await inspect(few, keep=[2])
    grouped = write_random_moe(tmp_path / "g.gguf", architecture="deepseek2", experts=16, groups=4, groups_used=2)
    assert [saving.n_keep for saving in (await inspect(grouped)).savings] == [12, 8]
    with pytest.raises(MaskError, match="multiple of 4"):
        await inspect(grouped, keep=[6])


async def test_a_dense_model_gets_a_plain_answer(smollm2: Path) -> None:
    found = await inspect(smollm2, contexts=[1024])
    assert found.n_expert == 0
    assert found.savings == ()
    assert found.notes[0] == "A dense model: it has no experts that a mask could drop."
    assert TensorKind.EXPERTS not in found.bytes_by_kind
    assert found.bytes_by_kind[TensorKind.SHARED] > found.bytes_by_kind[TensorKind.ATTENTION] > 0
    assert found.vram_bytes[1024] > sum(found.bytes_by_kind.values())


@pytest.mark.model
async def test_real_dry_runs_agree_with_the_cut_file_s_own(tmp_path: Path) -> None:
    shape = Shape(width=128, experts=64, experts_used=2, expert_ff=256)
    path = write_random_model(tmp_path / "parent.gguf", shape, quantise=True)
    found = await inspect(path, keep=[16])
    assert found.vram_bytes[65536] > found.vram_bytes[16384]
    parent = Parent.open(path)
    identity = parent.identity()
    mask = Mask(identity, dict.fromkeys(identity.layers, tuple(range(0, 64, 4))))
    cut(parent, mask, tmp_path / "quarter.gguf")
    own = await inspect(tmp_path / "quarter.gguf", keep=[])
    for context in (16384, 65536):
        said, measured = found.savings[0].vram_bytes[context], own.vram_bytes[context]
        # The process' own memory is in both and is never twice the same to the page.
        assert abs(said - measured) < 0.02 * measured
        assert found.vram_bytes[context] - said == found.savings[0].saved_bytes > 5_000_000


async def test_an_architecture_that_surgery_does_not_know(tmp_path: Path, asked: list[LoadSpec]) -> None:
    path = write_random_model(tmp_path / "odd.gguf", architecture="dbrx")
    found = await inspect(path)
    assert found.n_expert == 4
    assert found.savings == ()
    assert "'dbrx', which surgery does not know" in found.notes[0]
    assert found.bytes_by_kind[TensorKind.EXPERTS] > 0


@pytest.mark.model
async def test_a_file_that_llama_cpp_refuses_is_still_described(tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "odd.gguf", architecture="no-such-architecture")
    found = await inspect(path)
    assert found.vram_bytes == {}
    assert any("What it takes in memory is not known" in note for note in found.notes)
    assert found.bytes_by_kind[TensorKind.EXPERTS] > 0


async def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"nothing")
    with pytest.raises(ModelFileError):
        await inspect(tmp_path / "x.gguf")
