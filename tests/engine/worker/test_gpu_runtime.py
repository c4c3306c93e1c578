"""What a GPU's runtime takes: measured once a machine, and kept."""

from __future__ import annotations

import json
import stat
from collections.abc import Sequence
from dataclasses import replace

import pytest

from coe.engine.errors import ChildDiedError
from coe.engine.files import cache_folder
from coe.engine.spec import Device
from coe.engine.worker import gpu_runtime
from coe.engine.worker.gpu_runtime import ESTIMATE_BYTES, believed, runtime_bytes

MIB = 2**20
VULKAN = Device("Vulkan0", "a card", "gpu", 8000 * MIB, 8192 * MIB)
CUDA = Device("CUDA0", "another", "gpu", 8000 * MIB, 8192 * MIB)


class Machine:
    """In place of ggml and the child: how much the GPUs lose while they are open."""

    def __init__(self, *gpus: Device) -> None:
        self.gpus = list(gpus)
        self.lost: int | Exception = 90 * MIB
        self.measured = 0
        self.opened: list[str] = []

    def devices(self, named: Sequence[str] = ()) -> list[Device]:
        return [*self.gpus, Device("CPU", "a processor", "cpu", 1, 2)]

    async def measure(self, named: Sequence[str]) -> int:
        self.measured += 1
        self.opened = list(named)
        if isinstance(self.lost, Exception):
            raise self.lost
        return self.lost


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine(VULKAN)
    monkeypatch.setattr(gpu_runtime, "devices", found.devices)
    monkeypatch.setattr(gpu_runtime, "_measure", found.measure)
    return found


def test_it_is_measured_once_and_kept_for_the_user_alone(machine: Machine) -> None:
    assert [runtime_bytes() for _ in range(3)] == [90 * MIB] * 3
    assert machine.measured == 1
    kept = cache_folder() / "gpu-runtime.json"
    assert list(json.loads(kept.read_text()).values()) == [90 * MIB]
    assert not kept.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)


def test_other_cards_and_other_builds_are_measured_anew(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime_bytes()
    machine.gpus = [CUDA]
    assert runtime_bytes() == (90 + 64) * MIB, "CUDA loads more code with a model"
    monkeypatch.setattr("llama_cpp.__version__", "9.9.9")
    runtime_bytes()
    assert machine.measured == 3
    machine.gpus = [VULKAN]
    runtime_bytes()
    assert machine.measured == 4


def test_a_driver_whose_figure_does_not_move_is_not_asked_again(machine: Machine) -> None:
    machine.lost = 0
    assert [runtime_bytes(), runtime_bytes()] == [ESTIMATE_BYTES] * 2
    assert machine.measured == 1


@pytest.mark.parametrize("lost", [-50 * MIB, 9000 * MIB, ChildDiedError("The process", -6, "CUDA error")])
def test_what_tells_nothing_is_not_kept(machine: Machine, lost: int | Exception) -> None:
    machine.lost = lost
    assert runtime_bytes() == ESTIMATE_BYTES
    machine.lost = 30 * MIB
    assert runtime_bytes() == 30 * MIB


@pytest.mark.parametrize(
    "content", ["", "[1]", '{"x": "y"}', "{", "null", '{"KEY": -5}', '{"KEY": 1e300}', '{"KEY": true}']
)
def test_what_is_kept_is_not_believed_blindly(machine: Machine, content: str) -> None:
    cache_folder().mkdir(parents=True)
    key = gpu_runtime._key(machine.gpus).replace("\\", "\\\\").replace('"', '\\"')
    (cache_folder() / "gpu-runtime.json").write_text(content.replace("KEY", key))
    assert runtime_bytes() == 90 * MIB


def test_a_cache_that_cannot_be_written_costs_time_alone(machine: Machine) -> None:
    cache_folder().parent.mkdir(parents=True, exist_ok=True)
    cache_folder().write_text("in its place")
    assert [runtime_bytes(), runtime_bytes()] == [90 * MIB] * 2


def test_without_a_gpu_there_is_nothing_to_measure(machine: Machine) -> None:
    machine.gpus = []
    assert runtime_bytes() == ESTIMATE_BYTES
    assert machine.measured == 0


def test_several_cards_count_together() -> None:
    assert believed(0, [CUDA, VULKAN]) == 0
    assert believed(100 * MIB, [CUDA, VULKAN]) == 164 * MIB
    assert believed(100 * MIB, [CUDA, CUDA]) == 228 * MIB
    assert believed(100 * MIB, [VULKAN]) == 100 * MIB
    assert believed(3000 * MIB, [CUDA]) is None
    assert believed(3000 * MIB, [CUDA, CUDA]) == 3128 * MIB


def test_what_goes_to_one_card_opens_no_other(machine: Machine) -> None:
    machine.gpus = [VULKAN, replace(VULKAN, name="Vulkan1")]
    assert runtime_bytes(("Vulkan1",)) == 90 * MIB
    assert machine.opened == ["Vulkan1"]
    machine.lost = 170 * MIB
    assert runtime_bytes(("Vulkan0", "Vulkan1")) == 170 * MIB, "measured anew: it is another set of cards"
    assert runtime_bytes(("Vulkan1",)) == 90 * MIB


def test_without_a_figure_each_card_is_booked_with_the_estimate(machine: Machine) -> None:
    machine.gpus, machine.lost = [VULKAN, CUDA], 0
    assert runtime_bytes(("Vulkan0", "CUDA0")) == 2 * ESTIMATE_BYTES
    assert runtime_bytes(("CUDA0",)) == ESTIMATE_BYTES


@pytest.mark.slow
@pytest.mark.device
async def test_the_child_opens_every_gpu_and_ends_when_it_was_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter((1000, 900))
    monkeypatch.setattr(gpu_runtime, "_free_bytes", lambda named: next(free))
    assert await gpu_runtime._measure(()) == 100
    assert next(free, None) is None
