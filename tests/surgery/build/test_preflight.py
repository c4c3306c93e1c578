"""What a build is found to need before it begins, by place, and how its models are loaded so that it fits."""

from __future__ import annotations

from pathlib import Path

import pytest
from random_model import Shape, write_random_model

from coe.engine.errors import UnavailableError
from coe.engine.pool.memory import Prediction
from coe.engine.pool.places import HOST, Memory
from coe.engine.spec import Footprint, LoadSpec
from coe.surgery.build import preflight
from coe.surgery.build.job import BuildOrder, Machine
from coe.surgery.parent import Parent
from coe.surgery.profile import fitting

CARD = "CUDA0"
OWN = 500  # bytes of the build's own process
ROWS = 4 * 512 * 512  # logits of a whole batch
RUNTIME = 30
MUCH = 2**40


@pytest.fixture
def order(tmp_path: Path) -> BuildOrder:
    parent = write_random_model(tmp_path / "p.gguf", Shape(experts=8, experts_used=3))
    return BuildOrder("small", parent, (), 4, tmp_path / "small.gguf")


@pytest.fixture
def experts(order: BuildOrder) -> int:
    """Bytes of all experts of the parent."""
    return sum(fitting.expert_bytes_by_layer(Parent.open(order.parent)))


class Card:
    """In place of dry runs on a machine with a card: a parent with experts and 1,000 other bytes, a worker of 70."""

    def __init__(self, experts: int, *, has_card: bool = True) -> None:
        self.experts = experts
        self.has_card = has_card

    async def predict(self, spec: LoadSpec, *_: object) -> Prediction:
        whole = 1000 + self.experts
        if not self.has_card:
            return Prediction(Footprint(whole, 0, 0, 70), {})
        if not spec.gpu_layers:
            return Prediction(Footprint(0, 0, 0, 0, whole + 70), {})
        moved = self.experts if spec.cpu_expert_layers else 0
        return Prediction(Footprint(whole - moved, 0, 0, RUNTIME, moved + 70), {}, on_gpu=True)


@pytest.fixture
def card(experts: int, monkeypatch: pytest.MonkeyPatch) -> Card:
    card = Card(experts)
    monkeypatch.setattr(preflight, "predict", card.predict)
    monkeypatch.setattr(fitting.memory, "predict", card.predict)
    monkeypatch.setattr(preflight, "rss_bytes", lambda: OWN)
    return card


def budget_of(card_bytes: int, host_bytes: int) -> Memory:
    return Memory({CARD: card_bytes, HOST: host_bytes})


def test_a_build_on_a_card_needs_the_workers_and_its_own_host_memory(
    order: BuildOrder, card: Card, experts: int
) -> None:
    found = preflight.fit(order, Machine(), budget_of(MUCH, MUCH))
    # The logits of a batch are on the card, and are brought to the host: that is more than a worker and the process.
    assert found.memory == Memory({CARD: 1000 + experts + RUNTIME + ROWS, HOST: 70 + ROWS})
    assert found.machine == Machine()


def test_experts_that_leave_the_card_are_reserved_of_the_host(order: BuildOrder, card: Card, experts: int) -> None:
    on_card = 1000 + RUNTIME + ROWS
    found = preflight.fit(order, Machine(), budget_of(on_card + experts - 1, MUCH))
    assert found.machine.cpu_expert_layers > 0
    assert found.memory == Memory({CARD: on_card, HOST: experts + 70 + ROWS})
    assert preflight.fit(order, Machine(), budget_of(on_card, experts + 70 + ROWS)).memory == found.memory
    with pytest.raises(UnavailableError, match="of host memory beside the GPU's") as caught:
        preflight.fit(order, Machine(), budget_of(on_card, experts + 70 + ROWS - 1))
    assert "pool.host_budget" in caught.value.remedy
    with pytest.raises(UnavailableError, match="while it answers") as caught:
        preflight.fit(order, Machine(), budget_of(on_card - 1, MUCH))
    assert "pool.vram_budget" in caught.value.remedy


def test_what_keeps_off_the_card_is_reserved_of_the_host_alone(order: BuildOrder, card: Card, experts: int) -> None:
    machine = Machine(gpu_layers=0)
    assert preflight.fit(order, machine, budget_of(1, MUCH)).memory == Memory.at(HOST, 1070 + experts + ROWS)


def test_without_a_card_all_of_it_is_of_the_host(order: BuildOrder, card: Card, experts: int) -> None:
    card.has_card = False
    assert preflight.fit(order, Machine(), Memory.at(HOST, MUCH)).memory == Memory.at(HOST, 1070 + experts + ROWS)


def test_the_process_that_has_watched_keeps_its_hold_on_the_card_while_a_worker_answers(
    order: BuildOrder, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def worker(spec: LoadSpec) -> Prediction:
        return Prediction(Footprint(2 * ROWS, 0, 0, RUNTIME, 2 * ROWS), {}, on_gpu=True)

    monkeypatch.setattr(preflight, "predict", worker)
    found = preflight.fit(order, Machine(), budget_of(MUCH, MUCH))
    assert found.memory == Memory({CARD: 2 * ROWS + 2 * RUNTIME, HOST: 2 * ROWS + OWN})


def test_of_several_cards_each_has_room_for_the_logits_and_for_what_the_process_keeps(
    order: BuildOrder, card: Card, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def on_both(spec: LoadSpec) -> Prediction:
        each = RUNTIME // 2 + (ROWS if spec.parallel == Machine.parallel else 1)  # a worker takes as much as logits do
        shares = tuple((name, each) for name in ("CUDA0", "CUDA1"))
        return Prediction(Footprint(2 * each, 0, 0, RUNTIME, 70, card_bytes=shares), {}, on_gpu=True)

    monkeypatch.setattr(preflight, "predict", on_both)
    monkeypatch.setattr(fitting.memory, "predict", on_both)
    machine = Machine(devices=("CUDA0", "CUDA1"))
    found = preflight.fit(order, machine, Memory({"CUDA0": MUCH, "CUDA1": MUCH, HOST: MUCH}))
    each = RUNTIME + ROWS  # while a worker answers: more than a byte, the runtime once and the logits of a batch
    assert found.memory == Memory({"CUDA0": each, "CUDA1": each, HOST: 70 + ROWS})
    watched = fitting.needed(LoadSpec(order.parent, parallel=1), Parent.open(order.parent))
    assert dict(watched.card_bytes) == dict.fromkeys(("CUDA0", "CUDA1"), RUNTIME // 2 + 1 + ROWS)
