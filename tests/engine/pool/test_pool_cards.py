"""The pool on a machine with two cards: one resident a card, where one has room for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from coe.engine.errors import OutOfMemoryError, QueueFullError, UnavailableError
from coe.engine.pool.admission import State
from coe.engine.pool.places import HOST, Memory
from coe.engine.pool.pool import Pool
from coe.engine.pool.resident import FreeReading
from coe.engine.pool.types import Entry, PoolLimits
from coe.engine.shortage import Shortage
from coe.engine.spec import LoadSpec
from fakes.pool_world import Clock, FakeLoader, ask, states, turns

CARDS = ("CUDA0", "CUDA1")
BUDGET = Memory({"CUDA0": 10, "CUDA1": 8, HOST: 50})

NewPool = Callable[..., Pool]


@pytest.fixture
async def new_pool(loader: FakeLoader, clock: Clock) -> AsyncIterator[NewPool]:
    """new_pool(a=4, b=4, pinned={"a"}): specialists by what they take of any one card."""
    pools: list[Pool] = []

    def make(*, pinned: frozenset[str] | set[str] = frozenset(), **sizes: int) -> Pool:
        entries = {
            name: Entry(
                LoadSpec(Path(name), parallel=2, devices=("CUDA0",)),
                Memory({"CUDA0": size, HOST: 1}),
                pinned=name in pinned,
                cards=CARDS,
            )
            for name, size in sizes.items()
        }
        pools.append(Pool(entries, PoolLimits(BUDGET), loader, clock=clock))
        return pools[-1]

    yield make
    for pool in pools:
        await pool.close()


def places(loader: FakeLoader) -> dict[str, tuple[str, ...]]:
    return {spec.path.name: spec.devices for spec in loader.specs}


async def test_residents_lie_side_by_side_each_on_a_card_of_its_own(new_pool: NewPool, loader: FakeLoader) -> None:
    pool = new_pool(a=7, b=7)
    for name in ("a", "b"):
        (await ask(pool, name)).release()
    assert places(loader) == {"a": ("CUDA0",), "b": ("CUDA1",)}
    assert pool.status().booked == Memory({"CUDA0": 7, "CUDA1": 7, HOST: 2})
    assert states(pool) == {"a": State.WARM, "b": State.WARM}


async def test_those_that_are_asked_for_at_once_do_not_choose_one_card(new_pool: NewPool, loader: FakeLoader) -> None:
    pool = new_pool(a=7, b=7)
    asked = [ask(pool, "a"), ask(pool, "b")]
    for lease in asked:
        (await lease).release()
    assert sorted(places(loader).values()) == [("CUDA0",), ("CUDA1",)]
    assert not pool.evictions


async def test_the_least_recently_used_goes_whichever_card_it_is_on(
    new_pool: NewPool, loader: FakeLoader, clock: Clock
) -> None:
    pool = new_pool(a=7, b=7, c=7)
    for name in ("a", "b", "a", "c"):
        clock.advance(1)
        (await ask(pool, name)).release()
    assert states(pool) == {"a": State.WARM, "c": State.WARM}
    assert places(loader)["c"] == ("CUDA1",)


async def test_a_card_whose_resident_is_busy_is_not_waited_for(new_pool: NewPool, loader: FakeLoader) -> None:
    pool = new_pool(a=7, b=7, c=7)
    (await ask(pool, "b")).release()
    busy = await ask(pool, "a")
    assert (places(loader)["b"], places(loader)["a"]) == (("CUDA0",), ("CUDA1",))
    (await ask(pool, "c")).release()
    assert states(pool) == {"a": State.WARM, "c": State.WARM}
    assert places(loader)["c"] == ("CUDA0",)
    busy.release()


async def test_what_only_one_card_can_hold_goes_there(new_pool: NewPool, loader: FakeLoader) -> None:
    pool = new_pool(small=3, large=9)
    (await ask(pool, "small")).release()
    (await ask(pool, "large")).release()
    assert places(loader)["large"] == ("CUDA0",)
    assert states(pool) == {"large": State.WARM}, "the small one was there"


async def test_what_is_pinned_leaves_the_other_card(new_pool: NewPool, loader: FakeLoader) -> None:
    pool = new_pool(a=9, b=8, c=9, pinned={"a"})
    (await ask(pool, "a")).release()
    (await ask(pool, "b")).release()
    assert places(loader)["b"] == ("CUDA1",)
    with pytest.raises(UnavailableError, match=r"c needs .* of CUDA\d; the budget is .* pinned"):
        await ask(pool, "c")


async def test_what_a_load_took_more_is_known_of_that_card_alone(new_pool: NewPool, loader: FakeLoader) -> None:
    pool = new_pool(a=4, b=7)
    loader.memory["a"] = Memory({"CUDA0": 6, HOST: 1})
    (await ask(pool, "a")).release()
    assert pool.status().booked["CUDA0"] == 6
    assert await pool.unload("a")
    (await ask(pool, "b")).release()
    loader.memory["a"] = Memory({"CUDA1": 4, HOST: 1})
    (await ask(pool, "a")).release()
    assert places(loader)["a"] == ("CUDA1",)
    assert pool.status().booked == Memory({"CUDA0": 7, "CUDA1": 4, HOST: 2})


async def test_what_another_card_lost_meanwhile_is_not_a_loads_doing(loader: FakeLoader, clock: Clock) -> None:
    free = iter([Memory({"CUDA0": 10, "CUDA1": 8}), Memory({"CUDA0": 4, "CUDA1": 2})])

    async def free_memory() -> Memory:
        return next(free)

    entry = Entry(LoadSpec(Path("a"), parallel=2, devices=("CUDA0",)), Memory.at("CUDA0", 4), cards=CARDS)
    pool = Pool({"a": entry}, PoolLimits(BUDGET), loader, clock=clock, free_memory=free_memory)
    (await ask(pool, "a")).release()
    assert pool.status().booked == Memory.at("CUDA0", 6)
    await pool.close()


async def test_a_shortage_that_names_no_place_is_of_the_card_that_was_loaded(
    new_pool: NewPool, loader: FakeLoader
) -> None:
    pool = new_pool(a=7, b=4)
    (await ask(pool, "a")).release()
    loader.first_failures["b"] = OutOfMemoryError.of("b", Shortage(asked_bytes=5, free_bytes=4, need_bytes=5))
    with pytest.raises(OutOfMemoryError):
        await ask(pool, "b")
    await turns()
    assert states(pool) == {"a": State.WARM}, "it is on the other card"


@pytest.mark.parametrize("evicts", [False, True])
async def test_a_card_that_is_overbooked_for_good_does_not_stop_the_other(
    new_pool: NewPool, loader: FakeLoader, evicts: bool
) -> None:
    pool = new_pool(one=4, two=4, b=9, c=5, pinned={"one", "two"})
    loader.memory["two"] = Memory({"CUDA1": 6, HOST: 1})
    for name in ("one", "two"):
        (await ask(pool, name)).release()
    assert pool.status().booked["CUDA1"] == 10, "more than the card's budget, and they are pinned"
    names = ("b", "c") if evicts else ("b",)
    for name in names:
        asked = ask(pool, name)
        await turns()
        assert asked.done(), name
        (await asked).release()
    assert states(pool) == {"one": State.WARM, "two": State.WARM, names[-1]: State.WARM}
    assert places(loader)[names[-1]] == ("CUDA0",)


async def test_one_that_is_measured_above_a_whole_budget_stays(new_pool: NewPool, loader: FakeLoader) -> None:
    """Other programs may have taken a part of it meanwhile; else it would be loaded for each request."""
    pool = new_pool(a=8, b=9)
    loader.memory["a"] = Memory({"CUDA0": 11, HOST: 1})
    for _ in range(2):
        (await ask(pool, "a")).release()
        await turns()
        assert states(pool) == {"a": State.WARM}
    assert loader.loads == ["a"]
    assert pool.status().booked["CUDA0"] == 10
    (await ask(pool, "b")).release()
    assert states(pool) == {"b": State.WARM}, "it goes where another is asked for"


async def test_a_pinned_one_goes_where_it_keeps_nobody_out(new_pool: NewPool, loader: FakeLoader) -> None:
    pool = new_pool(small=4, big=9, pinned={"small"})
    for name in ("small", "big"):
        (await ask(pool, name)).release()
    assert places(loader) == {"small": ("CUDA1",), "big": ("CUDA0",)}, "which alone can hold the big one"


async def test_those_that_are_pinned_keep_a_card_free_together(new_pool: NewPool, loader: FakeLoader) -> None:
    pool = new_pool(one=4, two=4, big=9, pinned={"one", "two"})
    for name in ("one", "two", "big"):
        (await ask(pool, name)).release()
    assert places(loader)["big"] == ("CUDA0",)


async def test_a_pinned_one_goes_where_it_keeps_others_out_when_nothing_else_is_left(
    new_pool: NewPool, loader: FakeLoader
) -> None:
    pool = new_pool(large=9, big=9, pinned={"large"})
    (await ask(pool, "large")).release()
    with pytest.raises(UnavailableError, match="pinned"):
        await ask(pool, "big")


async def test_what_older_requests_will_take_makes_nobody_impossible(new_pool: NewPool, loader: FakeLoader) -> None:
    """One card is promised, on the other it could never be: it waits, or the queue is full, but it is not refused."""
    pool = new_pool(kept=6, first=8, second=8, late=6, pinned={"kept"})
    (await ask(pool, "kept")).release()
    loader.hold("first")
    pool.limits = replace(pool.limits, max_queue=2)
    waiting = [ask(pool, "first"), ask(pool, "second")]
    await turns()
    with pytest.raises(QueueFullError):
        await ask(pool, "late")
    loader.release("first")
    for asked in waiting:
        (await asked).release()


async def test_a_card_that_others_took_is_waited_for_where_no_other_will_do(
    new_pool: NewPool, loader: FakeLoader, clock: Clock
) -> None:
    pool = new_pool(kept=6, late=6, pinned={"kept"})
    (await ask(pool, "kept")).release()
    loader.residents["kept"].free = FreeReading(Memory({"CUDA0": 4, "CUDA1": 2}), 0.0)
    clock.advance(6)
    pool._others.lack("CUDA1", 6)
    waiting = ask(pool, "late")
    await turns()
    assert not waiting.done(), "it can be loaded when they have gone"
    loader.residents["kept"].free = FreeReading(Memory({"CUDA0": 4, "CUDA1": 8}), 0.0)
    clock.advance(6)
    (await waiting).release()
    assert places(loader)["late"] == ("CUDA1",)
