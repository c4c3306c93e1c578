"""What other programs take of the cards: noticed where it matters, and forgotten when they have given it back."""

from __future__ import annotations

import logging

from ..units import size_text
from .places import Memory

_log = logging.getLogger(__name__)


def taken_by_others(before: int, *, room_bytes: int, free_bytes: int, margin_bytes: int, is_settled: bool) -> int:
    """Bytes of a card that others take of what the pool counts on, by what is free there now.

    before:       what they took as far as was known.
    room_bytes:   what the ledger has left, others aside.
    margin_bytes: what is to stay free; as long as it does, nobody has to know who takes what.
    is_settled:   whether all that is booked is taken; else more is free than will be.

    Once noticed, it is believed until at least half of the margin has come back: figures that move a little must not
    make residents go and come.
    """
    taken = max(0, room_bytes - (free_bytes - margin_bytes))
    if free_bytes < margin_bytes:
        return max(before, taken)
    if not is_settled or taken > before - margin_bytes // 2:
        return before
    return taken if taken > margin_bytes // 2 else 0


class Others:
    """What other programs take of each card, as far as it is in the pool's way. Owned by the pool."""

    def __init__(self, margin_bytes: int) -> None:
        """margin_bytes: what is to stay free on each card; 0: nobody looks."""
        self.margin_bytes = margin_bytes
        self._taken: dict[str, int] = {}

    @property
    def memory(self) -> Memory:
        """What they take."""
        return Memory(self._taken)

    def look(self, place: str, *, room_bytes: int, free_bytes: int, is_settled: bool) -> None:
        """So much is free on a card now; see `taken_by_others`."""
        before = self._taken.get(place, 0)
        margin_bytes = self.margin_bytes
        taken = taken_by_others(
            before, room_bytes=room_bytes, free_bytes=free_bytes, margin_bytes=margin_bytes, is_settled=is_settled
        )
        if taken != before:
            self._take(place, taken)
            free, margin = size_text(free_bytes), size_text(margin_bytes)
            _log.warning(
                "other programs take %s of what residents may have of %s: %s of it are free, the margin is %s",
                size_text(taken), place, free, margin,
            )  # fmt: skip

    def lack(self, place: str, lacking_bytes: int) -> None:
        """A load found so much less of a card than the ledger had left for it."""
        self._take(place, max(self._taken.get(place, 0), lacking_bytes))

    def forget(self, place: str) -> None:
        """Nobody tells any more what is free there."""
        self._taken.pop(place, None)

    def _take(self, place: str, taken_bytes: int) -> None:
        if taken_bytes:
            self._taken[place] = taken_bytes
        else:
            self.forget(place)
