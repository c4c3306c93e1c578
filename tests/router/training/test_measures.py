"""Measures over probabilities."""

import numpy as np
import pytest

from coe.router.training.measures import (
    PICTURES,
    accuracy,
    accuracy_at,
    calibration_bins,
    calibration_error,
    confusion,
    coverage_curve,
    draw,
    macro_f1,
    report,
)

THREE = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.45, 0.55]])


RIGHT = np.array([0, 1, 1, 1])


def test_accuracy_confusion_and_f1_of_a_small_case():
    assert accuracy(THREE, RIGHT) == 0.75
    assert confusion(THREE, RIGHT).tolist() == [[1, 0], [1, 2]]
    assert macro_f1(THREE, RIGHT) == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_a_label_that_never_occurs_does_not_lower_f1():
    wider = np.hstack([THREE, np.zeros((4, 1))])
    assert macro_f1(wider, RIGHT) == macro_f1(THREE, RIGHT)


def test_coverage_takes_the_surest_first():
    assert coverage_curve(THREE, RIGHT).tolist() == pytest.approx([1, 1, 2 / 3, 3 / 4])
    assert accuracy_at(THREE, RIGHT, 0.5) == 1
    assert accuracy_at(THREE, RIGHT, 0.0) == 1  # of one row at least


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    sure = np.tile([0.8, 0.2], (10, 1))
    assert calibration_error(sure, np.array([0] * 8 + [1] * 2)) == pytest.approx(0)
    assert calibration_error(sure, np.zeros(10, int)) == pytest.approx(0.2)
    assert calibration_bins(sure, np.zeros(10, int)) == [(pytest.approx(0.8), 1.0, 1.0)]


def test_a_certain_answer_falls_into_the_last_bin():
    assert calibration_error(np.array([[1.0, 0.0]]), np.array([0])) == 0


def test_a_report_counts_only_what_is_answered():
    found = report(THREE, RIGHT, threshold=0.65)
    assert (found["answered"], found["accuracy_of_answered"], found["wrong_of_all"]) == (0.5, 1.0, 0.0)
    assert report(THREE, RIGHT, threshold=1.0)["accuracy_of_answered"] == 0.0


MAGIC = {
    ".png": b"\x89PNG",
    ".jpg": b"\xff\xd8\xff",
    ".jpeg": b"\xff\xd8\xff",
    ".webp": b"RIFF",
    ".svg": b"<?xml",
    ".pdf": b"%PDF",
}


@pytest.mark.parametrize("ending", PICTURES)
def test_the_figures_are_drawn_as_the_files_ending_says(ending, tmp_path):
    draw(tmp_path / f"figures{ending}", THREE, RIGHT, ["math", "law"], [1.0, 2.0, 3.0, 9.0])
    assert (tmp_path / f"figures{ending}").read_bytes().startswith(MAGIC[ending])
