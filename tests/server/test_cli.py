"""The `coe` command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fakes.server_process import call_coe, run_coe, write_roster

SPECIALISTS = {"general": {}, "math": {"domains": ["math"]}, "coding": {"domains": ["coding", "python"]}}


@pytest.mark.slow
def test_coe_alone_says_what_to_do_next() -> None:
    result = run_coe()
    assert result.returncode == 0
    for command in ("coe serve", "coe check", "coe pull", "coe route", "coe doctor"):
        assert command in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", ["serve", "route", "check", "pull", "launch", "export", "doctor"])
def test_every_command_explains_itself(command: str) -> None:
    result = call_coe(command, "--help", env={"COLUMNS": "120"})
    assert result.returncode == 0
    assert "Usage" in result.stdout


@pytest.mark.slow
def test_an_unknown_command_is_an_error() -> None:
    assert call_coe("sreve").returncode != 0


@pytest.mark.slow
def test_route_says_who_would_answer_and_loads_no_model(tmp_path: Path) -> None:
    roster = str(write_roster(tmp_path, SPECIALISTS, fallback="general"))
    result = call_coe("route", "--roster", roster, "Solve the equation 3x + 7 = 22 for x")
    assert f"Roster: {roster}" in result.stderr
    assert result.returncode == 0
    assert result.stdout.startswith("math")
    assert all(name in result.stdout for name in SPECIALISTS)


@pytest.mark.slow
def test_route_as_json_is_json(tmp_path: Path) -> None:
    roster = str(write_roster(tmp_path, SPECIALISTS, fallback="general"))
    result = call_coe("route", "--json", "--roster", roster, "Write a Python function that sorts a list")
    decision = json.loads(result.stdout)
    assert decision["specialist"] == "coding"
    assert decision["ranking"][0]["specialist"] == "coding"


@pytest.mark.slow
def test_route_decides_each_line_of_a_file_and_names_the_lines_it_cannot_read(tmp_path: Path) -> None:
    roster = str(write_roster(tmp_path, SPECIALISTS, fallback="general"))
    solve = {"role": "user", "content": "Solve the equation 3x + 7 = 22 for x"}
    lines = [
        json.dumps({"text": "Solve the equation 3x + 7 = 22 for x"}),
        "not JSON",
        "",
        json.dumps({"messages": [solve, {"role": "assistant", "content": "5"}, {"role": "user", "content": "why?"}]}),
        json.dumps({"messages": "none"}),
        json.dumps({"text": "a", "messages": [solve]}),
        json.dumps({"question": "a"}),
        json.dumps({"text": "Write a Python function that sorts a list", "session": "one"}),
        json.dumps({"text": "make it shorter", "session": "one"}),
        json.dumps({"text": "make it shorter", "session": 1}),
    ]
    questions = tmp_path / "questions.jsonl"
    questions.write_bytes("\n".join(lines).encode() + b'\n{"text": "caf\xe9"}\n')
    result = call_coe("route", "--file", str(questions), "--json", "--roster", roster, env={"COLUMNS": "40"})
    assert result.returncode == 1
    decisions = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(d["line"], d["specialist"]) for d in decisions] == [(1, "math"), (4, "math"), (8, "coding"), (9, "coding")]
    for decision in decisions:
        assert set(decision) == {"line", "domain", "specialist", "confidence", "ranking", "path", "reason", "ms"}
        assert decision["ms"] > 0
    assert [d["path"] for d in decisions] == ["ngrams", "session", "ngrams", "session"]
    for number in (2, 5, 6, 7, 10, 11):
        assert f"questions.jsonl, line {number}: " in result.stderr
    for number in (1, 3, 4, 8, 9):
        assert f"line {number}: " not in result.stderr


@pytest.mark.slow
def test_route_of_a_sound_file_succeeds_and_reads_well(tmp_path: Path) -> None:
    roster = str(write_roster(tmp_path, SPECIALISTS, fallback="general"))
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"text": "Solve the equation 3x + 7 = 22 for x"}) + "\n")
    result = call_coe("route", "--file", str(questions), "--roster", roster)
    assert result.returncode == 0
    assert result.stdout.split()[:2] == ["1", "math"]


@pytest.mark.slow
def test_route_reads_what_is_piped_in_and_says_when_that_is_nothing(tmp_path: Path) -> None:
    roster = str(write_roster(tmp_path, SPECIALISTS, fallback="general"))
    command = [sys.executable, "-m", "coe.server.cli", "route", "--file", "-", "--roster", roster]
    asked = json.dumps({"text": "Solve the equation 3x + 7 = 22 for x"})
    piped = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)
    assert piped.stdout.split()[:2] == ["1", "math"]
    nothing = subprocess.run(command, input="\n\n", capture_output=True, text=True, check=False)
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert "holds no question" in nothing.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_route_whose_decisions_cannot_be_written_does_not_blame_the_questions(tmp_path: Path) -> None:
    roster = str(write_roster(tmp_path, SPECIALISTS, fallback="general"))
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"text": "Hello"}) + "\n")
    command = [sys.executable, "-m", "coe.server.cli", "route", "--file", str(questions), "--roster", roster]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 1
    assert "writing the decisions failed" in result.stderr


@pytest.mark.slow
def test_check_says_what_the_supervisor_will_lack(tmp_path: Path) -> None:
    lost = write_roster(tmp_path, SPECIALISTS, router={"encoder": "lost"})
    doubted = call_coe("check", str(lost), "--no-dry-run")
    assert doubted.returncode == 0
    assert "warning: router.encoder: " in doubted.stdout
    assert "n-grams alone" in doubted.stdout
    for key, remedy in (("thresholds", "coe fit-thresholds"), ("head", "coe train-router")):
        result = call_coe("check", str(write_roster(tmp_path, SPECIALISTS, router={key: "lost.file"})), "--no-dry-run")
        assert result.returncode == 1
        assert "lost.file" in result.stdout
        assert remedy in result.stdout


@pytest.mark.slow
def test_a_roster_may_name_a_file_of_thresholds(tmp_path: Path) -> None:
    question = "Solve the equation 3x + 7 = 22 for x"
    router = {"encoder": "none", "thresholds": "fitted.json"}
    roster = write_roster(tmp_path, SPECIALISTS, fallback="general", router=router)
    missing = call_coe("route", "--roster", str(roster), question, env={"COLUMNS": "400"})
    assert missing.returncode == 1
    assert "fitted.json" in missing.stderr
    assert "router.thresholds" in missing.stderr
    (tmp_path / "fitted.json").write_text(json.dumps({"thresholds": {"math": 1.0}}))
    doubted = call_coe("route", "--json", "--roster", str(roster), question)
    decision = json.loads(doubted.stdout)
    assert (decision["specialist"], decision["domain"]) == ("general", "math")
    (tmp_path / "fitted.json").write_text(json.dumps({"thresholds": {"math": 0.5, "law": 1.0}}))
    trusted = call_coe("route", "--roster", str(roster), question)
    assert trusted.stdout.startswith("math")
    assert trusted.stderr.count("switched off") == 1


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["a question", "--file", "questions.jsonl"]])
def test_route_wants_a_question_or_a_file_of_them(arguments: list[str]) -> None:
    result = call_coe("route", *arguments)
    assert result.returncode == 2
    assert "--file" in result.stderr


@pytest.mark.slow
def test_route_of_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    roster = str(write_roster(tmp_path, SPECIALISTS, fallback="general"))
    result = call_coe("route", "--file", str(tmp_path / "none.jsonl"), "--roster", roster, env={"COLUMNS": "200"})
    assert result.returncode == 1
    assert "none.jsonl cannot be read" in result.stderr


@pytest.mark.slow
def test_route_with_a_broken_roster_names_the_key(tmp_path: Path) -> None:
    result = call_coe("route", "--roster", str(write_roster(tmp_path, {"general": {"colour": "red"}})), "Hello")
    assert result.returncode == 1
    assert "colour" in result.stderr


@pytest.mark.slow
def test_check_fails_on_a_broken_roster_and_passes_a_good_one(tmp_path: Path) -> None:
    broken = call_coe("check", str(write_roster(tmp_path / "broken", {"general": {"colour": "red"}})))
    assert broken.returncode == 1
    assert "colour" in broken.stdout + broken.stderr
    good = call_coe("check", str(write_roster(tmp_path / "good", SPECIALISTS)), env={"COLUMNS": "160"})
    assert good.returncode == 0, good.stdout
    assert "coding" in good.stdout


@pytest.mark.slow
def test_doctor_ends_well_and_names_llama_cpp() -> None:
    result = call_coe("doctor", env={"COLUMNS": "160"})
    assert "llama" in result.stdout.lower()
