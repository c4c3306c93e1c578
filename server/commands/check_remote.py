"""`coe check --remote`: a roster whose models are on the hub, judged by their headers before anything is downloaded."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from coe.engine.errors import EngineError
from coe.engine.files import remember_sha256, written_beside
from coe.surgery.errors import MaskError, SurgeryError
from coe.surgery.formats import read_mask
from coe.surgery.parent import Parent
from coe.surgery.weights import Weights

from ..roster.models import ModelSource, Roster, Specialist
from ._away import PARENT, Away
from ._bars import Bars
from ._errors import STOPPED_EXIT
from ._lines import print_line
from .check import check_roster
from .pull.errors import KEPT, PullError
from .pull.files import EVERYTHING, HubFile, Remedies, Repository, WantedModel, choose_files, pinned
from .pull.headers import HubHeaders

_log = logging.getLogger(__name__)

_REMEDIES: Final = Remedies(again="check again")


@dataclass(frozen=True)
class _Absent:
    """A model that is not here and can be fetched. parent_of: specialists that are made of it; else it is its own.

    mask_of: a mask is to be read off it, and the rest of it is left where it is.
    """

    source: ModelSource
    parent_of: tuple[Specialist, ...] = ()
    mask_of: bool = False


def check_ahead(path: Path, token: str | None, *, dry_run: bool, out: Console, err: Console) -> int:
    """`coe check --remote`: as `check_roster`, with what is not here looked at on the hub. Returns the exit code."""

    def look(roster: Roster) -> Away:
        with Bars(err) as bars:
            return look_ahead(roster, token, bars.staged)

    try:
        return check_roster(path, dry_run=dry_run, out=out, look=look)
    except KeyboardInterrupt:
        print_line(err, f"Stopped. {KEPT}")
        return STOPPED_EXIT


def look_ahead(roster: Roster, token: str | None, tell: Callable[[str, int, int], None] | None = None) -> Away:
    """Look at each model of a roster that is not here and has a `repo`. What cannot be looked at is said, and the rest
    goes on.

    token: of the hub; None for the one that huggingface_hub has saved. tell: called with a file's name, and
    the bytes that came, of how many.
    """
    absent = dict(_absent(roster))
    sizes: dict[str, int] = {}
    places: dict[str, Path] = {}
    troubles: dict[str, str] = {}
    try:
        hub = HubHeaders(token, tell, _REMEDIES)
        for name, one in absent.items():
            try:
                repository, files = _files(hub, name, one.source)
                if name != PARENT or one.parent_of:
                    places[name] = _header(hub, repository, files, one)
                if one.mask_of:
                    places[name] = _stand_in(places[name])
                else:
                    sizes[name] = sum(file.size_bytes for file in files)
            except (PullError, EngineError, SurgeryError) as error:
                troubles[name] = str(error)
                places.pop(name, None)
    except PullError as error:  # nothing can be kept here
        troubles = dict.fromkeys(absent, str(error))
    else:
        fitted = [one.name for one in roster.specialists if one.experts == "fit" and one.name in places]
        _bind([places[name] for name in fitted if absent[name].mask_of], roster, places)
    parents = frozenset(made.name for name in places for made in absent[name].parent_of)
    masks = frozenset(name for name in places if absent[name].mask_of)
    return Away(_with_headers(roster, places, masks), sizes, parents, masks, troubles)


def _absent(roster: Roster) -> Iterator[tuple[str, _Absent]]:
    """By specialist, and the roster's parent."""
    folder = roster.models_path
    of_parent = []
    for one in roster.specialists:
        if one.build is not None:
            if one.locate(folder) is not None:
                continue
            if one.build.parent is None:
                of_parent.append(one)
            elif one.build.parent.find_file(folder, one.name).pull:
                yield one.name, _Absent(one.build.parent, (one,))
        elif one.mask is not None:
            of_parent.append(one)
            if one.awaits_mask and one.mask_of is not None:
                published = one.mask_of
                source = ModelSource(repo=published.repo, pattern=published.pattern, revision=published.revision)
                yield one.name, _Absent(source, mask_of=True)
        elif one.location(folder).pull:
            yield one.name, _Absent(one)
    if roster.parent is not None and roster.parent.location(folder).pull:
        yield PARENT, _Absent(roster.parent, tuple(of_parent))


def _files(hub: HubHeaders, name: str, source: ModelSource) -> tuple[Repository, tuple[HubFile, ...]]:
    assert source.repo is not None, "what can be pulled has a repository"
    repository = hub.repository(source.repo, source.revision)
    pattern = source.pattern or EVERYTHING
    wanted = WantedModel(name, source.repo, pattern, source.revision, source.sha256 or ())
    return repository, pinned(choose_files(repository, pattern, _REMEDIES), wanted)


def _header(hub: HubHeaders, repository: Repository, files: tuple[HubFile, ...], absent: _Absent) -> Path:
    """Where its header is; of a parent that masks are held against, its routers are there as well."""
    if all(made.mask is None for made in absent.parent_of):
        return hub.look(repository, files).path

    def routers(path: Path) -> Iterator[tuple[Path, int, int]]:
        parent = Parent.open(path)
        weights = Weights.of(parent.headers)
        for layer in parent.experts.layers:
            for place in map(weights.whole, weights.router(layer)):
                yield place.path, place.offset, place.n_bytes

    remote = hub.look(repository, files, routers)
    # What a hole hashes to says nothing. The hub tells what the model does, but not what all parts of a split one do
    # together: to that a mask is bound by its parent's routers alone.
    digests = [file.digest or "" for file in files]
    known = files[0].sha256 if len(files) == 1 else None
    remember_sha256(remote.paths, known or hashlib.sha256("\n".join(digests).encode()).hexdigest())
    return remote.path


def _stand_in(header: Path) -> Path:
    """Beside the header of a published specialist, a mask that keeps as many experts: it takes the same memory.

    Raises MaskError where that cannot be told from its number alone.
    """
    experts = Parent.open(header).experts
    if experts.n_groups > 1:
        raise MaskError("Its experts are in groups: what it takes shows once its mask is there.", "")
    path = header.with_name(f"{header.name}.mask.json")
    kept = {str(layer): list(range(experts.n_expert)) for layer in experts.layers}
    with written_beside(path) as beside:
        beside.write_text(json.dumps({"per_layer_keep": kept}))
    return path


def _bind(masks: Sequence[Path], roster: Roster, places: Mapping[str, Path]) -> None:
    """Bind stand-ins to the roster's parent, where its header is known: then they can keep what the masks that they
    stand for can, which have no ranking either: their own number of experts, or all. The others keep their own."""
    parent = places.get(PARENT) or (roster.parent.locate(roster.models_path) if roster.parent is not None else None)
    if not masks or parent is None:
        return
    try:
        identity = Parent.open(parent).identity()
        for path in masks:
            read_mask(path, identity).save(path)
    except (EngineError, SurgeryError) as error:  # whoever fits them reads the same, and says it of each
        _log.debug("stand-ins are not bound to %s: %s", parent.name, error)


def _with_headers(roster: Roster, places: Mapping[str, Path], masks: Collection[str]) -> Roster:
    """The roster with files in place of repositories. masks: whose files are masks."""

    def here(name: str) -> dict[str, Any]:
        gone = dict.fromkeys(("repo", "pattern", "revision", "sha256"))
        return {**gone, "file": str(places[name])}

    def specialist(one: Specialist) -> Specialist:
        if one.name not in places:
            return one
        if one.name in masks:
            return one.model_copy(update={"mask": str(places[one.name]), "mask_of": None})
        if one.build is None or one.build.parent is None:
            return one.model_copy(update=here(one.name))
        parent = one.build.parent.model_copy(update=here(one.name))
        return one.model_copy(update={"build": one.build.model_copy(update={"parent": parent})})

    changes: dict[str, Any] = {"specialists": tuple(map(specialist, roster.specialists))}
    if roster.parent is not None and PARENT in places:
        changes["parent"] = roster.parent.model_copy(update=here(PARENT))
    return roster.model_copy(update=changes)
