"""What the pool shows of itself, for health checks and metrics: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .admission import State

COUNTED = ("swaps", "swapped_bytes")  # the parts of Resident.activity that only grow


@dataclass(frozen=True)
class ResidentStatus:
    """For /v1/pool. A reservation stands among the residents, without specialists and with its title as the file.

    specialist: which of them it is now. activity: what its worker reports of itself; see Resident.activity.
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
    deaths:  workers that ended unasked once they were ready, by Loss.cause.
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
    deaths: Mapping[str, int] = field(default_factory=dict)
