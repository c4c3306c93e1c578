"""Fitting a threshold for each domain on labelled texts, and what thresholds cost: selective classification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..domains import GENERAL, family

Array = NDArray[Any]

GRID: tuple[float, ...] = tuple(round(step / 100, 2) for step in range(30, 96, 5))
FEWEST = 20  # answers of a domain, below which its threshold would be a matter of luck


@dataclass(frozen=True)
class Trade:
    """What a setting of thresholds leads to, as shares of all texts.

    wrong_specialist: answered by a specialist of another domain.
    needless_fallback: the likeliest domain was right and had a specialist, but was too doubtful to be asked.
    """

    wrong_specialist: float
    needless_fallback: float


def confidences(probabilities: Array, names: Sequence[str]) -> tuple[Array, Array]:
    """Of each row the likeliest column, and the probability of that column's family (python and coding are one)."""
    chosen = probabilities.argmax(axis=1)
    families = np.array([family(name) for name in names])
    together = np.where(families[chosen][:, None] == families[None, :], probabilities, 0).sum(axis=1)
    return chosen, together


def trade(
    probabilities: Array, labels: Array, names: Sequence[str], threshold: float, thresholds: Mapping[str, float]
) -> Trade:
    """What thresholds lead to; a domain without one of its own has `threshold`."""
    chosen, sure = confidences(probabilities, names)
    right = _right(chosen, labels, names)
    special = np.array([name != GENERAL for name in names])[chosen]
    answered = sure >= np.array([thresholds.get(name, threshold) for name in names])[chosen]
    return Trade(
        wrong_specialist=float((special & answered & ~right).mean()),
        needless_fallback=float((special & ~answered & right).mean()),
    )


def fit_thresholds(
    probabilities: Array, labels: Array, names: Sequence[str], *, most_wrong: float = 0.05
) -> dict[str, float]:
    """The lowest threshold of each domain at which at most `most_wrong` of its answers are wrong.

    Where no step of GRID reaches that, the highest. A domain with fewer than FEWEST answers gets none.
    """
    chosen, sure = confidences(probabilities, names)
    right = _right(chosen, labels, names)
    found = {}
    for column, name in enumerate(names):
        mine = chosen == column
        if mine.sum() < FEWEST:
            continue
        good = (
            step
            for step in GRID
            if (answered := mine & (sure >= step)).any() and float((~right[answered]).mean()) <= most_wrong
        )
        found[name] = next(good, GRID[-1])
    return found


def _right(chosen: Array, labels: Array, names: Sequence[str]) -> Array:
    families = np.array([family(name) for name in names])
    return np.asarray(families[chosen] == families[labels])
