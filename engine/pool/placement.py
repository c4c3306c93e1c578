"""Placement: which resident serves a request, where several share a shape. Pure functions over the bytes of a swap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ..swap.plan import Pair


class Fit(StrEnum):
    """Why a resident is the one for a request."""

    WARM = "warm"  # it is the wanted specialist
    AFFINITY = "affinity"  # its cache holds the conversation, which is worth more than the bytes swapped for it
    SWAP = "swap"  # it is idle, and the fewest bytes away
    TIME_SLICE = "time slice"  # every resident is busy as another specialist: this one has the fewest requests


@dataclass(frozen=True)
class Option:
    """A resident that could become the wanted specialist. active: requests that it answers, or that wait in it."""

    specialist: str
    active: int
    last_used: float


@dataclass(frozen=True)
class CacheAffinity:
    """The resident whose cache holds a conversation. worth_bytes: what could be swapped while it is read anew."""

    resident: str
    worth_bytes: int


@dataclass(frozen=True)
class Assignment:
    """The resident that is to serve a request. swap_bytes: what has to change in it, 0 for nothing."""

    resident: str
    fit: Fit
    swap_bytes: int


class Distances:
    """Bytes that a swap between two specialists changes, either way; 0 from one to itself.

    Without pairs the specialists are names for one load, and nothing has to change.
    """

    def __init__(self, pairs: Sequence[Pair] = ()) -> None:
        self._bytes = {frozenset((pair.one, pair.other)): pair.changed_bytes for pair in pairs}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Distances) and self._bytes == other._bytes

    def __hash__(self) -> int:
        return hash(frozenset(self._bytes.items()))

    def between(self, one: str, other: str) -> int:
        """Raises KeyError for two that share no resident."""
        return self._bytes[frozenset((one, other))] if self._bytes and one != other else 0


def choose_resident(
    wanted: str, options: Mapping[str, Option], distances: Distances, affinity: CacheAffinity | None = None
) -> Assignment | None:
    """The resident that is to serve a specialist; None without options. options: by the resident's key.

    First come residents that can begin at once: one that is this specialist already, or the nearest idle one, so that
    residents which are far from each other stay. A long conversation goes where its cache is, though more has to be
    swapped there than elsewhere. Where all are others and busy, the wanted specialist takes time slices where the
    fewest requests are, nearest first. Of equals the least busy, then the least recently used (LRU).
    """

    def best(affinity: CacheAffinity | None) -> str:
        return min(options, key=lambda key: _cost(wanted, key, options, distances, affinity))

    if not options:
        return None
    key = best(affinity)
    option = options[key]
    swap_bytes = distances.between(wanted, option.specialist)
    if affinity is not None and key == affinity.resident and key != best(None):
        fit = Fit.AFFINITY
    elif not swap_bytes:
        fit = Fit.WARM
    else:
        fit = Fit.TIME_SLICE if option.active else Fit.SWAP
    return Assignment(key, fit, swap_bytes)


def _cost(
    wanted: str, key: str, options: Mapping[str, Option], distances: Distances, affinity: CacheAffinity | None
) -> tuple[bool, int, int, int, float]:
    """What serving a specialist by one of the options costs, the most important part first."""
    option = options[key]
    distance = distances.between(wanted, option.specialist)
    takes_slices = distance > 0 and option.active > 0
    if affinity is not None and affinity.resident in options and affinity.resident != key:
        distance += affinity.worth_bytes
    return takes_slices, option.active if takes_slices else 0, distance, option.active, option.last_used
