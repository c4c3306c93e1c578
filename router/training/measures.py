"""Metrics of probabilities: accuracy, F1, coverage, expected calibration error. Pure functions; drawing stands last.

Everywhere `probabilities` is (n, n_labels), rows adding up to 1, and `labels` is (n,), the right columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..choose import SupervisorSettings

Array = NDArray[Any]

N_BINS = 15
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".svg", ".pdf")


def accuracy(probabilities: Array, labels: Array) -> float:
    """Share of rows whose likeliest label is the right one."""
    return float((probabilities.argmax(axis=1) == labels).mean())


def confusion(probabilities: Array, labels: Array) -> Array:
    """Counts, (n_labels, n_labels): the right label's row, the likeliest label's column."""
    n = probabilities.shape[1]
    counts = np.zeros((n, n), np.int64)
    np.add.at(counts, (labels, probabilities.argmax(axis=1)), 1)
    return counts


def macro_f1(probabilities: Array, labels: Array) -> float:
    """Mean F1 of the labels that occur among the right ones."""
    counts = confusion(probabilities, labels)
    hits, right, chosen = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    occurs = right > 0
    return float((2 * hits[occurs] / (right[occurs] + chosen[occurs])).mean())


def coverage_curve(probabilities: Array, labels: Array) -> Array:
    """Accuracy of the k surest rows for k = 1..n, (n,). Equally sure rows stay in their order."""
    surest = np.argsort(-probabilities.max(axis=1), kind="stable")
    right = (probabilities.argmax(axis=1) == labels)[surest]
    return np.asarray(np.cumsum(right) / np.arange(1, len(labels) + 1))


def accuracy_at(probabilities: Array, labels: Array, coverage: float) -> float:
    """Accuracy of the surest share of the rows, at least of one row."""
    return float(coverage_curve(probabilities, labels)[max(round(coverage * len(labels)), 1) - 1])


def calibration_bins(probabilities: Array, labels: Array, n_bins: int = N_BINS) -> list[tuple[float, float, float]]:
    """(confidence, accuracy, share of the rows) of each bin of equal width that has rows."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    return [
        (float(confidence[bins == k].mean()), float(right[bins == k].mean()), float((bins == k).mean()))
        for k in range(n_bins)
        if (bins == k).any()
    ]


def calibration_error(probabilities: Array, labels: Array, n_bins: int = N_BINS) -> float:
    """Expected calibration error: the gap between confidence and accuracy over the bins, weighted by their sizes."""
    return sum(abs(sure - right) * share for sure, right, share in calibration_bins(probabilities, labels, n_bins))


def report(probabilities: Array, labels: Array, threshold: float = SupervisorSettings.threshold) -> dict[str, float]:
    """The figures in one dictionary, rounded, with what happens when answers below a threshold are withheld."""
    right, answered = probabilities.argmax(axis=1) == labels, probabilities.max(axis=1) >= threshold
    return {
        "n": len(labels),
        "accuracy": round(accuracy(probabilities, labels), 4),
        "macro_f1": round(macro_f1(probabilities, labels), 4),
        "calibration_error": round(calibration_error(probabilities, labels), 4),
        "accuracy_at_80": round(accuracy_at(probabilities, labels, 0.8), 4),
        "answered": round(float(answered.mean()), 4),
        "accuracy_of_answered": round(float(right[answered].mean()), 4) if answered.any() else 0.0,
        "wrong_of_all": round(float((~right & answered).mean()), 4),
    }


def draw(path: Path, probabilities: Array, labels: Array, names: Sequence[str], milliseconds: Sequence[float]) -> None:
    """Accuracy against coverage, calibration, confusion matrix, latency: one picture, `path` ending as in PICTURES."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 11), layout="constrained")
    ((covered, calibrated), (confused, timed)) = figure.subplots(2, 2)
    n = len(labels)
    covered.plot(np.arange(1, n + 1) / n, coverage_curve(probabilities, labels))
    covered.set(xlabel="share answered, the surest first", ylabel="right of the answered", title="Coverage")
    bins = calibration_bins(probabilities, labels)
    calibrated.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    calibrated.scatter([b[0] for b in bins], [b[1] for b in bins], [20 + 600 * b[2] for b in bins])
    error = calibration_error(probabilities, labels)
    calibrated.set(xlabel="confidence", ylabel="right", title=f"Calibration (error {error:.3f})")
    counts = confusion(probabilities, labels)
    confused.imshow(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    confused.set_xticks(range(len(names)), names, rotation=90)
    confused.set_yticks(range(len(names)), names)
    confused.set(xlabel="chosen", ylabel="right", title="Confusion, shares of each row")
    for row, column in zip(*np.nonzero(counts), strict=True):
        confused.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7)
    timed.hist(milliseconds, bins=50)
    timed.set(xlabel="milliseconds a text", ylabel="texts", title="Latency")
    figure.savefig(path, dpi=120)
