"""The `coe` command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from server_process import run_coe, write_roster

SPECIALISTS = {"general": {}, "math": {"domains": ["math"]}, "coding": {"domains": ["coding", "python"]}}


def test_coe_alone_says_what_to_do_next() -> None:
    result = run_coe()
    assert result.returncode == 0
    for command in ("coe serve", "coe check", "coe pull", "coe route", "coe doctor"):
        assert command in result.stdout


@pytest.mark.parametrize("command", ["serve", "route", "check", "pull", "doctor"])
def test_every_command_explains_itself(command: str) -> None:
    result = run_coe(command, "--help", env={"COLUMNS": "120"})
    assert result.returncode == 0
    assert "Usage" in result.stdout


def test_an_unknown_command_is_an_error() -> None:
    assert run_coe("sreve").returncode != 0


def test_route_says_who_would_answer_and_loads_no_model(tmp_path: Path) -> None:
    roster = str(write_roster(tmp_path, SPECIALISTS, fallback="general"))
    result = run_coe("route", "--roster", roster, "Solve the equation 3x + 7 = 22 for x")
    assert result.returncode == 0
    assert result.stdout.startswith("math")
    assert all(name in result.stdout for name in SPECIALISTS)


def test_route_as_json_is_json(tmp_path: Path) -> None:
    roster = str(write_roster(tmp_path, SPECIALISTS, fallback="general"))
    result = run_coe("route", "--json", "--roster", roster, "Write a Python function that sorts a list")
    decision = json.loads(result.stdout)
    assert decision["specialist"] == "coding"
    assert decision["ranking"][0]["specialist"] == "coding"


def test_route_with_a_broken_roster_names_the_key(tmp_path: Path) -> None:
    result = run_coe("route", "--roster", str(write_roster(tmp_path, {"general": {"colour": "red"}})), "Hello")
    assert result.returncode == 1
    assert "colour" in result.stderr


def test_check_fails_on_a_broken_roster_and_passes_a_good_one(tmp_path: Path) -> None:
    broken = run_coe("check", str(write_roster(tmp_path / "broken", {"general": {"colour": "red"}})))
    assert broken.returncode == 1
    assert "colour" in broken.stdout + broken.stderr
    good = run_coe("check", str(write_roster(tmp_path / "good", SPECIALISTS)), env={"COLUMNS": "160"})
    assert good.returncode == 0, good.stdout
    assert "coding" in good.stdout


def test_doctor_ends_well_and_names_llama_cpp() -> None:
    result = run_coe("doctor", env={"COLUMNS": "160"})
    assert "llama" in result.stdout.lower()
