"""`coe build`: a specialist of the roster, from corpus to release."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from .._errors import clear_errors
from .._lines import print_line
from .._roster import OwnRosterOption
from ._shared import err_console, out_console


def build(
    name: Annotated[str | None, typer.Argument(help="An entry with `build:`; without it, how all builds are.")] = None,
    roster: OwnRosterOption = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="Release what was kept aside, whatever its evaluation says.")
    ] = False,
) -> None:
    """Make a specialist that the roster describes: profile, plan, cut, verify, judge, release.

    Ctrl-C stops it; the same command goes on from there, and tries a failed one again. A running server takes the
    specialist up by itself.
    """
    from ...roster.builtin import own_roster
    from ...roster.load import load_roster
    from ...roster.source import RosterError
    from .terminal_build import build as run
    from .terminal_build import show_builds

    try:
        loaded = load_roster(own_roster(roster))
    except RosterError as error:
        for problem in error.problems:
            print_line(err_console, str(problem))
        raise typer.Exit(1) from None
    with clear_errors():
        if name is None:
            if accept:
                err_console.print("Which one? Name it: coe build NAME.", markup=False)
                raise typer.Exit(2)
            show_builds(loaded, out_console)
            return
        raise typer.Exit(run(loaded, name, accept=accept, out=out_console, err=err_console, live=sys.stderr.isatty()))
