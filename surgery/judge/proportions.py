"""Accuracies with their uncertainty: Wilson intervals, paired differences and McNemar's test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from scipy.stats import binomtest

WILSON_Z: Final = 1.959963984540054  # 95 %


@dataclass(frozen=True)
class Share:
    """`count` of `n`."""

    count: int
    n: int

    @property
    def value(self) -> float:
        """0..1; 0 of nothing is 0."""
        return self.count / self.n if self.n else 0.0

    @property
    def standard_error(self) -> float:
        """Binomial, sqrt(p (1 - p) / n): the figure that model cards give. It is 0 at 0 % and at 100 %."""
        return math.sqrt(self.value * (1 - self.value) / self.n) if self.n else 0.0

    def wilson(self, z: float = WILSON_Z) -> tuple[float, float]:
        """Score interval, 95 % unless told: sound for few questions and near 0 % and 100 %, where the binomial is not.

        Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.
        """
        if not self.n:
            return 0.0, 1.0
        p, n = self.value, self.n
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, middle - half), min(1.0, middle + half)

    def __str__(self) -> str:
        """91.5 % ± 2.4 (119 of 130)."""
        return f"{self.value:.1%} ± {100 * self.standard_error:.1f} ({self.count} of {self.n})"


@dataclass(frozen=True)
class Paired:
    """Two models on the same questions.

    both, gained, lost, neither: right by both, by the first alone, by the second (the parent) alone, by none.
    """

    both: int
    gained: int
    lost: int
    neither: int

    @classmethod
    def of(cls, first: Sequence[bool], second: Sequence[bool]) -> Paired:
        """Count. Both in the same questions' order."""
        pairs = list(zip(first, second, strict=True))
        return cls(*(pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))))

    @property
    def n(self) -> int:
        """Questions."""
        return self.both + self.gained + self.lost + self.neither

    @property
    def first(self) -> Share:
        """The first model's right answers."""
        return Share(self.both + self.gained, self.n)

    @property
    def second(self) -> Share:
        """The second model's (the parent's) right answers."""
        return Share(self.both + self.lost, self.n)

    @property
    def difference(self) -> float:
        """Accuracy of the first less that of the second, -1..1."""
        return (self.gained - self.lost) / self.n if self.n else 0.0

    @property
    def standard_error(self) -> float:
        """Of the difference: sqrt(b + c - (b - c)^2 / n) / n with b gained and c lost.

        Source: Agresti, Categorical Data Analysis, 10.1.1 (matched pairs).
        """
        return _paired_error(self.gained, self.lost, self.n)

    @property
    def steadied_standard_error(self) -> float:
        """The same with half a question added to each of the four counts; never 0.

        With few disagreements the plain one says less than it seems to: one lost question of any number is always
        more than one plain standard error, and none at all has the error 0.
        Source: Agresti and Min 2005, Simple improved confidence intervals for comparing matched proportions.
        """
        return _paired_error(self.gained + 0.5, self.lost + 0.5, self.n + 2)

    @property
    def p_value(self) -> float:
        """McNemar's exact test, two-sided: how likely so uneven a split of the disagreements is if neither is better.

        Source: McNemar 1947; exact form: a binomial test of the gained among gained and lost with p = 1/2.
        """
        disagreements = self.gained + self.lost
        return float(binomtest(self.gained, disagreements, 0.5).pvalue) if disagreements else 1.0


def _paired_error(gained: float, lost: float, n: float) -> float:
    return math.sqrt(max(0.0, gained + lost - (gained - lost) ** 2 / n)) / n if n else 0.0


@dataclass(frozen=True)
class Lengths:
    """Of completions, in tokens: the smallest that half, and nine tenths, do not exceed; and the longest."""

    p50: int = 0
    p90: int = 0
    max: int = 0

    @classmethod
    def of(cls, tokens: Sequence[int]) -> Lengths:
        """Nearest rank: each figure is a length that occurred."""
        if not tokens:
            return cls()
        ordered = sorted(tokens)
        return cls(*(ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.9, 1.0)))
