"""Time slices of the specialists that share a resident (round robin with a quantum): which one runs next, for how
long, and how long the others wait. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class SliceChoice:
    """The specialist whose time slice it is now. reason: one phrase, for logs."""

    specialist_id: int
    reason: str


def next_slice(current: int, ready: Mapping[int, int], elapsed_s: float, quantum_s: float) -> SliceChoice:
    """Which specialist runs now.

    ready: specialists that have something to run -> since when they wait for a time slice, a counter: the later of the
    end of their last slice and the arrival of their oldest request. The current specialist keeps the resident for a
    quantum, and longer while no other is ready; then the one that has waited longest follows.
    """
    others = [specialist_id for specialist_id in ready if specialist_id != current]
    if not others:
        return SliceChoice(current, "no other specialist is ready")
    if current in ready and elapsed_s < quantum_s:
        return SliceChoice(current, "its quantum is not over")
    chosen = min(others, key=lambda specialist_id: (ready[specialist_id], specialist_id))
    return SliceChoice(chosen, "its quantum is over" if current in ready else "it has nothing to run")


def quantum_s(change_s: float, share: float, n_active: int, step_s: float, max_wait_s: float | None = None) -> float:
    """Seconds of a time slice: so many that changes, `change_s` each, take at most `share` (0..1) of the time.

    n_active: specialists with something to do. step_s: the longest decode, which the end of a slice waits for.
    max_wait_s: where the wait for a slice would be longer, slices are shorter, down to one decode, and changes take a
    larger share.
    """
    wanted = change_s * (1.0 - share) / share
    if max_wait_s is None or n_active < 2:
        return wanted
    return max(0.0, min(wanted, (max_wait_s - n_active * change_s) / (n_active - 1) - step_s))


def worst_wait_s(n_active: int, change_s: float, slice_s: float, step_s: float) -> float:
    """The longest wait of one of n_active specialists for its time slice, from the end of its last one or a request.

    Every other specialist has at most one slice before it: none of them has waited as long afterwards. A slice ends
    with the decode in which its quantum ran out. Holds while what is active fits the slots, the cells and the host
    memory together.
    """
    return (n_active - 1) * (slice_s + step_s) + n_active * change_s if n_active > 1 else 0.0
