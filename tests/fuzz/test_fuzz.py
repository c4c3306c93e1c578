"""The short form of the fuzzing: some seconds of it, and that a fault would be seen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fuzz import running
from fuzz.cases import COMMANDS, Case

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path])}


@pytest.mark.model
@pytest.mark.slow
def test_some_cases(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fuzz", "--minutes", "0.2", "--seed", "1", "--keep", str(tmp_path / "failures")]
    ended = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert " 0 failed" in ended.stdout


@pytest.mark.model
@pytest.mark.slow
def test_every_command_takes_the_files_before_they_are_mutated() -> None:
    command = [sys.executable, "-m", "fuzz", "--sound"]
    ended = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_a_case_follows_from_its_seed_and_number(tmp_path: Path) -> None:
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    for name in (*COMMANDS, "head.json"):
        (seeds / name).write_text('{"some": ["words", 1, 2, 3], "of": "a text"}')
    number = list(COMMANDS).index("mask.json")
    written = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        case = Case(7, number)
        case.write(seeds, folder)
        written.append((case.command, (folder / case.file).read_bytes()))
    assert written[0] == written[1]
    assert written[0][1] != (seeds / "mask.json").read_bytes()


def test_every_file_has_its_turn() -> None:
    assert {Case(1, number).file for number in range(len(COMMANDS))} == set(COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("main", "fault"),
    [
        (lambda arguments: None, ""),
        (lambda arguments: sys.exit(print("It is damaged.", flush=True) or 1), ""),
        (lambda arguments: sys.exit(1), "not a word"),
        (lambda arguments: [][1], "a stack"),
        (lambda arguments: os.kill(os.getpid(), signal.SIGSEGV), "signal 11"),
        (lambda arguments: os._exit(7), "ended with 7"),
        (lambda arguments: print("\x1b[2J", flush=True), "control character"),
        (lambda arguments: signal.pause(), "did not end"),
        (lambda arguments: bytearray(os.urandom(1)) * 2**27, "GiB"),
    ],
)
def test_a_fault_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, main: Callable[[object], None], fault: str
) -> None:
    monkeypatch.setattr(running, "WITHIN_S", 2.0)
    monkeypatch.setattr(running, "MOST_BYTES", 2**27 if fault == "GiB" else 2**40)
    ended = running.run([], tmp_path, main=main)
    assert fault in ended.fault
    assert bool(ended.fault) == bool(fault)
