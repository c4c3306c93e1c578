"""What the pool is given, and what it tells: plain values."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ..spec import LoadSpec, Thinking
from .admission import State
from .placement import Distances
from .resident import Resident

COUNTED = ("swaps", "swapped_bytes")  # of what residents say of themselves, that which only grows


@dataclass(frozen=True)
class Entry:
    """One specialist as the pool sees it: what to load, what that takes, and whether it may be evicted.

    distances: of the specialists that `spec` shares a resident with, the bytes that a swap changes.
    """

    spec: LoadSpec
    vram_bytes: int
    thinking: Thinking = field(default_factory=Thinking)
    pinned: bool = False
    distances: Distances = field(default_factory=Distances)


@dataclass(frozen=True)
class PoolLimits:
    """Bounds of the pool. max_bypass_s: how long requests for what is resident may pass a waiting one.

    most_shared: residents that one group of specialists may have; 0 for as many as have room.
    """

    budget_bytes: int
    most_shared: int = 0
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


@dataclass(frozen=True)
class ResidentStatus:
    """For /v1/pool. A reservation stands among the residents, without specialists and with its title as the file.

    specialist: which of them it is now. activity: what its worker says of itself; see Resident.activity.
    """

    specialists: tuple[str, ...]
    specialist: str
    file: str
    state: State
    vram_bytes: int
    leases: int
    capacity: int
    idle_s: float
    progress: float
    loaded_in_s: float | None
    pinned: bool
    activity: Mapping[str, float]


@dataclass(frozen=True)
class PoolStatus:
    """For /v1/pool, /ready and /metrics.

    counted: (file, one of COUNTED) -> what all its residents have done so far, those that are gone too.
    """

    budget_bytes: int
    booked_bytes: int
    residents: tuple[ResidentStatus, ...]
    waiting: tuple[str, ...]
    oldest_wait_s: float
    loads: int
    failed_loads: int
    evictions: int
    stalled: tuple[str, ...]
    counted: Mapping[tuple[str, str], float] = field(default_factory=dict)
