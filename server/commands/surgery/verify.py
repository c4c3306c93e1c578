"""`coe verify`: the proof that a cut file computes what its masked parent computes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .._errors import clear_errors
from .._lines import print_line
from ._shared import Experts, MaskKind, err_console, progress_bars, say, with_experts


def verify(
    parent: Annotated[Path, typer.Argument(help="The parent's GGUF.")],
    specialist: Annotated[Path, typer.Argument(help="The specialist's GGUF.")],
    mask: Annotated[Path, typer.Argument(help="The mask that it was cut with.")],
    kind: MaskKind = "auto",
    experts: Experts = None,
) -> None:
    """Prove that a specialist is its parent without the dropped experts: bytes, numbers, and what it answers."""
    with clear_errors():
        from coe.surgery.formats import read_mask
        from coe.surgery.parent import Parent
        from coe.surgery.verify.verify import verify as run

        whole = Parent.open(parent)
        with progress_bars() as bars:
            chosen = read_mask(mask, whole.identity(bars.hashing(whole.paths)), kind=kind)
            found = run(parent, specialist, with_experts(chosen, experts), progress=bars.staged)
        for note in found.notes:
            say(note)
        say(f"{found.tensors} tensors were compared with the parent's.")
        if found.agreement is not None and found.agreement.positions:
            say(found.agreement.text)
        if not found.ok:
            for problem in found.problems:
                print_line(err_console, problem, "red")
            raise typer.Exit(1)
        say("Everything is as the mask says.")
