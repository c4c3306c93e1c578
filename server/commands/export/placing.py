"""The one that puts a specialist's file where it is wanted: cut out of its parent, copied, or linked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coe.engine.files import open_regular, share_like, shared_folder, written_beside
from coe.engine.units import size_text
from coe.surgery.cut.cut import CutReport, OnStage, cut, identify
from coe.surgery.errors import MaskError
from coe.surgery.formats import read_mask
from coe.surgery.parent import Parent

from ...roster.models import Roster, Specialist
from .there import look_at
from .values import ExportError

_CHUNK: Final = 8 * 2**20


@dataclass(frozen=True)
class Placed:
    """A specialist's file, absolute, of a split one the first; how many there are; what was done, a sentence each."""

    file: Path
    parts: int
    told: tuple[str, ...]


def place_cut(roster: Roster, specialist: Specialist, out: Path, progress: OnStage) -> Placed:
    """Cut what a mask keeps into a file, unless it is there already, and sound. Raises ExportError, SurgeryError,
    EngineError and OSError; a file that was there is as it was then."""
    assert specialist.mask is not None
    assert roster.parent is not None, "a roster with masks and no parent does not load"
    if specialist.awaits_mask:
        absent = roster.locate(specialist)
        raise ExportError(f"{specialist.name} cannot be exported. {absent.reason} {absent.remedy}")
    location = roster.parent.location(roster.models_path)
    if location.path is None:
        raise ExportError(f"The parent of {specialist.name} is not there. {location.reason} {location.remedy}")
    parent = Parent.open(location.path)
    identity = identify(parent, progress)
    told: list[str] = []
    experts = specialist.experts
    if experts == "fit":  # which is this machine's, and the file is another program's
        told.append(f"{specialist.name} says `experts: fit`; the file has as many as its mask: coe cut makes others.")
        experts = None
    try:
        mask = read_mask(Path(specialist.mask), identity, experts=experts)
    except MaskError as error:
        raise ExportError(f"{specialist.name}: {error}") from error
    if out.exists():
        there = look_at(out, parent, identity, mask, progress)
        told.append(there.told)
        if there.wanted:
            return Placed(out, 1, tuple(told))
    shared_folder(out.parent)
    report = cut(parent, mask, out, progress=progress)
    share_like(out, parent.path)
    return Placed(out, 1, (*told, _told(report), *report.notes))


def _told(report: CutReport) -> str:
    share = f"{report.n_keep} of {report.n_expert} experts"
    return f"{report.path}: {share}, {size_text(report.n_bytes)} of the parent's {size_text(report.parent_bytes)}."


def place_file(
    roster: Roster, specialist: Specialist, folder: Path, progress: OnStage, *, copied: bool, linked: bool
) -> Placed:
    """The file of a specialist that has one: where it is, or copied or linked into `folder`.

    Raises ExportError and OSError.
    """
    location = roster.locate(specialist)
    if location.path is None:
        raise ExportError(f"{specialist.name} cannot be exported. {location.reason} {location.remedy}")
    files = [Path(os.path.abspath(file)) for file in location.files]
    if not copied and not linked:
        return Placed(files[0], len(files), (f"{files[0]} is referred to where it lies; --copy makes a copy.",))
    targets = [folder / (file.name if len(files) > 1 else f"{specialist.name}.gguf") for file in files]
    shared_folder(folder)
    if copied:
        _copy(files, targets, progress)
        return Placed(targets[0], len(files), (f"{targets[0]} is a copy of {files[0]}.",))
    for file, target in zip(files, targets, strict=True):
        _link(file, target)
    return Placed(targets[0], len(files), (f"{targets[0]} is a link to {files[0]}; --copy makes a copy.",))


def _copy(files: list[Path], targets: list[Path], progress: OnStage) -> None:
    """Copy what is not there yet, each file whole or not at all. A copy has its original's time of change."""
    missing = [(file, target) for file, target in zip(files, targets, strict=True) if not _is_copy(file, target)]
    total = sum(file.stat().st_size for file, _ in missing)
    if missing and (free := shutil.disk_usage(targets[0].parent).free) < total:
        raise ExportError(
            f"{targets[0].parent} has {size_text(free)} free, and the copy needs {size_text(total)}. "
            "Make room, or leave --copy out."
        )
    done = 0
    for file, target in missing:
        _require_none_of_the_users(target)
        with written_beside(target) as beside:
            _copy_bytes(file, beside, lambda n_bytes, before=done: progress("copy", before + n_bytes, total))  # type: ignore[misc]
            os.utime(beside, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
        share_like(target, file)
        done += file.stat().st_size


def _copy_bytes(source: Path, target: Path, copied: Callable[[int], None]) -> None:
    done = 0
    with open_regular(source) as reader, target.open("wb") as writer:
        while piece := reader.read(_CHUNK):
            writer.write(piece)
            done += len(piece)
            copied(done)


def _is_copy(file: Path, target: Path) -> bool:
    """Whether a copy is there, as far as size and time of change tell."""
    if target.is_symlink() or not target.exists():
        return False
    one, other = file.stat(), target.stat()
    return (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)


def _link(file: Path, target: Path) -> None:
    if target.is_symlink():
        if target.readlink() == file:
            return
        target.unlink()
    _require_none_of_the_users(target)
    target.symlink_to(file)


def _require_none_of_the_users(target: Path) -> None:
    """Raises ExportError where a file would be lost."""
    if target.exists() and not target.is_symlink():
        raise ExportError(f"{target} is there, and is another file. Give another folder, or remove it.")
