"""Estimates of what residents take: memory to book, seconds to load or swap, speed of prompt processing.

Predictions at first, corrected by what loads and residents have shown; kept for each group of specialists.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from .bookings import ResidentBooking
from .card_choice import Placement
from .places import Memory
from .types import Entry

# What is assumed of loads and swaps before any was measured.
_LOAD_BYTES_PER_S = 1e9
_SWAP_BYTES_PER_S = 4e9


_Key = tuple[str, tuple[str, ...]]  # a group, and the cards that its resident is on


def _key(booking: ResidentBooking) -> _Key:
    return booking.group, booking.devices


class Estimates:
    """Owned by the pool; the loader corrects it."""

    def __init__(self, budget: Memory) -> None:
        self._budget = budget
        # Of a group on cards: what it took more than predicted, and whether it is known what the cards lost by a load.
        self._measured: dict[_Key, Memory] = {}
        self._on_device: set[_Key] = set()
        self._load_s: dict[str, float] = {}  # of the last load
        self._prompt_speed: dict[str, float] = {}  # tokens a second, as residents reported before they went

    # --- memory ---------------------------------------------------------------------------------------------------

    def placements(self, entry: Entry) -> tuple[Placement, ...]:
        """The ways to load a resident, with what each would take."""
        # A measurement above the whole budget may include memory of other programs: it is tried again, alone.
        return tuple(
            replace(one, memory=one.memory.larger(measured.smaller(self._budget)))
            if (measured := self._measured.get((entry.spec.group, one.devices)))
            else one
            for one in entry.placements
        )

    def knows_device(self, booking: ResidentBooking) -> bool:
        """Whether the cards were asked what a load like the booking's takes; asking takes as long as a swap."""
        return _key(booking) in self._on_device

    def book_device_loss(self, booking: ResidentBooking, lost: Memory, measured: Memory) -> Memory:
        """Book what the cards lost by a load, or what its worker measured, of each place the larger, where that is more
        than predicted. Gives what it is more.

        Either may miss something: the worker what its runtime took before it measured, the card's own figure all of it,
        where a driver tells no free memory that moves. Both count more than what was measured before, unless a card
        lost more than the budget: then it may include memory of other programs, and the next load is measured again.
        """
        if lost.fits_in(self._budget):
            self._on_device.add(_key(booking))
            if self._measured.pop(_key(booking), None) is not None:
                booking.memory = booking.predicted
        return self.book_measured(booking, lost.larger(measured))

    def book_measured(self, booking: ResidentBooking, measured: Memory) -> Memory:
        """Book what was measured, where that is more than predicted. Gives what it is more.

        Less than predicted may only mean that pages are not touched yet. What is more than the whole budget may be
        other programs' in part, and is booked as the whole budget: else its resident would go whenever it is idle, to
        be loaded again for the next request.
        """
        before = booking.memory
        more = before.larger(measured)
        if more != before:
            booking.memory = before.larger(measured.smaller(self._budget))
            self._measured[_key(booking)] = more
        return more - before

    def book_shortage(self, booking: ResidentBooking, needed: Memory) -> bool:
        """Book for a resident that lacked memory what it is known to need at least, now and at the next load. Gives
        whether the next load asks for more than this one did; a whole budget is the most."""
        before = booking.memory.smaller(self._budget)
        self.book_measured(booking, needed)
        return booking.memory.smaller(self._budget) != before

    # --- seconds and speeds ---------------------------------------------------------------------------------------

    def loaded(self, group: str, seconds: float) -> None:
        """A resident of a group was loaded."""
        self._load_s[group] = seconds

    def ready_in_s(self, entry: Entry, specialist: str, warm: Sequence[ResidentBooking]) -> float:
        """Seconds until the nearest of its group's warm residents is the specialist, else until one is loaded."""
        if not warm:
            return self._load_s.get(entry.spec.group, entry.memory.total_bytes / _LOAD_BYTES_PER_S)
        n_bytes = min(entry.distances.between(specialist, booking.specialist) for booking in warm)
        if not n_bytes:
            return 0.0
        measured = max(booking.activity.get("change_s", 0.0) for booking in warm)
        return measured or n_bytes / _SWAP_BYTES_PER_S

    def swap_bytes_per_s(self, residents: Iterable[ResidentBooking]) -> float:
        """How fast a group's residents change: the slowest, as they report, else what is assumed."""
        activities = [booking.activity for booking in residents]
        speeds = [
            activity["swapped_bytes"] / activity["swaps"] / activity["change_s"]
            for activity in activities
            if activity.get("swapped_bytes") and activity.get("change_s")
        ]
        return min(speeds, default=_SWAP_BYTES_PER_S)

    def prompt_tokens_per_s(self, group: str, residents: Iterable[ResidentBooking]) -> float | None:
        """How fast a group's residents have read prompts so far; None before any was read."""
        reported = [booking.activity.get("prompt_tokens_per_s", 0.0) for booking in residents]
        return max(reported, default=0.0) or self._prompt_speed.get(group)

    # --- what is kept ---------------------------------------------------------------------------------------------

    def keep_speed(self, booking: ResidentBooking) -> None:
        """Remember how fast a resident, which is about to be forgotten, has read prompts."""
        if speed := booking.activity.get("prompt_tokens_per_s"):
            self._prompt_speed[booking.group] = speed

    def forget_bytes(self, group: str) -> None:
        """Predict anew: the group's files or settings are others now."""
        self._measured = {key: memory for key, memory in self._measured.items() if key[0] != group}
        self._on_device = {key for key in self._on_device if key[0] != group}
