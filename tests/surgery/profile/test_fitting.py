"""Fitting: as many layers as needed compute their experts on the CPU, and no more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from random_model import Shape, write_random_model

from coe.engine.spec import LoadSpec
from coe.surgery.errors import ProfileError
from coe.surgery.parent import Parent
from coe.surgery.profile import fitting


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("parent") / "p.gguf", Shape(experts=8, experts_used=3))


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """a_gpu(needed): a GPU on which the parent takes so many bytes when it is there whole."""
    from coe.engine.pool.memory import Prediction
    from coe.engine.spec import Device, Footprint

    def present(needed: int) -> None:
        async def predict(spec: LoadSpec) -> Prediction:
            return Prediction(Footprint(needed, 0, 0), {})

        monkeypatch.setattr(fitting, "devices", lambda **_: [Device("CUDA0", "", "gpu", 0, 0)])
        monkeypatch.setattr(fitting.memory, "predict", predict)

    return present


def test_a_parent_larger_than_the_budget_leaves_experts_on_the_cpu(parent: Path, a_gpu: Callable[[int], None]) -> None:
    opened = Parent.open(parent)
    experts = sum(t.n_bytes for t in opened.headers[0].tensors if t.name.startswith("blk.0.") and "_exps." in t.name)
    rows = 4 * 512 * 512  # logits of a whole batch
    a_gpu(10_000_000)
    spec = LoadSpec(parent, context_tokens=256, threads=1)
    assert fitting.fit_spec(spec, opened, 10_000_000 + rows).cpu_expert_layers == 0
    assert fitting.fit_spec(spec, opened, 10_000_000 + rows - experts - 1).cpu_expert_layers == 2
    assert fitting.fit_spec(replace(spec, gpu_layers=0), opened, 1).cpu_expert_layers == 0
    with pytest.raises(ProfileError, match="beside its experts"):
        fitting.fit_spec(spec, opened, 1000)
