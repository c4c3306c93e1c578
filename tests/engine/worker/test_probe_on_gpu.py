"""Predicted against logged memory on a GPU, for every way in which a model may lie there in part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from random_model import Shape, write_random_model

from coe.engine.cards import cards, free_by_place
from coe.engine.gguf.reader import read_split
from coe.engine.llama.devices import devices
from coe.engine.spec import LoadSpec
from coe.engine.worker import probe
from fakes.device import log_of_load, logged_buffers, on_cards
from fakes.random_moe import write_random_moe

pytestmark = [pytest.mark.model, pytest.mark.device]

MIB = 2**20
LAYERS = 6
ROUNDED = 0.03 * MIB  # llama.cpp logs hundredths of a MiB, of each buffer by itself

PLACES: dict[str, dict[str, Any]] = {
    "all": {},
    "more than there are": {"gpu_layers": 99},
    "half": {"gpu_layers": 4},
    "the output alone": {"gpu_layers": 1},
    "experts on the CPU": {"cpu_expert_layers": -1},
    "some experts on the CPU": {"cpu_expert_layers": 2},
    "half, and half of its experts": {"gpu_layers": 4, "cpu_expert_layers": 4},
    "q8_0": {"gpu_layers": 4, "kv_type": "q8_0"},
}


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "runtime_bytes", lambda devices: 0)  # takes seconds to measure, and is in no log


@dataclass(frozen=True)
class Loaded:
    """What a real load logged: bytes on GPUs by what they are for, and all of its lines."""

    weights: float
    kv: float
    compute: float
    lines: Sequence[str]


def free_bytes() -> int:
    return sum(free_by_place(devices()).values())


def loaded(spec: LoadSpec) -> Loaded:
    lines = log_of_load(spec)
    there = on_cards(logged_buffers(lines))

    def on_gpu(what: str) -> float:
        return sum(mib for (_, kind), mib in there.items() if kind == what) * MIB

    return Loaded(on_gpu("model"), on_gpu("KV") + on_gpu("RS"), on_gpu("compute"), lines)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of sliding windows with keys of two widths, of recurrent layers, of whole attention."""
    folder = tmp_path_factory.mktemp("models")
    found = {name: write_random_moe(folder / f"{name}.gguf", architecture=name, layers=LAYERS) for name in
             ("qwen3moe", "qwen35moe")}  # fmt: skip
    found["windows"] = write_random_model(folder / "w.gguf", Shape(layers=LAYERS, context=4096, window=512))
    return found


def spec_of(path: Path, **fields: Any) -> LoadSpec:
    return replace(LoadSpec(path, context_tokens=2048, parallel=2, threads=1, mmap=False), **fields)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("model", ["windows", "qwen35moe", "qwen3moe"])
def test_what_is_predicted_of_the_gpu_is_what_a_load_takes(models: dict[str, Path], model: str, place: str) -> None:
    spec = spec_of(models[model], **PLACES[place])
    real = loaded(spec)
    predicted = probe.dry_run(spec, True, {}).footprint
    assert predicted.weights_bytes == pytest.approx(real.weights, abs=ROUNDED)
    assert predicted.kv_bytes == pytest.approx(real.kv, abs=ROUNDED)
    widened = probe.buffers(real.lines, probe.key_widths(read_split(spec.path))).widened_device
    assert predicted.compute_bytes in (
        pytest.approx(real.compute, abs=ROUNDED),
        pytest.approx(real.compute + widened, abs=ROUNDED),
    )
    assert min(real.weights, real.compute) > 0, "it is a test of a GPU"


@pytest.mark.parametrize("model", ["windows", "qwen35moe"])
def test_without_layers_on_it_nothing_is_taken_of_the_gpu(models: dict[str, Path], model: str) -> None:
    spec = spec_of(models[model], gpu_layers=0)
    before = free_bytes()
    names = {card.name.rstrip("0123456789") for card in cards(devices())}
    real = loaded(spec)
    places = [line for line in real.lines if "buffer size" in line or "dev = " in line]
    assert places
    assert not [line for line in places if any(name in line for name in names)], "nor pinned memory"
    assert not [line for line in real.lines if "using device" in line]
    after = free_bytes()
    assert before - after < 64 * MIB  # other programs take some, too
    assert probe.dry_run(spec, True, {}).footprint.total_bytes == 0
