"""The experiment's statistics: accuracies with standard errors, cross-domain transfer, corpora, loops. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coe.surgery.judge.proportions import Paired, Share
from coe.surgery.study.compare import Comparison, compare
from coe.surgery.study.transfer import Transfer, transfer

from ..curriculum import DOMAINS
from .design import BASE, HALF, METHODS, ExperimentPlan, kept_of
from .results import Results

# What the curriculum made alike: numbers, formulas and symbols, the meaning of words.
NEAR: Final = (
    frozenset(("math", "physics")),
    frozenset(("math", "python")),
    frozenset(("physics", "chemistry")),
    frozenset(("law", "general")),
)


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error; nan of a single value."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Of independent repetitions."""
        n = len(values)
        return cls(float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else math.nan)

    def percent(self) -> str:
        """`87.5 ± 1.2`, in percent."""
        return f"{100 * self.mean:.1f}" + ("" if math.isnan(self.error) else f" ± {100 * self.error:.1f}")

    def clear(self, times: float = 2.0) -> bool:
        """Whether it is this many errors away from 0."""
        return not math.isnan(self.error) and abs(self.mean) > times * max(self.error, 1e-12)


@dataclass(frozen=True)
class Unit:
    """One sample of one parent: what is repeated to get errors."""

    results: Results
    number: int

    def parent_rights(self, domain: str) -> list[int]:
        """The parent at home."""
        found: list[int] = self.results.home[self.number][domain]
        return found

    def rights(self, method: str, share: float, domain: str) -> list[int]:
        """A specialist at home."""
        found: list[int] = self.results.methods[self.number][domain][method][str(share)]
        return found

    def retained(self, method: str, share: float) -> float:
        """Mean accuracy of the specialists at home, over the parent's."""
        own = np.mean([np.mean(self.rights(method, share, domain)) for domain in DOMAINS])
        return float(own / np.mean([np.mean(self.parent_rights(domain)) for domain in DOMAINS]))


def units_of(results: Sequence[Results]) -> list[Unit]:
    """Every sample of every parent."""
    return [Unit(one, number) for one in results for number in range(len(one.samples))]


def paired(units: Sequence[Unit], method: str, share: float, domain: str) -> Paired:
    """A specialist at home beside its parent, on the same questions of all units."""
    own = [right for unit in units for right in unit.rights(method, share, domain)]
    theirs = [right for unit in units for right in unit.parent_rights(domain)]
    return Paired.of([bool(right) for right in own], [bool(right) for right in theirs])


def beside_base(results: Sequence[Results], method: str, share: float) -> Estimate:
    """Accuracy less that of the base, in its own domain: mean over domains and its error over domains and parents.

    Samples of one domain are averaged first: they share the domain's peculiarities.
    """
    differences = []
    for one in results:
        units = units_of([one])
        for domain in DOMAINS:
            differences.append(
                float(
                    np.mean(
                        [
                            np.mean(u.rights(method, share, domain)) - np.mean(u.rights(BASE, share, domain))
                            for u in units
                        ]
                    )
                )
            )
    return Estimate.of(differences)


@dataclass(frozen=True)
class Visiting:
    """All visits of one unit at one share."""

    comparison: Comparison
    found: Transfer

    def r(self, predictor: str) -> float | None:
        """Pearson's r, None where it is not defined."""
        return next((one.r for one in self.found.correlations if one.predictor == predictor), None)

    @property
    def overlap(self) -> NDArray[np.float64]:
        """[visitor, target]: F-scores."""
        found = self.comparison.f_score
        assert found is not None, "six masks have one"
        return found

    def matrix(self, value: Callable[[Any], float]) -> NDArray[np.float64]:
        """[visitor, target], nan on the diagonal."""
        values = np.full((len(DOMAINS), len(DOMAINS)), np.nan)
        for visit in self.found.visits:
            values[DOMAINS.index(visit.visitor), DOMAINS.index(visit.target)] = value(visit)
        return values


def visiting(unit: Unit, share: float, plan: ExperimentPlan) -> Visiting | None:
    """How visitors did and what foretold it; None where the parent has a domain wholly wrong."""
    results, base = unit.results, METHODS[0]
    profile, count = results.samples[unit.number].profile(), kept_of(results.parent, share)
    masks = {domain: base.mask(profile, domain, count, seed=0) for domain in DOMAINS}
    utilities = {domain: profile.of_class(domain).gate_mass() for domain in DOMAINS}
    rights = results.visits[share][unit.number]
    accuracies = {visitor: {target: float(np.mean(r)) for target, r in row.items()} for visitor, row in rights.items()}
    accuracies["parent"] = {domain: float(np.mean(unit.parent_rights(domain)[: plan.visits])) for domain in DOMAINS}
    if min(accuracies["parent"].values()) == 0:
        return None
    comparison = compare(masks, utilities)
    return Visiting(comparison, transfer(comparison, accuracies))


def near_and_far(one: Visiting) -> tuple[list[float], list[float]]:
    """Transfer of the visits to near domains, and to all others."""
    near = [visit.transfer for visit in one.found.visits if frozenset((visit.visitor, visit.target)) in NEAR]
    far = [visit.transfer for visit in one.found.visits if frozenset((visit.visitor, visit.target)) not in NEAR]
    return near, far


def corpus_rows(
    results: Sequence[Results], plan: ExperimentPlan
) -> dict[int, tuple[float, dict[float, tuple[Estimate, Estimate]]]]:
    """Size -> mean tokens, and for each share overlap with the whole corpus' mask and accuracy over the parent's."""
    rows = {}
    for size in plan.corpora:
        tokens: list[float] = []
        shares: dict[float, tuple[Estimate, Estimate]] = {}
        for share in plan.corpus_shares:
            overlaps, kept = [], []
            for one in results:
                for number, sample in enumerate(one.corpora):
                    pieces = [sample[domain][str(size)] for domain in DOMAINS]
                    tokens += [piece["tokens"] for piece in pieces]
                    own = [piece["shares"][str(share)] for piece in pieces]
                    overlaps.append(float(np.mean([piece["jaccard"] for piece in own])))
                    parent = np.mean([np.mean(one.home[number][domain]) for domain in DOMAINS])
                    kept.append(float(np.mean([np.mean(piece["rights"]) for piece in own]) / parent))
            shares[share] = (Estimate.of(overlaps), Estimate.of(kept))
        rows[size] = (float(np.mean(tokens)), shares)
    return rows


def answered_pair(one: Results, domain: str) -> Paired:
    """The specialist of the parent's own answers, and that of the gold ones, on the same questions."""
    own = one.answered[domain]["shares"][str(HALF)]["rights"]
    gold = one.methods[0][domain][BASE][str(HALF)]
    return Paired.of([bool(right) for right in own], [bool(right) for right in gold])


def loops_of(
    results: Sequence[Results], share: float, where: str, thinking: str, sampling: str
) -> dict[str, int] | None:
    """Counts added up over domains and parents; None where nothing was asked."""
    cells = [
        piece[where][thinking][sampling] for one in results for piece in one.loops[share].values() if where in piece
    ]
    return {key: sum(cell[key] for cell in cells) for key in cells[0]} if cells else None


def all_loops(results: Sequence[Results]) -> dict[str, int]:
    """Counts added up over everything that was asked for the loop rates."""
    cells = [
        cell
        for one in results
        for pieces in one.loops.values()
        for piece in pieces.values()
        for ways in piece.values()
        for samplings in ways.values()
        for cell in samplings.values()
    ]
    return {key: sum(cell[key] for cell in cells) for key in cells[0]}


def endless(counts: Mapping[str, int]) -> Share:
    """Looping, or running on to the limit."""
    return Share(counts["looped"] + counts["at_limit"], counts["n"])
