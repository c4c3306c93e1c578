"""Specialists of one resident take turns: who runs, for how long, and how long anybody waits for it."""

from __future__ import annotations

from collections.abc import Mapping


def next_turn(current: int, ready: Mapping[int, int], elapsed_s: float, quantum_s: float) -> int:
    """Which specialist runs now.

    ready: specialists that have something to run -> since when they wait for a turn, a counter: the later of its last
    turn's end and the coming of its oldest request. Whoever has the turn keeps it for a quantum, and longer while
    nobody else is ready; then it is the one that has waited longest.
    """
    others = [owner for owner in ready if owner != current]
    if not others or (current in ready and elapsed_s < quantum_s):
        return current
    return min(others, key=lambda owner: (ready[owner], owner))


def quantum_s(change_s: float, share: float, n_ready: int, step_s: float, max_wait_s: float | None = None) -> float:
    """Seconds of a turn: so many that changes, `change_s` each, take at most `share` (0..1) of the time.

    step_s: the longest decode, which a turn's end waits for. max_wait_s: where the wait for a turn would be longer,
    turns are shorter, down to one decode, and changes take a larger share.
    """
    wanted = change_s * (1.0 - share) / share
    if max_wait_s is None or n_ready < 2:
        return wanted
    return max(0.0, min(wanted, (max_wait_s - n_ready * change_s) / (n_ready - 1) - step_s))


def worst_wait_s(n_ready: int, change_s: float, turn_s: float, step_s: float) -> float:
    """The longest that one of n_ready specialists waits for its turn, from its last turn's end or from a request.

    Everybody else has at most one turn before: none of them has waited as long afterwards. A turn ends with the decode
    in which its quantum ran out. Holds while what is active fits the slots, the cells and the host memory together.
    """
    return (n_ready - 1) * (turn_s + step_s) + n_ready * change_s if n_ready > 1 else 0.0
