"""`coe inspect`: a GGUF's experts, layers and bytes; of one on the hub its header alone is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from .._errors import clear_errors
from ._shared import out_console, progress_bars, ranges, say

if TYPE_CHECKING:
    from coe.surgery.study.inspect import Inspection

    from ..pull.files import HubFile, Repository
    from ..pull.headers import RemoteModel


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            help="A GGUF: a parent or a specialist. Or one on the hub, of which the header alone is fetched: "
            "hf:OWNER/REPO, hf:OWNER/REPO/FILE.gguf, hf:OWNER/REPO/PATTERN."
        ),
    ],
    experts: Annotated[
        list[int] | None, typer.Option(help="Say what a mask of so many experts would save; may be repeated.")
    ] = None,
    token: Annotated[str | None, typer.Option(envvar="HF_TOKEN", help="Access token of the model hub.")] = None,
) -> None:
    """Show a model's experts, layers and bytes by kind, and what fewer experts would save."""
    from ..pull.errors import KEPT
    from ..pull.files import HUB

    is_remote = model.startswith(HUB)
    with clear_errors(KEPT if is_remote else ""):
        if not is_remote:
            _show(Path(model), experts)
            return
        from coe.engine.units import size_text

        remote, fetched_bytes = _of_the_hub(model, token)
        _show(remote.path, experts)
        fetched, whole = size_text(fetched_bytes), size_text(remote.model.size_bytes)
        say(f"{fetched} of {whole} were fetched of {remote.model.repo}, at {remote.model.revision[:12]}.")


def _show(path: Path, experts: list[int] | None) -> None:
    import asyncio

    from coe.engine.units import size_text
    from coe.surgery.study.inspect import inspect as run

    found = asyncio.run(run(path, experts or None))
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


def _of_the_hub(address: str, token: str | None) -> tuple[RemoteModel, int]:
    """A model's header, and the bytes that were fetched. Raises PullError; ends the command where a repository holds
    several models, and the address names none: they are listed."""
    from ..pull.files import COMMAND_LINE, EVERYTHING, choose_files, hub_address, listed_models
    from ..pull.headers import HubHeaders

    wanted = hub_address(address)
    with progress_bars() as bars:
        hub = HubHeaders(token, bars.staged)
        repository = hub.repository(wanted.repo, wanted.revision)
        models = listed_models(repository, wanted.pattern, COMMAND_LINE)
        if wanted.pattern != EVERYTHING or len(models) == 1:
            return hub.look(repository, choose_files(repository, wanted.pattern, COMMAND_LINE)), hub.fetched_bytes
    _list(repository, models, wanted.revision)
    raise typer.Exit


def _list(repository: Repository, models: Sequence[Sequence[HubFile]], revision: str | None) -> None:
    from coe.engine.units import size_text

    from ...roster.model_files import parts_missing
    from ..pull.files import HUB, pattern_of

    say(f"{repository.name} holds {len(models)} models:")
    for files in models:
        size = size_text(sum(file.size_bytes for file in files))
        parts = f", {len(files)} files" if len(files) > 1 else ""
        lacking = ", not complete" if parts_missing([file.path for file in files]) else ""
        say(f"  {size:>10}  {pattern_of(files)}{parts}{lacking}")
    at = f"@{revision}" if revision else ""
    one = f"{HUB}{repository.name}{at}/{pattern_of(models[0])}"
    say(f'Name one: coe inspect "{one}", or by any pattern that finds one.')


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
