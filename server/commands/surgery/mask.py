"""`coe mask`: mask conversion, another tool's drop map, matrix or expert list as a mask of this project."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ._shared import MaskKind, clear_errors, progress_bars, ranges, say

if TYPE_CHECKING:
    from coe.surgery.mask import Mask


def mask(
    file: Annotated[Path, typer.Argument(help="The mask: ours, or another tool's drop map, matrix or list.")],
    parent: Annotated[Path, typer.Option(help="The parent's GGUF; of a split one, its first part.")],
    out: Annotated[Path, typer.Option("--output", "-o", help="Where the mask is written.")] = Path("mask.json"),
    kind: MaskKind = "auto",
) -> None:
    """Write a mask of another tool as one of ours, bound to its parent, and say what it keeps."""
    with clear_errors("The old file, if there was one, is as it was."):
        from coe.surgery.files import require_output
        from coe.surgery.formats import read_mask
        from coe.surgery.parent import Parent

        whole = Parent.open(parent)
        require_output(out, [file, *whole.paths])
        with progress_bars() as bars:
            read = read_mask(file, whole.identity(bars.hashing(whole.paths)), kind=kind)
        read.save(out)
        layers = read.parent.layers
        say(
            f"{out}: {read.n_keep} of {read.parent.n_expert} experts in {len(layers)} layers ({ranges(layers)}) of "
            f"{read.parent.name}, {_origin(read, file)}."
        )
        say(f"Next: coe cut {parent} {out} -o SPECIALIST.gguf, or `mask: {out}` in a roster")


def _origin(mask: Mask, file: Path) -> str:
    from coe.surgery.formats import names_parent

    match mask.provenance.recipe:
        case {"name": "read", "file": source} if names_parent(file):
            return f"from {file}, one of ours already, made from {source}"
        case {"name": "read", "file": source, "kind": "keep"}:
            return f"from {source}, read as the kept ones"
        case {"name": "read", "file": source, "kind": "drop"}:
            return f"from {source}, read as the dropped ones"
        case {"name": recipe}:
            return f"from {file}, planned by {recipe}"
        case _:
            return f"from {file}"
