"""Dry runs on a GPU: one at a time, and what becomes of those that it has no room for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from coe.engine import child
from coe.engine.errors import ChildDiedError, EngineError, ModelFileError, NoRoomToTryError
from coe.engine.pool import memory
from coe.engine.pool.memory import Prediction
from coe.engine.pool.places import Memory
from coe.engine.spec import Footprint, LoadSpec, Member
from coe.engine.swap.groups import Group, Grouping
from coe.server.roster.models import Roster
from coe.server.runtime import catalog, predictions, resolve
from coe.server.runtime.availability import Hindrance, Servable, Unavailable, availability, locate
from coe.server.runtime.catalog import Catalog
from coe.server.runtime.predictions import Predictions, Tried
from coe.server.runtime.resolve import Resolved
from fakes.pool_world import both, host

FULL = NoRoomToTryError("dry run of a.gguf", 5 * 2**20)


def found(*, on_gpu: bool) -> Prediction:
    return Prediction(Footprint(1, 2, 3), {}, on_gpu=on_gpu)


@pytest.fixture
def roster(tmp_path: Path) -> Roster:
    for name in "abc":
        (tmp_path / f"{name}.gguf").write_bytes(name.encode())
    entries = [{"name": name, "file": f"{name}.gguf", "domains": ["math"]} for name in "abc"]
    return Roster.model_validate({"models_dir": str(tmp_path), "specialists": entries, "fallback": "a"})


class Machine:
    """In place of llama.cpp: answers each dry run when it is told to."""

    def __init__(self, *, on_gpu: bool) -> None:
        self.on_gpu = on_gpu
        self.is_full = False
        self.under_way = self.most = 0
        self.tried: list[str] = []

    async def predict(self, spec: LoadSpec, *_: Any) -> Prediction:
        self.tried.append(spec.path.stem)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        for _turn in range(5):  # whoever else may begin does
            await asyncio.sleep(0)
        self.under_way -= 1
        if self.is_full:
            raise FULL
        return found(on_gpu=self.on_gpu)


def loads(roster: Roster, gpu_layers: int = -1) -> list[Any]:
    specs = [(entry, entry.load_spec(Path(roster.models_path / f"{entry.name}.gguf"))) for entry in roster.specialists]
    return [(entry, replace(spec, gpu_layers=gpu_layers)) for entry, spec in specs]


@pytest.mark.parametrize(
    ("on_gpu", "gpu_layers", "most"),
    [(True, -1, 1), (False, -1, 2), (True, 0, 2)],
    ids=["on a GPU", "without a GPU", "beside a GPU"],
)
async def test_on_a_gpu_dry_runs_are_made_one_at_a_time(
    roster: Roster, monkeypatch: pytest.MonkeyPatch, on_gpu: bool, gpu_layers: int, most: int
) -> None:
    machine = Machine(on_gpu=on_gpu and gpu_layers != 0)
    monkeypatch.setattr(predictions, "predict", machine.predict)
    tried = Predictions()
    await tried.make(loads(roster)[:1])  # shows whether there is a GPU
    machine.most = 0
    await tried.make(loads(roster, gpu_layers))
    assert machine.most == most
    assert sorted(machine.tried) == ["a", "a", "b", "c"]


async def test_what_was_tried_before_holds_while_the_gpu_is_full_and_the_file_the_same(
    roster: Roster, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(on_gpu=True)
    monkeypatch.setattr(predictions, "predict", machine.predict)
    first = Predictions()
    await first.make(loads(roster))
    machine.is_full = True
    (_, kept), (_, changed), (_, new) = loads(roster)
    changed.path.write_bytes(b"another file")
    before = {spec: tried for spec, tried in first.tried.items() if spec != new}
    second = Predictions(before=before)
    await second.make(loads(roster))
    assert second[kept] == found(on_gpu=True).footprint
    for spec in (changed, new):
        with pytest.raises(NoRoomToTryError):
            second[spec]


async def dies_of(words: str, monkeypatch: pytest.MonkeyPatch, free: int | EngineError, gpu_layers: int = -1) -> Any:
    async def run(*_: Any, **__: Any) -> Any:
        raise ChildDiedError("The dry run", -6, words)

    async def free_memory(named: Sequence[str]) -> Memory:
        if isinstance(free, EngineError):
            raise free
        return Memory.at("CUDA0", free)

    monkeypatch.setattr(child, "run", run)
    monkeypatch.setattr(memory, "free_memory", free_memory)
    return await memory.predict(LoadSpec(Path("a.gguf"), gpu_layers=gpu_layers))


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: out of memory",
        "ROCm error: HIPBLAS_STATUS_ALLOC_FAILED",
        "what():  vk::PhysicalDevice::createDevice: ErrorOutOfDeviceMemory",
        "ggml_vulkan: Device memory allocation of size 1073741824 failed.",
    ],
)
async def test_a_dry_run_that_a_full_gpu_ends_says_nothing_of_the_file(
    words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NoRoomToTryError, match=r"no room for a dry run of a\.gguf; 300 MiB of its memory were free"):
        await dies_of(words, monkeypatch, 300 * 2**20)
    with pytest.raises(NoRoomToTryError, match=r"dry run of a\.gguf: ") as caught:
        await dies_of(words, monkeypatch, EngineError("not even that"))
    assert caught.value.free_bytes is None
    assert "may be sound" in caught.value.remedy


async def test_one_that_an_assertion_ends_is_a_fault_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelFileError, match="GGML_ASSERT"):
        await dies_of("x.c:1: GGML_ASSERT(a) failed", monkeypatch, 300)
    with pytest.raises(ModelFileError, match="out of memory"):
        await dies_of("CUDA error: out of memory", monkeypatch, 300, gpu_layers=0)


class TestTryingAgain:
    """A specialist that could not be tried."""

    @pytest.fixture
    def resolved(self, roster: Roster) -> Resolved:
        def footprints(spec: LoadSpec) -> Footprint:
            if spec.path.stem == "a":
                raise FULL
            if spec.path.stem == "b":
                raise ModelFileError("It is damaged.")
            return Footprint(1, 2, 3)

        located = locate(roster)
        items = availability(located, footprints, None)
        return Resolved(host(100), items, (), {}, (), {one.entry.name: one.stamps for one in located})

    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch, roster: Roster, resolved: Resolved) -> list[Mapping[Any, Any]]:
        """What each new resolution was given of the last; after the second there is room."""
        calls: list[Mapping[Any, Any]] = []

        async def again(*_: Any, before: Mapping[LoadSpec, Tried], **__: Any) -> Resolved:
            calls.append(before)
            if len(calls) == 1:
                return resolved
            items = availability(locate(roster), lambda spec: Footprint(1, 2, 3), None)
            return replace(resolved, availability=items)

        monkeypatch.setattr(catalog, "resolve", again)
        return calls

    def made(
        self,
        roster: Roster,
        resolved: Resolved,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> Catalog:
        pool = SimpleNamespace(room=host(100), serve=lambda entries: None)
        return Catalog(roster, resolved, cast(Any, pool), clock=clock, sleep=sleep)

    def test_its_hindrance_is_not_that_of_a_damaged_file(self, resolved: Resolved) -> None:
        untried, damaged = resolved.availability["a"], resolved.availability["b"]
        assert isinstance(untried, Unavailable)
        assert isinstance(damaged, Unavailable)
        assert (untried.hindrance, damaged.hindrance) == (Hindrance.UNTRIED, Hindrance.UNLOADABLE)
        assert "damaged" not in f"{untried.reason} {untried.remedy}"

    async def test_it_is_tried_again_when_it_is_asked_for_a_while_later(
        self, roster: Roster, resolved: Resolved, asked: list[Any]
    ) -> None:
        now = 100.0
        made = self.made(roster, resolved, lambda: now)
        await made.recheck("a", being_built=())
        now += 1000.0
        await made.recheck("b", being_built=())
        assert not asked, "the one was tried just now, the other is damaged"
        await made.recheck("a", being_built=())
        await made.recheck("a", being_built=())
        assert len(asked) == 1, "no dry run for every request"
        assert asked[0] is resolved.tried

    async def test_it_is_tried_again_though_nobody_names_it(
        self, roster: Roster, resolved: Resolved, asked: list[Any]
    ) -> None:
        now = 0.0
        served = asyncio.Event()

        async def sleep(seconds: float) -> None:
            nonlocal now
            now += seconds
            if now > 10 * seconds:
                await asyncio.Event().wait()

        made = self.made(roster, resolved, lambda: now, sleep)
        made._pool.serve = lambda entries: served.set() if len(asked) == 2 else None  # type: ignore[method-assign]
        made.start()
        await served.wait()
        assert isinstance(made.availability["a"], Servable)
        await made.close()


@pytest.mark.parametrize(
    ("budget", "on_gpu", "shared"),
    [(host(1000), False, False), (host(10), False, True), (host(1000), True, True), (both(1000, 1000), True, True)],
    ids=["processor", "processor without room", "integrated GPU", "card"],
)
async def test_files_share_where_the_processor_has_no_faster_way(
    roster: Roster, monkeypatch: pytest.MonkeyPatch, budget: Memory, on_gpu: bool, shared: bool
) -> None:
    members = tuple(Member(name, roster.models_path / f"{name}.gguf") for name in "ab")

    async def find_groups(contenders: Any) -> Grouping:
        return Grouping((Group(members),))

    monkeypatch.setattr(resolve, "find_groups", find_groups)
    monkeypatch.setattr(predictions, "predict", Machine(on_gpu=on_gpu).predict)
    resolved = await resolve.resolve(roster, budget)
    assert [group.members for group in resolved.groups] == ([members] if shared else [])
    reason = "computed by the processor, and with room for all of them, each is faster by itself"
    assert resolved.unshared == ({} if shared else dict.fromkeys("ab", reason))


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
        assert not cards.tried

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
