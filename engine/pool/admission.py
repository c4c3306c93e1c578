"""Who is served, loaded and evicted next: pure decisions over plain values. The pool carries them out.

Residents of one *group* stand in for each other: each can become any specialist of the group in place. A specialist
that shares with nobody is the only one of its group, and has one resident at most.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from .placement import Affinity, Distances, Option, choose_resident


class State(StrEnum):
    """Where a resident is in its life; its bytes are booked in every one of them."""

    LOADING = "loading"
    WARM = "warm"
    DRAINING = "draining"  # it is being stopped; its bytes come back when its process has ended


@dataclass(frozen=True)
class ResidentView:
    """What admission has to know of a resident. last_used: seconds of a monotonic clock.

    capacity:   leases that each specialist may have at a time.
    specialist: which it is, will be once it is loaded, or was last told to become.
    shares:     leases of each specialist, where several share it.
    """

    key: str
    state: State
    vram_bytes: int
    leases: int
    capacity: int
    last_used: float
    pinned: bool = False
    group: str = ""
    specialist: str = ""
    shares: Mapping[str, int] = field(default_factory=dict)

    def has_place(self, specialist: str, distances: Distances) -> bool:
        """Whether one more request for a specialist may be given to it. What the others have does not count: they take
        turns with it."""
        if not self.shares:
            return self.leases < self.capacity
        same = (count for name, count in self.shares.items() if distances.between(name, specialist) == 0)
        return sum(same) < self.capacity

    @property
    def idle(self) -> bool:
        """Whether it may be evicted."""
        return self.state is State.WARM and not self.leases and not self.pinned


@dataclass(frozen=True)
class WaiterView:
    """A request that waits for a lease, and what loading a resident for it would take.

    bypassed_s: for how long others may have been passing it; a time in which nothing could be served does not count.
    affinity: who has its conversation in the cache, where that is known.
    """

    id: int
    group: str
    need_bytes: int
    bypassed_s: float
    specialist: str = ""
    affinity: Affinity | None = None


@dataclass(frozen=True)
class GroupView:
    """Specialists that can share residents. most: residents there may be of it.

    distances: bytes that a swap between two of them changes.
    """

    distances: Distances = field(default_factory=Distances)
    most: int = 1


@dataclass(frozen=True)
class Grant:
    """A waiter gets its lease on a resident, which becomes the waiter's specialist if it is another one."""

    waiter: int
    resident: str


@dataclass(frozen=True)
class Load:
    """A resident of a group is to be loaded as one of its specialists."""

    group: str
    specialist: str


@dataclass(frozen=True)
class Plan:
    """What to do now: waiters to serve, residents to stop, residents to load."""

    grants: tuple[Grant, ...] = ()
    evict: tuple[str, ...] = ()
    load: tuple[Load, ...] = ()


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
    present = {resident.group for resident in residents if resident.state is not State.DRAINING}
    place = next(
        (i for i, w in enumerate(waiters) if w.bypassed_s >= max_bypass_s and w.group not in present), len(waiters)
    )
    if place == len(waiters):
        return frozenset(), frozenset()
    overdue = waiters[place]
    used = sum(r.vram_bytes for r in residents if r.state is not State.DRAINING)
    closed: set[str] = set()
    options = [r for r in residents if r.state is State.WARM and not r.pinned]
    for resident in sorted(options, key=lambda r: (r.leases, r.last_used)):
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
    groups: Mapping[str, GroupView] | None = None,
) -> Plan:
    """The next actions. waiters: oldest first. groups: those that several specialists share.

    Requests for what is resident pass those that need a load, until the oldest of these was passed for max_bypass_s:
    then the residents in its way take no more requests from behind it, end what they do, and go. Loads start in the
    order of their oldest waiter; a later one never takes the room that an earlier one waits for. When more is booked
    than the budget holds (a load took more than predicted), idle residents go until it fits.

    A shared resident is changed rather than another loaded: that is quicker. Where there is room that nobody waits for,
    another one is loaded all the same, so that the next request finds its specialist as it left it.
    """
    groups = groups or {}
    seats = {resident.key: resident for resident in residents}
    grants = _grant(waiters, seats, groups, *closed_to_newcomers(waiters, residents, budget_bytes, max_bypass_s))
    booked = sum(resident.vram_bytes for resident in residents)
    if booked > budget_bytes:
        return Plan(grants, tuple(plan_evictions(0, list(seats.values()), budget_bytes) or ()))
    present = {resident.group for resident in residents}
    loads: list[Load] = []
    for waiter in waiters:
        if waiter.group in present:
            continue
        if booked + waiter.need_bytes > budget_bytes:
            # What frees up is this waiter's; those behind it wait for the next plan.
            coming = [ResidentView("", State.LOADING, booked - sum(r.vram_bytes for r in residents), 0, 1, 0.0)]
            evict = plan_evictions(waiter.need_bytes, [*seats.values(), *coming], budget_bytes) or ()
            return Plan(grants, tuple(evict), tuple(loads))
        loads.append(Load(waiter.group, waiter.specialist))
        present.add(waiter.group)
        booked += waiter.need_bytes
    loads += _spread(waiters, residents, seats, loads, groups, budget_bytes - booked)
    return Plan(grants, (), tuple(loads))


def _grant(
    waiters: Sequence[WaiterView],
    seats: dict[str, ResidentView],
    groups: Mapping[str, GroupView],
    closed: Collection[str],
    ahead: Collection[int],
) -> tuple[Grant, ...]:
    """Who is served now, and by whom; notes in `seats` what becomes of the residents."""
    grants = []
    for waiter in waiters:
        distances = groups.get(waiter.group, GroupView()).distances
        able = {
            seat.key: Option(seat.specialist, seat.leases, seat.last_used)
            for seat in seats.values()
            if seat.group == waiter.group and seat.state is State.WARM and seat.has_place(waiter.specialist, distances)
            if seat.key not in closed or waiter.id in ahead
        }
        key = choose_resident(waiter.specialist, able, distances, waiter.affinity)
        if key is not None:
            seat, name = seats[key], waiter.specialist
            shares = {**seat.shares, name: seat.shares.get(name, 0) + 1} if waiter.group in groups else seat.shares
            seats[key] = replace(seat, leases=seat.leases + 1, specialist=name, shares=shares)
            grants.append(Grant(waiter.id, key))
    return tuple(grants)


def _spread(
    waiters: Sequence[WaiterView],
    before: Sequence[ResidentView],
    seats: Mapping[str, ResidentView],
    loads: Sequence[Load],
    groups: Mapping[str, GroupView],
    free_bytes: int,
) -> list[Load]:
    """More residents of groups in use, for specialists that no resident is: those just displaced, or wanted."""
    more: list[Load] = []
    for waiter in waiters:
        group = groups.get(waiter.group)
        held = [seat.specialist for seat in seats.values() if seat.group == waiter.group]
        held += [load.specialist for load in (*loads, *more) if load.group == waiter.group]
        if group is None or not held or len(held) >= group.most or waiter.need_bytes > free_bytes:
            continue
        displaced = [r.specialist for r in before if r.group == waiter.group and r.state is State.WARM]
        for name in (waiter.specialist, *displaced):
            if not any(group.distances.between(name, other) == 0 for other in held):
                more.append(Load(waiter.group, name))
                free_bytes -= waiter.need_bytes
                break
    return more


def expired(residents: Collection[ResidentView], now: float, idle_ttl_s: float | None) -> list[str]:
    """Keys of residents that nobody has used for idle_ttl_s."""
    if idle_ttl_s is None:
        return []
    return [resident.key for resident in residents if resident.idle and now - resident.last_used >= idle_ttl_s]
