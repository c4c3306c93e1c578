"""What the pool is given: entries to serve, its limits, and how a resident is started."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ..spec import LoadSpec, Thinking
from ..vitals import STALL_S
from .admission import GroupView
from .card_choice import Placement
from .placement import Distances
from .places import Memory
from .resident import Resident


@dataclass(frozen=True)
class Entry:
    """One specialist as the pool sees it: what to load, the memory that takes, and whether it may be evicted.

    cards:     any one of which may take it, `memory` being for the first; () where `spec` leaves no choice.
    distances: of the specialists that `spec` shares a resident with, the bytes that a swap changes.
    """

    spec: LoadSpec
    memory: Memory
    thinking: Thinking = field(default_factory=Thinking)
    pinned: bool = False
    distances: Distances = field(default_factory=Distances)
    cards: tuple[str, ...] = ()

    @property
    def placements(self) -> tuple[Placement, ...]:
        """The ways to load it."""
        if not self.cards:
            return (Placement(self.spec.devices, self.memory),)
        return tuple(Placement((card,), self.memory.moved(self.cards[0], card)) for card in self.cards)


def shared_groups(entries: Mapping[str, Entry], most_shared: int) -> dict[str, GroupView]:
    """The groups of several specialists: never more residents than there are different weights.

    most_shared: see PoolLimits.
    """
    weights: dict[str, list[str]] = {}
    views = {}
    for name, entry in entries.items():
        if entry.spec.sharing is None:
            continue
        group = entry.spec.group
        different = weights.setdefault(group, [])
        if all(entry.distances.between(name, other) for other in different):
            different.append(name)
        most = min(most_shared or len(different), len(different))
        views[group] = GroupView(entry.distances, most)
    return views


@dataclass(frozen=True)
class PoolLimits:
    """Bounds of the pool. max_bypass_s: how long requests for what is resident may pass a waiting one.

    budget:       what residents may take of each place.
    margin_bytes: what is to stay free on each card: idle residents go when other programs take it; 0: they stay.
    most_shared:  residents that one group of specialists may have; 0 for as many as have room.
    """

    budget: Memory
    margin_bytes: int = 0
    most_shared: int = 0
    max_queue: int = 64
    max_bypass_s: float = 10.0
    idle_ttl_s: float | None = None
    load_timeout_s: float = 600.0
    quiet_s: float = 60.0  # without a request for so long: idle time, in which a reservation may wait for its room
    load_backoff_s: float = 30.0  # after a failed load; doubles with each further failure, up to a minute
    stall_s: float = STALL_S  # without a sign of life, or of progress in its work, for so long a worker is replaced


Stop = Callable[[], Awaitable[None]]  # returns when the memory is back


class Starter(Protocol):
    """Makes a resident of a spec; WorkerResident.start is one."""

    def __call__(
        self, spec: LoadSpec, policies: Mapping[str, Thinking], on_progress: Callable[[float], None]
    ) -> Awaitable[Resident]:
        """Raises EngineError when the load fails."""
        ...
