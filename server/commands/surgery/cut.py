"""`coe cut`: expert pruning, the GGUF that a mask makes of its parent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .._errors import clear_errors
from ._shared import Experts, MaskKind, progress_bars, say, with_experts


def cut(
    parent: Annotated[Path, typer.Argument(help="The parent's GGUF; of a split one, its first part.")],
    mask: Annotated[Path, typer.Argument(help="The mask: ours, or another tool's drop map, matrix or list.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="Where the specialist is written.")],
    shared_scale: Annotated[
        float | None, typer.Option(help="Multiply what the shared expert adds by this (1.2 in the 98-expert recipes).")
    ] = None,
    quantize: Annotated[str | None, typer.Option(help="Bring it to another file type, such as Q4_K_M.")] = None,
    provenance: Annotated[
        bool, typer.Option("--provenance/--no-provenance", help="Write into the file how it was made.")
    ] = True,
    kind: MaskKind = "auto",
    experts: Experts = None,
) -> None:
    """Write the specialist that a mask makes of its parent, by copying bytes."""
    with clear_errors("The old file, if there was one, is as it was."):
        from coe.engine.units import size_text
        from coe.surgery.cut.cut import cut as run
        from coe.surgery.files import require_output
        from coe.surgery.formats import read_mask
        from coe.surgery.parent import Parent

        require_output(out, [mask])
        whole = Parent.open(parent)
        with progress_bars() as bars:
            chosen = read_mask(mask, whole.identity(bars.hashing(whole.paths)), kind=kind)
            chosen = with_experts(chosen, experts)
            report = run(
                whole,
                chosen,
                out,
                shared_scale=shared_scale,
                provenance=provenance,
                quantize=quantize,
                progress=bars.staged,
            )
        for note in report.notes:
            say(note)
        say(
            f"{out}: {report.n_keep} of {report.n_expert} experts, {size_text(report.n_bytes)} of the parent's "
            f"{size_text(report.parent_bytes)}."
        )
        which = f" --experts {experts}" if experts is not None else ""
        say(f"Next: coe verify {parent} {out} {mask}{which}")
