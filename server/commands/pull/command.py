"""The command `coe pull`: what of a roster is missing, how it fits on the disk, and its download after a question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from coe.engine.units import size_text

from ...roster.model_files import MASKS, pull_remedy
from ...roster.models import ModelSource, Roster, Specialist
from .._errors import STOPPED_EXIT
from .._lines import print_line
from . import download
from .errors import PullError, no_room
from .files import ROSTER, PlannedModel, WantedModel, look_up, plan_downloads

PARENT: Final = "parent"  # what the roster's parent is called on the command line


def pull(
    roster: Roster,
    names: Sequence[str],
    *,
    yes: bool,
    token: str | None,
    console: Console,
    confirm: Callable[[str], bool],
    masks: bool = False,
) -> int:
    """Fetch the models of the named specialists (`parent` for the parent; no name: every specialist), and the masks of
    those that say `mask_of`.

    Prints what it will fetch and how that fits on the disk, and asks by `confirm` before more than one model, unless
    `yes`. token: of the hub; None for the one that huggingface_hub has saved. HF_ENDPOINT names another hub. masks: all
    masks, and without names nothing else.
    Gives the exit status: 0 when everything asked for is there. What can be fetched is, even when something else
    cannot.
    """
    found = [roster.find(name) for name in names] if names and not masks else roster.specialists
    to_mask = [one for one in found if one is not None and one.mask_of is not None]
    try:
        there = True
        if names or not masks:
            fetched = _pull_models(
                roster, names, yes=yes, token=token, console=console, confirm=confirm, n_masks=len(to_mask)
            )
            if fetched is None:
                return 1
            there = fetched
        if masks and not to_mask:
            _print(console, "No entry of the roster says `mask_of`: there are no masks to fetch.")
        if to_mask:
            there = _pull_masks(roster, to_mask, token, console) and there
    except KeyboardInterrupt:
        _print(console, "Stopped. What came is kept, and the same command goes on with it.")
        return STOPPED_EXIT
    return int(not there)


def _pull_masks(roster: Roster, specialists: Sequence[Specialist], token: str | None, console: Console) -> bool:
    """Gives whether all of them are there now."""
    # They read headers with llama.cpp's table of types, which is not loaded for a download.
    from .masks import pull_masks, wanted_masks
    from .published import Hub

    assert roster.parent is not None, "a roster with masks and without a parent does not load"
    location = roster.parent.location(roster.models_path)
    if location.path is None:
        remedy = pull_remedy([location.pull, MASKS], roster.option) if location.pull else location.remedy
        names = ", ".join(one.name for one in specialists)
        _print(console, f"{names}: Masks are read off beside their parent. {location.reason} {remedy}", "red")
        return False
    hub = Hub(download.hub_endpoint(), token, ROSTER)
    return pull_masks(hub, location.path, wanted_masks(roster, specialists), console, lambda: _bars(console))


def _pull_models(
    roster: Roster,
    names: Sequence[str],
    *,
    yes: bool,
    token: str | None,
    console: Console,
    confirm: Callable[[str], bool],
    n_masks: int,
) -> bool | None:
    """Gives whether all of them are there now; None where a person does not want them."""
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
            return not failed
        needed = sum(download.missing_bytes(model) for model in to_fetch)
        free = download.free_bytes(roster.models_path)
        for model in to_fetch:
            _print(console, f"{', '.join(model.names)}: {model.repo}")
            for file in model.files:
                _print(console, f"  {size_text(file.size_bytes):>10}  {file.path}")
        beside = f" Masks, of some MiB each: {n_masks}." if n_masks else ""
        _print(console, f"To download: {size_text(needed)}. Free in {roster.models_path}: {size_text(free)}.{beside}")
        if needed > free:
            raise no_room(needed, free, roster.models_path)
        if len(to_fetch) > 1 and not yes and not confirm(f"Download {len(to_fetch)} models, {size_text(needed)}?"):
            return None
    except PullError as error:
        _print(console, str(error), "red")
        return False

    with download.hub_client(token) as client, _bars(console) as bars:
        for model in to_fetch:
            try:
                download.fetch_model(client, endpoint, model, bars)
            except PullError as error:
                _print(console, f"{', '.join(model.names)}: {error}", "red")
                failed = True
            else:
                _print(console, f"{', '.join(model.names)}: {model.folder / model.files[0].path}")
    return not failed


def _wanted(
    roster: Roster, names: Sequence[str], console: Console
) -> tuple[list[WantedModel], list[tuple[str, PullError]]]:
    sources: dict[str, ModelSource] = {}
    refused: list[tuple[str, PullError]] = []
    for name in names or roster.names:
        specialist = roster.find(name)
        if specialist and specialist.mask_of and names and roster.parent and roster.parent.locate(roster.models_path):
            continue  # its mask is asked for, and the parent is there
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
