"""Transfer between domains: correlation and regression of accuracy in another's domain on the overlap of masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from scipy import stats

from ..errors import EvaluationError
from .compare import Comparison

_FEW: Final = 10


@dataclass(frozen=True)
class Visit:
    """A specialist (visitor) on the questions of another's domain (target).

    transfer:   its accuracy there / the parent's there; 1 is all that the parent can.
    predictors: name -> what was known beforehand.
    """

    visitor: str
    target: str
    accuracy: float
    transfer: float
    predictors: Mapping[str, float]


@dataclass(frozen=True)
class Correlation:
    """Pearson's r between a predictor and the transfer over n visits, None where it is not defined.

    low, high: 95 % interval of r by Fisher's transformation, from four visits on.
    p:         two-sided, as if the visits were independent of each other.
    """

    predictor: str
    n: int
    r: float | None = None
    p: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Regression:
    """Least squares of the transfer on several predictors and a constant.

    p: of the F-test with (predictors, n - predictors - 1) degrees of freedom.
    """

    predictors: tuple[str, ...]
    coefficients: tuple[float, ...]
    constant: float
    n: int
    r_squared: float
    adjusted_r_squared: float
    p: float


@dataclass(frozen=True)
class Transfer:
    """What accuracies away from home say of the overlap of masks.

    notes: what to keep in mind, and what was left out.
    """

    visits: tuple[Visit, ...]
    correlations: tuple[Correlation, ...]
    fit: Regression | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """For a report."""
        return asdict(self)


OVERLAP: Final = "F-score"
COSINE: Final = "weighted cosine"
SPREAD: Final = "layer variance (std / whole)"
HOME: Final = "accuracy at home"
QUALITY: Final = "accuracy at home / parent's"


def transfer(
    comparison: Comparison, accuracies: Mapping[str, Mapping[str, float]], *, parent: str = "parent"
) -> Transfer:
    """Transfer efficiency of every visit that accuracies are given for, and how well it was to be foreseen.

    accuracies: visitor -> target -> accuracy, all as shares or all in percent; the parent's own under `parent`, which
    every target needs. A visitor's accuracy at home (visitor = target) is no visit, but two of the predictors.
    Raises EvaluationError without visits, or where the parent's accuracy is missing or 0.
    Source: the third model card: Y = accuracy of the visitor on the target / the parent's; predictors F-score,
    weighted cosine, layer variance of the alignment (std / whole), and the visitor's accuracy at home, which is
    confounded by the domain's difficulty unless divided by the parent's there. Its multi-predictor model is the cosine,
    the layer variance and that quotient. Its p for that model is one of a single predictor; here it is the F-test's.
    """
    at_home = accuracies.get(parent)
    if at_home is None:
        raise EvaluationError(
            f"The accuracies lack the parent's own ({parent!r}).", "Evaluate it on the same questions."
        )
    wanted = [
        (visitor, target) for visitor, row in accuracies.items() for target in row if visitor not in (parent, target)
    ]
    pairs = [pair for pair in wanted if set(pair) <= set(comparison.names)]
    left_out = sorted({name for pair in wanted for name in pair if name not in comparison.names})
    if not pairs:
        raise EvaluationError(
            "No accuracy is given of one mask's specialist on another's questions.",
            f"The masks are called {', '.join(comparison.names)}; name visitors and targets so.",
        )
    visits = tuple(_visit(comparison, accuracies, at_home, visitor, target) for visitor, target in pairs)
    shared = [name for name in visits[0].predictors if all(name in visit.predictors for visit in visits)]
    correlations = tuple(_correlation(name, visits) for name in shared)
    notes = [f"Left out, for want of a mask: {', '.join(left_out)}."] if left_out else []
    if HOME not in shared:
        notes.append("Quality at home is no predictor here: it is not given for every visitor.")
    if len(comparison.names) < 3:
        notes.append("Of two masks the F-score counts the experts that both have.")
    if len(visits) < _FEW:
        notes.append(f"{len(visits)} visits are few: look at the intervals, not at r.")
    if len(visits) > 2:
        notes.append("Visits share visitors and targets, so p is smaller than it should be.")
    measure = COSINE if COSINE in shared else OVERLAP
    fit = _fit([name for name in (measure, SPREAD, QUALITY) if name in shared], visits)
    if fit is None:
        notes.append("No model of several predictors: the visits are too few, or the predictors say the same.")
    return Transfer(visits, correlations, fit, tuple(notes))


def _visit(
    comparison: Comparison,
    accuracies: Mapping[str, Mapping[str, float]],
    parents: Mapping[str, float],
    visitor: str,
    target: str,
) -> Visit:
    at = comparison.names.index(visitor), comparison.names.index(target)
    overlap = comparison.f_direct if comparison.f_score is None else comparison.f_score
    predictors = {OVERLAP: float(overlap[at]), SPREAD: float(comparison.heterogeneity[at])}
    if comparison.cosine is not None:
        predictors[COSINE] = float(comparison.cosine[at])
    own = accuracies[visitor].get(visitor)
    if own is not None and visitor in parents:
        predictors |= {HOME: own, QUALITY: own / _of_parent(parents, visitor)}
    accuracy = accuracies[visitor][target]
    return Visit(visitor, target, accuracy, accuracy / _of_parent(parents, target), predictors)


def _of_parent(parents: Mapping[str, float], target: str) -> float:
    accuracy = parents.get(target, 0.0)
    if not accuracy > 0:
        raise EvaluationError(
            f"The parent's accuracy on {target} is {'0' if target in parents else 'not given'}.",
            "Transfer is measured by it: evaluate the parent on the same questions.",
        )
    return accuracy


def _correlation(name: str, visits: Sequence[Visit]) -> Correlation:
    x = np.array([visit.predictors[name] for visit in visits])
    y = np.array([visit.transfer for visit in visits])
    if len(visits) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Correlation(name, len(visits))
    found = stats.pearsonr(x, y)
    low = high = None
    if len(visits) > 3:
        interval = found.confidence_interval(0.95)
        low, high = float(interval.low), float(interval.high)
    return Correlation(name, len(visits), float(found.statistic), float(found.pvalue), low, high)


def _fit(names: Sequence[str], visits: Sequence[Visit]) -> Regression | None:
    """None when a constant and the predictors leave no degree of freedom, or are not independent of each other."""
    y = np.array([visit.transfer for visit in visits])
    x = np.column_stack([np.ones(len(visits)), *([visit.predictors[name] for visit in visits] for name in names)])
    free = len(visits) - len(names) - 1
    if len(names) < 2 or free < 1 or np.ptp(y) == 0 or np.linalg.matrix_rank(x) < x.shape[1]:
        return None
    coefficients = np.linalg.lstsq(x, y, rcond=None)[0]
    left = float(np.square(y - x @ coefficients).sum() / np.square(y - y.mean()).sum())
    ratio = np.inf if left <= 0 else (1 - left) / len(names) / (left / free)
    return Regression(
        tuple(names),
        tuple(float(one) for one in coefficients[1:]),
        float(coefficients[0]),
        len(visits),
        1 - left,
        1 - left * (len(visits) - 1) / free,
        float(stats.f.sf(ratio, len(names), free)),
    )
