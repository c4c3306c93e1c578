"""The transfer matrix: accuracy of each specialist on every domain, as a share of the parent's."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from rich.table import Table

from coe.engine.files import written_beside
from coe.engine.pool.resident import WorkerResident
from coe.engine.spec import LoadSpec

from ..errors import EvaluationError
from ..judge.evaluate import Performance, performance
from ..judge.generation import DEFAULT, GenerationSettings, OnProgress, Start
from ..judge.proportions import Paired, Share
from ..judge.values import QuestionSet
from . import plots

_VERSION: Final = 1
PARENT: Final = "parent"


@dataclass(frozen=True)
class Efficiency:
    """A share of the parent's accuracy (1: all of it), and its standard error."""

    value: float
    sigma: float


def efficiency(own: Share, parent: float) -> Efficiency | None:
    """Transfer efficiency Y = visitor's accuracy / parent's, 0..1; None where the parent has nothing right.

    sigma is the visitor's binomial error over the parent's accuracy, which is taken as known.
    Source: the third model card's table of twenty visits, which this gives to the last digit.
    """
    return Efficiency(own.value / parent, own.standard_error / parent) if parent else None


@dataclass(frozen=True)
class Cell:
    """One visitor on one target's questions, beside the parent on the same.

    paired: without the questions that the parent's engine failed on.
    """

    visitor: str
    target: str
    paired: Paired

    @property
    def efficiency(self) -> float | None:
        """Visitor's accuracy over the parent's; None where the parent has nothing right."""
        kept = efficiency(self.paired.first, self.paired.second.value)
        return kept.value if kept else None

    @property
    def sigma(self) -> float | None:
        """Its standard error as the card counts it, None where there is none."""
        kept = efficiency(self.paired.first, self.paired.second.value)
        return kept.sigma if kept else None

    @property
    def paired_sigma(self) -> float | None:
        """The same with the parent's own chance in it, and with what both have in common on the same questions.

        Source: delta method for a ratio of two means of pairs: var(Y) = (var a - 2 Y cov(a, p) + Y^2 var p) / p^2.
        """
        y = self.efficiency
        if y is None:
            return None
        own, parent, n = self.paired.first.value, self.paired.second.value, self.paired.n
        together = self.paired.both / n - own * parent
        variance = own * (1 - own) - 2 * y * together + y * y * parent * (1 - parent)
        return math.sqrt(max(0.0, variance) / n) / parent

    def to_json(self) -> dict[str, Any]:
        """Counts and figures."""
        return {
            "visitor": self.visitor,
            "target": self.target,
            "counts": asdict(self.paired),
            "n": self.paired.n,
            "accuracy": self.paired.first.value,
            "parent_accuracy": self.paired.second.value,
            "efficiency": self.efficiency,
            "sigma": self.sigma,
            "paired_sigma": self.paired_sigma,
        }


@dataclass(frozen=True)
class TransferMatrix:
    """Every visitor on every target. cells: row by row, a row a visitor."""

    visitors: tuple[str, ...]
    targets: tuple[str, ...]
    cells: tuple[Cell, ...]

    def cell(self, visitor: str, target: str) -> Cell:
        """One of them."""
        return self.cells[self.visitors.index(visitor) * len(self.targets) + self.targets.index(target)]

    def efficiencies(self) -> list[list[float]]:
        """[visitor][target]; nan where the parent has nothing right. For drawing."""
        values = [math.nan if cell.efficiency is None else cell.efficiency for cell in self.cells]
        width = len(self.targets)
        return [values[at : at + width] for at in range(0, len(values), width)]

    def accuracies(self, parent: str = PARENT) -> dict[str, dict[str, float]]:
        """visitor -> target -> accuracy, with the parent's own under `parent`. For `transfer.transfer`."""
        rows = {v: {t: self.cell(v, t).paired.first.value for t in self.targets} for v in self.visitors}
        return {**rows, parent: {t: self.cell(self.visitors[0], t).paired.second.value for t in self.targets}}

    def to_json(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "version": _VERSION,
            "visitors": list(self.visitors),
            "targets": list(self.targets),
            "cells": [cell.to_json() for cell in self.cells],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The figures are counted anew. Raises EvaluationError for what is no matrix."""
        try:
            cells = [Cell(cell["visitor"], cell["target"], Paired(**cell["counts"])) for cell in data["cells"]]
            return cls(tuple(data["visitors"]), tuple(data["targets"]), tuple(cells))
        except (KeyError, TypeError) as error:
            raise EvaluationError(f"This is no transfer matrix: {error!r}.", "Make it again with coe eval.") from error

    def save(self, path: Path) -> None:
        """Write as JSON, beside and renamed."""
        with written_beside(path) as beside:
            beside.write_text(json.dumps(self.to_json(), indent=1) + "\n")


def tabulate(visitors: Mapping[str, Mapping[str, Performance]], parents: Mapping[str, Performance]) -> TransferMatrix:
    """The matrix of what has been measured.

    visitors: visitor -> target -> its performance; parents: target -> the parent's, on the same questions.
    Raises EvaluationError where one is missing, or was measured on other questions.
    """
    if not visitors or not parents:
        raise EvaluationError("A matrix needs a visitor and a target.", "Name at least one of each.")
    cells = []
    for visitor, row in visitors.items():
        for target, parent in parents.items():
            own = row.get(target)
            if own is None or [o.id for o in own.outcomes] != [o.id for o in parent.outcomes]:
                raise EvaluationError(
                    f"{visitor} and the parent were not asked the same questions of {target}.", "Evaluate both on them."
                )
            pairs = [(o.correct, p.correct) for o, p in zip(own.outcomes, parent.outcomes, strict=True) if not p.error]
            cells.append(Cell(visitor, target, Paired.of([o for o, _ in pairs], [p for _, p in pairs])))
    return TransferMatrix(tuple(visitors), tuple(parents), tuple(cells))


def evaluate_matrix(
    visitors: Mapping[str, Path],
    targets: Mapping[str, QuestionSet],
    parent: Path,
    *,
    settings: GenerationSettings = DEFAULT,
    load: LoadSpec | None = None,
    system: str = "",
    folder: Path | None = None,
    progress: OnProgress = lambda progress: None,
    start: Start = WorkerResident.start,
) -> TransferMatrix:
    """Ask all visitors, and the parent, the questions of all targets; each model is loaded once.

    Interruptible, and goes on where it stopped, as `evaluate.evaluate`. Raises what that raises.
    """
    everything = QuestionSet(tuple(question for target in targets.values() for question in target.questions))
    ask = functools.partial(
        performance, settings=settings, load=load, system=system, folder=folder, progress=progress, start=start
    )

    def rows(model: Path) -> dict[str, Performance]:
        whole = ask(model, everything)
        outcomes = iter(whole.outcomes)
        return {
            name: replace(whole, outcomes=tuple(itertools.islice(outcomes, len(target.questions))))
            for name, target in targets.items()
        }

    parents = rows(parent)
    return tabulate({name: rows(model) for name, model in visitors.items()}, parents)


def matrix_table(matrix: TransferMatrix) -> Table:
    """A row a visitor: efficiency ± sigma on each target; the last row is the parent's accuracy there."""
    table = Table(title="accuracy of the visitor / the parent's, ± sigma")
    table.add_column("visitor")
    for target in matrix.targets:
        table.add_column(target, justify="right")
    for visitor in matrix.visitors:
        cells = [matrix.cell(visitor, target) for target in matrix.targets]
        table.add_row(visitor, *("-" if c.efficiency is None else f"{c.efficiency:.3f} ± {c.sigma:.3f}" for c in cells))
    table.add_section()
    parents = [matrix.cell(matrix.visitors[0], target).paired.second for target in matrix.targets]
    table.add_row(PARENT, *(str(share) for share in parents))
    return table


def draw(matrix: TransferMatrix, path: Path) -> Path:
    """The efficiencies as a PNG. Raises as plots.matrix does."""
    values = np.array(matrix.efficiencies())
    title = "Accuracy of the visitor (row) over the parent's on the target (column)"
    return plots.transfer_map(path, matrix.visitors, matrix.targets, values, title)
