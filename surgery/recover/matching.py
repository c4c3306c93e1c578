"""Matching of router rows, a pure function of arrays: which expert of the parent each row of a specialist is.

A cut leaves the router's rows as they are, and converters keep them in F32 whatever the quantisation: a specialist's
rows are the parent's to the byte. Rows are looked up by their bytes, so that a layer costs as much as reading it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Rows = NDArray[np.float32]  # [experts, width]


@dataclass(frozen=True)
class Twins:
    """Rows that are the same in the parent, of which a specialist keeps some: their bytes do not say which."""

    slots: tuple[int, ...]
    experts: tuple[int, ...]  # more than there are slots


@dataclass(frozen=True)
class LayerMatch:
    """What the rows of a layer say.

    experts:   slot -> the parent's expert, for all slots that have just one.
    unmatched: slots whose row is none of the parent's.
    repeated:  slots whose row stands in the specialist more often than in the parent.
    twins:     slots that may be one of several experts.
    """

    experts: Mapping[int, int]
    unmatched: tuple[int, ...] = ()
    repeated: tuple[int, ...] = ()
    twins: tuple[Twins, ...] = ()


@dataclass(frozen=True)
class Near:
    """The parent's row nearest to one of a specialist's. second: the next best cosine, -1 where there is no other."""

    slot: int
    expert: int
    cosine: float
    second: float


def match_rows(rows: Rows, parent: Rows) -> LayerMatch:
    """Match [K, D] against [E, D] by the bytes of the rows."""
    where: dict[bytes, list[int]] = {}
    for expert, row in enumerate(np.ascontiguousarray(parent)):
        where.setdefault(row.tobytes(), []).append(expert)
    slots: dict[bytes, list[int]] = {}
    for slot, row in enumerate(np.ascontiguousarray(rows)):
        slots.setdefault(row.tobytes(), []).append(slot)
    experts: dict[int, int] = {}
    unmatched: list[int] = []
    repeated: list[int] = []
    twins: list[Twins] = []
    for row_bytes, here in slots.items():
        there = where.get(row_bytes, [])
        if not there:
            unmatched += here
        elif len(here) > len(there):
            repeated += here
        elif len(here) < len(there):
            twins.append(Twins(tuple(here), tuple(there)))
        else:  # of twins that are all kept it does not matter which is which: a mask is a set
            experts |= dict(zip(here, there, strict=True))
    return LayerMatch(experts, tuple(sorted(unmatched)), tuple(sorted(repeated)), tuple(twins))


def match_nearest(rows: Rows, parent: Rows, slots: Sequence[int], taken: Collection[int] = ()) -> list[Near]:
    """Give each slot an expert that is not taken, one to one, so that the sum of the cosines is the largest."""
    free = [expert for expert in range(len(parent)) if expert not in set(taken)]
    cosines = _cosines(rows[list(slots)], parent[free])
    found = linear_sum_assignment(cosines, maximize=True)
    return [
        Near(slots[row], free[column], float(cosines[row, column]), _best(np.delete(cosines[row], column)))
        for row, column in zip(*found, strict=True)
    ]


def _cosines(rows: Rows, parent: Rows) -> NDArray[np.float64]:
    """[K, E]; 0 where a row is all zeros, and for numbers that are not finite."""

    def directions(of: Rows) -> NDArray[np.float64]:
        wide = np.nan_to_num(of.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        length = np.linalg.norm(wide, axis=1, keepdims=True)
        return np.asarray(wide / np.where(length > 0, length, 1.0))

    return directions(rows) @ directions(parent).T


def _best(cosines: NDArray[np.float64]) -> float:
    return float(cosines.max()) if cosines.size else -1.0
