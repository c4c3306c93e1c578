"""The pool under random sequences of what may happen to it: a state machine, its rules held after each step."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coe.engine.errors import EngineError, LoadError, OutOfMemoryError, UnavailableError
from coe.engine.pool.admission import State
from coe.engine.pool.leases import AnyWaiter, Lease, Reservation, ReservationWaiter
from coe.engine.pool.places import HOST, Memory
from coe.engine.pool.pool import Pool
from coe.engine.pool.resident import Loss
from coe.engine.pool.status import ResidentStatus
from coe.engine.pool.types import Entry, PoolLimits
from coe.engine.shortage import Shortage
from coe.engine.spec import LoadSpec
from fakes.pool_world import CARD, Clock, FakeLoader, both, turns

_T = TypeVar("_T")
SIZES = {"a": both(3, 5), "b": both(4, 0), "c": both(5, 2), "d": both(0, 4), "pinned": both(2, 1)}
PLACES, MAX_QUEUE, MAX_WAIT_S = 2, 6, 50.0
NAMES = st.sampled_from(sorted(SIZES))
OTHER_CARD = "CUDA1"


class PoolMachine(RuleBasedStateMachine):
    """Requests come, are granted, end or leave; loads end or fail; workers die; time passes."""

    BUDGET = both(10, 8)
    ENTRIES: Mapping[str, Entry] = {
        name: Entry(LoadSpec(Path(name), parallel=PLACES), size, pinned=name == "pinned")
        for name, size in SIZES.items()
    }

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock, self.loader = Clock(), FakeLoader()
        self.loop.time = self.clock  # type: ignore[method-assign]
        self.loop.call_later = self.clock.call_later  # type: ignore[method-assign, assignment]
        self.loop.call_at = self.call_at  # type: ignore[method-assign, assignment]
        self.waiting: list[asyncio.Task[Lease]] = []
        self.reserving: list[asyncio.Task[Reservation]] = []
        self.held: list[Lease] = []
        self.reserved: list[Reservation] = []
        self.ends = 0
        self.asked = 0
        self.pool = self.run(self.opened())

    async def opened(self) -> Pool:
        limits = PoolLimits(self.BUDGET, max_queue=MAX_QUEUE, max_bypass_s=5.0, idle_ttl_s=40.0, load_backoff_s=3.0)
        return Pool(self.ENTRIES, limits, self.loader, clock=self.clock)

    def call_at(
        self, when: float, callback: Callable[..., object], *arguments: Any, **more: Any
    ) -> asyncio.TimerHandle:
        return self.clock.call_later(when - self.clock.now, callback, *arguments, **more)

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self.loop.run_until_complete(work)

    def settle(self) -> None:
        """Let all go on, and collect what waiters got: a lease or an error, each exactly one end."""
        self.run(turns())
        for task in [task for task in self.waiting if task.done()]:
            self.waiting.remove(task)
            self.ends += 1
            if not task.cancelled() and task.exception() is None:
                self.held.append(task.result())
            elif not task.cancelled():
                assert isinstance(task.exception(), EngineError)
        for reserving in [task for task in self.reserving if task.done()]:
            self.reserving.remove(reserving)
            if not reserving.cancelled() and reserving.exception() is None:
                self.reserved.append(reserving.result())

    @rule(name=NAMES)
    def ask(self, name: str) -> None:
        self.asked += 1
        self.waiting.append(self.loop.create_task(self.pool.lease(name, max_wait_s=MAX_WAIT_S)))
        self.settle()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.waiting)).cancel()
        self.settle()

    @precondition(lambda self: self.held)
    @rule(data=st.data(), twice=st.booleans())
    def end(self, data: st.DataObject, twice: bool) -> None:
        self.end_one(data.draw(st.integers(0, len(self.held) - 1)), twice=twice)

    def end_one(self, at: int = 0, *, twice: bool) -> None:
        lease = self.held.pop(at)

        async def release() -> None:
            lease.release()
            if twice:
                lease.release()

        self.run(release())
        self.settle()

    @rule(card_bytes=st.integers(0, 4), host_bytes=st.integers(0, 3))
    def reserve(self, card_bytes: int, host_bytes: int) -> None:
        if len(self.reserving) < 2:
            room = self.pool.reserve("a build", both(card_bytes, host_bytes))
            self.reserving.append(self.loop.create_task(room))
            self.settle()

    @precondition(lambda self: self.reserved)
    @rule()
    def vacate(self) -> None:
        reservation = self.reserved.pop()

        async def release() -> None:
            reservation.release()

        self.run(release())
        self.settle()

    @rule(name=NAMES)
    def hold_load(self, name: str) -> None:
        self.loader.gates[name].clear()
        self.loader.hold(name)

    @rule(name=NAMES)
    def let_load(self, name: str) -> None:
        self.loader.release(name)
        self.settle()

    @rule(name=NAMES, fails=st.booleans())
    def loads_fail(self, name: str, fails: bool) -> None:
        if fails:
            self.loader.failures[name] = LoadError("broken", "mend it")
        else:
            self.loader.failures.pop(name, None)

    @rule(name=NAMES, free_bytes=st.integers(0, 5), data=st.data())
    def next_load_is_short(self, name: str, free_bytes: int, data: st.DataObject) -> None:
        card = data.draw(st.sampled_from(self.BUDGET.cards))
        shortage = Shortage(card, 6, free_bytes, need_bytes=6)
        self.loader.first_failures[name] = OutOfMemoryError.of("a model", shortage)

    @rule(name=NAMES, data=st.data())
    def die_short(self, name: str, data: st.DataObject) -> None:
        card = data.draw(st.sampled_from(self.BUDGET.cards))
        resident = self.loader.residents.get(name)
        if resident is not None and not resident.lost.done():
            resident.lost.set_result(Loss("died (exit 1)", shortage=Shortage(card, 1, 0)))
            resident.gone.set()
            self.settle()

    @rule(name=NAMES)
    def die(self, name: str) -> None:
        if name in self.loader.residents:
            self.loader.residents[name].gone.set()
            self.settle()

    @rule(name=NAMES)
    def unload(self, name: str) -> None:
        self.run(asyncio.wait_for(self.pool.unload(name), None))
        self.settle()

    @rule(seconds=st.sampled_from([0.5, 4.0, 6.0, 45.0]))
    def time_passes(self, seconds: float) -> None:
        async def advance() -> None:
            self.clock.advance(seconds)

        self.run(advance())
        self.settle()

    @invariant()
    def the_budget_is_kept(self) -> None:
        status = self.pool.status()
        assert status.booked == Memory.total(one.memory for one in status.residents)
        foreseen = Memory.total(map(self.foreseen, status.residents))
        assert not (self.BUDGET - foreseen).overdrawn
        # What is measured may be more; then nothing idle is left but what is about to go, and nothing is loaded.
        over = (self.BUDGET - status.booked).overdrawn
        idle = [one for one in status.residents if one.state is State.WARM and not one.leases and not one.pinned]
        assert not any(one.memory[place] for one in idle for place in over)

    def foreseen(self, one: ResidentStatus) -> Memory:
        """What a resident was to take where it lies; a reservation takes what it says."""
        if one.file not in self.ENTRIES:
            return one.memory
        placements = self.ENTRIES[one.file].placements
        where = {place for place in one.memory.places if place != HOST}
        memory = next((p.memory for p in placements if where & set(p.devices)), placements[0].memory)
        return one.memory.smaller(memory)

    @invariant()
    def no_lease_is_lost_and_none_made_up(self) -> None:
        residents = [one for one in self.pool.status().residents if one.specialists]
        assert all(0 <= one.leases <= PLACES for one in residents)
        living = [lease for lease in self.held if self.loop_has(lease)]
        assert sum(one.leases for one in residents) == len(living)

    def loop_has(self, lease: Lease) -> bool:
        """Whether the resident of a lease is still in the pool: of one that died the lease is held in vain."""
        return lease.resident in self.pool._bookings.residents

    @invariant()
    def nobody_waits_without_being_seen(self) -> None:
        assert self.asked == self.ends + len(self.waiting)
        assert len(self.pool.status().waiting) == len(self.waiting) + len(self.reserving)
        assert len(self.waiting) <= MAX_QUEUE + 1

    @invariant()
    def nobody_waits_for_ever(self) -> None:
        assert self.pool.status().oldest_wait_s <= MAX_WAIT_S + 45.0 or self.reserving

    @invariant()
    def what_is_drained_is_not_asked(self) -> None:
        assert all(not one.leases for one in self.pool.status().residents if one.state is State.LOADING)

    def come_to_rest(self) -> None:
        """Loads end well from now on, and whatever is held is given back, as often as somebody gets something."""
        self.loader.failures.clear()
        self.loader.first_failures.clear()
        for name in SIZES:
            self.loader.release(name)
        self.settle()
        while self.held or self.reserved:
            while self.held:
                self.end_one(twice=False)
            while self.reserved:
                self.vacate()

    def never_fits(self, waiter: AnyWaiter) -> bool:
        """Whether another that asks for the same would be refused as one that can never fit."""
        if isinstance(waiter, ReservationWaiter):
            asking: Coroutine[Any, Any, object] = self.pool.reserve("another build", waiter.memory)
        else:
            asking = self.pool.lease(waiter.name, max_wait_s=MAX_WAIT_S)
        asked = self.loop.create_task(asking)
        self.run(turns())
        is_refused = asked.done() and isinstance(asked.exception(), UnavailableError)
        asked.cancel()
        return is_refused

    def teardown(self) -> None:
        """Whatever happened: everybody is served in the end, without any time that passes, but for what has been found
        to need too much beside what is pinned; and all comes to an end when the pool closes."""
        self.come_to_rest()
        if any(not self.never_fits(waiter) for waiter in list(self.pool._queue.waiters)):
            raise AssertionError(self.pool.describe())
        self.run(self.pool.close())
        self.settle()
        assert not self.waiting
        assert not self.pool.status().residents
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()


class CardsMachine(PoolMachine):
    """The same on two cards: most models lie on either of them, one is spread over both."""

    BUDGET = both(6, 8) + Memory.at(OTHER_CARD, 5)
    ENTRIES: Mapping[str, Entry] = {
        **{
            name: Entry(
                LoadSpec(Path(name), parallel=PLACES, devices=(CARD,)),
                size,
                pinned=name == "pinned",
                cards=(CARD, OTHER_CARD),
            )
            for name, size in SIZES.items()
        },
        "c": Entry(
            LoadSpec(Path("c"), parallel=PLACES, devices=(CARD, OTHER_CARD), tensor_split=(3.0, 2.0)),
            both(3, 2) + Memory.at(OTHER_CARD, 2),
        ),
    }


TestPoolMachine = PoolMachine.TestCase
TestCardsMachine = CardsMachine.TestCase
