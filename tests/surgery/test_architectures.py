"""The table of architectures, read from tiny files of each."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from random_model import write_random_model

from coe.engine.errors import ModelFileError
from coe.engine.gguf.reader import read_array
from coe.engine.llama.model import Model
from coe.engine.spec import LoadSpec
from coe.surgery.architectures import ARCHITECTURES, Experts, expert_bytes, is_per_expert
from coe.surgery.errors import ArchitectureError
from coe.surgery.parent import Parent
from coe.surgery.profile.tap import TappedContext
from fakes import random_moe
from fakes.random_moe import write_random_moe


def experts_of(path: Path) -> Experts:
    return Parent.open(path).experts


def test_the_tests_write_a_model_of_every_architecture_in_the_table() -> None:
    assert set(random_moe.ARCHITECTURES) == set(ARCHITECTURES)


@pytest.mark.parametrize("architecture", random_moe.ARCHITECTURES)
def test_the_table_lists_every_tensor_whose_outermost_dimension_counts_experts(
    tmp_path: Path, architecture: str
) -> None:
    parent = Parent.open(write_random_moe(tmp_path / "m.gguf", architecture=architecture, experts=11, experts_used=3))
    assert (parent.experts.n_expert, parent.experts.n_used, parent.experts.layers) == (11, 3, (0, 1))
    for tensor in parent.headers[0].tensors:
        assert is_per_expert(parent.experts.architecture, tensor.name) == (tensor.shape[-1] == 11), tensor.name


@pytest.mark.model
@pytest.mark.parametrize("architecture", random_moe.ARCHITECTURES)
def test_the_tables_nodes_are_those_that_the_graph_chooses_and_weighs_by(tmp_path: Path, architecture: str) -> None:
    parent = Parent.open(write_random_moe(tmp_path / "m.gguf", architecture=architecture))
    spec = LoadSpec(parent.path, context_tokens=256, parallel=1, threads=1, gpu_layers=0)
    model = Model(spec)
    context = TappedContext(model, spec, parent.experts, scores=True)
    _, observed = context.evaluate(list(range(20, 50)))
    context.close()
    model.close()
    assert observed.scores is not None
    best = np.argsort(-observed.scores, axis=-1, kind="stable")[..., : parent.experts.n_used]
    np.testing.assert_array_equal(observed.chosen, best)
    sums = observed.weights.sum(-1)
    if parent.experts.architecture.renormalises:
        np.testing.assert_allclose(sums, 1, rtol=1e-5)
    else:
        exponentials = np.exp(observed.scores - observed.scores.max(-1, keepdims=True))
        probabilities = exponentials / exponentials.sum(-1, keepdims=True)
        np.testing.assert_allclose(sums, np.take_along_axis(probabilities, best, axis=-1).sum(-1), rtol=1e-4)
        assert sums.max() < 0.999


def test_experts_of_a_tensor_are_equally_long_runs(tmp_path: Path) -> None:
    header = Parent.open(write_random_moe(tmp_path / "m.gguf", quantised=gguf.GGMLQuantizationType.Q8_0)).headers[0]
    sizes = {tensor.name: expert_bytes(tensor) for tensor in header.tensors}
    assert sizes["blk.0.ffn_gate_exps.weight"] == 32 * 64 // 32 * 34
    assert sizes["blk.0.ffn_gate_inp.weight"] == 64 * 4
    assert sizes["blk.0.ffn_down_exps.scale"] == 4


def test_the_routers_own_scale_and_the_shared_expert_are_left_alone(tmp_path: Path) -> None:
    # As many experts as the embedding is wide: shapes cannot tell them apart, names must.
    experts = experts_of(write_random_moe(tmp_path / "m.gguf", experts=64))
    for name in ("ffn_gate_inp.scale", "ffn_down.weight", "post_ffw_norm_1.weight", "ffn_norm.weight"):
        assert not is_per_expert(experts.architecture, f"blk.0.{name}")
    assert not is_per_expert(ARCHITECTURES["qwen2moe"], "blk.0.ffn_gate_inp_shexp.weight")
    assert not is_per_expert(ARCHITECTURES["qwen2moe"], "blk.0.ffn_down_shexp.weight")
    assert not is_per_expert(experts.architecture, "token_embd.weight")


def test_leading_dense_layers_have_no_router_and_draft_blocks_are_told_apart(tmp_path: Path) -> None:
    path = write_random_moe(tmp_path / "m.gguf", architecture="glm4moe", layers=3, dense_layers=1, draft=True)
    experts = experts_of(path)
    assert experts.layers == (1, 2)
    assert experts.draft_layers == (3,)


@pytest.mark.parametrize(
    ("normalised", "choice_bias", "selects_by", "weights"),
    [
        (True, True, "ffn_moe_probs_biased", "ffn_moe_weights_norm"),
        (False, False, "ffn_moe_logits", "ffn_moe_weights"),
    ],
)
def test_deepseek_files_say_themselves_how_they_choose_and_normalise(
    tmp_path: Path, normalised: bool, choice_bias: bool, selects_by: str, weights: str
) -> None:
    path = write_random_moe(
        tmp_path / "m.gguf", architecture="deepseek2", normalised=normalised, choice_bias=choice_bias
    )
    row = experts_of(path).architecture
    assert (row.renormalises, row.selects_by, row.weights) == (normalised, selects_by, weights)


def test_groups_are_read(tmp_path: Path) -> None:
    experts = experts_of(write_random_moe(tmp_path / "m.gguf", architecture="deepseek2", groups=4, groups_used=2))
    assert (experts.n_groups, experts.n_groups_used) == (4, 2)


def test_experts_used_may_be_one_number_a_layer(tmp_path: Path) -> None:
    path = write_random_moe(tmp_path / "m.gguf", experts_used=3, used_array=True)
    assert experts_of(path).n_used == 3
    assert read_array(path, "gemma4.expert_used_count") == [3, 3]


def test_only_arrays_of_numbers_are_read_as_such(tmp_path: Path) -> None:
    path = write_random_moe(tmp_path / "m.gguf")
    assert read_array(path, "gemma4.attention.sliding_window_pattern") == [True, False]
    for key in ("tokenizer.ggml.tokens", "gemma4.expert_count", "no.such.key"):
        with pytest.raises(ModelFileError, match=key):
            read_array(path, key)


def test_an_architecture_that_is_not_in_the_table_is_refused_by_name(tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "m.gguf", architecture="grokmoe")
    with pytest.raises(ArchitectureError, match=r"'grokmoe'.*Known: deepseek2, gemma4, glm4moe"):
        Parent.open(path)


def write_tensors(path: Path, architecture: str, experts: int, tensors: dict[str, tuple[int, ...]]) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(2)
    for name, shape in tensors.items():
        writer.add_tensor(name, np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_dense_model_is_refused(tmp_path: Path) -> None:
    path = write_tensors(tmp_path / "m.gguf", "llama", 0, {"blk.0.ffn_up.weight": (8, 8)})
    with pytest.raises(ArchitectureError, match="no experts to choose from"):
        Parent.open(path)


def test_experts_tensors_that_the_table_does_not_list_are_refused(tmp_path: Path) -> None:
    tensors = {"blk.0.ffn_gate_inp.weight": (4, 8), "blk.0.ffn_down_exps.bias": (4, 8)}
    path = write_tensors(tmp_path / "m.gguf", "qwen3moe", 4, tensors)
    with pytest.raises(ArchitectureError, match=r"blk\.0\.ffn_down_exps\.bias .* does not know what to do"):
        Parent.open(path)


def test_tensors_that_contradict_the_count_are_refused(tmp_path: Path) -> None:
    path = write_tensors(tmp_path / "m.gguf", "qwen3moe", 5, {"blk.0.ffn_gate_inp.weight": (4, 8)})
    with pytest.raises(ArchitectureError, match="has 4 experts, the metadata say 5"):
        Parent.open(path)
