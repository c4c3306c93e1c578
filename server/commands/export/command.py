"""`coe export NAME --for PROGRAM`: a specialist's file, and what a program that serves it wants beside it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Final

from rich.console import Console

from coe.engine.gguf.records import read_records

from ...roster.load import load_roster
from ...roster.models import Roster, Specialist
from ...roster.source import RosterError
from .._bars import Bars
from .._errors import clear_errors
from .._keeping import write_keeping
from .._lines import print_line
from .experts import auto_experts
from .llama_swap import embedding, swap_entry
from .lmstudio import model_folder, virtual_model
from .ollama import modelfile
from .placing import Placed, place_cut, place_file
from .values import AutoExperts, Card, ExportError, Sheet

_READABLE: Final = 0o644  # no secret stands in these


class Program(StrEnum):
    """What a specialist is exported for."""

    OLLAMA = "ollama"
    GGUF = "gguf"
    LLAMA_SWAP = "llama-swap"
    LMSTUDIO = "lmstudio"


def export(
    roster_path: Path, name: str, program: Program, folder: Path | None, out: Console, err: Console, *, copied: bool
) -> int:
    """Write what a program needs to serve a specialist, and print what to do next. Returns the exit code.

    folder: where to; one called as the specialist in the current folder where None.
    copied: a file that is there is copied into the folder too, in place of being referred to.
    """
    try:
        with clear_errors("What was there is as it was.", err):
            roster = load_roster(roster_path)
            specialist = _known(roster, name)
            target = Path(os.path.abspath(folder if folder is not None else specialist.name))
            with Bars(err) as bars:
                placed = _place(roster, specialist, program, target, bars.staged, copied=copied)
            for sentence in placed.told:
                print_line(out, sentence)
            records = read_records(placed.file)
            auto = None
            if specialist.cpu_expert_layers == "auto":
                # The others place experts by themselves: no load has to be tried out for them.
                placing = program is Program.LLAMA_SWAP
                auto = auto_experts(roster, specialist, placed.file) if placing else AutoExperts()
            card = Card.of(specialist, placed.file, placed.parts, records, roster.notice_of(specialist), auto)
            sheet = _SHEETS[program](card, target)
            for path, text in sheet.files.items():
                copy = write_keeping(target / path, text, mode=_READABLE)
                print_line(out, f"{target / path}{f' (as it was: {copy})' if copy else ''}")
    except RosterError as error:
        for problem in error.problems:
            print_line(err, str(problem), "red")
        return 1
    except ExportError as error:
        print_line(err, str(error), "red")
        return 1
    for note in sheet.notes:
        print_line(out, f"Note: {note}")
    for number, command in enumerate(sheet.then):
        print_line(out, f"{'Next:' if number == 0 else 'Then:'} {command}")
    return 0


def _known(roster: Roster, name: str) -> Specialist:
    if (found := roster.find(name)) is None:
        raise ExportError(f"There is no specialist {name!r} in {roster.path}. Known are: {', '.join(roster.names)}.")
    return found


def _place(
    roster: Roster,
    specialist: Specialist,
    program: Program,
    folder: Path,
    progress: Callable[[str, int, int], None],
    *,
    copied: bool,
) -> Placed:
    files = folder / model_folder(specialist.name) if program is Program.LMSTUDIO else folder
    if specialist.mask is not None:
        return place_cut(roster, specialist, files / f"{specialist.name}.gguf", progress)
    linked = program is Program.LMSTUDIO  # which finds what lies in its folder and nothing else
    return place_file(roster, specialist, files, progress, copied=copied, linked=linked)


def _alone(card: Card, folder: Path) -> Sheet:
    """The file and nothing else."""
    command = ["llama-server", "-m", str(card.file), "-c", str(card.load.context_tokens)]
    if card.load.embeddings:
        command += [word for flag in embedding(card) for word in flag]
    return Sheet(then=(shlex.join(command),))


_SHEETS: Final[dict[Program, Callable[[Card, Path], Sheet]]] = {
    Program.OLLAMA: modelfile,
    Program.GGUF: _alone,
    Program.LLAMA_SWAP: swap_entry,
    Program.LMSTUDIO: virtual_model,
}
