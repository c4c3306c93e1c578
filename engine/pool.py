"""The owner of all residents: queues requests, books memory, and carries out what `admission` decides."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .admission import Plan, ResidentView, State, WaiterView, expired, plan
from .errors import (
    EngineError,
    LoadError,
    QueueFullError,
    UnavailableError,
    WaitTimeoutError,
)
from .request import Event, GenerateRequest
from .resident import Resident
from .spec import LoadSpec, Thinking
from .units import size_text

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One specialist as the pool sees it: what to load, what that takes, and whether it may be evicted."""

    spec: LoadSpec
    vram_bytes: int
    thinking: Thinking = field(default_factory=Thinking)
    pinned: bool = False


@dataclass(frozen=True)
class PoolSettings:
    """Bounds of the pool. max_bypass_s: how long requests for what is resident may pass a waiting one."""

    budget_bytes: int
    max_queue: int = 64
    max_bypass_s: float = 10.0
    idle_ttl_s: float | None = None
    load_timeout_s: float = 600.0
    quiet_s: float = 60.0  # nothing was asked for so long: idle time, in which a reservation may wait for its room
    load_backoff_s: float = 5.0  # after a failed load; doubles with each further failure, up to a minute
    stall_s: float = 120.0  # loading or decoding without a sign of progress for so long is a stall


Stop = Callable[[], Awaitable[None]]  # returns when the memory is back


class Starter(Protocol):
    """Makes a resident of a spec; WorkerResident.start is one."""

    def __call__(
        self, spec: LoadSpec, policies: Mapping[str, Thinking], on_progress: Callable[[float], None]
    ) -> Awaitable[Resident]:
        """Raises EngineError when the load fails."""
        ...


@dataclass
class _Held:
    """A resident, or a reservation, and what the pool keeps of it. vram_bytes: predicted, or measured where more."""

    key: str
    title: str  # the file's name, or what room is reserved for
    vram_bytes: int
    pinned: bool
    capacity: int = 1
    reserved: bool = False
    stop: Stop | None = None
    state: State = State.LOADING
    resident: Resident | None = None
    leases: int = 0
    last_used: float = 0.0
    progress: float = 0.0
    last_progress: float = 0.0
    loaded_in_s: float | None = None
    warm_since: float = 0.0
    loads_alone: bool = True  # nothing else is loaded meanwhile, so the device's free memory tells what it takes
    work: asyncio.Task[None] | None = None

    def view(self) -> ResidentView:
        return ResidentView(
            self.key, self.state, self.vram_bytes, self.leases, self.capacity, self.last_used, self.pinned
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
    key: str
    since: float
    future: asyncio.Future[Any]  # of a Lease, or of a Reservation where there is a room
    found: _Held | None = None  # the resident that was warm when the request came
    room: _Room | None = None


@dataclass(frozen=True)
class _Failure:
    error: EngineError
    until: float
    count: int


class Lease:
    """A request's hold on a resident: it is not evicted meanwhile. Release it exactly when the last byte is out."""

    def __init__(self, pool: Pool, held: _Held, specialist: str, residency: str, waited_s: float) -> None:
        self._pool = pool
        self._held: _Held | None = held
        self.specialist = specialist
        self.residency = residency  # warm, or loaded when the request had to wait for a load
        self.waited_s = waited_s

    def generate(self, request: GenerateRequest) -> AsyncIterator[Event]:
        """See Resident.generate."""
        assert self._held is not None, "the lease was released"
        assert self._held.resident is not None
        return self._held.resident.generate(request)

    def release(self) -> None:
        """End the hold; a second call does nothing."""
        if self._held is not None:
            held, self._held = self._held, None
            self._pool._release(held)


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


@dataclass(frozen=True)
class ResidentStatus:
    """For /v1/pool. A reservation stands among the residents, without specialists and with its title as the file."""

    specialists: tuple[str, ...]
    file: str
    state: State
    vram_bytes: int
    leases: int
    capacity: int
    idle_s: float
    progress: float
    loaded_in_s: float | None
    pinned: bool


@dataclass(frozen=True)
class PoolStatus:
    """For /v1/pool, /ready and /metrics."""

    budget_bytes: int
    booked_bytes: int
    residents: tuple[ResidentStatus, ...]
    waiting: tuple[str, ...]
    oldest_wait_s: float
    loads: int
    failed_loads: int
    evictions: int
    stalled: tuple[str, ...]


class Pool:
    """Residents under a budget. All methods belong to one event loop."""

    def __init__(
        self,
        entries: Mapping[str, Entry],
        settings: PoolSettings,
        start: Starter,
        *,
        clock: Callable[[], float] = time.monotonic,
        free_bytes: Callable[[], Awaitable[int | None]] | None = None,
    ) -> None:
        """free_bytes: the device's own free memory, asked before and after a load; None leaves it to the worker."""
        self._entries = dict(entries)
        self.settings = settings
        self._start = start
        self._clock = clock
        self._free_bytes = free_bytes
        self._held: dict[str, _Held] = {}
        self._waiters: list[_Waiter] = []
        self._patient: list[_Waiter] = []  # reservations that wait for idle time before they wait for room
        self._last_busy = clock()
        self._failures: dict[str, _Failure] = {}
        self._measured: dict[str, int] = {}  # bytes of specs that took more than predicted
        self._ids = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.loads = self.failed_loads = self.evictions = 0

    # --- leases -----------------------------------------------------------------------------------------------

    def is_warm(self, specialist: str) -> bool:
        """Whether a request for the specialist would need no load."""
        held = self._held.get(self._key(specialist))
        return held is not None and held.state is State.WARM

    def _key(self, specialist: str) -> str:
        return repr(self._entries[specialist].spec)

    def _wanted_bytes(self, waiter: _Waiter) -> int:
        return waiter.room.vram_bytes if waiter.room is not None else self._need_bytes(waiter.specialist)

    def _need_bytes(self, specialist: str) -> int:
        # A measurement above the whole budget may be somebody else's memory: it is tried again, alone.
        measured = min(self._measured.get(self._key(specialist), 0), self.settings.budget_bytes)
        return max(self._entries[specialist].vram_bytes, measured)

    async def lease(self, specialist: str, *, max_wait_s: float) -> Lease:
        """A hold on a resident that serves the specialist, loaded if need be.

        Raises UnavailableError when it can never fit, QueueFullError, WaitTimeoutError, or the error of its load.
        Cancelling the call gives the place in the queue back.
        """
        if specialist not in self._entries:
            raise UnavailableError(f"{specialist} cannot be served.", "See GET /v1/models for the reason.")
        if self._closed:
            raise UnavailableError("The server is shutting down.", "Try again when it is back.")
        key = self._key(specialist)
        self._refuse_impossible(
            specialist,
            key,
            self._need_bytes(specialist),
            "Lower its context_tokens, choose a smaller quantisation, or raise pool.vram_budget.",
        )
        if (failure := self._failures.get(key)) and self._clock() < failure.until:
            left = failure.until - self._clock()
            raise LoadError(
                f"{specialist} failed to load: {failure.error.message}", f"The next try may be in {left:.0f} s."
            )
        held = self._held.get(key) if self.is_warm(specialist) else None
        waiter = _Waiter(
            next(self._ids), specialist, key, self._clock(), asyncio.get_running_loop().create_future(), held
        )
        if len(self._waiters) >= self.settings.max_queue and waiter.id not in self._decide(waiter).grants:
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

    def _refuse_impossible(self, who: str, key: str, need: int, remedy: str) -> None:
        kept = [held for held in self._held.values() if held.pinned and held.key != key]
        kept_bytes = sum(held.vram_bytes for held in kept)
        if need + kept_bytes > self.settings.budget_bytes:
            rooms = [held.title for held in kept if held.reserved]
            how = f"held by {', '.join(rooms)}" if rooms else "pinned"
            aside = f", {size_text(kept_bytes)} of them {how}" if kept else ""
            raise UnavailableError(
                f"{who} needs {size_text(need)}; the budget is {size_text(self.settings.budget_bytes)}{aside}.", remedy
            )

    async def reserve(
        self, title: str, vram_bytes: int, *, when_quiet: bool = False, stop: Stop | None = None
    ) -> Reservation:
        """Room for something that is no resident; waits for it as a request does, but without an end.

        when_quiet: waits first until nothing has been asked for `quiet_s`.
        stop:       called when a request needs the room, before any resident has to go; without it the room is kept.
        Raises UnavailableError when it can never fit. Cancelling the call gives the place in the queue back.
        """
        if self._closed:
            raise UnavailableError("The server is shutting down.", "Try again when it is back.")
        key = f"reserved: {title}"
        self._refuse_impossible(title, key, vram_bytes, "Raise pool.vram_budget, or unpin a model.")
        future: asyncio.Future[Reservation] = asyncio.get_running_loop().create_future()
        room = _Room(title, vram_bytes, stop)
        waiter = _Waiter(next(self._ids), title, key, self._clock(), future, room=room)
        (self._patient if when_quiet else self._waiters).append(waiter)
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
        for queue in (self._waiters, self._patient):
            if waiter in queue:
                queue.remove(waiter)
        if waiter.future.done():
            if not waiter.future.cancelled() and waiter.future.exception() is None:
                waiter.future.result().release()  # granted at the very moment it was given up
        else:
            waiter.future.cancel()
        self._replan()

    def _release(self, held: _Held) -> None:
        held.leases -= 1
        held.last_used = self._last_busy = self._clock()
        self._replan()

    # --- carrying out -----------------------------------------------------------------------------------------

    def _replan(self) -> None:
        """Ask admission what to do now, and do it. Called after every change."""
        if self._closed:
            return
        now = self._clock()
        self._call_the_patient(now)
        self._carry_out(self._decide())
        if not self._waiters:
            residents = [held.view() for held in self._held.values() if not held.reserved]
            for key in expired(residents, now, self.settings.idle_ttl_s):
                self._evict(self._held[key], "idle")
        self._set_timer()

    def _call_the_patient(self, now: float) -> None:
        """In idle time, who waits for it joins those who wait for room."""
        if self._waiters or any(h.state is State.LOADING or h.leases for h in self._held.values()):
            self._last_busy = now
        elif self._patient and now - self._last_busy >= self.settings.quiet_s:
            self._waiters.append(self._patient.pop(0))

    def _decide(self, *newcomers: _Waiter) -> Plan:
        """What admission says of those who wait, and of newcomers behind them."""
        now, since = self._clock(), self._passing_since()
        waiters = [
            WaiterView(w.id, w.key, self._wanted_bytes(w), now - max(w.since, since))
            for w in (*self._waiters, *newcomers)
        ]
        views = [held.view() for held in self._held.values()]
        return plan(waiters, views, self.settings.budget_bytes, max_bypass_s=self.settings.max_bypass_s)

    def _passing_since(self) -> float:
        """When the newest resident became warm: before that its requests passed nobody.

        Without this a load that lasts longer than max_bypass_s would be undone before it has served anyone.
        """
        return max((held.warm_since for held in self._held.values() if held.state is State.WARM), default=0.0)

    def _carry_out(self, decided: Plan) -> None:
        granted = {waiter.id: waiter for waiter in self._waiters if waiter.id in decided.grants}
        self._waiters = [waiter for waiter in self._waiters if waiter.id not in granted]
        for waiter in granted.values():
            held = self._held[waiter.key]
            held.leases += 1
            held.last_used = self._clock()
            residency = "warm" if waiter.found is held else "loaded"
            waiter.future.set_result(Lease(self, held, waiter.specialist, residency, self._clock() - waiter.since))
        for key in decided.evict:
            self._evict(self._held[key], "to make room")
        for key in decided.load:
            waiter = next(waiter for waiter in self._waiters if waiter.key == key)
            if waiter.room is not None:
                self._book(waiter, waiter.room)
            else:
                self._load(waiter.specialist, key)

    def _set_timer(self) -> None:
        """Look again when the oldest waiter's bound passes, or when the next idle resident expires."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock()
        since = self._passing_since()
        moments = [max(w.since, since) + self.settings.max_bypass_s for w in self._waiters]
        if self.settings.idle_ttl_s is not None:
            idle = [held for held in self._held.values() if held.view().idle and not held.reserved]
            moments += [held.last_used + self.settings.idle_ttl_s for held in idle]
        if self._patient:
            moments.append(self._last_busy + self.settings.quiet_s)
        future = [moment for moment in moments if moment > now]
        if future:
            self._timer = asyncio.get_running_loop().call_later(min(future) - now + 0.001, self._replan)

    def _book(self, waiter: _Waiter, room: _Room) -> None:
        """A reservation that may be stopped counts as idle, and as used by nobody for the longest: it goes first."""
        self._waiters.remove(waiter)
        kept = room.stop is None
        held = _Held(waiter.key, room.title, room.vram_bytes, kept, reserved=True, stop=room.stop, state=State.WARM)
        held.last_used = float("-inf")
        for other in self._held.values():
            other.loads_alone = False
        self._held[waiter.key] = held
        waiter.future.set_result(Reservation(self, held))

    def _load(self, specialist: str, key: str) -> None:
        # The bytes are booked before the first await: a plan may be made while the load runs.
        spec, need = self._entries[specialist].spec, self._need_bytes(specialist)
        held = _Held(key, spec.path.name, need, self._is_pinned(key), spec.parallel, last_progress=self._clock())
        for other in self._held.values():
            if other.state is State.LOADING:
                other.loads_alone = held.loads_alone = False
            elif other.reserved:
                held.loads_alone = False
        self._held[key] = held
        held.work = asyncio.create_task(self._load_now(held, spec))

    def _is_pinned(self, key: str) -> bool:
        return any(entry.pinned for name, entry in self._entries.items() if self._key(name) == key)

    async def _load_now(self, held: _Held, spec: LoadSpec) -> None:
        started = self._clock()
        policies = {name: e.thinking for name, e in self._entries.items() if self._key(name) == held.key}

        def note(fraction: float) -> None:
            held.progress, held.last_progress = fraction, self._clock()

        try:
            before = await self._free_now()
            resident = await asyncio.wait_for(self._start(spec, policies, note), self.settings.load_timeout_s)
        except TimeoutError:
            self._load_failed(
                held,
                LoadError(
                    f"{held.title} did not load within {self.settings.load_timeout_s:.0f} s.",
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
        self._correct(held, measured)
        held.state, held.last_used, held.warm_since = State.WARM, self._clock(), self._clock()
        held.work = asyncio.create_task(self._watch(held))
        self._failures.pop(held.key, None)
        self.loads += 1
        _log.info("loaded %s in %.1f s, %s booked", held.title, held.loaded_in_s, size_text(held.vram_bytes))
        self._replan()

    async def _free_now(self) -> int | None:
        """The device's free memory; None when nobody can tell, which is no reason to fail a load."""
        if self._free_bytes is None:
            return None
        try:
            return await self._free_bytes()
        except EngineError as error:
            _log.warning("free memory cannot be measured: %s", error)
            return None

    def _correct(self, held: _Held, measured: int | None) -> None:
        """Trust a measurement above the prediction; one below may only mean that pages are not touched yet."""
        if measured is not None and measured > held.vram_bytes:
            _log.warning(
                "%s takes %s, %s more than predicted",
                held.title,
                size_text(measured),
                size_text(measured - held.vram_bytes),
            )
            held.vram_bytes = self._measured[held.key] = measured

    def _load_failed(self, held: _Held, error: EngineError) -> None:
        del self._held[held.key]
        self.failed_loads += 1
        last = self._failures.get(held.key)
        count = last.count + 1 if last else 1
        pause = min(60.0, self.settings.load_backoff_s * 2 ** (count - 1))
        self._failures[held.key] = _Failure(error, self._clock() + pause, count)
        _log.error("loading %s failed: %s", held.title, error)
        failed = [waiter for waiter in self._waiters if waiter.key == held.key]
        self._waiters = [waiter for waiter in self._waiters if waiter.key != held.key]
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
            del self._held[held.key]
            self._replan()

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
                del self._held[held.key]
            self._replan()

    # --- life -------------------------------------------------------------------------------------------------

    async def preload(self, specialists: Sequence[str], *, max_wait_s: float) -> dict[str, EngineError]:
        """Load specialists before anybody asks; gives the errors of those that failed."""
        failed: dict[str, EngineError] = {}
        for name in specialists:
            try:
                (await self.lease(name, max_wait_s=max_wait_s)).release()
            except EngineError as error:
                failed[name] = error
        return failed

    def add(self, specialist: str, entry: Entry) -> None:
        """Serve one more specialist, or one in another way, from the next request on."""
        self._entries[specialist] = entry
        self._failures.pop(self._key(specialist), None)
        self._measured.pop(self._key(specialist), None)

    async def unload(self, specialist: str) -> bool:
        """Stop the idle resident of a specialist; False when it is busy or not there."""
        held = self._held.get(self._key(specialist))
        if held is None or held.state is not State.WARM or held.leases:
            return False
        self._evict(held, "asked to")
        assert held.work is not None
        await asyncio.shield(held.work)
        return True

    async def close(self) -> None:
        """Refuse what waits, stop every resident."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for waiter in (*self._waiters, *self._patient):
            if not waiter.future.done():
                waiter.future.set_exception(UnavailableError("The server is shutting down."))
                waiter.future.exception()
        self._waiters = []
        self._patient = []
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
            names = tuple(name for name in self._entries if self._key(name) == held.key)
            loading = held.state is State.LOADING
            silent = now - held.last_progress if loading else held.resident.silent_s() if held.resident else 0.0
            if silent > self.settings.stall_s:
                stalled.append(f"{held.title} shows no progress for {silent:.0f} s while {held.state.value}")
            residents.append(
                ResidentStatus(
                    names,
                    held.title,
                    held.state,
                    held.vram_bytes,
                    held.leases,
                    held.capacity,
                    now - held.last_used if held.state is State.WARM and not held.leases and not held.reserved else 0.0,
                    1.0 if not loading else held.progress,
                    held.loaded_in_s,
                    held.pinned,
                )
            )
        return PoolStatus(
            self.settings.budget_bytes,
            sum(held.vram_bytes for held in self._held.values()),
            tuple(residents),
            tuple(waiter.specialist for waiter in self._waiters),
            max((now - waiter.since for waiter in self._waiters), default=0.0),
            self.loads,
            self.failed_loads,
            self.evictions,
            tuple(stalled),
        )
