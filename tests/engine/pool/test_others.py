"""What other programs take of a card: idle residents go before somebody else's program fails, and come back later."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path

import pytest

from coe.engine.errors import LoadError, OutOfMemoryError, UnavailableError, WorkerDiedError
from coe.engine.pool.admission import State
from coe.engine.pool.others import taken_by_others
from coe.engine.pool.pool import Pool
from coe.engine.pool.resident import FreeReading, Loss
from coe.engine.pool.types import Entry, PoolLimits
from coe.engine.shortage import Shortage
from coe.engine.spec import LoadSpec
from fakes.pool_world import CARD, LONG_S, Clock, FakeLoader, ask, both, host, states, turns

MARGIN = 4


def taken(before: int, room: int, free: int, *, is_settled: bool = True) -> int:
    return taken_by_others(before, room_bytes=room, free_bytes=free, margin_bytes=MARGIN, is_settled=is_settled)


class TestDecision:
    def test_nobody_looks_closer_while_the_margin_is_free(self) -> None:
        assert taken(0, room=10, free=4) == 0, "10 are counted on, and none are there: no matter yet"

    def test_less_than_the_margin_is_what_others_took(self) -> None:
        assert taken(0, room=0, free=3) == 1
        assert taken(0, room=6, free=1) == 9

    def test_it_is_believed_until_half_of_the_margin_has_come_back(self) -> None:
        assert taken(5, room=5, free=5) == 5
        assert taken(5, room=5, free=6) == 3
        assert taken(5, room=5, free=9) == 0

    def test_what_is_left_below_half_of_the_margin_is_forgotten(self) -> None:
        assert taken(5, room=5, free=8) == 0

    def test_it_is_not_taken_for_less_while_residents_come_and_go(self) -> None:
        assert taken(5, room=5, free=9, is_settled=False) == 5
        assert taken(5, room=9, free=1, is_settled=False) == 12


NewPool = Callable[..., Pool]


@pytest.fixture
async def new_pool(loader: FakeLoader, clock: Clock) -> AsyncIterator[NewPool]:
    """new_pool(a=8, b=8): specialists by their bytes of a card that has 20 for them, and a margin of 4."""
    pools: list[Pool] = []

    def make(margin: int = MARGIN, pinned: Collection[str] = (), **sizes: int) -> Pool:
        entries = {
            name: Entry(LoadSpec(Path(name), parallel=2), both(size, 1), pinned=name in pinned)
            for name, size in sizes.items()
        }
        pools.append(Pool(entries, PoolLimits(both(20, 20), margin), loader, clock=clock))
        return pools[-1]

    yield make
    for pool in pools:
        await pool.close()


async def load(pool: Pool, clock: Clock, *names: str) -> None:
    """One after the other, the first least recently used."""
    for name in names:
        (await pool.lease(name, max_wait_s=LONG_S)).release()
        clock.advance(1)


async def see(loader: FakeLoader, clock: Clock, free: int, age_s: float = 0.0) -> None:
    """Workers see so much free on the card, and the pool looks six seconds later."""
    for resident in loader.residents.values():
        resident.free = FreeReading(both(free, 0), age_s)
    clock.advance(6)
    await turns()


class TestMargin:
    async def test_the_least_recently_used_goes_when_less_than_the_margin_is_free(
        self, new_pool: NewPool, loader: FakeLoader, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        pool = new_pool(a=8, b=8)
        await load(pool, clock, "a", "b")
        await see(loader, clock, free=4)
        assert states(pool) == {"a": State.WARM, "b": State.WARM}
        with caplog.at_level(logging.INFO):
            await see(loader, clock, free=3)
        assert states(pool) == {"b": State.WARM}
        assert "other programs take 5 bytes of what residents may have of CUDA0: 3 bytes of it are free" in caplog.text
        assert "stopping a: over budget" in caplog.text

    async def test_one_that_answers_stays(self, new_pool: NewPool, loader: FakeLoader, clock: Clock) -> None:
        pool = new_pool(a=8, b=8)
        await load(pool, clock, "a", "b")
        busy = [await pool.lease(name, max_wait_s=LONG_S) for name in ("a", "b")]
        await see(loader, clock, free=1)
        assert states(pool) == {"a": State.WARM, "b": State.WARM}
        busy[0].release()
        await turns()
        assert states(pool) == {"b": State.WARM}, "as soon as it has answered"
        busy[1].release()

    async def test_a_reading_of_before_another_went_is_of_no_account(
        self, new_pool: NewPool, loader: FakeLoader, clock: Clock
    ) -> None:
        pool = new_pool(a=6, b=6, c=6)
        await load(pool, clock, "a", "b", "c")
        await see(loader, clock, free=3)
        assert states(pool) == {"b": State.WARM, "c": State.WARM}
        await see(loader, clock, free=3, age_s=6.0)  # the residents that are left tell what they saw before a went
        assert states(pool) == {"b": State.WARM, "c": State.WARM}

    async def test_what_others_hold_is_not_given_out_and_is_when_they_are_gone(
        self, new_pool: NewPool, loader: FakeLoader, clock: Clock
    ) -> None:
        pool = new_pool(a=8, b=8)
        await load(pool, clock, "a", "b")
        await see(loader, clock, free=1)
        held = await pool.lease("b", max_wait_s=LONG_S)
        waiting = ask(pool, "a")
        await turns()
        assert loader.loads == ["a", "b"], "others hold the room of a"
        await see(loader, clock, free=16)
        await waiting
        assert loader.loads == ["a", "b", "a"]
        held.release()

    async def test_without_a_resident_that_looks_nothing_is_known(
        self, new_pool: NewPool, loader: FakeLoader, clock: Clock
    ) -> None:
        pool = new_pool(a=15)
        await load(pool, clock, "a")
        await see(loader, clock, free=1)
        assert states(pool) == {}
        await load(pool, clock, "a")
        assert loader.loads == ["a", "a"]

    async def test_without_a_margin_nobody_looks(self, new_pool: NewPool, loader: FakeLoader, clock: Clock) -> None:
        pool = new_pool(0, a=8)
        await load(pool, clock, "a")
        await see(loader, clock, free=0)
        assert states(pool) == {"a": State.WARM}
        assert all(handle.cancelled() for *_, handle in clock.timers)


def no_room(asked: int, free: int, need: int) -> OutOfMemoryError:
    return OutOfMemoryError.of("it cannot be loaded", Shortage(CARD, asked, free, need))


class TestShortage:
    """A load finds less than the ledger has left."""

    async def test_idle_residents_make_room_and_it_is_tried_once_more(
        self, new_pool: NewPool, loader: FakeLoader, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        pool = new_pool(a=6, b=6, c=8)
        await load(pool, clock, "a", "b")
        loader.first_failures["c"] = no_room(8, 5, 8)  # of the 8 that the ledger has left, others hold 3
        with caplog.at_level(logging.INFO):
            await load(pool, clock, "c")
        assert loader.loads == ["a", "b", "c", "c"]
        assert states(pool) == {"b": State.WARM, "c": State.WARM}
        assert "loading c again: no room on CUDA0" in caplog.text
        assert pool.status().failed_loads == 0

    async def test_it_fails_at_once_where_none_can_go(
        self, new_pool: NewPool, loader: FakeLoader, clock: Clock
    ) -> None:
        pool = new_pool(a=6, c=8)
        busy = await pool.lease("a", max_wait_s=LONG_S)
        loader.first_failures["c"] = no_room(8, 5, 8)
        with pytest.raises(OutOfMemoryError, match="5 bytes were free"):
            await pool.lease("c", max_wait_s=LONG_S)
        assert loader.loads == ["a", "c"]
        with pytest.raises(LoadError, match="failed to load"):
            await pool.lease("c", max_wait_s=LONG_S)
        assert loader.loads == ["a", "c"], "the next try waits"
        busy.release()

    async def test_none_goes_in_vain(self, new_pool: NewPool, loader: FakeLoader, clock: Clock) -> None:
        pool = new_pool(a=2, c=8)
        await load(pool, clock, "a")
        loader.first_failures["c"] = no_room(8, 1, 8)
        with pytest.raises(OutOfMemoryError):
            await pool.lease("c", max_wait_s=LONG_S)
        assert states(pool) == {"a": State.WARM}

    @pytest.mark.parametrize("others_left", [False, True])
    async def test_without_a_margin_what_was_lacking_is_forgotten_too(
        self, new_pool: NewPool, loader: FakeLoader, clock: Clock, others_left: bool
    ) -> None:
        """A budget that leaves no margin has nobody look, until a load lacks something."""
        pool = new_pool(0, a=6, c=14)
        await load(pool, clock, "a")
        await see(loader, clock, free=5)
        loader.first_failures["c"] = no_room(14, 5, 14)
        busy = await pool.lease("a", max_wait_s=LONG_S)
        with pytest.raises(OutOfMemoryError):
            await pool.lease("c", max_wait_s=LONG_S)
        busy.release()
        clock.advance(31)
        asked = asyncio.create_task(pool.lease("c", max_wait_s=LONG_S))
        await turns()
        assert loader.loads == ["a", "c"], "it waits for what others took"
        await see(loader, clock, free=14 if others_left else 5)
        assert asked.done() is others_left
        asked.cancel()
        await turns()

    async def test_a_second_shortage_is_the_end(self, new_pool: NewPool, loader: FakeLoader, clock: Clock) -> None:
        pool = new_pool(a=6, c=8)
        await load(pool, clock, "a")
        loader.failures["c"] = no_room(8, 5, 8)
        with pytest.raises(OutOfMemoryError):
            await pool.lease("c", max_wait_s=LONG_S)
        assert loader.loads == ["a", "c", "c"]

    async def test_what_it_is_known_to_need_is_booked(
        self, new_pool: NewPool, loader: FakeLoader, clock: Clock
    ) -> None:
        pool = new_pool(a=12, c=8)
        await load(pool, clock, "a")
        loader.first_failures["c"] = no_room(2, 1, 11)  # 9 of the 10 that were free were taken, and 2 more needed
        await load(pool, clock, "c")
        assert pool.status().booked == both(11, 1), "a had to go, and c takes more than predicted"

    async def test_one_that_dies_of_it_is_treated_alike(
        self, new_pool: NewPool, loader: FakeLoader, clock: Clock
    ) -> None:
        pool = new_pool(a=12, c=8)
        await load(pool, clock, "a")
        died = WorkerDiedError("The worker died (signal 6): ErrorOutOfDeviceMemory.")
        died.shortage = Shortage("", 9, None, 15)
        loader.first_failures["c"] = died
        await load(pool, clock, "c")
        assert states(pool) == {"c": State.WARM}

    async def test_a_worker_that_lacked_memory_at_work_comes_back_booked_with_more(
        self, new_pool: NewPool, loader: FakeLoader, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("coe.engine.pool.pool._LEAST_LACKING_BYTES", 1)
        pool = new_pool(a=8, b=10)
        await load(pool, clock, "a", "b")
        self.die_short(loader, "a", Shortage(CARD, 3, 1))
        await turns()
        await load(pool, clock, "a")
        assert states(pool) == {"a": State.WARM}, "11 do not fit beside 10"
        assert pool.status().booked == both(11, 1)

    async def test_where_the_whole_budget_did_not_suffice_it_is_refused_for_a_while(
        self, new_pool: NewPool, loader: FakeLoader, clock: Clock
    ) -> None:
        pool = new_pool(a=20)
        await load(pool, clock, "a")
        self.die_short(loader, "a", Shortage(CARD, 3, 1))
        await turns()
        with pytest.raises(LoadError, match=r"a failed to load: a: no room on CUDA0"):
            await pool.lease("a", max_wait_s=LONG_S)
        clock.advance(31)
        await load(pool, clock, "a")

    async def test_who_waits_is_told_when_it_is_found_that_the_model_can_never_fit_beside_what_is_pinned(
        self, new_pool: NewPool, loader: FakeLoader, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("coe.engine.pool.pool._LEAST_LACKING_BYTES", 1)
        pool = new_pool(kept=8, a=12, pinned={"kept"})
        await load(pool, clock, "kept", "a")
        held = [await ask(pool, "a"), await ask(pool, "a")]
        waiting = ask(pool, "a")
        self.die_short(loader, "a", Shortage(CARD, 3, 1))
        await turns()
        with pytest.raises(UnavailableError, match=r"a needs 15 bytes of CUDA0; the budget is 20 bytes, 8 bytes of"):
            await waiting
        for lease in held:
            lease.release()

    async def test_a_resident_that_took_more_than_foreseen_goes_on_serving(
        self, new_pool: NewPool, loader: FakeLoader, clock: Clock
    ) -> None:
        pool = new_pool(kept=8, a=12, pinned={"kept"})
        await load(pool, clock, "kept")
        loader.memory["a"] = both(13, 1)
        first = await ask(pool, "a")
        assert pool.status().booked == both(21, 2)
        (await ask(pool, "a")).release()
        first.release()

    def die_short(self, loader: FakeLoader, name: str, shortage: Shortage) -> None:
        resident = loader.residents[name]
        resident.lost.set_result(Loss("died (exit 1)", cause="exit 1", shortage=shortage))
        resident.gone.set()


async def test_a_machine_without_a_card_has_no_timer_for_it(loader: FakeLoader, clock: Clock) -> None:
    pool = Pool({"a": Entry(LoadSpec(Path("a")), host(1))}, PoolLimits(host(8), MARGIN), loader, clock=clock)
    await load(pool, clock, "a")
    assert all(handle.cancelled() for *_, handle in clock.timers)
    await pool.close()
