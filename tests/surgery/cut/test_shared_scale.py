"""The shared expert's scale: where it goes, what it does there, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from coe.engine.gguf.reader import read_header
from coe.engine.llama.model import Model
from coe.engine.spec import LoadSpec
from coe.surgery.cut.cut import cut
from coe.surgery.cut.shared_scale import _FACTORS, scaling
from coe.surgery.errors import CutError
from coe.surgery.mask import Mask
from coe.surgery.parent import Parent
from coe.surgery.profile.tap import TappedContext
from fakes.random_moe import random_mask, write_random_moe

TOKENS = list(range(20, 44))


def logits_of(path: Path) -> NDArray[np.float32]:
    spec = LoadSpec(path, context_tokens=256, parallel=1, threads=1, gpu_layers=0)
    model = Model(spec)
    context = TappedContext(model, spec, Parent.open(path).experts, logits=True)
    logits, _ = context.evaluate(TOKENS)
    context.close()
    model.close()
    assert logits is not None
    return logits


def with_scaled(path: Path, out: Path, ending: str, factor: float) -> Path:
    """A copy of a file with the tensors of that ending multiplied in place."""
    out.write_bytes(path.read_bytes())
    with out.open("r+b") as file:
        for tensor in read_header(path).tensors:
            if tensor.name.endswith(ending):
                file.seek(tensor.offset)
                scaled = scaling(tensor.name, tensor.type, factor)(file.read(tensor.n_bytes))
                file.seek(tensor.offset)
                file.write(scaled)
    return out


@pytest.mark.model
@pytest.mark.parametrize(
    "architecture", ["gemma4", "qwen2moe", "granitemoe", "glm4moe", "deepseek2", "qwen35moe", "qwen3next"]
)
def test_the_scale_changes_what_the_model_computes(tmp_path: Path, architecture: str) -> None:
    parent = Parent.open(write_random_moe(tmp_path / "parent.gguf", architecture=architecture))
    cut(parent, Mask.everything(parent.identity()), tmp_path / "out.gguf", shared_scale=1.2)
    before, after = logits_of(parent.path), logits_of(tmp_path / "out.gguf")
    assert np.abs(after - before).max() > 0.02 * before.std()


@pytest.mark.model
def test_in_gemma_a_norm_divides_a_scaled_down_projection_out_again(tmp_path: Path) -> None:
    parent = write_random_moe(tmp_path / "parent.gguf")
    before = logits_of(parent)
    down = np.abs(logits_of(with_scaled(parent, tmp_path / "down.gguf", ".ffn_down.weight", 1.2)) - before).max()
    norm = np.abs(logits_of(with_scaled(parent, tmp_path / "norm.gguf", ".post_ffw_norm_1.weight", 1.2)) - before).max()
    assert down < 0.01 * norm


def test_in_gemma_the_cut_scales_the_norm_and_nothing_else(tmp_path: Path) -> None:
    parent = Parent.open(write_random_moe(tmp_path / "parent.gguf"))
    cut(parent, Mask.everything(parent.identity()), tmp_path / "out.gguf", shared_scale=1.2, provenance=False)
    wanted = with_scaled(parent.path, tmp_path / "wanted.gguf", ".post_ffw_norm_1.weight", 1.2)
    assert (tmp_path / "out.gguf").read_bytes() == wanted.read_bytes()
    for name, data in ((tensor.name, tensor.data) for tensor in gguf.GGUFReader(wanted).tensors):
        if name.endswith("post_ffw_norm_1.weight"):
            before = next(tensor.data for tensor in gguf.GGUFReader(parent.path).tensors if tensor.name == name)
            np.testing.assert_allclose(data, 1.2 * before, rtol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "shared"), [("qwen3moe", True), ("olmoe", True), ("gpt-oss", True), ("granitemoe", False)]
)
def test_a_model_without_a_shared_expert_is_refused(tmp_path: Path, architecture: str, shared: bool) -> None:
    path = write_random_moe(tmp_path / "parent.gguf", architecture=architecture, shared=shared)
    parent = Parent.open(path)
    with pytest.raises(CutError, match="no shared expert to scale"):
        cut(parent, random_mask(parent, 4), tmp_path / "out.gguf", shared_scale=1.2)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_that_is_no_positive_number_is_refused(tmp_path: Path, factor: float) -> None:
    parent = Parent.open(write_random_moe(tmp_path / "parent.gguf"))
    with pytest.raises(CutError, match="positive number"):
        cut(parent, random_mask(parent, 4), tmp_path / "out.gguf", shared_scale=factor)


def test_types_without_16_bit_factors_are_refused(tmp_path: Path) -> None:
    path = write_random_moe(tmp_path / "parent.gguf", architecture="qwen2moe", quantised=Type.MXFP4)
    parent = Parent.open(path)
    with pytest.raises(CutError, match=r"ffn_down_shexp\.weight is of the type MXFP4"):
        cut(parent, random_mask(parent, 4), tmp_path / "out.gguf", shared_scale=1.2)
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("kind", [*_FACTORS, Type.F32, Type.F16, Type.BF16])
@pytest.mark.parametrize("factor", [1.2, 0.7])
def test_every_value_of_a_block_is_multiplied(kind: Type, factor: float) -> None:
    # Bytes of which any two are a 16-bit number between 2^-7 and 2, wherever a type keeps its factors.
    block_bytes = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = np.random.default_rng(0).integers(0x20, 0x40, (64, block_bytes), np.uint8)
    after = np.frombuffer(scaling("t", kind, factor)(blocks.tobytes()), np.uint8).reshape(blocks.shape)
    before_values, values = (values_of(data, kind) for data in (blocks, after))
    # 16-bit factors round by 2^-11, bfloat16 by 2^-8; what cancels within a block (Q4_1) is held to the block's size.
    rounding = 2.0**-8 if kind == Type.BF16 else 2.0**-10
    largest = np.abs(before_values).max(1, keepdims=True)
    assert (np.abs(values - factor * before_values) <= rounding * largest).all()
    assert (largest > 0).all()


def values_of(blocks: NDArray[np.uint8], kind: Type) -> NDArray[np.float64]:
    if kind == Type.F32:
        return np.ascontiguousarray(blocks).view(np.float32).astype(np.float64)
    return gguf.quants.dequantize(blocks, kind).astype(np.float64)


def test_a_scale_that_leaves_a_types_range_is_refused() -> None:
    data = np.full(4, 60000, np.float16).tobytes()
    with pytest.raises(CutError, match="leaves the range"):
        scaling("t", Type.F16, 1.2)(data)
