"""Which resident becomes what, where several share a shape: pure functions over the bytes that a swap changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..swap.plan import Pair


@dataclass(frozen=True)
class Option:
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


@dataclass(frozen=True)
class Affinity:
    """The resident that has a conversation in its cache. worth_bytes: what could be swapped while it is read anew."""

    resident: str
    worth_bytes: int


def choose_resident(
    wanted: str, options: Mapping[str, Option], distances: Distances, affinity: Affinity | None = None
) -> str | None:
    """The resident, by its name, that is to serve a specialist; None when there is none.

    One that can begin at once: it is this specialist already, or it is idle and the nearest, so that those which are
    far from each other stay. A long conversation goes where it was, though more has to be swapped there than elsewhere.
    Where all are others and busy, the wanted one takes turns where the fewest requests are, nearest first. Of equals
    the least busy, then the least recently used.
    """

    def cost(name: str) -> tuple[bool, int, int, int, float]:
        option = options[name]
        distance = distances.between(wanted, option.specialist)
        takes_turns = distance > 0 and option.active > 0
        if affinity is not None and affinity.resident in options and affinity.resident != name:
            distance += affinity.worth_bytes
        return takes_turns, option.active if takes_turns else 0, distance, option.active, option.last_used

    return min(options, key=cost, default=None)
