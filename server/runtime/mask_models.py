"""Specialists that a roster gives as masks: filled from their parent where they share a resident, else cut from it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from coe.engine import child
from coe.engine.errors import EngineError
from coe.engine.spec import Kept, kept_from_json
from coe.surgery.errors import SurgeryError
from coe.surgery.formats import names_parent

from ..roster.model_files import Location, cut_path
from ..roster.models import Roster, Specialist

_log = logging.getLogger(__name__)

_PROCESS: Final = "coe.surgery.cut.cut_masks"
_SILENT_S: Final = 1800.0  # a report comes with every few MB; what was written is then brought to the disk, without one

_LIMITS: Final = child.Limits(memory_bytes=8 * 2**30)  # a header, masks, and pieces of some MB that are copied

Missing = tuple[str, str]  # what is wrong, and what to do about it


@dataclass(frozen=True)
class MaskSource:
    """Where the weights of a specialist come from that is a mask; the fields of an `engine.spec.Member`."""

    skeleton: Path
    parent: Path
    kept: Kept


def without_parent(location: Location) -> Missing:
    """What a mask lacks whose parent is not there. location: the parent's."""
    return f"Its parent is not there. {location.reason}", location.remedy


def masked(roster: Roster) -> list[Specialist]:
    """Specialists that are given as masks."""
    return [s for s in roster.specialists if s.mask is not None]


def uncut(roster: Roster, names: Collection[str] | None = None) -> list[Specialist]:
    """Specialists (of these names) with a mask that is there, whose cut file is not."""
    found = [s for s in masked(roster) if s.locate(roster.models_path) is None]
    return [s for s in found if s.mask is not None and os.path.isfile(s.mask) and (names is None or s.name in names)]


def _to_cut(roster: Roster, names: Collection[str] | None) -> list[Specialist]:
    """What is not cut yet, and, where the parent is there, what was cut with a mask that names no parent."""
    absent = uncut(roster, names)
    if roster.parent is None or roster.parent.locate(roster.models_path) is None:
        return absent
    cut = [s for s in masked(roster) if (names is None or s.name in names) and s.locate(roster.models_path) is not None]
    return absent + [s for s in cut if not _names_parent(s)]


def _names_parent(specialist: Specialist) -> bool:
    assert specialist.mask is not None
    try:
        return names_parent(Path(specialist.mask))
    except SurgeryError:  # the mask is read when it is cut, and says so then
        return False


async def prepare_masks(
    roster: Roster, folder: Path | None = None, names: Collection[str] | None = None
) -> dict[str, MaskSource | Missing]:
    """What a shared resident is filled by for each specialist (of these names) whose mask is there, or what it
    lacks.

    One small file is written for all masks of one size, into `folder`; beside the cut files where None.
    """
    wanted = [s for s in masked(roster) if not s.awaits_mask]  # of the others their location tells
    wanted = [s for s in wanted if names is None or s.name in names]
    if not wanted:
        return {}
    found = await _prepared(roster, wanted, folder or roster.models_path / "cut")
    return {specialist.name: source for specialist, source in zip(wanted, found, strict=True)}


async def prepare_at(
    roster: Roster, specialist: Specialist, counts: Sequence[int], folder: Path
) -> list[MaskSource | Missing]:
    """What a shared resident is filled by for one mask at each of some numbers of experts, or what it lacks."""
    at = [specialist.model_copy(update={"experts": count}) for count in counts]
    return await _prepared(roster, at, folder)


async def _prepared(roster: Roster, wanted: Sequence[Specialist], skeletons: Path) -> list[MaskSource | Missing]:
    """By one child for all."""
    masks = [{"mask": s.mask, "experts": s.experts} for s in wanted]
    found: list[MaskSource | Missing] = []
    for answer in await _ask(roster, wanted, {"masks": masks, "skeletons": str(skeletons)}):
        if isinstance(answer, Mapping):
            parent = _required_parent(roster)
            found.append(MaskSource(Path(answer["skeleton"]), parent, kept_from_json(answer["kept"])))
        else:
            found.append((answer[0], answer[1]))
    return found


async def cut_masked(roster: Roster, names: Collection[str] | None = None) -> dict[str, Missing]:
    """Cut what is not cut yet, all or those of these names; gives, by name, what could not be.

    A child process does it, which is not started when there is nothing to do. It also looks at the files of masks that
    name no parent: they are cut again when they are of another parent than the roster's.
    """
    wanted = await asyncio.to_thread(_to_cut, roster, names)
    if not wanted:
        return {}
    cuts = [
        {
            "mask": s.mask,
            "experts": s.experts,
            "out": str(cut_path(roster.models_path, s.name, Path(s.mask), s.experts)),
        }
        for s in wanted
        if s.mask
    ]
    _log.info("preparing the cut files of %s", ", ".join(s.name for s in wanted))
    told = await _ask(roster, wanted, {"cuts": cuts})
    return {s.name: (one[0], one[1]) for s, one in zip(wanted, told, strict=True) if one}


async def _ask(roster: Roster, wanted: Sequence[Specialist], job: Mapping[str, Any]) -> list[Any]:
    """The child's answer for each specialist that is wanted, or what it lacks."""
    assert roster.parent is not None, "a roster with masks and without a parent does not load"
    location = roster.parent.location(roster.models_path)
    if location.path is None:
        return [without_parent(location)] * len(wanted)
    title = "The process that reads its parent and cuts it"
    try:
        asked = {"parent": str(location.path), **job}
        answer: list[Any] = await child.run(_PROCESS, asked, title=title, silent_s=_SILENT_S, limits=_LIMITS)
    except EngineError as error:
        return [(error.message, error.remedy)] * len(wanted)
    return answer


def _required_parent(roster: Roster) -> Path:
    path = roster.parent.locate(roster.models_path) if roster.parent is not None else None
    assert path is not None, "there was an answer about this parent"
    return path
