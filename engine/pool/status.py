"""What the pool shows of itself, for health checks and metrics: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .admission import State
from .places import Memory

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
    memory: Memory
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

    budget: Memory
    booked: Memory
    residents: tuple[ResidentStatus, ...]
    waiting: tuple[str, ...]
    oldest_wait_s: float
    loads: int
    failed_loads: int
    evictions: int
    stalled: tuple[str, ...]
    counted: Mapping[tuple[str, str], float] = field(default_factory=dict)
    deaths: Mapping[str, int] = field(default_factory=dict)

    @property
    def has_card(self) -> bool:
        """Whether anything but host memory is counted."""
        return bool(self.budget.cards)

    def vram_bytes(self, memory: Memory) -> int:
        """What of some memory pool.vram_budget counts: that of the cards, or of the host where there is no card."""
        return memory.card_bytes if self.has_card else memory.host_bytes

    @property
    def budget_bytes(self) -> int:
        """The budget, as far as pool.vram_budget counts it."""
        return self.vram_bytes(self.budget)

    @property
    def booked_bytes(self) -> int:
        """What is booked of budget_bytes."""
        return self.vram_bytes(self.booked)
