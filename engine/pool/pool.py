"""The owner of all residents: queues requests, books memory, and carries out what `admission` decides."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import EngineError, LoadError, QueueFullError, UnavailableError, WaitTimeoutError
from ..request import Event, GenerateRequest
from ..spec import LoadSpec
from ..units import size_text
from .admission import GroupView, Load, Plan, ResidentView, State, WaiterView, expired, plan
from .placement import Affinity
from .resident import Resident
from .types import COUNTED, Entry, PoolLimits, PoolStatus, ResidentStatus, Starter, Stop

_log = logging.getLogger(__name__)

# What is assumed of loads and swaps before any was measured.
_LOAD_BYTES_PER_S = 1e9
_SWAP_BYTES_PER_S = 4e9


@dataclass
class _Held:
    """A resident, or a reservation, and what the pool keeps of it. vram_bytes: predicted, or measured where more."""

    key: str
    group: str
    title: str  # the file's name, who shares it, or what room is reserved for
    vram_bytes: int
    pinned: bool
    specialist: str = ""  # that it is, will be once it is loaded, or was last told to become
    is_shared: bool = False
    capacity: int = 1
    reserved: bool = False
    stop: Stop | None = None
    state: State = State.LOADING
    resident: Resident | None = None
    shares: Counter[str] = field(default_factory=Counter)  # specialist -> leases
    last_used: float = 0.0
    progress: float = 0.0
    last_progress: float = 0.0
    loaded_in_s: float | None = None
    warm_since: float = 0.0
    loads_alone: bool = True  # nothing else is loaded meanwhile, so the device's free memory tells what it takes
    work: asyncio.Task[None] | None = None

    @property
    def leases(self) -> int:
        return self.shares.total()

    @property
    def activity(self) -> Mapping[str, float]:
        return self.resident.activity if self.resident is not None else {}

    def view(self) -> ResidentView:
        return ResidentView(
            self.key,
            self.state,
            self.vram_bytes,
            self.leases,
            self.capacity,
            self.last_used,
            self.pinned,
            self.group,
            self.specialist,
            +self.shares if self.is_shared else {},
        )


@dataclass(frozen=True)
class _Room:
    """What a reservation asks for. stop: makes its holder give the room back; None: it keeps it."""

    title: str
    vram_bytes: int
    stop: Stop | None


@dataclass
class _Waiter:
    id: int
    specialist: str
    since: float
    future: asyncio.Future[Any]  # of a Lease, or of a Reservation where there is a room
    found: tuple[str, ...] = ()  # keys of the residents that were warm when the request came
    affinity: Affinity | None = None
    room: _Room | None = None


def _unserved(specialist: str) -> UnavailableError:
    return UnavailableError(f"{specialist} cannot be served.", "See GET /v1/models for the reason.")


def _room_group(title: str) -> str:
    return f"reserved: {title}"


@dataclass(frozen=True)
class _Failure:
    error: EngineError
    until: float
    count: int


class Lease:
    """A request's hold on a resident: it is not evicted meanwhile. Release it exactly when the last byte is out."""

    def __init__(
        self, pool: Pool, held: _Held, specialist: str, residency: str, waited_s: float, swap_s: float = 0.0
    ) -> None:
        self._pool = pool
        self._held: _Held | None = held
        self.specialist = specialist
        self.residency = residency  # warm; swapped, when the resident was another specialist; loaded, after a load
        self.waited_s = waited_s
        self.swap_s = swap_s  # about what changing the resident takes; 0 for one that stays as it is

    @property
    def resident(self) -> str:
        """The resident's key, by which a later request of the conversation finds it: see Pool.lease."""
        assert self._held is not None, "the lease was released"
        return self._held.key

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """See Resident.generate."""
        assert self._held is not None, "the lease was released"
        assert self._held.resident is not None
        return self._held.resident.generate(request)

    def release(self) -> None:
        """End the hold; a second call does nothing."""
        if self._held is not None:
            held, self._held = self._held, None
            self._pool._release(held, self.specialist)


class Reservation:
    """Room that is booked for something that is no resident, such as a build. Release it when its memory is back."""

    def __init__(self, pool: Pool, held: _Held) -> None:
        self._pool = pool
        self._held: _Held | None = held

    def release(self) -> None:
        """Give the room back; a second call does nothing."""
        if self._held is not None:
            held, self._held = self._held, None
            self._pool._vacate(held)


class Pool:
    """Residents under a budget. All methods belong to one event loop."""

    def __init__(
        self,
        entries: Mapping[str, Entry],
        limits: PoolLimits,
        start: Starter,
        *,
        clock: Callable[[], float] = time.monotonic,
        free_bytes: Callable[[], Awaitable[int | None]] | None = None,
    ) -> None:
        """free_bytes: the device's own free memory, asked before and after the first load of each group, since asking
        takes as long as a swap; None, or an answer of None, leaves it to the worker.
        """
        self._entries = dict(entries)
        self.limits = limits
        self._start = start
        self._clock = clock
        self._free_bytes = free_bytes
        self._held: dict[str, _Held] = {}
        self._waiters: list[_Waiter] = []
        self._waits_for_idle: list[_Waiter] = []  # reservations that wait for idle time before they wait for room
        self._last_busy = clock()
        self._failures: dict[str, _Failure] = {}
        self._measured: dict[str, int] = {}  # bytes of groups that took more than predicted
        self._asked_device: set[str] = set()  # groups of which it is known what the device lost by a load
        self._ended: defaultdict[tuple[str, str], float] = defaultdict(float)  # see PoolStatus.counted
        self._load_s: dict[str, float] = {}  # seconds that the last load of a group took
        self._prompt_speed: dict[str, float] = {}  # tokens a second, as residents of a group said before they went
        self._ids = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.loads = self.failed_loads = self.evictions = 0

    # --- leases -----------------------------------------------------------------------------------------------

    def is_warm(self, specialist: str) -> bool:
        """Whether a request for the specialist would need neither a load nor a swap."""
        return self.ready_in_s(specialist) == 0.0

    def ready_in_s(self, specialist: str) -> float:
        """About how long a request for the specialist would wait if nobody else were there: 0 for one that is warm.

        Judged by what swaps and loads have taken so far, else by bytes.
        """
        entry = self._entries[specialist]
        group = entry.spec.group
        warm = [held for held in self._held.values() if held.group == group and held.state is State.WARM]
        if not warm:
            return self._load_s.get(group, entry.vram_bytes / _LOAD_BYTES_PER_S)
        n_bytes = min(entry.distances.between(specialist, held.specialist) for held in warm)
        if not n_bytes:
            return 0.0
        measured = max(held.activity.get("change_s", 0.0) for held in warm)
        return measured or n_bytes / _SWAP_BYTES_PER_S

    def _swap_bytes_per_s(self, group: str) -> float:
        """How fast residents of a group change: the slowest, as they say, else what is assumed."""
        said = [held.activity for held in self._held.values() if held.group == group]
        speeds = [
            one["swapped_bytes"] / one["swaps"] / one["change_s"]
            for one in said
            if one.get("swapped_bytes") and one.get("change_s")
        ]
        return min(speeds, default=_SWAP_BYTES_PER_S)

    def prompt_tokens_per_s(self, specialist: str) -> float | None:
        """How fast prompts for the specialist were read so far; None before any was."""
        group = self._group(specialist)
        told = [held.activity.get("prompt_tokens_per_s", 0.0) for held in self._held.values() if held.group == group]
        return max(told, default=0.0) or self._prompt_speed.get(group)

    def _group(self, specialist: str) -> str:
        return self._entries[specialist].spec.group

    def _wanted_bytes(self, waiter: _Waiter) -> int:
        return waiter.room.vram_bytes if waiter.room is not None else self._need_bytes(waiter.specialist)

    def _need_bytes(self, specialist: str) -> int:
        # A measurement above the whole budget may be somebody else's memory: it is tried again, alone.
        measured = min(self._measured.get(self._group(specialist), 0), self.limits.budget_bytes)
        return max(self._entries[specialist].vram_bytes, measured)

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
        if self._closed:
            raise UnavailableError("The server is shutting down.", "Try again when it is back.")
        group = self._group(specialist)
        self._refuse_impossible(
            specialist,
            group,
            self._need_bytes(specialist),
            "Lower its context_tokens, choose a smaller quantisation, or raise pool.vram_budget.",
        )
        there = [held for held in self._held.values() if held.group == group]
        failure = self._failures.get(group)
        if failure and not there and self._clock() < failure.until:
            left = failure.until - self._clock()
            raise LoadError(
                f"{specialist} failed to load: {failure.error.message}", f"The next try may be in {left:.0f} s."
            )
        found = tuple(held.key for held in there if held.state is State.WARM)
        affinity = Affinity(read_by, int(read_s * self._swap_bytes_per_s(group))) if read_by is not None else None
        future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(next(self._ids), specialist, self._clock(), future, found, affinity)
        full = len(self._waiters) >= self.limits.max_queue
        if full and waiter.id not in (grant.waiter for grant in self._decide(waiter).grants):
            raise QueueFullError(f"{len(self._waiters)} requests wait already.", "Try again a little later.")
        self._waiters.append(waiter)
        self._replan()
        try:
            # Shielded: a future that a cancellation has ended could not be granted any more.
            async with asyncio.timeout(max_wait_s):
                return await asyncio.shield(waiter.future)
        except TimeoutError:
            self._give_up(waiter)
            raise WaitTimeoutError(
                f"{specialist} was not free within {max_wait_s:.0f} s.", "Try again, or raise max_wait_s in the roster."
            ) from None
        except asyncio.CancelledError:
            self._give_up(waiter)
            raise

    def _refuse_impossible(self, who: str, group: str, need: int, remedy: str) -> None:
        groups = {entry.spec.group for entry in self._entries.values()}
        kept = [
            held
            for held in self._held.values()
            if held.pinned
            and held.group != group
            and (held.reserved or held.group in groups)  # others are on their way out
        ]
        kept_bytes = sum(held.vram_bytes for held in kept)
        if need + kept_bytes > self.limits.budget_bytes:
            rooms = [held.title for held in kept if held.reserved]
            how = f"held by {', '.join(rooms)}" if rooms else "pinned"
            aside = f", {size_text(kept_bytes)} of them {how}" if kept else ""
            raise UnavailableError(
                f"{who} needs {size_text(need)}; the budget is {size_text(self.limits.budget_bytes)}{aside}.", remedy
            )

    async def reserve(
        self, title: str, vram_bytes: int, *, waits_for_idle: bool = False, stop: Stop | None = None
    ) -> Reservation:
        """Room for something that is no resident; waits for it as a request does, but without an end.

        waits_for_idle: waits first until nothing has been asked for `quiet_s`.
        stop:       called when a request needs the room, before any resident has to go; without it the room is kept.
        Raises UnavailableError when it can never fit. Cancelling the call gives the place in the queue back.
        """
        if self._closed:
            raise UnavailableError("The server is shutting down.", "Try again when it is back.")
        self._refuse_impossible(title, _room_group(title), vram_bytes, "Raise pool.vram_budget, or unpin a model.")
        future: asyncio.Future[Reservation] = asyncio.get_running_loop().create_future()
        room = _Room(title, vram_bytes, stop)
        waiter = _Waiter(next(self._ids), title, self._clock(), future, room=room)
        (self._waits_for_idle if waits_for_idle else self._waiters).append(waiter)
        self._replan()
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            self._give_up(waiter)
            raise

    def _vacate(self, held: _Held) -> None:
        if held.state is not State.DRAINING and self._held.get(held.key) is held:
            del self._held[held.key]
            self._replan()

    def _give_up(self, waiter: _Waiter) -> None:
        for queue in (self._waiters, self._waits_for_idle):
            if waiter in queue:
                queue.remove(waiter)
        if waiter.future.done():
            if not waiter.future.cancelled() and waiter.future.exception() is None:
                waiter.future.result().release()  # granted at the very moment it was given up
        else:
            waiter.future.cancel()
        self._replan()

    def _release(self, held: _Held, specialist: str) -> None:
        held.shares[specialist] -= 1
        held.last_used = self._last_busy = self._clock()
        self._replan()

    # --- carrying out -----------------------------------------------------------------------------------------

    def _replan(self) -> None:
        """Ask admission what to do now, and do it. Called after every change."""
        if self._closed:
            return
        now = self._clock()
        self._admit_in_idle_time(now)
        self._carry_out(self._decide())
        self._retire()
        if not self._waiters:
            residents = [held.view() for held in self._held.values() if not held.reserved]
            for key in expired(residents, now, self.limits.idle_ttl_s):
                self._evict(self._held[key], "idle")
        self._set_timer()

    def _admit_in_idle_time(self, now: float) -> None:
        """In idle time, who waits for it joins those who wait for room."""
        if self._waiters or any(h.state is State.LOADING or h.leases for h in self._held.values()):
            self._last_busy = now
        elif self._waits_for_idle and now - self._last_busy >= self.limits.quiet_s:
            self._waiters.append(self._waits_for_idle.pop(0))

    def _decide(self, *newcomers: _Waiter) -> Plan:
        """What admission says of those who wait, and of newcomers behind them."""
        now, since = self._clock(), self._passing_since()
        waiters = [
            WaiterView(
                w.id, self._waiter_group(w), self._wanted_bytes(w), now - max(w.since, since), w.specialist, w.affinity
            )
            for w in (*self._waiters, *newcomers)
        ]
        views = [held.view() for held in self._held.values()]
        bound = self.limits.max_bypass_s
        return plan(waiters, views, self.limits.budget_bytes, max_bypass_s=bound, groups=self._groups())

    def _waiter_group(self, waiter: _Waiter) -> str:
        return self._group(waiter.specialist) if waiter.room is None else _room_group(waiter.room.title)

    def _groups(self) -> dict[str, GroupView]:
        """What several specialists share: never more residents than there are different weights, and only one for a
        while after another has failed to load."""
        now = self._clock()
        weights: dict[str, list[str]] = {}
        groups = {}
        for name, entry in self._entries.items():
            if entry.spec.sharing is None:
                continue
            different = weights.setdefault(entry.spec.group, [])
            if all(entry.distances.between(name, other) for other in different):
                different.append(name)
            failure = self._failures.get(entry.spec.group)
            failed = failure is not None and now < failure.until
            most = 1 if failed else min(self.limits.most_shared or len(different), len(different))
            groups[entry.spec.group] = GroupView(entry.distances, most)
        return groups

    def _retire(self) -> None:
        """Residents of what the roster no longer has go as soon as nobody uses them."""
        groups = {entry.spec.group for entry in self._entries.values()}
        for held in list(self._held.values()):
            if not held.reserved and held.group not in groups and held.state is State.WARM and not held.leases:
                self._evict(held, "replaced")

    def _passing_since(self) -> float:
        """When the newest resident became warm: before that its requests passed nobody.

        Without this a load that lasts longer than max_bypass_s would be undone before it has served anyone.
        """
        return max((held.warm_since for held in self._held.values() if held.state is State.WARM), default=0.0)

    def _carry_out(self, decided: Plan) -> None:
        waiters = {waiter.id: waiter for waiter in self._waiters}
        for grant in decided.grants:
            waiter, held = waiters[grant.waiter], self._held[grant.resident]
            self._waiters.remove(waiter)
            residency = self._residency(waiter, held)
            changed_bytes = self._entries[waiter.specialist].distances.between(waiter.specialist, held.specialist)
            swap_s = changed_bytes / self._swap_bytes_per_s(held.group)
            held.shares[waiter.specialist] += 1
            held.specialist = waiter.specialist
            held.last_used = self._clock()
            waited_s = self._clock() - waiter.since
            waiter.future.set_result(Lease(self, held, waiter.specialist, residency, waited_s, swap_s))
        for key in decided.evict:
            self._evict(self._held[key], "to make room")
        for load in decided.load:
            room = next((w for w in self._waiters if w.room is not None and self._waiter_group(w) == load.group), None)
            if room is not None:
                self._book(room)
            else:
                self._load(load)

    def _residency(self, waiter: _Waiter, held: _Held) -> str:
        if held.key not in waiter.found:
            return "loaded"
        distances = self._entries[waiter.specialist].distances
        return "swapped" if distances.between(waiter.specialist, held.specialist) else "warm"

    def _set_timer(self) -> None:
        """Look again when the oldest waiter's bound passes, or when the next idle resident expires."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock()
        since = self._passing_since()
        moments = [max(w.since, since) + self.limits.max_bypass_s for w in self._waiters]
        if self.limits.idle_ttl_s is not None:
            idle = [held for held in self._held.values() if held.view().idle and not held.reserved]
            moments += [held.last_used + self.limits.idle_ttl_s for held in idle]
        if self._waits_for_idle:
            moments.append(self._last_busy + self.limits.quiet_s)
        future = [moment for moment in moments if moment > now]
        if future:
            self._timer = asyncio.get_running_loop().call_later(min(future) - now + 0.001, self._replan)

    def _book(self, waiter: _Waiter) -> None:
        """A reservation that may be stopped counts as idle, and as used by nobody for the longest: it goes first."""
        room = waiter.room
        assert room is not None
        self._waiters.remove(waiter)
        key = group = _room_group(room.title)
        held = _Held(key, group, room.title, room.vram_bytes, pinned=room.stop is None, reserved=True, stop=room.stop)
        held.state, held.last_used = State.WARM, float("-inf")
        for other in self._held.values():
            other.loads_alone = False
        self._held[key] = held
        waiter.future.set_result(Reservation(self, held))

    def _load(self, load: Load) -> None:
        # The bytes are booked before the first await: a plan may be made while the load runs.
        spec = self._entries[load.specialist].spec.loaded_as(load.specialist)
        need = self._need_bytes(load.specialist)
        first = all(held.group != load.group for held in self._held.values())
        held = _Held(
            f"{load.group} {next(self._ids)}",
            load.group,
            spec.title,
            need,
            first and self._is_pinned(load.group),  # of several that share, one is enough
            load.specialist,
            spec.sharing is not None,
            spec.parallel,
            last_progress=self._clock(),
        )
        for other in self._held.values():
            if other.state is State.LOADING:
                other.loads_alone = held.loads_alone = False
            elif other.reserved:
                held.loads_alone = False
        self._held[held.key] = held
        held.work = asyncio.create_task(self._load_now(held, spec))

    def _is_pinned(self, group: str) -> bool:
        return any(entry.pinned for entry in self._entries.values() if entry.spec.group == group)

    async def _load_now(self, held: _Held, spec: LoadSpec) -> None:
        started = self._clock()
        policies = {name: e.thinking for name, e in self._entries.items() if e.spec.group == held.group}

        def note(fraction: float) -> None:
            held.progress, held.last_progress = fraction, self._clock()

        try:
            before = await self._free_now() if held.group not in self._asked_device else None
            resident = await asyncio.wait_for(self._start(spec, policies, note), self.limits.load_timeout_s)
        except TimeoutError:
            self._load_failed(
                held,
                LoadError(
                    f"{held.title} did not load within {self.limits.load_timeout_s:.0f} s.",
                    "Raise pool.load_timeout_s if the disk is slow.",
                ),
            )
            return
        except EngineError as error:
            self._load_failed(held, error)
            return
        except asyncio.CancelledError:
            del self._held[held.key]
            raise
        except Exception as error:
            _log.exception("loading %s", held.title)
            self._load_failed(held, LoadError(f"{held.title} did not load: {error!r}."))
            return
        held.resident = resident
        held.stop = resident.stop
        held.loaded_in_s = self._clock() - started
        measured = resident.memory_bytes
        after = await self._free_now() if before is not None else None
        if before is not None and after is not None and held.loads_alone:
            measured = before - after
            if measured <= self.limits.budget_bytes:  # else it may be somebody else's memory too: see _need_bytes
                self._asked_device.add(held.group)
                if self._measured.pop(held.group, None) is not None and held.specialist in self._entries:
                    held.vram_bytes = self._need_bytes(held.specialist)
        self._correct(held, measured)
        held.state, held.last_used, held.warm_since = State.WARM, self._clock(), self._clock()
        held.work = asyncio.create_task(self._watch(held))
        self._failures.pop(held.group, None)
        self._load_s[held.group] = held.loaded_in_s
        self.loads += 1
        _log.info("loaded %s in %.1f s, %s booked", held.title, held.loaded_in_s, size_text(held.vram_bytes))
        self._replan()

    async def _free_now(self) -> int | None:
        """The device's free memory; None when nobody can tell, which is no reason to fail a load."""
        if self._free_bytes is None:
            return None
        try:
            free = await self._free_bytes()
        except EngineError as error:
            _log.warning("free memory cannot be measured: %s", error)
            return None
        if free is None:  # there is no device, and none will come
            self._free_bytes = None
        return free

    def _correct(self, held: _Held, measured: int | None) -> None:
        """Trust a measurement above the prediction; one below may only mean that pages are not touched yet."""
        if measured is not None and measured > held.vram_bytes:
            _log.warning(
                "%s takes %s, %s more than predicted",
                held.title,
                size_text(measured),
                size_text(measured - held.vram_bytes),
            )
            held.vram_bytes = self._measured[held.group] = measured

    def _load_failed(self, held: _Held, error: EngineError) -> None:
        del self._held[held.key]
        self.failed_loads += 1
        last = self._failures.get(held.group)
        count = last.count + 1 if last else 1
        pause = min(60.0, self.limits.load_backoff_s * 2 ** (count - 1))
        self._failures[held.group] = _Failure(error, self._clock() + pause, count)
        _log.error("loading %s failed: %s", held.title, error)
        # Where others of its group are there, those who wait are served all the same.
        alone = all(other.group != held.group for other in self._held.values())
        failed = [waiter for waiter in self._waiters if alone and self._waiter_group(waiter) == held.group]
        self._waiters = [waiter for waiter in self._waiters if waiter not in failed]
        for waiter in failed:
            waiter.future.set_exception(error)
            waiter.future.exception()  # its owner may have gone
        self._replan()

    async def _watch(self, held: _Held) -> None:
        """A worker that ends on its own leaves the pool at once; the next request starts another."""
        assert held.resident is not None
        await held.resident.wait_gone()
        if self._held.get(held.key) is held and held.state is not State.DRAINING and not self._closed:
            _log.error("the worker of %s died", held.title)
            self._drop(held)
            self._replan()

    def _drop(self, held: _Held) -> None:
        """Forget a resident that is gone, but not what it has done."""
        del self._held[held.key]
        if speed := held.activity.get("prompt_tokens_per_s"):
            self._prompt_speed[held.group] = speed
        for name in COUNTED if held.is_shared else ():
            self._ended[held.title, name] += held.activity.get(name, 0)

    def _evict(self, held: _Held, why: str) -> None:
        assert not held.leases
        held.state = State.DRAINING
        self.evictions += 1
        _log.info("stopping %s: %s", held.title, why)
        held.work = asyncio.create_task(self._stop(held))

    async def _stop(self, held: _Held) -> None:
        assert held.stop is not None
        try:
            await held.stop()
        finally:
            # Only now is the memory back.
            if self._held.get(held.key) is held:
                self._drop(held)
            self._replan()

    # --- life -------------------------------------------------------------------------------------------------

    def serve(self, entries: Mapping[str, Entry]) -> None:
        """Serve these specialists from the next request on, and no others; known ones perhaps in another way.

        Residents that nobody can ask for any more end what they are doing, and go. Whoever waits for a specialist that
        is not among them is refused.
        """
        changed = [entry.spec.group for name, entry in entries.items() if entry != self._entries.get(name)]
        self._entries = dict(entries)
        for group in changed:
            self._failures.pop(group, None)
            self._measured.pop(group, None)
            self._asked_device.discard(group)
        for waiter in [w for w in self._waiters if w.room is None and w.specialist not in entries]:
            self._waiters.remove(waiter)
            waiter.future.set_exception(_unserved(waiter.specialist))
            waiter.future.exception()  # its owner may have gone
        self._replan()

    def is_resident(self, specialist: str) -> bool:
        """Whether a resident is there, or on its way, that can become the specialist."""
        return any(held.group == self._group(specialist) for held in self._held.values())

    def shared_with(self, specialist: str) -> tuple[str, ...]:
        """Everybody who is served by the specialist's residents, itself among them."""
        return tuple(name for name, entry in self._entries.items() if entry.spec.group == self._group(specialist))

    def is_busy(self) -> bool:
        """Whether anybody is being served, or waits to be."""
        return bool(self._waiters) or any(held.leases for held in self._held.values())

    async def unload(self, specialist: str) -> bool:
        """Stop a specialist's idle residents, shared ones too; False when one is busy, or none is there."""
        residents = [held for held in self._held.values() if held.group == self._group(specialist)]
        if not residents or any(held.state is not State.WARM or held.leases for held in residents):
            return False
        for held in residents:
            self._evict(held, "asked to")
        for held in residents:
            assert held.work is not None
            await asyncio.shield(held.work)
        return True

    async def close(self) -> None:
        """Refuse what waits, stop every resident."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for waiter in (*self._waiters, *self._waits_for_idle):
            if not waiter.future.done():
                waiter.future.set_exception(UnavailableError("The server is shutting down."))
                waiter.future.exception()
        self._waiters = []
        self._waits_for_idle = []
        loading = [h.work for h in self._held.values() if h.state is State.LOADING and h.work]
        for task in loading:
            task.cancel()
        await asyncio.gather(*loading, return_exceptions=True)
        await asyncio.gather(*(held.stop() for held in self._held.values() if held.stop), return_exceptions=True)
        tasks = [held.work for held in self._held.values() if held.work]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._held.clear()

    def status(self) -> PoolStatus:
        """What is resident, booked and waiting."""
        now = self._clock()
        stalled = []
        residents = []
        for held in self._held.values():
            names = tuple(name for name, entry in self._entries.items() if entry.spec.group == held.group)
            loading = held.state is State.LOADING
            silent = now - held.last_progress if loading else held.resident.silent_s() if held.resident else 0.0
            if silent > self.limits.stall_s:
                stalled.append(f"{held.title} shows no progress for {silent:.0f} s while {held.state.value}")
            residents.append(
                ResidentStatus(
                    names,
                    held.specialist,
                    held.title,
                    held.state,
                    held.vram_bytes,
                    held.leases,
                    held.capacity,
                    now - held.last_used if held.state is State.WARM and not held.leases and not held.reserved else 0.0,
                    1.0 if not loading else held.progress,
                    held.loaded_in_s,
                    held.pinned,
                    held.activity,
                )
            )
        counted = dict(self._ended)
        for held in self._held.values():
            if held.is_shared:
                for name in COUNTED:
                    counted[held.title, name] = counted.get((held.title, name), 0) + held.activity.get(name, 0)
        return PoolStatus(
            self.limits.budget_bytes,
            sum(held.vram_bytes for held in self._held.values()),
            tuple(residents),
            tuple(waiter.specialist for waiter in self._waiters),
            max((now - waiter.since for waiter in self._waiters), default=0.0),
            self.loads,
            self.failed_loads,
            self.evictions,
            tuple(stalled),
            counted,
        )
