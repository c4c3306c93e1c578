"""Specialists that a roster gives as masks: filled from their parent where they share a resident, else cut from it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from coe.engine.errors import EngineError
from coe.engine.pool.memory import predict
from coe.engine.spec import Kept, kept_from_json
from coe.surgery.errors import SurgeryError

from ..roster.load import Roster
from ..roster.model_files import cut_path
from ..roster.models import Specialist
from .availability import ToBuild

_log = logging.getLogger(__name__)

_COMMAND: Final = (sys.executable, "-m", "coe.surgery.cut.cut_masks")

Lack = tuple[str, str]  # what is wrong, and what to do about it


@dataclass(frozen=True)
class MaskSource:
    """Where the weights of a specialist come from that is a mask; the fields of an `engine.spec.Member`."""

    skeleton: Path
    parent: Path
    kept: Kept


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
    from coe.surgery.formats import names_parent

    assert specialist.mask is not None
    try:
        return names_parent(Path(specialist.mask))
    except SurgeryError:  # the mask is read when it is cut, and says so then
        return False


async def prepare_masks(roster: Roster, folder: Path | None = None) -> dict[str, MaskSource | Lack]:
    """What a shared resident is filled by for each specialist that is a mask, or what it lacks.

    One small file is written for all masks of one size, into `folder`; beside the cut files where None.
    """
    wanted = masked(roster)
    if not wanted:
        return {}
    skeletons = folder or roster.models_path / "cut"
    told = await _ask(roster, wanted, {"masks": [s.mask for s in wanted], "skeletons": str(skeletons)}, "masks")
    found: dict[str, MaskSource | Lack] = {}
    for specialist, answer in zip(wanted, told, strict=True):
        if isinstance(answer, Mapping):
            parent = _required_parent(roster)
            found[specialist.name] = MaskSource(Path(answer["skeleton"]), parent, kept_from_json(answer["kept"]))
        else:
            found[specialist.name] = (answer[0], answer[1])
    return found


async def cut_masked(roster: Roster, names: Collection[str] | None = None) -> dict[str, Lack]:
    """Cut what is not cut yet, all or those of these names; gives, by name, what could not be.

    It happens in a process of its own, which is not started when there is nothing to do. The process also looks at the
    files of masks that name no parent: they are cut again when they are of another parent than the roster's.
    """
    wanted = await asyncio.to_thread(_to_cut, roster, names)
    if not wanted:
        return {}
    cuts = [{"mask": s.mask, "out": str(cut_path(roster.models_path, s.name, Path(s.mask)))} for s in wanted if s.mask]
    _log.info("preparing the cut files of %s", ", ".join(s.name for s in wanted))
    told = await _ask(roster, wanted, {"cuts": cuts}, "cuts")
    return {s.name: (lack[0], lack[1]) for s, lack in zip(wanted, told, strict=True) if lack}


async def _ask(roster: Roster, wanted: Sequence[Specialist], job: Mapping[str, Any], what: str) -> list[Any]:
    """What the process says that does the work: of each specialist its answer, or what it lacks."""
    assert roster.parent is not None, "a roster with masks and without a parent does not load"
    location = roster.parent.location(roster.models_path)
    if location.path is None:
        return [(f"Its parent is not there. {location.reason}", location.remedy)] * len(wanted)
    process = await asyncio.create_subprocess_exec(
        *_COMMAND,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        asked = json.dumps({"parent": str(location.path), **job})
        out, errors = await process.communicate(asked.encode())
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        last = (errors.decode("utf-8", "replace").strip().splitlines() or ["it printed nothing"])[-1]
        return [(f"Reading its parent or cutting it ended with an error: {last}", "Run coe doctor.")] * len(wanted)
    told: list[Any] = json.loads(out)[what]
    return told


def _required_parent(roster: Roster) -> Path:
    path = roster.parent.locate(roster.models_path) if roster.parent is not None else None
    assert path is not None, "there was an answer about this parent"
    return path


async def sizes_to_cut(roster: Roster, *, dry_run: bool, shared: Collection[str] = ()) -> dict[str, ToBuild]:
    """About what the specialists come to that are masks and have no file, from their parent's header.

    shared:  those that are filled from their parent: on the disk they take their mask and nothing else.
    dry_run: ask llama.cpp what the parent would take. Not for the server: headers are read in this process.
    """
    from coe.surgery.build.preflight import specialist_bytes
    from coe.surgery.formats import experts_kept
    from coe.surgery.parent import Parent

    sizes = {}
    to_cut = uncut(roster)
    for specialist in masked(roster):
        filled = specialist.name in shared
        if not filled and specialist not in to_cut:
            continue
        assert roster.parent is not None
        assert specialist.mask is not None
        how = "filled from the parent" if filled else "cut"
        location = roster.parent.location(roster.models_path)
        if location.path is None:
            sizes[specialist.name] = ToBuild(lacks=f"{location.reason} {location.remedy}".strip(), how=how)
            continue
        try:
            parent = Parent.open(location.path)
            size = specialist_bytes(parent, experts_kept(Path(specialist.mask), parent))
            gone = sum(path.stat().st_size for path in parent.paths) - size
            whole = (await predict(specialist.load_spec(location.path))).footprint.total_bytes if dry_run else None
            total = None if whole is None else max(whole - gone, 0)
            sizes[specialist.name] = ToBuild(_mask_bytes(specialist.mask) if filled else size, total, how=how)
        except (SurgeryError, EngineError) as error:
            sizes[specialist.name] = ToBuild(lacks=str(error), how=how)
    return sizes


def _mask_bytes(mask: str) -> int:
    return Path(mask).stat().st_size
