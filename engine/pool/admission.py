"""Admission control: which request is served, and which resident is loaded or evicted (LRU) next.

Pure functions over plain values; the pool carries their decisions out. Residents of one *group* stand in for each
other: each can become any specialist of the group in place. A specialist that shares with none is alone in its group,
which has one resident at most.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from .decisions import (
    Bypass,
    Eviction,
    EvictionReason,
    Grant,
    Ledger,
    Load,
    LoadReason,
    Plan,
    Refusal,
    RefusalReason,
    Wait,
    WaitReason,
)
from .placement import CacheAffinity, Distances, Option, choose_resident
from .places import Memory

# A resident's life; a reservation has no LOADING.
#
#   no resident --load--> LOADING --ready--> WARM --evict, when idle--> DRAINING --process ended--> no resident
#                            |               |  ^
#                            | load failed   |  +-- leases come and go, a swap makes it another specialist
#                            v               v
#                       no resident     no resident: the worker died on its own


class State(StrEnum):
    """Where a resident is in its life; its bytes are booked in every one of them."""

    LOADING = "loading"
    WARM = "warm"
    DRAINING = "draining"  # it is being stopped; its bytes come back when its process has ended


@dataclass(frozen=True)
class ResidentView:
    """What admission has to know of a resident, or of a reservation. last_used: seconds of a monotonic clock.

    capacity:   leases that each specialist may have at a time.
    specialist: which it is, will be once it is loaded, or was last told to become.
    shares:     leases of each specialist, where several share it.
    """

    key: str
    state: State
    memory: Memory
    leases: int
    capacity: int
    last_used: float
    pinned: bool = False
    group: str = ""
    specialist: str = ""
    shares: Mapping[str, int] = field(default_factory=dict)

    def has_place(self, specialist: str, distances: Distances) -> bool:
        """Whether one more request for a specialist may be given to it. Leases of other specialists do not count: the
        worker gives each of them time slices."""
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

    devices:    the cards that it would go to; () for those that llama.cpp takes by itself.
    bypassed_s: for how long others may have been passing it; a time in which nothing could be served does not count.
    affinity:   the resident whose cache holds its conversation, where that is known.
    """

    id: int
    group: str
    need: Memory
    bypassed_s: float
    specialist: str = ""
    affinity: CacheAffinity | None = None
    waited_s: float = 0.0
    devices: tuple[str, ...] = ()


@dataclass(frozen=True)
class GroupView:
    """What admission has to know of specialists that can share residents. most: residents that they may have.

    distances: bytes that a swap between two of them changes.
    """

    distances: Distances = field(default_factory=Distances)
    most: int = 1


@dataclass(frozen=True)
class Closed:
    """Residents that take no newcomers, because a request was bypassed for too long and needs their room.

    overdue: that request. ahead: requests that are older than it, and therefore no newcomers.
    """

    residents: frozenset[str] = frozenset()
    overdue: int | None = None
    ahead: frozenset[int] = frozenset()

    def bars(self, waiter: WaiterView, resident: ResidentView) -> bool:
        """Whether the resident is closed to the waiter."""
        return resident.key in self.residents and waiter.id not in self.ahead


def plan_evictions(need: Memory, residents: Sequence[ResidentView], budget: Memory) -> list[str] | None:
    """Keys of idle residents to stop so that the need fits, least recently used first; [] when nothing has to go.

    Residents that hold nothing of the places that are short stay. Those that are being stopped already count as room to
    come. None while busy or pinned residents are in the way.
    """
    free = budget - _booked(resident for resident in residents if resident.state is not State.DRAINING)
    victims: list[str] = []
    for resident in sorted((r for r in residents if r.idle), key=lambda r: r.last_used):
        short = _short(need, free)
        if not short:
            break
        if any(resident.memory[place] > 0 for place in short):
            victims.append(resident.key)
            free += resident.memory
    return None if _short(need, free) else victims


def _booked(residents: Iterable[ResidentView]) -> Memory:
    return Memory.total(resident.memory for resident in residents)


def _short(need: Memory, free: Memory) -> tuple[str, ...]:
    """The places that have too little room for the need; of no need, those with more booked than the budget holds."""
    return need.short_of(free) if need != Memory() else free.overdrawn


def closed_to_newcomers(
    waiters: Sequence[WaiterView], residents: Sequence[ResidentView], budget: Memory, max_bypass_s: float
) -> Closed:
    """The residents in the way of the oldest waiter whose bound has passed.

    Residents that will be free soonest close first: idle ones, then those with the fewest leases.
    """
    present = {resident.group for resident in residents if resident.state is not State.DRAINING}
    place = next((i for i, w in enumerate(waiters) if w.bypassed_s >= max_bypass_s and w.group not in present), None)
    if place is None:
        return Closed()
    overdue = waiters[place]
    free = budget - _booked(r for r in residents if r.state is not State.DRAINING)
    closed: set[str] = set()
    closable = [r for r in residents if r.state is State.WARM and not r.pinned]
    for resident in sorted(closable, key=lambda r: (r.leases, r.last_used)):
        short = _short(overdue.need, free)
        if not short:
            break
        if any(resident.memory[place] > 0 for place in short):
            closed.add(resident.key)
            free += resident.memory
    return Closed(frozenset(closed), overdue.id, frozenset(waiter.id for waiter in waiters[:place]))


def plan(
    waiters: Sequence[WaiterView],
    residents: Sequence[ResidentView],
    budget: Memory,
    *,
    max_bypass_s: float,
    now: float,
    groups: Mapping[str, GroupView] | None = None,
    explain: bool = True,
) -> Plan:
    """The next actions. waiters: oldest first. groups: those of several specialists. explain: give `waits`, too, which
    takes about as long as all the rest.

    Requests for what is resident pass those that need a load, until the oldest of these was passed for max_bypass_s:
    then the residents in its way take no more requests from behind it, end what they do, and go. Loads start in the
    order of their oldest waiter; a later one never takes the room that an earlier one waits for. When more is booked
    than the budget holds at some place (a load took more than predicted), idle residents go until it fits; nothing is
    loaded there until then, and other places are used as ever.

    A shared resident is changed rather than another loaded: that is quicker. Where there is room that no request waits
    for, another one is loaded all the same, so that the next request finds its specialist as it left it.
    """
    groups = groups or {}
    seats = {resident.key: resident for resident in residents}
    closed = closed_to_newcomers(waiters, residents, budget, max_bypass_s)
    grants = _with_bypasses(_grant(waiters, seats, groups, closed), waiters, max_bypass_s)
    free = budget - _booked(residents)
    evictions: tuple[Eviction, ...] = ()
    is_over = bool(free.overdrawn)
    if is_over:
        evictions = _relieve(seats, Ledger(Memory(), free, budget), now)
    # A card that is overbooked by what cannot go is no reason to keep another one empty.
    loads, blocked = _load_cold(waiters, residents, free, budget)
    coming_memory = Memory.total(load.ledger.need for load in loads)
    free -= coming_memory
    if blocked is not None and not evictions:
        ledger = Ledger(blocked.need, free, budget)
        evictions = _evict(seats, coming_memory, EvictionReason.ROOM, ledger, blocked.id, now)
    elif blocked is None and not is_over:
        loads += _spread(waiters, residents, seats, loads, groups, free, budget)
    served = {grant.waiter for grant in grants}
    coming = {load.group for load in loads}
    waits = tuple(
        _wait(waiter, seats.values(), coming, groups, closed, blocked, free, budget)
        for waiter in (waiters if explain else ())
        if waiter.id not in served
    )
    return Plan(grants, evictions, tuple(loads), waits)


def _grant(
    waiters: Sequence[WaiterView], seats: dict[str, ResidentView], groups: Mapping[str, GroupView], closed: Closed
) -> list[Grant]:
    """Which waiters are served now, and by which residents; notes in `seats` what becomes of the residents."""
    grants = []
    for waiter in waiters:
        distances = groups.get(waiter.group, GroupView()).distances
        options = {
            seat.key: Option(seat.specialist, seat.leases, seat.last_used)
            for seat in seats.values()
            if seat.group == waiter.group and seat.state is State.WARM and seat.has_place(waiter.specialist, distances)
            if not closed.bars(waiter, seat)
        }
        chosen = choose_resident(waiter.specialist, options, distances, waiter.affinity)
        if chosen is not None:
            seat, name = seats[chosen.resident], waiter.specialist
            shares = {**seat.shares, name: seat.shares.get(name, 0) + 1} if waiter.group in groups else seat.shares
            seats[seat.key] = replace(seat, leases=seat.leases + 1, specialist=name, shares=shares)
            grants.append(
                Grant(
                    waiter.id,
                    seat.key,
                    fit=chosen.fit,
                    before=seat.specialist,
                    swap_bytes=chosen.swap_bytes,
                    waited_s=waiter.waited_s,
                )
            )
    return grants


def _with_bypasses(grants: Iterable[Grant], waiters: Sequence[WaiterView], max_bypass_s: float) -> tuple[Grant, ...]:
    """The grants, with the older requests that each of them passes."""
    granted = {grant.waiter: grant for grant in grants}
    passed: list[WaiterView] = []
    for waiter in waiters:
        if waiter.id not in granted:
            passed.append(waiter)
        elif passed:
            longest_s = max(older.bypassed_s for older in passed)
            bypass = Bypass(tuple(older.id for older in passed), longest_s, max_bypass_s)
            granted[waiter.id] = replace(granted[waiter.id], bypass=bypass)
    return tuple(granted.values())


def _load_cold(
    waiters: Sequence[WaiterView], residents: Sequence[ResidentView], free: Memory, budget: Memory
) -> tuple[list[Load], WaiterView | None]:
    """Loads for waiters whose group has no resident, and the first waiter for which too little is free.

    What comes free of the places that it needs is that waiter's: those behind it are loaded only where they leave it
    that.
    """
    present = {resident.group for resident in residents}
    loads: list[Load] = []
    blocked: WaiterView | None = None
    left = free  # less what those that are blocked need
    for waiter in waiters:
        if waiter.group in present:
            continue
        present.add(waiter.group)
        if waiter.need.fits_in(left):
            ledger = Ledger(waiter.need, free, budget)
            loads.append(_load(waiter, waiter.specialist, LoadReason.COLD, ledger))
            free -= waiter.need
        elif blocked is None:
            blocked = waiter
        left -= waiter.need
    return loads, blocked


def _load(waiter: WaiterView, specialist: str, reason: LoadReason, ledger: Ledger) -> Load:
    return Load(waiter.group, specialist, waiter=waiter.id, reason=reason, ledger=ledger, devices=waiter.devices)


def _evict(
    seats: Mapping[str, ResidentView],
    coming_memory: Memory,
    reason: EvictionReason,
    ledger: Ledger,
    waiter: int | None,
    now: float,
) -> tuple[Eviction, ...]:
    """Evictions for what the ledger needs beside the loads to come; none while busy residents are in the way."""
    victims = plan_evictions(ledger.need + coming_memory, list(seats.values()), ledger.budget) or ()
    return tuple(
        Eviction(key, reason=reason, idle_s=now - seats[key].last_used, waiter=waiter, ledger=ledger) for key in victims
    )


def _relieve(seats: Mapping[str, ResidentView], ledger: Ledger, now: float) -> tuple[Eviction, ...]:
    """Evictions for the places with more booked than the budget holds, each by itself: what is in the way at one is no
    reason to leave another as it is."""
    left = dict(seats)
    victims: list[str] = []
    for place in ledger.free.overdrawn:
        booked = _booked(left.values())
        only = Memory({**booked.bytes_by_place, place: ledger.budget[place]})  # the others hold what they hold
        going = plan_evictions(Memory(), list(left.values()), only) or []
        victims += going
        for key in going:
            del left[key]
    return tuple(
        Eviction(key, reason=EvictionReason.OVER_BUDGET, idle_s=now - seats[key].last_used, ledger=ledger)
        for key in victims
    )


def _spread(
    waiters: Sequence[WaiterView],
    before: Sequence[ResidentView],
    seats: Mapping[str, ResidentView],
    loads: Sequence[Load],
    groups: Mapping[str, GroupView],
    free: Memory,
    budget: Memory,
) -> list[Load]:
    """More residents of groups in use, for specialists that no resident is: those just displaced, or wanted."""
    more: list[Load] = []
    for waiter in waiters:
        group = groups.get(waiter.group)
        held = [seat.specialist for seat in seats.values() if seat.group == waiter.group]
        held += [load.specialist for load in (*loads, *more) if load.group == waiter.group]
        if group is None or not held or len(held) >= group.most or not waiter.need.fits_in(free):
            continue
        displaced = [r.specialist for r in before if r.group == waiter.group and r.state is State.WARM]
        for name in (waiter.specialist, *displaced):
            if not any(group.distances.between(name, other) == 0 for other in held):
                reason = LoadReason.CROWDED if name == waiter.specialist else LoadReason.DISPLACED
                ledger = Ledger(waiter.need, free, budget)
                more.append(_load(waiter, name, reason, ledger))
                free -= waiter.need
                break
    return more


def _wait(
    waiter: WaiterView,
    seats: Collection[ResidentView],
    coming: Collection[str],
    groups: Mapping[str, GroupView],
    closed: Closed,
    blocked: WaiterView | None,
    free: Memory,
    budget: Memory,
) -> Wait:
    """Why a waiter is not served. coming: groups that are about to be loaded. blocked: the first that lacks room."""
    of_group = [seat for seat in seats if seat.group == waiter.group]
    warm = [seat for seat in of_group if seat.state is State.WARM]
    distances = groups.get(waiter.group, GroupView()).distances
    behind = None
    if any(seat.has_place(waiter.specialist, distances) for seat in warm):
        reason, behind = WaitReason.CLOSED, closed.overdue
    elif warm:
        reason = WaitReason.FULL
    elif waiter.group in coming or any(seat.state is State.LOADING for seat in of_group):
        reason = WaitReason.LOADING
    elif of_group:
        reason = WaitReason.STOPPING
    elif blocked is None or any(waiter.need[place] > 0 for place in free.overdrawn):
        reason = WaitReason.OVER_BUDGET
    elif blocked.id == waiter.id:
        reason = WaitReason.ROOM
    else:
        reason, behind = WaitReason.BEHIND, blocked.id
    return Wait(waiter.id, reason, Ledger(waiter.need, free, budget), waiter.waited_s, behind)


def never_fits(newcomer: WaiterView, residents: Sequence[ResidentView], budget: Memory) -> Refusal | None:
    """A refusal where the newcomer cannot be loaded beside the residents that never go, however long it waits; a
    resident of its group that is there serves it, whatever that was found to take."""
    if any(one.group == newcomer.group and one.state is not State.DRAINING for one in residents):
        return None
    kept = [resident for resident in residents if resident.pinned and resident.group != newcomer.group]
    kept_memory = _booked(kept)
    free = budget - kept_memory
    if newcomer.need.fits_in(free):
        return None
    ledger = Ledger(newcomer.need, free, budget)
    return Refusal(RefusalReason.NEVER_FITS, ledger, tuple(resident.key for resident in kept), kept_memory)


def refuse(
    newcomer: WaiterView,
    waiters: Sequence[WaiterView],
    residents: Sequence[ResidentView],
    budget: Memory,
    *,
    max_queue: int,
    max_bypass_s: float,
    now: float,
    groups: Mapping[str, GroupView] | None = None,
    retry_s: float = 0.0,
) -> Refusal | None:
    """Why a newcomer is not taken into the queue; None when it is. retry_s: until its group may be loaded again.
    waiters: of account only where there are max_queue of them.

    A full queue still takes requests that are served at once.
    """
    refusal = never_fits(newcomer, residents, budget)
    if refusal is not None:
        return refusal
    ledger = Ledger(newcomer.need, budget - _booked(residents), budget)
    if retry_s > 0 and all(resident.group != newcomer.group for resident in residents):
        return Refusal(RefusalReason.BACK_OFF, ledger, retry_s=retry_s)
    if len(waiters) < max_queue:
        return None
    decided = plan(
        [*waiters, newcomer],
        residents,
        budget,
        max_bypass_s=max_bypass_s,
        now=now,
        groups=groups,
        explain=False,
    )
    if any(grant.waiter == newcomer.id for grant in decided.grants):
        return None
    return Refusal(RefusalReason.QUEUE_FULL, ledger, n_waiting=len(waiters))


def expired(residents: Collection[ResidentView], now: float, idle_ttl_s: float | None) -> list[Eviction]:
    """Residents that have been idle for idle_ttl_s."""
    if idle_ttl_s is None:
        return []
    return [
        Eviction(resident.key, reason=EvictionReason.EXPIRED, idle_s=now - resident.last_used)
        for resident in residents
        if resident.idle and now - resident.last_used >= idle_ttl_s
    ]


def replaced(residents: Collection[ResidentView], groups: Collection[str], now: float) -> list[Eviction]:
    """Idle residents of groups that are served no more. groups: those that are."""
    return [
        Eviction(resident.key, reason=EvictionReason.REPLACED, idle_s=now - resident.last_used)
        for resident in residents
        if resident.idle and resident.group not in groups
    ]
