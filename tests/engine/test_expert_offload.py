"""Expert offload: as many layers as needed leave their experts in host memory, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from coe.engine.expert_offload import layers_on_cpu
from coe.engine.gguf.header import expert_bytes
from coe.engine.gguf.reader import read_split
from coe.engine.spec import LoadSpec
from coe.engine.worker.probe import movable_experts, weights
from fakes.random_moe import write_random_moe


@pytest.mark.parametrize(
    ("budget", "layers"),
    [(1000, 0), (999, 1), (900, 1), (899, 3), (700, 3), (699, None)],
)
def test_as_few_layers_as_possible_keep_their_experts_on_the_cpu(budget: int, layers: int | None) -> None:
    assert layers_on_cpu(1000, budget, [100, 0, 200]) == layers


@pytest.mark.parametrize("gpu_layers", [-1, 99, 5, 3, 1])
def test_a_layer_gives_what_its_experts_take_of_the_gpu(tmp_path: Path, gpu_layers: int) -> None:
    headers = read_split(write_random_moe(tmp_path / "m.gguf", architecture="glm4moe", layers=4, dense_layers=1))
    spec = LoadSpec(tmp_path / "m.gguf", gpu_layers=gpu_layers)
    movable = movable_experts(headers, spec)
    assert movable[0] == 0, "it is dense"
    for layers in range(5):
        moved = LoadSpec(spec.path, gpu_layers=gpu_layers, cpu_expert_layers=layers)
        assert weights(headers, spec, True)[0] - weights(headers, moved, True)[0] == sum(movable[:layers])


def test_experts_are_counted_in_all_parts_of_a_model(tmp_path: Path) -> None:
    whole = read_split(write_random_moe(tmp_path / "m.gguf", layers=3))
    parts = read_split(write_random_moe(tmp_path / "p.gguf", layers=3, parts=3))
    assert len(parts) == 3
    assert expert_bytes(parts) == expert_bytes(whole)
    assert all(expert_bytes(whole))
