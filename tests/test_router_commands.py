"""`coe eval-router`, `coe fit-thresholds` and `coe train-router`."""

from __future__ import annotations

import json
from pathlib import Path

from server_process import run_coe, write_roster

from coe.router.thresholds import load_thresholds
from coe.server.college import supervisor_of
from coe.server.roster import load_roster

QUESTIONS = [
    ("math", "Solve the equation 3x + 7 = 22 for x"),
    ("python", "Write a Python function that sorts a list of dictionaries"),
    ("law", "Can my landlord evict me without notice under the lease?"),
    ("general", "Give me a recipe for tomato soup"),
] * 6


def labelled(folder: Path) -> Path:
    path = folder / "labelled.jsonl"
    path.write_text("".join(json.dumps({"label": label, "text": text}) + "\n" for label, text in QUESTIONS))
    return path


def test_eval_router_prints_and_draws_the_figures(tmp_path: Path) -> None:
    picture = tmp_path / "figures.png"
    result = run_coe("eval-router", str(labelled(tmp_path)), "--plot", str(picture))
    assert result.returncode == 0, result.stderr
    for figure in ("macro F1", "calibration error", "right of the surest 80%", "99th percentile"):
        assert figure in result.stdout
    assert "100.0 %" in result.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_fitted_thresholds_are_what_a_roster_then_uses(tmp_path: Path) -> None:
    fitted = tmp_path / "thresholds.json"
    questions = [{"label": "law", "text": f"Is clause {i} of my lease void?"} for i in range(30)]
    path = tmp_path / "law.jsonl"
    path.write_text("".join(json.dumps(question) + "\n" for question in questions))
    result = run_coe("fit-thresholds", str(path), "--output", str(fitted))
    assert result.returncode == 0, result.stderr
    assert "wrong specialist" in result.stdout
    assert "law" in load_thresholds(fitted)
    roster = write_roster(tmp_path, {"law": {"domains": ["law"]}}, router={"thresholds": "thresholds.json"})
    supervisor = supervisor_of(load_roster(roster))
    assert supervisor.settings.threshold_of("law") == load_thresholds(fitted)["law"]


def test_a_bad_line_ends_each_command_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"label": "cooking", "text": "a"}\n')
    for command in ("eval-router", "fit-thresholds", "train-router"):
        result = run_coe(
            command, str(path), *(("--output", str(tmp_path / "x.npz")) if command != "eval-router" else ())
        )
        assert result.returncode == 1
        assert "bad.jsonl:1" in result.stderr
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "x.npz").exists()


def test_labels_of_a_rosters_own_domains_are_known(tmp_path: Path) -> None:
    examples = [f"How do I {verb} the sail of a yacht in the wind?" for verb in
                ("set", "reef", "trim", "fold", "mend", "hoist", "furl", "clean", "dry", "buy")]  # fmt: skip
    roster = write_roster(tmp_path, {"sail": {"domains": ["sailing"], "examples": examples}})
    path = tmp_path / "q.jsonl"
    path.write_text('{"label": "sailing", "text": "How do I repair the sail of my yacht?"}\n')
    result = run_coe("eval-router", str(path), "--roster", str(roster))
    assert result.returncode == 0, result.stderr
    assert "sailing" in result.stdout


def test_check_points_out_an_example_that_stands_under_two_domains(tmp_path: Path) -> None:
    shared = [f"How do I {verb} a sail?" for verb in ("set", "reef", "trim", "fold", "mend", "hoist", "furl", "dry")]
    roster = write_roster(
        tmp_path,
        {
            "sail": {"domains": ["sailing"], "examples": [*shared, "What is a jib?", "What is a yawl?"]},
            "boat": {"domains": ["boats"], "examples": [*shared, "What is a hull?", "What is a keel?"]},
        },
    )
    warnings = [problem.message for problem in load_roster(roster).warnings]
    assert any("stands under" in message and '"sailing" and "boats"' in message for message in warnings)
