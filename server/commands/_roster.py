"""The option --roster, as commands have it: the same words for the same meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# For `known_roster`.
RosterOption = Annotated[
    Path | None, typer.Option("--roster", "-r", help="The roster file; `demo`, the built-in one, when left out.")
]
# For `own_roster`.
OwnRosterOption = Annotated[
    Path | None,
    typer.Option(
        "--roster",
        "-r",
        help="The roster file; specialists.yaml in this folder when left out. `demo` is the built-in one.",
    ),
]
