"""Thresholds fitted on probabilities."""

import numpy as np
import pytest

from coe.router.training.thresholds import GRID, confidences, fit_thresholds, trade

NAMES = ("math", "python", "coding", "general")


def rows(*of: tuple[int, float, int]):
    """Probabilities and right labels of (column, confidence, right column) each; the rest goes to `general`."""
    probabilities = np.zeros((len(of), len(NAMES)))
    for row, (column, sure, _) in zip(probabilities, of, strict=True):
        row[3] = 1 - sure
        row[column] = sure if column != 3 else 1
    return probabilities, np.array([right for _, _, right in of])


def test_python_and_coding_are_sure_together():
    chosen, sure = confidences(np.array([[0.1, 0.5, 0.4, 0.0]]), NAMES)
    assert (NAMES[chosen[0]], sure[0]) == ("python", pytest.approx(0.9))


def test_a_wrong_specialist_and_a_needless_fallback_are_told_apart():
    found = trade(*rows((0, 0.9, 1), (0, 0.55, 0), (3, 1.0, 0), (1, 0.8, 2)), NAMES, 0.6, {})
    assert (found.wrong_specialist, found.needless_fallback) == (0.25, 0.25)
    spared = trade(*rows((0, 0.9, 1), (0, 0.55, 0), (3, 1.0, 0), (1, 0.8, 2)), NAMES, 0.6, {"math": 0.95})
    assert spared.wrong_specialist == 0


def test_a_threshold_is_as_low_as_its_domains_errors_allow():
    good = [(0, 0.52, 0)] * 30
    bad = [(1, 0.58, 0)] * 10 + [(1, 0.83, 1)] * 20
    found = fit_thresholds(*rows(*good, *bad), NAMES, most_wrong=0.05)
    assert found == {"math": GRID[0], "python": 0.6}


def test_a_domain_that_is_never_right_enough_gets_the_highest_and_a_rare_one_none():
    found = fit_thresholds(*rows(*[(0, 0.99, 3)] * 30, *[(1, 0.9, 1)] * 3), NAMES)
    assert found == {"math": GRID[-1]}
