"""KV offload: the cells of conversations and of resting requests, kept in host memory within a budget (LRU eviction).

Cells leave the KV cache so that decodes do not pass over them, and come back without a token evaluated twice.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from ..generate.sequence import ActiveSequence
from ..units import size_text
from .schedule import CacheView

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A snapshot of the layers that forget (sliding window, recurrent state), at a position of the sequence."""

    position: int
    state: NDArray[Any]


@dataclass
class Cells:
    """The cells of one sequence: the tokens they stand for, the specialist that wrote them, and a checkpoint."""

    specialist_id: int = 0
    tokens: list[int] = field(default_factory=list)
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True)
class OffloadedCache:
    """A sequence's cells outside the KV cache, and its whole state as llama.cpp gives it.

    sequence: the request that goes on with it; None for a conversation that may come back.
    forgotten_before: see CacheView.
    """

    cells: Cells
    state: NDArray[Any]
    forgotten_before: int
    last_used: int
    sequence: ActiveSequence | None = None

    @property
    def n_bytes(self) -> int:
        """Host memory it takes."""
        return self.state.nbytes + (self.cells.checkpoint.state.nbytes if self.cells.checkpoint else 0)


@dataclass(frozen=True)
class OffloadedSize:
    """What the choice of which cache goes needs of it. busy: a request waits for it."""

    n_bytes: int
    last_used: int
    busy: bool


def plan_offload(need: int, offloaded: Mapping[int, OffloadedSize], budget: int) -> list[int] | None:
    """Which offloaded caches go so that `need` more bytes fit: idle ones, least recently used first.

    None when it does not fit beside those that requests wait for.
    """
    left = sum(cache.n_bytes for cache in offloaded.values())
    gone: list[int] = []
    for number in sorted((n for n, c in offloaded.items() if not c.busy), key=lambda n: offloaded[n].last_used):
        if left + need <= budget:
            break
        gone.append(number)
        left -= offloaded[number].n_bytes
    return gone if left + need <= budget else None


def covers(cache: OffloadedCache, other: OffloadedCache) -> bool:
    """Whether every prompt that could go on from `other`, a conversation, goes on as well from `cache`.

    So it is with the same tokens, and with the beginning of them where the layers of `cache` have forgotten nothing.
    """
    mine, theirs = cache.cells.tokens, other.cells.tokens
    n = len(theirs)
    if other.sequence is not None or cache.cells.specialist_id != other.cells.specialist_id or not 0 < n <= len(mine):
        return False
    if cache.forgotten_before:
        goes_back = cache.forgotten_before <= other.forgotten_before
        if n < len(mine) or not goes_back or (other.cells.checkpoint and not cache.cells.checkpoint):
            return False
    return mine[n - 1] == theirs[-1] and mine[:n] == theirs  # the last token first: most share their beginnings


class OffloadedCaches:
    """Owns the offloaded caches, by number, within a budget of bytes."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._caches: dict[int, OffloadedCache] = {}
        self._next = 0

    @property
    def n_bytes(self) -> int:
        """Host memory that all take."""
        return sum(cache.n_bytes for cache in self._caches.values())

    def has_room(self, n_bytes: int) -> bool:
        """Whether so many bytes would fit, idle caches given up for it."""
        return self._budget > 0 and plan_offload(n_bytes, self._sizes(), self._budget) is not None

    def add(self, cache: OffloadedCache) -> bool:
        """Keep a cache, and drop others for it; False when there is no room.

        Of conversations that begin alike to the last token only the longest is kept: a question that many ask, or one
        that is asked again, would fill the budget with copies.
        """
        if cache.sequence is None and (twin := self._covering(cache)) is not None:
            self._caches[twin] = replace(self._caches[twin], last_used=cache.last_used)
            return True
        covered = {n for n, other in self._caches.items() if covers(cache, other)}
        sizes = {n: size for n, size in self._sizes().items() if n not in covered}
        gone = plan_offload(cache.n_bytes, sizes, self._budget)
        if gone is None:
            return False
        for number in covered:
            del self._caches[number]
        for number in gone:
            dropped = self._caches.pop(number)
            _log.debug(
                "offloaded conversation of %d tokens dropped, the least recently used: %s of host memory are wanted",
                len(dropped.cells.tokens),
                size_text(cache.n_bytes),
            )
        self._caches[self._next] = cache
        self._next += 1
        return True

    def take(self, number: int) -> OffloadedCache:
        """A cache, which is the caller's from now on."""
        return self._caches.pop(number)

    def number_of(self, sequence: ActiveSequence) -> int | None:
        """The number of a request's own cells; None when they are not offloaded."""
        return next((number for number, cache in self._caches.items() if cache.sequence is sequence), None)

    def keep_conversation(self, sequence: ActiveSequence, last_used: int) -> None:
        """A request ends before it runs again: what it had offloaded is a conversation that may come back."""
        number = self.number_of(sequence)
        if number is not None:
            self._caches[number] = replace(self._caches[number], sequence=None, last_used=last_used)

    def views(self, specialist_id: int, window: int) -> list[CacheView]:
        """What a prompt of a specialist may go on from. window: see CacheView."""
        return [
            CacheView(
                number,
                cache.cells.tokens,
                False,
                cache.last_used,
                cache.forgotten_before,
                cache.cells.checkpoint.position if cache.cells.checkpoint else 0,
                window,
            )
            for number, cache in self._caches.items()
            if cache.sequence is None and cache.cells.specialist_id == specialist_id
        ]

    def _covering(self, cache: OffloadedCache) -> int | None:
        conversations = ((n, other) for n, other in self._caches.items() if other.sequence is None)
        return next((n for n, other in conversations if covers(other, cache)), None)

    def _sizes(self) -> dict[int, OffloadedSize]:
        return {n: OffloadedSize(c.n_bytes, c.last_used, c.sequence is not None) for n, c in self._caches.items()}
