"""Who is served, loaded and evicted next: pure decisions over plain values. The pool carries them out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """Where a resident is in its life; its bytes are booked in every one of them."""

    LOADING = "loading"
    WARM = "warm"
    DRAINING = "draining"  # it is being stopped; its bytes come back when its process has ended


@dataclass(frozen=True)
class ResidentView:
    """What admission has to know of a resident. last_used: seconds of a monotonic clock."""

    key: str
    state: State
    vram_bytes: int
    leases: int
    capacity: int
    last_used: float
    pinned: bool = False

    @property
    def idle(self) -> bool:
        """Whether it may be evicted."""
        return self.state is State.WARM and not self.leases and not self.pinned


@dataclass(frozen=True)
class WaiterView:
    """A request that waits for a lease on `key`, and what loading that would take.

    bypassed_s: for how long others may have been passing it; a time in which nothing could be served does not count.
    """

    id: int
    key: str
    need_bytes: int
    bypassed_s: float


@dataclass(frozen=True)
class Plan:
    """What to do now: waiters to serve, residents to stop, keys to load."""

    grants: tuple[int, ...] = ()
    evict: tuple[str, ...] = ()
    load: tuple[str, ...] = ()


def plan_evictions(need_bytes: int, residents: Sequence[ResidentView], budget_bytes: int) -> list[str] | None:
    """Keys of idle residents to stop so that need_bytes fit, least recently used first; [] when nothing has to go.

    Residents that are being stopped already count as room to come. None while busy or pinned residents are in the way.
    """
    used = sum(resident.vram_bytes for resident in residents if resident.state is not State.DRAINING)
    victims: list[str] = []
    for resident in sorted((r for r in residents if r.idle), key=lambda r: r.last_used):
        if used + need_bytes <= budget_bytes:
            break
        victims.append(resident.key)
        used -= resident.vram_bytes
    return victims if used + need_bytes <= budget_bytes else None


def closed_to_newcomers(
    waiters: Sequence[WaiterView], residents: Sequence[ResidentView], budget_bytes: int, max_bypass_s: float
) -> tuple[frozenset[str], frozenset[int]]:
    """Residents that take no more newcomers, because the oldest waiter's bound has passed and it needs their room.

    Gives them, and the ids of the waiters who are no newcomers: they came before the overdue one, and still pass.
    Those that will be free soonest go first: idle ones, then those with the fewest leases.
    """
    present = {resident.key for resident in residents if resident.state is not State.DRAINING}
    place = next(
        (i for i, w in enumerate(waiters) if w.bypassed_s >= max_bypass_s and w.key not in present), len(waiters)
    )
    if place == len(waiters):
        return frozenset(), frozenset()
    overdue = waiters[place]
    used = sum(r.vram_bytes for r in residents if r.state is not State.DRAINING)
    closed: set[str] = set()
    candidates = [r for r in residents if r.state is State.WARM and not r.pinned]
    for resident in sorted(candidates, key=lambda r: (r.leases, r.last_used)):
        if used + overdue.need_bytes <= budget_bytes:
            break
        closed.add(resident.key)
        used -= resident.vram_bytes
    return frozenset(closed), frozenset(waiter.id for waiter in waiters[:place])


def plan(
    waiters: Sequence[WaiterView],
    residents: Sequence[ResidentView],
    budget_bytes: int,
    *,
    max_bypass_s: float,
) -> Plan:
    """The next actions. waiters: oldest first.

    Requests for what is resident pass those that need a load, until the oldest of these was passed for max_bypass_s:
    then the residents in its way take no more requests from behind it, end what they do, and go. Loads start in the
    order of their oldest waiter; a later one never takes the room that an earlier one waits for. When more is booked
    than the budget holds (a load took more than predicted), idle residents go until it fits.
    """
    closed, ahead = closed_to_newcomers(waiters, residents, budget_bytes, max_bypass_s)
    by_key = {resident.key: resident for resident in residents}
    leases = {resident.key: resident.leases for resident in residents}
    grants: list[int] = []
    for waiter in waiters:
        resident = by_key.get(waiter.key)
        if resident is None or resident.state is not State.WARM or (waiter.key in closed and waiter.id not in ahead):
            continue
        if leases[waiter.key] < resident.capacity:
            leases[waiter.key] += 1
            grants.append(waiter.id)

    evict: list[str] = []
    load: list[str] = []
    booked = sum(resident.vram_bytes for resident in residents)
    after = [_with_leases(resident, leases[resident.key]) for resident in residents]
    if booked > budget_bytes:
        evict.extend(plan_evictions(0, after, budget_bytes) or ())
        return Plan(tuple(grants), tuple(evict))
    for waiter in waiters:
        if waiter.key in by_key or waiter.key in load:
            continue
        if booked + waiter.need_bytes <= budget_bytes:
            load.append(waiter.key)
            booked += waiter.need_bytes
            after.append(ResidentView(waiter.key, State.LOADING, waiter.need_bytes, 0, 1, 0.0))
            continue
        evict.extend(plan_evictions(waiter.need_bytes, after, budget_bytes) or ())
        break  # what frees up is this waiter's; those behind it wait for the next plan
    return Plan(tuple(grants), tuple(evict), tuple(load))


def _with_leases(view: ResidentView, leases: int) -> ResidentView:
    return ResidentView(view.key, view.state, view.vram_bytes, leases, view.capacity, view.last_used, view.pinned)


def expired(residents: Collection[ResidentView], now: float, idle_ttl_s: float | None) -> list[str]:
    """Keys of residents that nobody has used for idle_ttl_s."""
    if idle_ttl_s is None:
        return []
    return [resident.key for resident in residents if resident.idle and now - resident.last_used >= idle_ttl_s]
