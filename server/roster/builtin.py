"""Which roster a command line means: the one that it names, the built-in one, or the one in the folder it runs in."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

OWN: Final = Path("specialists.yaml")  # what commands take that fetch or build: the demo needs neither
_BUILT_IN: Final = Path("demo")  # how the demo's college is named on a command line


def known_roster(roster: Path | None) -> Path:
    """The roster that a command line names; `demo`, or nothing, stands for the built-in one."""
    return demo_roster() if roster in (None, _BUILT_IN) else roster


def own_roster(roster: Path | None) -> Path:
    """The same for commands that take the folder's specialists.yaml where nothing is named."""
    return known_roster(roster or OWN)


def roster_option(roster: Path) -> str:
    """What `coe pull` and `coe build` have to be told beside a name to mean this roster, with a space before it; ""
    where they take it by themselves."""
    if roster == OWN:
        return ""
    return f" --roster {_BUILT_IN if roster == demo_roster() else shlex.quote(str(roster))}"


def demo_roster() -> Path:
    """The demo's roster."""
    return Path(__file__).resolve().parents[2] / "demo" / "specialists.yaml"
