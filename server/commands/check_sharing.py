"""What `coe check` prints of specialists that share a resident: the bytes that swaps move, and the longest wait for a
time slice (an estimate)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from coe.engine.spec import Sharing
from coe.engine.swap.groups import Group
from coe.engine.swap.quantum import quantum_s, worst_wait_s
from coe.engine.units import size_text

_COPY_BYTES: Final = 64 * 2**20
_COPIES: Final = 3
_OF_A_COPY: Final = 0.5  # a swap's speed beside a copy's: what it is built for


def pair_lines(groups: Iterable[Group]) -> list[str]:
    """For each pair of a resident's specialists the bytes in common and those that a swap moves; then doubts."""
    lines: list[str] = []
    for group in groups:
        if len(group.members) < 2:
            continue
        rows = [("a swap between", "leaves", "moves")]
        rows += [
            (f"{pair.one} and {pair.other}", size_text(pair.shared_bytes), size_text(pair.changed_bytes))
            for pair in group.pairs
        ]
        lines += ["Sharing a resident: " + ", ".join(member.name for member in group.members), *_aligned(rows)]
        lines += [
            f"warning: {one} and {other} are of one parent and were quantised apart: they share nothing. "
            "Quantise the parent, then cut."
            for one, other in group.quantised_after_cut
        ]
    return lines


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def copy_bytes_per_s() -> float:
    """How fast this machine copies host memory: the best of some copies of 64 MiB, on one core."""
    source, target = np.ones(_COPY_BYTES, np.uint8), np.zeros(_COPY_BYTES, np.uint8)
    best = float("inf")
    for _ in range(_COPIES):
        begun = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - begun)
    return _COPY_BYTES / max(best, 1e-9)


def wait_lines(
    groups: Iterable[Group],
    copy_rate: float,
    *,
    swap_share: float = Sharing.swap_share,
    max_wait_s: float | None = None,
) -> list[str]:
    """How long a request may wait for its time slice while n of a resident's specialists are at work, for every n.

    An estimate: the largest swap of the group at half the speed of `copy_rate` (bytes a second), its bytes in the page
    cache, decodes left out. swap_share, max_wait_s: as in `engine.spec.Sharing`.
    """
    lines: list[str] = []
    for group in groups:
        if group.n_weights < 2:
            continue
        largest = max(pair.changed_bytes for pair in group.pairs)
        change_s = largest / (copy_rate * _OF_A_COPY)
        lines.append(
            f"Longest wait for a time slice among {', '.join(member.name for member in group.members)}, estimated from "
            f"the largest swap ({size_text(largest)}) at half of {size_text(int(copy_rate))}/s, at which this machine "
            f"copies memory: {_seconds(change_s)} a swap. Conversations that are moved come on top, and one decode a "
            "time slice; it holds while ram_budget has room for the answers that rest."
        )
        for n in range(2, group.n_weights + 1):
            slice_s = quantum_s(change_s, swap_share, n, 0.0, max_wait_s)
            wait_s = worst_wait_s(n, change_s, slice_s, 0.0)
            over = max_wait_s is not None and wait_s > max_wait_s
            note = f", more than the {_seconds(max_wait_s)} that are asked for" if over and max_wait_s else ""
            lines.append(f"  {n} at work: {_seconds(wait_s)}{note}")
    return lines


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
