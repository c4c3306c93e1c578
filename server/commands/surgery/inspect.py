"""`coe inspect`: a GGUF's experts, layers and bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ._shared import clear_errors, out_console, ranges, say

if TYPE_CHECKING:
    from coe.surgery.study.inspect import Inspection


def inspect(
    model: Annotated[Path, typer.Argument(help="A GGUF: a parent or a specialist.")],
    experts: Annotated[
        list[int] | None, typer.Option(help="Say what a mask of so many experts would save; may be repeated.")
    ] = None,
) -> None:
    """Show a model's experts, layers and bytes by kind, and what fewer experts would save."""
    with clear_errors():
        import asyncio

        from coe.engine.units import size_text
        from coe.surgery.study.inspect import inspect as run

        found = asyncio.run(run(model, experts or None))
        kind = f"{found.n_expert} experts, {found.n_used} a token" if found.n_expert else "dense"
        say(f"{found.name}: {found.architecture}, {kind}, {size_text(found.file_bytes)}")
        if found.layers:
            grouped = f", in {found.n_groups} groups" if found.n_groups > 1 else ""
            say(f"{len(found.layers)} layers with a router{grouped}: {ranges(found.layers)}")
        out_console.print(_bytes_table(found))
        if found.savings or found.vram_bytes:
            out_console.print(_memory_table(found))
        for note in found.notes:
            say(note)


def _bytes_table(found: Inspection) -> Table:
    from coe.engine.units import size_text

    table = Table("tensors", box=None, pad_edge=False)
    for column in ("bytes", "share"):
        table.add_column(column, justify="right")
    total = sum(found.bytes_by_kind.values())
    for kind, size in found.bytes_by_kind.items():
        table.add_row(str(kind), size_text(size), f"{size / total:.1%}")
    return table


def _memory_table(found: Inspection) -> Table:
    """The file, and memory with one conversation, as it is and with fewer experts."""
    from coe.engine.units import size_text

    table = Table("experts a layer", box=None, pad_edge=False)
    where = "VRAM" if found.on_gpu else "memory"
    for column in ("file", "saved", *(f"{where} at {context // 1024}k" for context in found.vram_bytes)):
        table.add_column(column, justify="right")
    whole = [size_text(size) for size in found.vram_bytes.values()]
    table.add_row(str(found.n_expert or "-"), size_text(found.file_bytes), "-", *whole)
    for saving in found.savings:
        sizes = (saving.file_bytes, saving.saved_bytes, *saving.vram_bytes.values())
        table.add_row(str(saving.n_keep), *(size_text(size) for size in sizes))
    return table
