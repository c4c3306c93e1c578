"""`coe mask`: mask conversion, another tool's drop map, matrix or expert list as a mask of this project, and back; and
the same ranking with more or fewer experts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .._errors import clear_errors
from ._shared import Experts, MaskKind, progress_bars, ranges, say, with_experts

if TYPE_CHECKING:
    from coe.surgery.mask import Mask


def mask(
    file: Annotated[Path, typer.Argument(help="The mask: ours, or another tool's drop map, matrix or list.")],
    parent: Annotated[
        Path | None,
        typer.Option(help="The parent's GGUF; of a split one, its first part. A mask of ours needs none."),
    ] = None,
    out: Annotated[Path, typer.Option("--output", "-o", help="Where the mask is written.")] = Path("mask.json"),
    kind: MaskKind = "auto",
    experts: Experts = None,
    form: Annotated[
        str,
        typer.Option(
            "--as",
            help="How it is written: mask (ours), drop-map (omnimergekit's), keep-list, or matrix (.npy, else JSON).",
        ),
    ] = "mask",
) -> None:
    """Write a mask of another tool as one of ours, bound to its parent, or one of ours for another tool."""
    with clear_errors("The old file, if there was one, is as it was."):
        from coe.surgery.errors import MaskError
        from coe.surgery.files import require_output
        from coe.surgery.formats import MaskForm, names_parent, read_mask, write_mask
        from coe.surgery.mask import Mask
        from coe.surgery.parent import Parent

        if parent is not None:
            whole = Parent.open(parent)
            require_output(out, [file, *whole.paths])
            with progress_bars() as bars:
                read = read_mask(file, whole.identity(bars.hashing(whole.paths)), kind=kind)
        else:
            require_output(out, [file])
            if not names_parent(file):
                raise MaskError(f"{file} does not say which parent it belongs to.", "Add --parent PARENT.gguf.")
            read = Mask.load(file)
        read = with_experts(read, experts)
        write_mask(read, out, form)
        layers = read.parent.layers
        say(
            f"{out}: {read.n_keep} of {read.parent.n_expert} experts in {len(layers)} layers ({ranges(layers)}) of "
            f"{read.parent.name}, {_origin(read, file)}."
        )
        if form != MaskForm.MASK:
            say(f"Written as {form}: without the parent's hash, the ranking and how it was made.")
            return
        if read.ranking:
            say("It ranks all experts: `experts:` in a roster, and --experts here and of coe cut, take more or fewer.")
        say(f"Next: coe cut {parent or 'PARENT'} {out} -o SPECIALIST.gguf, or `mask: {out}` in a roster")


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
