"""How loads fit the machine: experts in host memory as a card's budget asks for, and one card or several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coe.engine.pool.memory import Prediction
from coe.engine.pool.places import Memory
from coe.engine.spec import Footprint, LoadSpec
from coe.server.roster.models import Roster
from coe.server.runtime import predictions, resolve
from coe.server.runtime.availability import Hindrance, Servable, Unavailable
from coe.server.runtime.resolve import Resolved
from fakes.pool_world import both, host


class Card:
    """In place of llama.cpp on a GPU: a model of four layers, with experts of 100 bytes each beside 300 others.

    With experts in host memory the graph takes `more` bytes.
    """

    def __init__(self, more: int = 0, *, on_gpu: bool = True) -> None:
        self.more = more
        self.on_gpu = on_gpu
        self.tried: list[int] = []

    async def predict(self, spec: LoadSpec, *_: Any) -> Prediction:
        layers = spec.cpu_expert_layers
        self.tried.append(layers)
        moved = 400 if layers < 0 else 100 * layers
        footprint = Footprint(700 - moved, 0, self.more if layers else 0, host_bytes=moved)
        return Prediction(footprint, {}, on_gpu=self.on_gpu, expert_bytes=(100,) * 4 if self.on_gpu else ())


class TestExpertsOffloaded:
    """`cpu_expert_layers: auto`."""

    async def layers(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, card: Card, budget: int, layers: object = "auto"
    ) -> Resolved:
        (tmp_path / "a.gguf").write_bytes(b"a")
        entries = [{"name": name, "file": "a.gguf", "domains": ["math"]} for name in ("one", "two")]
        defaults = {"cpu_expert_layers": layers, "share": False}
        roster = Roster.model_validate(
            {
                "models_dir": str(tmp_path),
                "defaults": defaults,
                "specialists": [{**defaults, **entry} for entry in entries],
                "fallback": "one",
            }
        )
        monkeypatch.setattr(predictions, "predict", card.predict)
        return await resolve.resolve(roster, both(budget, 1000) if card.on_gpu else host(budget))

    @pytest.mark.parametrize(
        ("budget", "layers", "tried"),
        [(700, 0, [0]), (699, 1, [0, 1]), (500, 2, [0, 2]), (300, 4, [0, 4]), (299, None, [0, -1])],
    )
    async def test_as_few_as_the_budget_asks_for_stay_in_host_memory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: int, layers: int | None, tried: list[int]
    ) -> None:
        card = Card()
        found = (await self.layers(tmp_path, monkeypatch, card, budget)).availability
        for item in found.values():
            if layers is None:
                assert isinstance(item, Unavailable)
                assert (item.hindrance, item.footprint and item.footprint.total_bytes) == (Hindrance.OVER_BUDGET, 300)
                assert "cpu_expert_layers" not in item.remedy, "it has used them all"
                assert "gpu_layers" in item.remedy
            else:
                assert isinstance(item, Servable)
                assert item.spec.cpu_expert_layers == layers
                assert item.footprint == Footprint(700 - 100 * layers, 0, 0, host_bytes=100 * layers)
        assert card.tried == tried, "names of one load are tried together"

    async def test_a_graph_that_takes_more_then_is_made_room_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        card = Card(more=50)
        found = (await self.layers(tmp_path, monkeypatch, card, 610)).availability["one"]
        assert isinstance(found, Servable)
        assert (found.spec.cpu_expert_layers, card.tried) == (2, [0, 1, 2])

    @pytest.mark.parametrize(("layers", "on_gpu"), [("none", True), ("auto", False)])
    async def test_nothing_moves_that_is_not_to_move_or_cannot(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: str, on_gpu: bool
    ) -> None:
        card = Card(on_gpu=on_gpu)
        found = (await self.layers(tmp_path, monkeypatch, card, 500, layers)).availability["one"]
        assert isinstance(found, Unavailable)
        assert card.tried == [0]
        assert ("cpu_expert_layers" in found.remedy) is on_gpu, "without a GPU it frees nothing"


class Cards:
    """In place of llama.cpp on two cards: a model of four layers of 150 bytes, 100 of them experts, and an output.

    That has 100. Each card that it lies on has 10 bytes of its own for the graph.
    """

    def __init__(self) -> None:
        self.tried: list[LoadSpec] = []

    async def predict(self, spec: LoadSpec, *_: Any) -> Prediction:
        self.tried.append(spec)
        on_host = [spec.cpu_expert_layers < 0 or layer < spec.cpu_expert_layers for layer in range(4)]
        layers = [50 if moved else 150 for moved in on_host] + [100]
        cards, left = [], iter(layers)
        for card, count in zip(spec.devices, spec.tensor_split, strict=False):
            cards.append((card, 10 + sum(next(left) for _ in range(int(count)))))
        sizes = Footprint(sum(layers), 0, 10 * len(spec.devices), 0, 100 * sum(on_host), card_bytes=tuple(cards))
        return Prediction(sizes, {}, on_gpu=True, expert_bytes=(100,) * 4, layer_bytes=tuple(layers))


class TestSeveralCards:
    BUDGET = Memory({"CUDA0": 800, "CUDA1": 400, "host": 1000})

    async def resolved(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, budget: Memory = BUDGET, **defaults: Any
    ) -> tuple[Resolved, Cards]:
        (folder / "a.gguf").write_bytes(b"a")
        pool = {"devices": defaults.pop("devices", "auto")}
        entry = {"name": "one", "file": "a.gguf", "domains": ["math"], "share": False, **defaults}
        roster = Roster.model_validate(
            {"models_dir": str(folder), "pool": pool, "specialists": [entry], "fallback": "one"}
        )
        cards = Cards()
        monkeypatch.setattr(predictions, "predict", cards.predict)
        return await resolve.resolve(roster, budget), cards

    async def test_what_fits_on_one_goes_to_any_of_them(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        resolved, cards = await self.resolved(tmp_path, monkeypatch)
        assert [spec.devices for spec in cards.tried] == [("CUDA0",)]
        entry = resolved.entries()["one"]
        assert [(one.devices, one.memory) for one in entry.placements] == [
            (("CUDA0",), Memory.at("CUDA0", 710)),
            (("CUDA1",), Memory.at("CUDA1", 710)),
        ]

    async def test_the_larger_one_is_tried(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        budget = Memory({"CUDA0": 400, "CUDA1": 800, "host": 1000})
        resolved, cards = await self.resolved(tmp_path, monkeypatch, budget)
        assert [spec.devices for spec in cards.tried] == [("CUDA1",)]
        assert [one.devices for one in resolved.entries()["one"].placements] == [("CUDA1",), ("CUDA0",)]

    async def test_what_fits_on_none_is_shared_out_by_layers(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        budget = Memory({"CUDA0": 500, "CUDA1": 400, "host": 1000})
        resolved, cards = await self.resolved(tmp_path, monkeypatch, budget)
        assert [(spec.devices, spec.tensor_split) for spec in cards.tried] == [
            (("CUDA0",), ()),
            (("CUDA0", "CUDA1"), (3.0, 2.0)),
        ]
        (placement,) = resolved.entries()["one"].placements
        assert (placement.devices, placement.memory) == (("CUDA0", "CUDA1"), Memory({"CUDA0": 460, "CUDA1": 260}))

    async def test_experts_go_to_the_host_where_all_cards_do_not_suffice(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        budget = Memory({"CUDA0": 300, "CUDA1": 230, "host": 1000})
        resolved, _ = await self.resolved(tmp_path, monkeypatch, budget, cpu_expert_layers="auto")
        item = resolved.availability["one"]
        assert isinstance(item, Servable)
        # Of three layers the sum would fit; but no cut between two layers leaves each card its part.
        assert (item.spec.cpu_expert_layers, item.spec.devices) == (4, ("CUDA0", "CUDA1"))
        (placement,) = resolved.entries()["one"].placements
        assert placement.memory.fits_in(budget)

    async def test_what_cannot_be_shared_out_says_which_card_lacks_what(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        resolved, _ = await self.resolved(tmp_path, monkeypatch, Memory({"CUDA0": 300, "CUDA1": 230, "host": 1000}))
        item = resolved.availability["one"]
        assert isinstance(item, Unavailable)
        assert item.hindrance is Hindrance.OVER_BUDGET
        assert "of CUDA0" in item.reason

    @pytest.mark.parametrize(
        ("budget", "device"),
        [({"CUDA0": 400, "CUDA1": 5}, "CUDA0"), ({"CUDA0": 5, "CUDA1": 400}, "CUDA1")],
    )
    async def test_a_card_that_is_full_does_not_keep_a_model_off_the_other(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: dict[str, int], device: str
    ) -> None:
        where = Memory({**budget, "host": 1000})
        resolved, _ = await self.resolved(tmp_path, monkeypatch, where, cpu_expert_layers="auto")
        item = resolved.availability["one"]
        assert isinstance(item, Servable), "which would be opened for nothing, and lacks memory for that"
        assert (item.spec.devices, item.spec.tensor_split, item.spec.cpu_expert_layers) == ((device,), (), 4)
        fitting = [one for one in resolved.entries()["one"].placements if one.memory.fits_in(where)]
        assert [one.devices for one in fitting] == [(device,)]

    async def test_a_full_card_of_three_is_left_out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        budget = Memory({"CUDA0": 500, "CUDA1": 5, "CUDA2": 400, "host": 1000})
        resolved, _ = await self.resolved(tmp_path, monkeypatch, budget)
        (placement,) = resolved.entries()["one"].placements
        assert (placement.devices, placement.memory) == (("CUDA0", "CUDA2"), Memory({"CUDA0": 460, "CUDA2": 260}))

    async def test_a_split_of_the_roster_is_kept(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        resolved, cards = await self.resolved(tmp_path, monkeypatch, tensor_split=[4, 1])
        assert [(spec.devices, spec.tensor_split) for spec in cards.tried] == [(("CUDA0", "CUDA1"), (4.0, 1.0))]
        assert len(resolved.entries()["one"].placements) == 1

    async def test_a_split_that_has_no_part_for_a_card_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        resolved, cards = await self.resolved(tmp_path, monkeypatch, tensor_split=[4, 1, 1])
        item = resolved.availability["one"]
        assert isinstance(item, Unavailable)
        assert "tensor_split has 3 parts, and these cards are used: CUDA0, CUDA1" in item.reason
        assert item.hindrance is Hindrance.REFUSED
        assert not cards.tried

    @pytest.mark.parametrize("settings", [{"tensor_split": [4, 1]}, {"tensor_split": [1], "gpu_layers": 0}])
    async def test_a_split_has_to_fit_the_cards_only_where_cards_are_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
    ) -> None:
        resolved, _ = await self.resolved(tmp_path, monkeypatch, **settings)
        assert isinstance(resolved.availability["one"], Servable)

    async def test_a_split_is_of_no_account_on_one_card(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        _, cards = await self.resolved(tmp_path, monkeypatch, both(800, 1000), tensor_split=[4, 1])
        assert [(spec.devices, spec.tensor_split) for spec in cards.tried] == [((), ())]

    async def test_one_that_is_named_is_used_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        budget = Memory({"CUDA1": 800, "host": 1000})
        resolved, cards = await self.resolved(tmp_path, monkeypatch, budget, devices=["CUDA1"])
        assert [spec.devices for spec in cards.tried] == [("CUDA1",)]
        (placement,) = resolved.entries()["one"].placements
        assert (placement.devices, placement.memory) == (("CUDA1",), Memory.at("CUDA1", 710))

    async def test_what_keeps_off_cards_names_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        _, cards = await self.resolved(tmp_path, monkeypatch, gpu_layers=0, tensor_split=[4, 1])
        assert [(spec.devices, spec.tensor_split) for spec in cards.tried] == [((), ())]
