"""Which resident becomes what, where several share a shape: pure functions over the bytes that a swap changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .sharing import Pair


@dataclass(frozen=True)
class Candidate:
    """A resident that could become the wanted specialist. active: requests that are being answered or wait there."""

    specialist: str
    active: int
    last_used: float


class Distances:
    """Bytes that a swap between two specialists changes, either way; 0 from one to itself.

    Without pairs they are names for one load, and nothing has to change.
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


def choose_resident(wanted: str, candidates: Mapping[str, Candidate], distances: Distances) -> str | None:
    """The resident, by its name, that is to serve a specialist; None when there is none.

    One that is this specialist already; else the idle one that is nearest, so that those which are far from each other
    stay; else, where all are busy and the wanted one has to take turns, the one with the fewest requests, nearest
    first. Of equals the least recently used.
    """

    def cost(name: str) -> tuple[bool, int, int, float]:
        candidate = candidates[name]
        distance = distances.between(wanted, candidate.specialist)
        return distance > 0, candidate.active, distance, candidate.last_used

    return min(candidates, key=cost, default=None)
