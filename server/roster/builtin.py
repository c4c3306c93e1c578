"""The built-in roster: the demo's college, which needs no download."""

from __future__ import annotations

from pathlib import Path


def known_roster(roster: Path | None) -> Path:
    """The roster that a command line names; `demo`, or nothing, stands for the built-in one."""
    return demo_roster() if roster in (None, Path("demo")) else roster


def demo_roster() -> Path:
    """The demo's roster."""
    return Path(__file__).resolve().parents[2] / "demo" / "specialists.yaml"
