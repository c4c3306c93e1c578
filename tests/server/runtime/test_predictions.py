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
