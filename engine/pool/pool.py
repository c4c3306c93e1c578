"""The owner of all residents: queues requests, books memory, and carries out what admission control decides."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ..errors import (
    EngineError,
    LoadError,
    OutOfMemoryError,
    QueueFullError,
    ShuttingDownError,
    UnavailableError,
    WaitTimeoutError,
    WorkerDiedError,
)
from ..logs import REQUEST_ID, RemoteTraceback, for_request
from ..shortage import Shortage
from ..spec import LoadSpec, Thinking
from ..units import size_text
from .admission import GroupView, ResidentView, State, WaiterView, expired, never_fits, plan, refuse, replaced
from .bookings import Booking, Bookings, ReservationBooking, ResidentBooking
from .card_choice import Placement, choose_placement, counting_shut_out, place_all, possible
from .decisions import Eviction, EvictionReason, Grant, Load, Plan, Refusal, RefusalReason
from .estimates import Estimates
from .leases import AnyWaiter, Granted, Lease, LeaseWaiter, Queue, Reservation, ReservationWaiter, Waiter
from .loading import Loader
from .others import Others
from .placement import CacheAffinity
from .places import HOST, Memory
from .status import PoolStatus
from .types import Entry, PoolLimits, Starter, Stop, shared_groups

_log = logging.getLogger(__name__)
_LOOK_S = 5.0  # from one look at what is free on the cards to the next
_SETTLE_S = 1.0  # so long after a resident came or went its memory may be on its way
_LEAST_LACKING_BYTES = 64 * 2**20  # that a worker lacked at least, where it does not say
_UNLOAD_S = 30.0  # a stop takes some seconds, the killing of a worker that does not answer included


class Pool:
    """Residents under a budget. All methods belong to one event loop."""

    def __init__(
        self,
        entries: Mapping[str, Entry],
        limits: PoolLimits,
        start: Starter,
        *,
        clock: Callable[[], float] = time.monotonic,
        free_memory: Callable[[], Awaitable[Memory | None]] | None = None,
        held: Mapping[str, Memory] | None = None,
    ) -> None:
        """free_memory: the cards' own free memory, asked before and after the first load of each group, since asking
        takes as long as a swap; None, or an answer of None, leaves it to the worker.
        held: what of the budget the server itself holds for good, title -> memory.
        """
        self.limits = limits
        self._set_entries(entries)
        self._clock = clock
        self._estimates = Estimates(limits.budget)
        self._loader = Loader(start, limits, self._estimates, clock, free_memory)
        self._bookings = Bookings()
        self._others = Others(limits.margin_bytes)
        self._changed_s = clock()  # when a resident last came or went
        for title, memory in (held or {}).items():
            self._bookings.add(ReservationBooking(title, memory, on_stop=None))
        self.room = (limits.budget - self._bookings.memory).larger(Memory())  # for residents and builds
        self._queue = Queue(limits.quiet_s, clock())
        self._ids = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._displaced: dict[int, tuple[str, ...]] = {}  # by waiter: specialists whose residents went for it
        self._to_restore: dict[str, None] = {}  # specialists whose residents went in vain, in order
        self._closed = False
        self._refusing: EngineError | None = None
        self.loads = self.failed_loads = self.evictions = 0
        self.deaths: Counter[str] = Counter()

    # --- what is resident -----------------------------------------------------------------------------------------

    def is_warm(self, specialist: str) -> bool:
        """Whether a request for the specialist would need neither a load nor a swap."""
        return self.ready_in_s(specialist) == 0.0

    def ready_in_s(self, specialist: str) -> float:
        """About how long a request for the specialist would wait if it were the only one: 0 for one that is warm.

        Judged by what swaps and loads have taken so far, else by bytes.
        """
        entry = self._entries[specialist]
        return self._estimates.ready_in_s(entry, specialist, self._bookings.warm(entry.spec.group))

    def prompt_tokens_per_s(self, specialist: str) -> float | None:
        """How fast prompts for the specialist were read so far; None before any was."""
        group = self._group(specialist)
        return self._estimates.prompt_tokens_per_s(group, self._bookings.of_group(group))

    def is_resident(self, specialist: str) -> bool:
        """Whether a resident is there, or on its way, that can become the specialist."""
        return bool(self._bookings.of_group(self._group(specialist)))

    def shared_with(self, specialist: str) -> tuple[str, ...]:
        """The specialists that the specialist's residents serve, itself among them."""
        return self._specialists(self._group(specialist))

    def is_busy(self) -> bool:
        """Whether a request is being served, or waits to be."""
        return bool(self._queue.waiters) or self._bookings.has_leases

    def _group(self, specialist: str) -> str:
        return self._entries[specialist].spec.group

    def _specialists(self, group: str) -> tuple[str, ...]:
        return tuple(name for name, entry in self._entries.items() if entry.spec.group == group)

    def status(self) -> PoolStatus:
        """What is resident, booked and waiting."""
        now = self._clock()
        residents, reservations = self._bookings.residents.values(), self._bookings.reservations.values()
        return PoolStatus(
            self.limits.budget,
            self._bookings.memory,
            (
                *(booking.status(self._specialists(booking.group), now) for booking in residents),
                *(booking.status() for booking in reservations),
            ),
            tuple(waiter.name for waiter in self._queue.waiters),
            max((now - waiter.since for waiter in self._queue.waiters), default=0.0),
            self.loads,
            self.failed_loads,
            self.evictions,
            tuple(filter(None, (booking.trouble(now, self.limits.stall_s) for booking in residents))),
            self._bookings.counted(),
            dict(self.deaths),
        )

    def describe(self) -> list[str]:
        """What is resident and who waits, a line each, for a person: titles, request ids and ages, no texts."""
        now = self._clock()
        lines = [
            f"{booking.label}: {booking.state.value}, {booking.leases} leases, "
            f"{booking.memory}, last used {now - booking.last_used:.1f} s ago"
            for booking in self._bookings.residents.values()
        ]
        lines += [f"reserved for {one.title}: {one.memory}" for one in self._bookings.reservations.values()]
        lines += [
            f"waits {waiter.name} [{waiter.request_id or '-'}] for {now - waiter.since:.1f} s, "
            f"because: {waiter.last_wait.value if waiter.last_wait is not None else '-'}"
            for waiter in self._queue.waiters
        ]
        return lines

    # --- asking ---------------------------------------------------------------------------------------------------

    async def lease(
        self, specialist: str, *, max_wait_s: float, read_by: str | None = None, read_s: float = 0.0
    ) -> Lease:
        """A hold on a resident that serves the specialist, loaded if need be.

        read_by: the resident (Lease.resident) that has the conversation in its cache, and read_s: the seconds that any
                 other would take to read it. Of no account when that resident is gone.
        Raises UnavailableError when it can never fit, QueueFullError, WaitTimeoutError, or the error of its load.
        Cancelling the call gives the place in the queue back.
        """
        if specialist not in self._entries:
            raise _unserved(specialist)
        self._refuse_when_closed()
        now, group = self._clock(), self._group(specialist)
        found = frozenset(booking.key for booking in self._bookings.warm(group))
        affinity = None
        if read_by is not None:
            affinity = CacheAffinity(read_by, int(read_s * self._swap_bytes_per_s(group)))
        waiter = LeaseWaiter(next(self._ids), specialist, now, REQUEST_ID.get(), found=found, affinity=affinity)
        is_full = len(self._queue.waiters) >= self.limits.max_queue
        *waiting, newcomer = self._views([*(self._queue.waiters if is_full else ()), waiter], now)
        failure = self._loader.failure(group)
        refusal = refuse(
            newcomer,
            waiting,
            self._bookings.views(self._served),
            self.limits.budget,
            max_queue=self.limits.max_queue,
            max_bypass_s=self.limits.max_bypass_s,
            now=now,
            groups=self._groups(),
            retry_s=failure.until - now if failure is not None else 0.0,
        )
        if refusal is not None:
            _report(waiter, "refuse %s: %s", specialist, refusal)
            if refusal.reason is RefusalReason.QUEUE_FULL:
                raise QueueFullError(f"{refusal.n_waiting} requests wait already.", "Try again a little later.")
            if failure is not None and refusal.reason is RefusalReason.BACK_OFF:
                again = f"The next try may be in {refusal.retry_s:.0f} s."
                raise LoadError(f"{specialist} failed to load: {failure.error.message}", again)
            raise self._unfitting(waiter, refusal)
        self._queue.add(waiter)
        return await self._wait_for_grant(waiter, max_wait_s)

    async def reserve(
        self, title: str, memory: Memory, *, waits_for_idle: bool = False, stop: Stop | None = None
    ) -> Reservation:
        """Room for something that is no resident; waits for it as a request does, but without an end.

        waits_for_idle: waits first until nothing has been asked for `quiet_s`.
        stop:           called when a request needs the room, before any resident has to go; without it the room is
                        kept.
        Raises UnavailableError when it can never fit. Cancelling the call gives the place in the queue back.
        """
        self._refuse_when_closed()
        now = self._clock()
        waiter = ReservationWaiter(next(self._ids), title, now, REQUEST_ID.get(), memory=memory, on_stop=stop)
        (newcomer,) = self._views([waiter], now)
        refusal = never_fits(newcomer, self._bookings.views(self._served), self.limits.budget)
        if refusal is not None:
            _report(waiter, "refuse %s: %s", title, refusal)
            raise self._unfitting(waiter, refusal)
        if waits_for_idle:
            self._queue.add_in_idle_time(waiter)
        else:
            self._queue.add(waiter)
        return await self._wait_for_grant(waiter, None)

    async def _wait_for_grant(self, waiter: Waiter[Granted], max_wait_s: float | None) -> Granted:
        self._replan()
        try:
            # Shielded: a future that a cancellation has ended could not be granted any more.
            async with asyncio.timeout(max_wait_s):
                return await asyncio.shield(waiter.future)
        except TimeoutError:
            self._give_up(waiter)
            why = f"{waiter.name} was not free within {max_wait_s:.0f} s."
            raise WaitTimeoutError(why, "Try again, or raise max_wait_s in the roster.") from None
        except asyncio.CancelledError:
            self._give_up(waiter)
            raise

    def _give_up(self, waiter: Waiter[Any]) -> None:
        _report(waiter, "%s gives up after %.1f s", waiter.name, self._clock() - waiter.since)
        self._queue.remove(waiter)
        waiter.give_up()
        self._restore_for(waiter)
        self._replan()

    def _restore_for(self, waiter: Waiter[Any]) -> None:
        """What went for a request that nobody waits for any more is to come back, in place of what was to come."""
        displaced = self._displaced.pop(waiter.id, ())
        if not isinstance(waiter, LeaseWaiter) or waiter.name not in self._entries:
            return
        group = self._group_of(waiter)
        others = [other for other in self._queue.waiters if self._group_of(other) == group]
        if others:
            self._displaced[others[0].id] = (*self._displaced.get(others[0].id, ()), *displaced)
            return
        for booking in self._bookings.of_group(group):
            if booking.state is State.LOADING and booking.displaced:
                displaced = (*displaced, *booking.displaced)
                _log.info("stopping the load of %s: nobody waits for it any more", booking.title)
                booking.state = State.DRAINING
                booking.work = _task(self._abandon(booking, booking.work))
        self._to_restore.update(dict.fromkeys(displaced))

    async def _abandon(self, booking: ResidentBooking, load: asyncio.Task[None] | None) -> None:
        """End a load; its memory is back when it has ended."""
        await _cancel([load] if load is not None else [])
        await self._stop(booking)

    def _restore(self) -> None:
        """Load again what went in vain, as far as there is room that no request waits for."""
        if self._queue.waiters:
            return
        for name in list(self._to_restore):
            if name not in self._entries or self._loader.failure(self._group(name)) is not None:
                del self._to_restore[name]
                continue
            states = {booking.state for booking in self._bookings.of_group(self._group(name))}
            free = self._budget - self._bookings.memory
            if states - {State.DRAINING}:
                del self._to_restore[name]
            elif not states and (chosen := self._placed(name)).memory.fits_in(free):
                del self._to_restore[name]
                _log.info("loading %s again: it went for a request whose client has left", name)
                self._begin_load(self._group(name), name, chosen.devices, request_id="")

    def _placed(self, specialist: str) -> Placement:
        """Where a resident for a specialist would be loaded now."""
        residents = self._bookings.views(self._served)
        return choose_placement(self._placements(specialist, residents), residents, self._budget)

    @property
    def _budget(self) -> Memory:
        """What residents may take now: the budget less what other programs took of it."""
        return self.limits.budget - self._others.memory

    @property
    def _looks(self) -> bool:
        """Whether to look at what is free on the cards: there is a margin to be kept, or others took what a load lacked
        and may have given it back."""
        return bool(self.limits.margin_bytes or self._others.memory)

    def _look_at_cards(self, now: float) -> None:
        """Notice what other programs take of the cards, by what workers last saw free on them."""
        bookings = self._bookings.residents.values()
        warm = [b.resident for b in bookings if b.state is State.WARM and b.resident is not None]
        seen = [reading for resident in warm if (reading := resident.free) is not None]
        unsettled = [b for b in self._bookings.all() if isinstance(b, ReservationBooking) or b.state is not State.WARM]
        for place in self.limits.budget.cards:
            if not any(place in reading.memory.places for reading in seen):
                if not self._bookings.is_loading:
                    self._others.forget(place)
                continue
            # Readings of before a resident came or went say nothing of now.
            fresh = [r for r in seen if place in r.memory.places and now - r.age_s > self._changed_s + _SETTLE_S]
            if not fresh:
                continue
            newest = min(fresh, key=lambda reading: reading.age_s)
            self._others.look(
                place,
                room_bytes=self.limits.budget[place] - self._bookings.memory[place],
                free_bytes=newest.memory[place],
                is_settled=not any(b.memory[place] for b in unsettled),
            )

    def _refuse_when_closed(self) -> None:
        if self._refusing is not None:
            raise self._refusing
        if self._closed:
            raise ShuttingDownError

    def _remedy(self, waiter: AnyWaiter, refusal: Refusal) -> str:
        """What makes room for what never fits."""
        if isinstance(waiter, ReservationWaiter):
            return "Raise pool.vram_budget, or unpin a model."
        ledger = refusal.ledger
        if not ledger.budget.cards or ledger.need.short_of(ledger.free) != (HOST,):
            return "Lower its context_tokens, choose a smaller quantisation, or raise pool.vram_budget."
        return "Keep fewer of its experts in host memory (cpu_expert_layers), or raise pool.host_budget."

    def _unfitting(self, waiter: AnyWaiter, refusal: Refusal) -> UnavailableError:
        ledger = refusal.ledger
        kept = [self._bookings.find(key) for key in refusal.kept]
        reserved = [booking.title for booking in kept if isinstance(booking, ReservationBooking)]
        how = f"held by {', '.join(reserved)}" if reserved else "pinned"
        found = []
        for place in ledger.need.short_of(ledger.free):
            where = f" of {place}" if ledger.budget.cards else ""
            need, budget = size_text(ledger.need[place]), size_text(ledger.budget[place])
            aside = f", {size_text(refusal.kept_memory[place])} of them {how}" if kept else ""
            found.append(f"{need}{where}; the budget is {budget}{aside}")
        return UnavailableError(f"{waiter.name} needs {'; and '.join(found)}.", self._remedy(waiter, refusal))

    def _release(self, booking: ResidentBooking, specialist: str) -> None:
        booking.shares[specialist] -= 1
        booking.last_used = self._clock()
        self._queue.be_busy(booking.last_used)
        self._replan()

    def _vacate(self, booking: ReservationBooking) -> None:
        if booking.state is not State.DRAINING:  # else its bytes come back when its stop has ended
            self._bookings.remove(booking)
            self._changed_s = self._clock()
            self._replan()

    # --- deciding -------------------------------------------------------------------------------------------------

    def _replan(self) -> None:
        """Ask admission what to do now, and do it. Called after every change."""
        if self._closed:
            return
        now = self._clock()
        if self.is_busy() or self._bookings.is_loading:
            self._queue.be_busy(now)
        else:
            self._queue.admit_in_idle_time(now)
        if self._looks:
            self._look_at_cards(now)
        views, residents = self._views(self._queue.waiters, now), self._bookings.views(self._served)
        if self._refuse_unfitting(views, residents):
            views, residents = self._views(self._queue.waiters, now), self._bookings.views(self._served)
        decided = plan(
            views,
            residents,
            self._budget,
            max_bypass_s=self.limits.max_bypass_s,
            now=now,
            groups=self._groups(),
            explain=_log.isEnabledFor(logging.DEBUG),
        )
        self._carry_out(decided)
        self._restore()
        for eviction in replaced(self._bookings.resident_views(self._served), self._served, now):
            self._evict(eviction)
        if not self._queue.waiters:
            for eviction in expired(self._bookings.resident_views(self._served), now, self.limits.idle_ttl_s):
                self._evict(eviction)
        self._set_timer(now)

    def _refuse_unfitting(self, views: Sequence[WaiterView], residents: Sequence[ResidentView]) -> bool:
        """Refuse waiters as newcomers are that can never fit: since they came, what they ask for, or what is pinned,
        was found to need more. Gives whether there were any."""
        found: dict[tuple[str, tuple[str, ...], int], Refusal | None] = {}
        for waiter, view in zip(list(self._queue.waiters), views, strict=True):
            # Those that wait for one load need the same, and are looked at once; each reservation says what it needs.
            load = view.group, view.devices, view.id if isinstance(waiter, ReservationWaiter) else 0
            if load not in found:
                found[load] = never_fits(view, residents, self.limits.budget)
            refusal = found[load]
            if refusal is not None:
                _report(waiter, "refuse %s: %s", waiter.name, refusal)
                self._queue.fail([waiter], self._unfitting(waiter, refusal))
                self._restore_for(waiter)
        return any(refusal is not None for refusal in found.values())

    def _set_timer(self, now: float) -> None:
        """Replan when a waiter's bound passes, a resident expires, idle time begins, or cards are to be looked at."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        warm_since = self._bookings.warm_since
        moments = [max(waiter.since, warm_since) + self.limits.max_bypass_s for waiter in self._queue.waiters]
        if self.limits.idle_ttl_s is not None:
            idle = [view for view in self._bookings.resident_views(self._served) if view.idle]
            moments += [view.last_used + self.limits.idle_ttl_s for view in idle]
        if self._looks and self.limits.budget.cards and self._bookings.residents:
            moments.append(now + _LOOK_S)
        if self._queue.next_admission is not None:
            moments.append(self._queue.next_admission)
        future = [moment for moment in moments if moment > now]
        if future:
            self._timer = asyncio.get_running_loop().call_later(min(future) - now + 0.001, self._replan)

    def _views(self, waiters: Sequence[AnyWaiter], now: float) -> list[WaiterView]:
        """The waiters, for admission.

        Requests for the newest resident passed none before it was warm: else a load that lasts longer than max_bypass_s
        would be undone before it has served any.
        """
        warm_since = self._bookings.warm_since
        residents = self._bookings.views(self._served)
        options = [(self._group_of(waiter), self._options(waiter, residents)) for waiter in waiters]
        return [
            WaiterView(
                waiter.id,
                group,
                chosen.memory,
                now - max(waiter.since, warm_since),
                waiter.name,
                waiter.affinity if isinstance(waiter, LeaseWaiter) else None,
                now - waiter.since,
                chosen.devices,
            )
            for waiter, (group, _), chosen in zip(
                waiters, options, place_all(options, residents, self._budget), strict=True
            )
        ]

    def _group_of(self, waiter: AnyWaiter) -> str:
        return waiter.group if isinstance(waiter, ReservationWaiter) else self._group(waiter.name)

    def _options(self, waiter: AnyWaiter, residents: Sequence[ResidentView]) -> Sequence[Placement]:
        if isinstance(waiter, ReservationWaiter):
            return (Placement((), waiter.memory),)
        return self._placements(waiter.name, residents)

    def _placements(self, specialist: str, residents: Sequence[ResidentView]) -> Sequence[Placement]:
        """The ways to load a resident for a specialist that can be, beside what is pinned."""
        entry, group = self._entries[specialist], self._group(specialist)
        options: Sequence[Placement] = self._estimates.placements(entry)
        if len(options) == 1:
            return options
        pinned = [view for view in residents if view.pinned and view.group != group]
        kept = Memory.total(view.memory for view in pinned)
        options = possible(options, kept, self.limits.budget)
        if not self._is_pinned(group) or self._bookings.of_group(group):  # of several that share, the first is pinned
            return options
        there = {group, *(view.group for view in pinned)}
        others = {
            other.spec.group: self._estimates.placements(other)
            for other in self._entries.values()
            if other.spec.group not in there
        }
        return counting_shut_out(options, others.values(), kept, self.limits.budget)

    def _is_pinned(self, group: str) -> bool:
        return any(self._entries[name].pinned for name in self._specialists(group))

    def _groups(self) -> dict[str, GroupView]:
        """The groups of several specialists: only one resident for a while after another has failed to load."""
        failing = [group for group in self._shared if self._loader.failure(group) is not None]
        return {**self._shared, **{group: replace(self._shared[group], most=1) for group in failing}}

    def _swap_bytes_per_s(self, group: str) -> float:
        return self._estimates.swap_bytes_per_s(self._bookings.of_group(group))

    # --- carrying out ---------------------------------------------------------------------------------------------

    def _carry_out(self, decided: Plan) -> None:
        waiters = {waiter.id: waiter for waiter in self._queue.waiters}
        for grant in decided.grants:
            waiter = waiters[grant.waiter]
            assert isinstance(waiter, LeaseWaiter), "a reservation's group has no places"
            if grant.bypass is not None:
                first = waiters[grant.bypass.passed[0]].name
                _report(waiter, "bypass %s: passes %s, %s", waiter.name, first, grant.bypass)
            self._grant(grant, waiter)
        for eviction in decided.evict:
            self._evict(eviction, waiters.get(eviction.waiter) if eviction.waiter is not None else None)
        for load in decided.load:
            waiter = waiters[load.waiter]
            if isinstance(waiter, ReservationWaiter):
                self._reserve(load, waiter)
            else:
                self._load(load, waiter)
        for wait in decided.waits:
            waiter = waiters[wait.waiter]
            if wait.reason is not waiter.last_wait and not waiter.future.done():
                waiter.last_wait = wait.reason
                behind = f", behind {waiters[wait.behind].name}" if wait.behind is not None else ""
                _report(waiter, "wait %s: %s%s", waiter.name, wait, behind)

    def _grant(self, grant: Grant, waiter: LeaseWaiter) -> None:
        booking, specialist = self._bookings.residents[grant.resident], waiter.name
        _report(waiter, "grant %s: %s, %s", specialist, booking.label, grant)
        if grant.swap_bytes:
            change = size_text(grant.swap_bytes)
            _report(
                waiter, "swap %s: %s was %s, %s of its weights differ", specialist, booking.label, grant.before, change
            )
        was_there = "swapped" if grant.swap_bytes else "warm"
        residency = was_there if booking.key in waiter.found else "loaded"
        swap_s = grant.swap_bytes / self._swap_bytes_per_s(booking.group)
        booking.shares[specialist] += 1
        booking.specialist = specialist
        booking.last_used = self._clock()
        release = partial(self._release, booking, specialist)
        self._queue.remove(waiter)
        self._displaced.pop(waiter.id, None)
        waiter.future.set_result(
            Lease(booking, specialist, release, residency=residency, waited_s=grant.waited_s, swap_s=swap_s)
        )

    def _reserve(self, load: Load, waiter: ReservationWaiter) -> None:
        booking = ReservationBooking(waiter.name, waiter.memory, waiter.on_stop)
        _report(waiter, "reserve %s: %s", waiter.name, load)
        self._bookings.add(booking)
        self._loader.disturb()
        self._queue.remove(waiter)
        waiter.future.set_result(Reservation(partial(self._vacate, booking)))

    def _load(self, load: Load, waiter: LeaseWaiter) -> None:
        booking = self._begin_load(load.group, load.specialist, load.devices, request_id=waiter.request_id)
        booking.displaced = self._displaced.pop(waiter.id, ())
        what = "spread" if load.is_spread else "load"
        _report(waiter, "%s %s: %s, %s", what, load.specialist, booking.label, load)

    def _begin_load(self, group: str, specialist: str, devices: tuple[str, ...], *, request_id: str) -> ResidentBooking:
        # The memory is booked before the first await: a plan may be made while the load runs.
        entry = self._entries[specialist]
        spec = replace(entry.spec.loaded_as(specialist), devices=devices)
        predicted = next(one.memory for one in entry.placements if one.devices == devices)
        need = next(one.memory for one in self._estimates.placements(entry) if one.devices == devices)
        is_first = not self._bookings.of_group(group)  # of several that share, one pinned resident is enough
        booking = ResidentBooking(
            key=f"{group} {next(self._ids)}",
            group=group,
            title=spec.title,
            predicted=predicted,
            memory=need,
            pinned=is_first and self._is_pinned(group),
            specialist=specialist,
            is_shared=spec.sharing is not None,
            capacity=spec.parallel,
            request_id=request_id,
            last_progress=self._clock(),
            devices=devices,
        )
        self._bookings.add(booking)
        booking.work = _task(self._load_now(booking, spec))
        return booking

    async def _load_now(self, booking: ResidentBooking, spec: LoadSpec) -> None:
        policies = {name: self._entries[name].thinking for name in self._specialists(booking.group)}
        extra = for_request(booking.request_id)
        try:
            await self._load_with_room(booking, spec, policies)
        except EngineError as error:
            _log.error("loading %s failed: %s", booking.title, error, extra=extra)
            if isinstance(error, WorkerDiedError):
                self.deaths[error.cause] += 1
            self._drop_failed(booking, error)
            return
        booking.state, booking.last_used, booking.warm_since = State.WARM, self._clock(), self._clock()
        self._changed_s = self._clock()
        booking.work = _task(self._watch(booking))
        self.loads += 1
        _log.info("loaded %s in %.1f s, %s booked", booking.title, booking.loaded_in_s, booking.memory, extra=extra)
        self._replan()

    async def _load_with_room(self, booking: ResidentBooking, spec: LoadSpec, policies: Mapping[str, Thinking]) -> None:
        """Load; once more where the first load found too little memory, and idle residents could make room for it."""
        try:
            await self._loader.load(booking, spec, policies, disturbed=bool(self._bookings.reservations))
        except (OutOfMemoryError, WorkerDiedError) as error:
            if error.shortage is None or not await self._make_room(booking, error.shortage):
                raise
            _log.info("loading %s again: %s", booking.title, error.shortage, extra=for_request(booking.request_id))
            await self._loader.load(booking, spec, policies, disturbed=True)

    def _short_place(self, booking: ResidentBooking, shortage: Shortage) -> str:
        """Where a shortage was: where the log does not say, on the booking's own card, or the budget's first."""
        return shortage.place or next(iter(booking.devices), self.limits.budget.device)

    async def _make_room(self, booking: ResidentBooking, shortage: Shortage) -> bool:
        """Let idle residents go where a load found too little memory, and wait until theirs is back. False where none
        can go, or they do not suffice. What the load is known to need is booked, here and for later loads."""
        place = self._short_place(booking, shortage)
        self._estimates.book_shortage(booking, Memory.at(place, shortage.need_bytes))
        if shortage.had_bytes is not None:
            counted_on = self.limits.budget[place] - self._bookings.memory[place] + booking.memory[place]
            self._others.lack(place, counted_on - shortage.had_bytes)
        self._replan()
        stopping = [b for b in self._bookings.all() if b.state is State.DRAINING and b.memory[place]]
        if not stopping or (self._budget - self._bookings.memory_but(stopping))[place] < 0:
            return False
        await asyncio.wait([victim.work for victim in stopping if victim.work is not None])
        booking.last_progress = self._clock()
        return True

    def _drop_failed(self, booking: ResidentBooking, error: EngineError) -> None:
        self._bookings.remove(booking)
        self._changed_s = self._clock()
        self.failed_loads += 1
        if not self._bookings.of_group(booking.group):  # else its waiters are served by the others
            self._queue.fail([w for w in self._queue.waiters if self._group_of(w) == booking.group], error)
        self._replan()

    async def _watch(self, booking: ResidentBooking) -> None:
        """A worker that ends on its own, or hangs and is killed, takes no more requests at once; the next one starts
        another when the memory is back."""
        assert booking.resident is not None
        loss = await booking.resident.wait_lost()
        if booking.state is not State.DRAINING and not self._closed:
            self.deaths[loss.cause] += 1
            with_it = f"; requests that failed with it: {', '.join(loss.requests)}" if loss.requests else ""
            stack = RemoteTraceback(loss.stack) if loss.stack else None
            _log.error("the worker of %s %s%s", booking.title, loss.how, with_it, exc_info=stack)
            booking.state = State.DRAINING
            if loss.shortage is not None:
                self._learn(booking, loss.shortage)
            self._replan()
            await booking.resident.wait_gone()
            self._forget(booking)

    def _learn(self, booking: ResidentBooking, shortage: Shortage) -> None:
        """A worker ended for want of memory: the next one of its group is booked with what this one lacked, so that it
        comes back where there is room for that. Where all of the budget did not suffice, it waits as after a load that
        failed."""
        place = self._short_place(booking, shortage)
        more = max(shortage.asked_bytes, _LEAST_LACKING_BYTES)
        needed = Memory.at(place, max(shortage.need_bytes, booking.memory[place] + more))
        if self._estimates.book_shortage(booking, needed):
            _log.warning("%s lacked memory: from now on it is booked with %s", booking.title, booking.memory)
        else:
            self._loader.count_failure(booking.group, OutOfMemoryError.of(booking.title, shortage))

    def _evict(self, eviction: Eviction, waiter: Waiter[Any] | None = None) -> None:
        booking = self._bookings.find(eviction.resident)
        whose = f", for {waiter.name}" if waiter is not None else ""
        _report(waiter, "evict %s: %s%s", booking.label, eviction, whose)
        booking.state = State.DRAINING
        if isinstance(waiter, LeaseWaiter) and isinstance(booking, ResidentBooking):
            self._displaced[waiter.id] = (*self._displaced.get(waiter.id, ()), booking.specialist)
        self.evictions += 1
        _log.info("stopping %s: %s", booking.title, eviction.reason, extra=_about(waiter))
        booking.work = _task(self._stop(booking))

    async def _stop(self, booking: Booking) -> None:
        try:
            await booking.stop()
            if isinstance(booking, ResidentBooking) and booking.resident is not None:
                await booking.resident.wait_gone()  # a process that hangs in the kernel may outlive its stop
        finally:
            self._forget(booking)  # only now is the memory back

    def _forget(self, booking: Booking) -> None:
        if isinstance(booking, ResidentBooking):
            self._estimates.keep_speed(booking)
        self._bookings.remove(booking)
        self._changed_s = self._clock()
        self._replan()

    # --- life -----------------------------------------------------------------------------------------------------

    def _set_entries(self, entries: Mapping[str, Entry]) -> None:
        self._entries = dict(entries)
        self._served = frozenset(entry.spec.group for entry in entries.values())
        self._shared = shared_groups(entries, self.limits.most_shared)

    def serve(self, entries: Mapping[str, Entry]) -> None:
        """Serve these specialists from the next request on, and no others; known ones perhaps in another way.

        Residents that none of them can use end what they are doing, and go. Requests that wait for a specialist that
        is not among them are refused.
        """
        changed = [entry.spec.group for name, entry in entries.items() if entry != self._entries.get(name)]
        self._set_entries(entries)
        for group in changed:
            self._loader.forget_failure(group)
            self._estimates.forget_bytes(group)
        for waiter in self._queue.waiters:
            if isinstance(waiter, LeaseWaiter) and waiter.name not in entries:
                self._queue.fail([waiter], _unserved(waiter.name))
        self._replan()

    async def unload(self, specialist: str) -> bool:
        """Stop a specialist's idle residents, shared ones too; False when one is busy, none is there, or its process
        does not end."""
        bookings = self._bookings.of_group(self._group(specialist))
        if not bookings or any(booking.state is not State.WARM or booking.leases for booking in bookings):
            return False
        for booking in bookings:
            idle_s = self._clock() - booking.last_used
            self._evict(Eviction(booking.key, reason=EvictionReason.ASKED, idle_s=idle_s))
        stops = [booking.work for booking in bookings if booking.work is not None]
        _, left = await asyncio.wait(stops, timeout=_UNLOAD_S)
        return not left

    def refuse(self, error: EngineError) -> None:
        """End every request that waits or is being served with an error, and all that come."""
        self._refusing = error
        self._queue.fail([waiter for waiter in self._queue.waiters if isinstance(waiter, LeaseWaiter)], error)
        for booking in self._bookings.residents.values():
            if booking.resident is not None:
                booking.resident.refuse(error)

    async def close(self) -> None:
        """Refuse what waits, stop every resident."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._queue.close(ShuttingDownError())
        await _cancel([b.work for b in self._bookings.all() if b.state is State.LOADING and b.work is not None])
        bookings = self._bookings.all()
        await asyncio.gather(*(booking.stop() for booking in bookings), return_exceptions=True)
        await _cancel([booking.work for booking in bookings if booking.work is not None])
        for booking in bookings:
            self._bookings.remove(booking)


def _unserved(specialist: str) -> UnavailableError:
    return UnavailableError(f"{specialist} cannot be served.", "See GET /v1/models for the reason.")


def _report(waiter: Waiter[Any] | None, message: str, *facts: object) -> None:
    """One line for a decision, under the id of the request that it is about."""
    _log.debug(message, *facts, extra=_about(waiter))


def _about(waiter: Waiter[Any] | None) -> dict[str, Any]:
    """`extra` of a log line. Plans are carried out in tasks of other requests, so the task's own id will not do."""
    return for_request(waiter.request_id if waiter is not None else "")


def _task(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task of the pool's own: without the id of the request in whose task it happened to be started."""
    context = contextvars.copy_context()
    context.run(REQUEST_ID.set, "")
    return asyncio.create_task(work, context=context)


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
