"""Rosters that a test writes, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

from coe.server.roster.load import load_roster
from coe.server.roster.models import Roster
from coe.server.roster.source import Problem, RosterError


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "specialists.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def load(folder: Path, text: str | bytes) -> Roster:
    return load_roster(write(folder, text))


def problems_of(folder: Path, text: str | bytes) -> tuple[Problem, ...]:
    """What is wrong with a roster; nothing where it loads."""
    try:
        load(folder, text)
    except RosterError as error:
        return error.problems or (Problem("", None, "", ""),)  # an error without a reason is a failure of its own
    return ()
