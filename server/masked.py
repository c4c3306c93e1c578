"""Specialists that a roster gives as masks: cut out of the roster's parent before anybody asks for them."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path
from typing import Final

from coe.engine.errors import EngineError
from coe.engine.memory import predict
from coe.surgery.errors import SurgeryError

from .check import ToBuild
from .model_files import cut_path
from .roster import Roster
from .roster_models import Specialist

_log = logging.getLogger(__name__)

_COMMAND: Final = (sys.executable, "-m", "coe.surgery.cut_masks")

Lack = tuple[str, str]  # what is wrong, and what to do about it


def uncut(roster: Roster) -> list[Specialist]:
    """Specialists with a mask that can be read, whose file is not there."""
    found = [s for s in roster.specialists if s.mask is not None and s.locate(roster.models_path) is None]
    return [s for s in found if s.mask is not None and Path(s.mask).is_file()]


async def cut_masked(roster: Roster) -> dict[str, Lack]:
    """Cut what is not cut yet; gives, by name, what could not be.

    It happens in a process of its own, which is not started when there is nothing to do.
    """
    wanted = await asyncio.to_thread(uncut, roster)
    if not wanted:
        return {}
    assert roster.parent is not None, "a roster with masks and without a parent does not load"
    location = roster.parent.location(roster.models_path)
    if location.path is None:
        return {s.name: (f"Its parent is not there. {location.reason}", location.remedy) for s in wanted}
    cuts = [{"mask": s.mask, "out": str(cut_path(roster.models_path, s.name, Path(s.mask)))} for s in wanted if s.mask]
    _log.info("cutting %s out of %s", ", ".join(s.name for s in wanted), location.path.name)
    process = await asyncio.create_subprocess_exec(
        *_COMMAND,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        asked = json.dumps({"parent": str(location.path), "cuts": cuts})
        out, errors = await process.communicate(asked.encode())
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode:
        last = (errors.decode("utf-8", "replace").strip().splitlines() or ["it printed nothing"])[-1]
        return {s.name: (f"Cutting it ended with an error: {last}", "Run coe doctor.") for s in wanted}
    told = json.loads(out)
    return {s.name: (lack[0], lack[1]) for s, lack in zip(wanted, told, strict=True) if lack}


async def sizes_to_cut(roster: Roster, *, dry_run: bool) -> dict[str, ToBuild]:
    """About what the specialists will come to that have yet to be cut, from their parent's header.

    dry_run: ask llama.cpp what the parent would take. Not for the server: headers are read in this process.
    """
    from coe.surgery.build import specialist_bytes
    from coe.surgery.mask import Mask
    from coe.surgery.parent import Parent

    sizes = {}
    for specialist in uncut(roster):
        assert roster.parent is not None
        assert specialist.mask is not None
        location = roster.parent.location(roster.models_path)
        if location.path is None:
            sizes[specialist.name] = ToBuild(lacks=f"{location.reason} {location.remedy}".strip(), how="cut")
            continue
        try:
            parent = Parent.open(location.path)
            size = specialist_bytes(parent, Mask.load(Path(specialist.mask)).n_keep)
            gone = sum(path.stat().st_size for path in parent.paths) - size
            whole = (await predict(specialist.load_spec(location.path))).footprint.total_bytes if dry_run else None
            sizes[specialist.name] = ToBuild(size, None if whole is None else max(whole - gone, 0), how="cut")
        except (SurgeryError, EngineError) as error:
            sizes[specialist.name] = ToBuild(lacks=str(error), how="cut")
    return sizes
