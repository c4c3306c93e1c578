"""A published specialist on the hub as a mask of its parent: ranges of its model are fetched, and removed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from coe.engine.files import cache_folder, private_folder
from coe.surgery.parent import Parent
from coe.surgery.recover.recover import OnStage, Recovered, recover
from coe.surgery.weights import ByteRange

from .errors import PullError
from .files import PlannedModel, Remedies, WantedModel, choose_files, look_up
from .pruning import prune
from .ranges import RangedModel

_RANGES: Final = "ranges"  # the folder in the cache
_REVISION_DIGITS: Final = 16  # of a commit, in a folder's name


@dataclass(frozen=True)
class Hub:
    """A hub's address, who asks, and how a person corrects what was asked for."""

    endpoint: str
    token: str | None
    remedies: Remedies


def find_published(hub: Hub, wanted: WantedModel) -> PlannedModel:
    """The model that is wanted, as the hub lists it. Raises PullError."""
    repository = look_up(hub.endpoint, wanted.repo, hub.token, wanted.revision, hub.remedies)
    if isinstance(repository, PullError):
        raise repository
    files = choose_files(repository, wanted.pattern, hub.remedies)
    folder = cache_folder() / _RANGES / wanted.repo.replace("/", "--") / repository.revision[:_REVISION_DIGITS]
    return PlannedModel((wanted.name,), wanted.repo, repository.revision, folder, files)


def source_of(model: PlannedModel) -> dict[str, Any]:
    """What a mask's provenance says of the model that it was read off."""
    return {
        "repository": model.repo,
        "revision": model.revision,
        "files": {file.path: file.sha256 for file in model.files},
    }


@dataclass(frozen=True)
class Fetched:
    """A mask, and how many bytes of the model came for it."""

    recovered: Recovered
    n_bytes: int


def fetch_mask(
    hub: Hub,
    model: PlannedModel,
    parent: Parent,
    save: Callable[[Recovered], None],
    *,
    nearest: float | None = None,
    on_bytes: Callable[[int, int], None] | None = None,
    on_stage: OnStage | None = None,
    on_open: Callable[[RangedModel], None] | None = None,
) -> Fetched:
    """Read a mask off a model. What was fetched goes once `save` has written it, and stays where that is not reached.

    on_bytes: called with the bytes that came, of how many. on_stage: with what `recover` is doing. on_open: with what
    another thread can stop.
    Raises PullError, SurgeryError, EngineError and OSError.
    """
    private_folder(cache_folder())
    prune(cache_folder() / _RANGES)  # of models of which no mask has come
    with RangedModel(hub.endpoint, hub.token, model, on_bytes, hub.remedies) as ranged:
        if on_open is not None:
            on_open(ranged)
        ranged.fetch_headers()

        def fetch(places: Sequence[ByteRange]) -> None:
            ranged.fetch((place.path, place.offset, place.n_bytes) for place in places)

        found = recover(parent, ranged.path, source=source_of(model), fetch=fetch, nearest=nearest, progress=on_stage)
        save(found)
        ranged.remove()
    return Fetched(found, ranged.fetched_bytes)
