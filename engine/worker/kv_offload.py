"""Conversations that wait in host memory, out of the way of those that are decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from ..generate.sequence import ActiveSequence
from .schedule import CacheView


@dataclass(frozen=True)
class ParkedCache:
    """A sequence's whole state, as llama.cpp gives it, and what it stands for.

    sequence: the request that goes on with it; None for a conversation that may come back.
    forgotten_before: see CacheView.
    """

    owner: int
    tokens: list[int]
    state: NDArray[Any]
    forgotten_before: int
    checkpoint: tuple[int, NDArray[Any]] | None
    last_used: int
    sequence: ActiveSequence | None = None

    @property
    def n_bytes(self) -> int:
        """Host memory it takes."""
        return self.state.nbytes + (self.checkpoint[1].nbytes if self.checkpoint else 0)


@dataclass(frozen=True)
class ParkedSize:
    """What the choice of who goes needs of a parked cache. busy: a request waits for it."""

    n_bytes: int
    last_used: int
    busy: bool


def plan_parking(need: int, parked: Mapping[int, ParkedSize], budget: int) -> list[int] | None:
    """Which parked caches go so that `need` more bytes fit: idle ones, least recently used first.

    None when it does not fit beside those that requests wait for.
    """
    left = sum(cache.n_bytes for cache in parked.values())
    gone: list[int] = []
    for number in sorted((n for n, c in parked.items() if not c.busy), key=lambda n: parked[n].last_used):
        if left + need <= budget:
            break
        gone.append(number)
        left -= parked[number].n_bytes
    return gone if left + need <= budget else None


class ParkedCaches:
    """Owns them, within a budget of bytes."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._caches: dict[int, ParkedCache] = {}
        self._next = 0

    @property
    def n_bytes(self) -> int:
        """Host memory that all take."""
        return sum(cache.n_bytes for cache in self._caches.values())

    def __len__(self) -> int:
        return len(self._caches)

    def has_room(self, n_bytes: int) -> bool:
        """Whether so many bytes would fit, idle caches given up for it."""
        return self._budget > 0 and plan_parking(n_bytes, self._sizes(), self._budget) is not None

    def add(self, cache: ParkedCache) -> bool:
        """Keep a cache, and let others go for it; False when there is no room."""
        gone = plan_parking(cache.n_bytes, self._sizes(), self._budget)
        if gone is None:
            return False
        for number in gone:
            del self._caches[number]
        self._caches[self._next] = cache
        self._next += 1
        return True

    def take(self, number: int) -> ParkedCache:
        """A cache, which is the caller's from now on."""
        return self._caches.pop(number)

    def number_of(self, sequence: ActiveSequence) -> int | None:
        """Where a request's own cells are parked; None when they are not."""
        return next((number for number, cache in self._caches.items() if cache.sequence is sequence), None)

    def views(self, owner: int, window: int) -> list[CacheView]:
        """What a prompt of a specialist may go on from. window: see CacheView."""
        return [
            CacheView(
                number,
                cache.tokens,
                False,
                cache.last_used,
                cache.forgotten_before,
                cache.checkpoint[0] if cache.checkpoint else 0,
                window,
            )
            for number, cache in self._caches.items()
            if cache.sequence is None and cache.owner == owner
        ]

    def _sizes(self) -> dict[int, ParkedSize]:
        return {n: ParkedSize(c.n_bytes, c.last_used, c.sequence is not None) for n, c in self._caches.items()}
