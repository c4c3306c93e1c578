"""Measures over probabilities, and thresholds fitted on them."""

import json

import numpy as np
import pytest

from coe.router.thresholds import (
    GRID,
    ThresholdsError,
    confidences,
    fit_thresholds,
    load_thresholds,
    save_thresholds,
    trade,
)
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


def test_thresholds_survive_being_written_and_read(tmp_path):
    save_thresholds(tmp_path / "t.json", {"cs": 0.7, "law": 0.3}, {"n_questions": 5})
    assert load_thresholds(tmp_path / "t.json") == {"computer_science": 0.7, "law": 0.3}


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"thresholds": 1}', '{"thresholds": {"law": 1.5}}'])
def test_a_file_that_holds_no_thresholds_is_refused(content, tmp_path):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(ThresholdsError, match=r"t\.json"):
        load_thresholds(tmp_path / "t.json")


def test_a_missing_file_names_the_remedy(tmp_path):
    with pytest.raises(ThresholdsError, match="coe fit-thresholds"):
        load_thresholds(tmp_path / "absent.json")


def test_the_file_says_how_it_was_made(tmp_path):
    save_thresholds(tmp_path / "t.json", {"law": 0.3}, {"n_questions": 5})
    assert json.loads((tmp_path / "t.json").read_text())["about"] == {"n_questions": 5}
