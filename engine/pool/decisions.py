"""What admission control decides, as values: each decision carries its reason and the numbers that decided.

Decisions are equal when they do the same; reasons and numbers do not count. `str` gives both as a phrase for the log.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from ..units import size_text
from .placement import Fit
from .places import HOST, Memory


@dataclass(frozen=True)
class Ledger:
    """The memory that decided. free: of the budget, not booked at that moment; negative where more is booked."""

    need: Memory
    free: Memory
    budget: Memory

    def __str__(self) -> str:
        """Where there are several places, of those that are short, or else of those that something is needed of."""
        if len(self.budget.places) < 2:
            place = next(iter(self.budget.places), HOST)
            return self._at(place)
        asked = [place for place in self.budget.places if self.need[place]]
        places = self.need.short_of(self.free) or self.free.overdrawn or asked
        return "; ".join(f"{place}: {self._at(place)}" for place in places) or "nothing needed"

    def _at(self, place: str) -> str:
        need, free, budget = (size_text(memory[place]) for memory in (self.need, self.free, self.budget))
        return f"{need} needed, {free} of {budget} free"


@dataclass(frozen=True)
class Bypass:
    """A request is served before older ones. passed: their ids, oldest first.

    longest_s: for how long the one that is passed longest has been passed, of max_bypass_s that it may be.
    """

    passed: tuple[int, ...]
    longest_s: float
    max_bypass_s: float

    def __str__(self) -> str:
        return f"{len(self.passed)} older, for {self.longest_s:.1f} s of {self.max_bypass_s:.1f} s"


@dataclass(frozen=True)
class Grant:
    """A waiter gets its lease on a resident, which becomes the waiter's specialist if it is another one.

    before:     the specialist that the resident was, or was last told to become.
    swap_bytes: what has to change in the resident, 0 for nothing.
    """

    waiter: int
    resident: str
    fit: Fit = field(compare=False, kw_only=True)
    before: str = field(compare=False, kw_only=True)
    swap_bytes: int = field(compare=False, kw_only=True)
    waited_s: float = field(compare=False, kw_only=True)
    bypass: Bypass | None = field(default=None, compare=False, kw_only=True)

    def __str__(self) -> str:
        return f"{self.fit}, after {self.waited_s:.1f} s"


class LoadReason(StrEnum):
    """Why a resident is loaded."""

    COLD = "cold"  # its group has none
    CROWDED = "crowded"  # a spread: each resident of the group has no place left for the specialist
    DISPLACED = "displaced"  # a spread: a swap took the specialist's resident


@dataclass(frozen=True)
class Load:
    """A resident of a group is to be loaded as one of its specialists. waiter: the request that gave rise to it.

    devices: the cards that it goes to; () for those that llama.cpp takes by itself.
    """

    group: str
    specialist: str
    waiter: int = field(compare=False, kw_only=True)
    reason: LoadReason = field(compare=False, kw_only=True)
    ledger: Ledger = field(compare=False, kw_only=True)
    devices: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def is_spread(self) -> bool:
        """Whether the group has a resident already, and gets another because there is room."""
        return self.reason is not LoadReason.COLD

    def __str__(self) -> str:
        where = f" on {' and '.join(self.devices)}" if self.devices else ""
        return f"{self.reason}{where}, {self.ledger}"


class EvictionReason(StrEnum):
    """Why a resident is stopped."""

    ROOM = "to make room"  # a waiter needs its bytes, and it is the least recently used
    OVER_BUDGET = "over budget"  # a load took more than predicted, or other programs take what it holds
    EXPIRED = "expired"  # idle for idle_ttl_s
    REPLACED = "replaced"  # the roster has none of its specialists any more
    ASKED = "asked to"  # by an operator


@dataclass(frozen=True)
class Eviction:
    """A resident is to be stopped. idle_s: infinite for a reservation. waiter, ledger: whose need it is, if any's."""

    resident: str
    reason: EvictionReason = field(compare=False, kw_only=True)
    idle_s: float = field(compare=False, kw_only=True)
    waiter: int | None = field(default=None, compare=False, kw_only=True)
    ledger: Ledger | None = field(default=None, compare=False, kw_only=True)

    def __str__(self) -> str:
        idle = "" if math.isinf(self.idle_s) else f", idle for {self.idle_s:.1f} s"
        return f"{self.reason}{idle}{'' if self.ledger is None else f', {self.ledger}'}"


class WaitReason(StrEnum):
    """Why a request is neither served nor refused."""

    LOADING = "loading"  # a resident of its group is on its way
    STOPPING = "stopping"  # the only residents of its group are being stopped
    FULL = "full"  # no resident of its group has a place left for its specialist
    CLOSED = "closed"  # residents with a place take no newcomers, since `behind` was bypassed for too long
    ROOM = "room"  # it is the first of those for whom too few bytes are free
    BEHIND = "behind"  # bytes that come free belong to `behind`, which is older
    OVER_BUDGET = "over budget"  # more is booked than the budget: nothing is loaded before that has ended


@dataclass(frozen=True)
class Wait:
    """A request waits on. behind: the older waiter that stands in its way, if one does."""

    waiter: int
    reason: WaitReason
    ledger: Ledger
    waited_s: float
    behind: int | None = None

    def __str__(self) -> str:
        return f"{self.reason}, after {self.waited_s:.1f} s, {self.ledger}"


class RefusalReason(StrEnum):
    """Why a request is not taken into the queue."""

    NEVER_FITS = "never fits"  # beside what is pinned, or reserved for good
    BACK_OFF = "back-off"  # its last load failed a moment ago
    QUEUE_FULL = "queue full"  # and it could not be served at once


@dataclass(frozen=True)
class Refusal:
    """A request is turned away. kept: residents and reservations that never go, which take kept_memory in all.

    retry_s: until a load may be tried again. n_waiting: requests in the queue.
    """

    reason: RefusalReason
    ledger: Ledger
    kept: tuple[str, ...] = ()
    kept_memory: Memory = field(default_factory=Memory)
    retry_s: float = 0.0
    n_waiting: int = 0

    def __str__(self) -> str:
        match self.reason:
            case RefusalReason.NEVER_FITS:
                return f"{self.reason}, {self.ledger}"
            case RefusalReason.BACK_OFF:
                return f"{self.reason} for {self.retry_s:.1f} s"
            case RefusalReason.QUEUE_FULL:
                return f"{self.reason}, {self.n_waiting} wait"


@dataclass(frozen=True)
class Plan:
    """What to do now: waiters to serve, residents to stop, residents to load; and why the other waiters wait, where
    `plan` was to explain it."""

    grants: tuple[Grant, ...] = ()
    evict: tuple[Eviction, ...] = ()
    load: tuple[Load, ...] = ()
    waits: tuple[Wait, ...] = field(default=(), compare=False)
