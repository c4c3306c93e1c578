"""The file of thresholds."""

import json

import pytest

from coe.router.thresholds import ThresholdsError, load_thresholds, save_thresholds


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
