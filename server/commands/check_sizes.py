"""About what specialists will come to that have yet to be built or cut: size estimates from their parents' headers.

For commands alone: headers are read in this process, which loads llama.cpp for that.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from coe.engine.errors import EngineError
from coe.engine.pool.memory import predict
from coe.engine.pool.places import Memory
from coe.engine.units import size_text
from coe.surgery.build.job import Job
from coe.surgery.build.preflight import check, specialist_bytes
from coe.surgery.errors import SurgeryError
from coe.surgery.formats import experts_kept
from coe.surgery.parent import Parent

from ..roster.models import Roster
from ..runtime.availability import ToBuild
from ..runtime.builds.order import order_of
from ..runtime.mask_models import masked, uncut, without_parent


async def sizes_to_come(roster: Roster, *, dry_run: bool, budget: Memory | None = None) -> dict[str, ToBuild]:
    """Of every specialist that has yet to be built, or cut, by name.

    dry_run: ask llama.cpp what the parents would take. budget: of the residents, None where it is not known.
    """
    to_build = await sizes_to_build(roster, dry_run=dry_run, budget=budget)
    return to_build | await sizes_to_cut(roster, dry_run=dry_run)


async def sizes_to_build(roster: Roster, *, dry_run: bool, budget: Memory | None = None) -> dict[str, ToBuild]:
    """About what each specialist that is yet to be built will come to, by name, from the headers of its parent.

    dry_run: ask llama.cpp what the parents would take. budget: of the residents, None where it is not known; what is
    larger than all of it is in vain.
    """
    sizes = {}
    for specialist in roster.specialists:
        if specialist.build is None or specialist.locate(roster.models_path) is not None:
            continue
        try:
            order = order_of(roster, specialist)
            check(order, Job.of(roster.models_path, specialist.name).folder)
            parent = Parent.open(order.parent)
            size = specialist_bytes(parent, order.experts)
            gone = sum(path.stat().st_size for path in parent.paths) - size
            whole = (await predict(specialist.load_spec(order.parent))).footprint.total_bytes if dry_run else None
            total = None if whole is None else max(whole - gone, 0)
            in_vain = ""
            if budget is not None and total is not None and total > budget.total_bytes:
                in_vain = (
                    f"It would take about {size_text(total)}; the budget is {budget}. Keep fewer experts, or raise it."
                )
            sizes[specialist.name] = ToBuild(size, total, in_vain)
        except (SurgeryError, EngineError) as error:
            sizes[specialist.name] = ToBuild(missing=str(error))
    return sizes


async def sizes_to_cut(roster: Roster, *, dry_run: bool, shared: Collection[str] = ()) -> dict[str, ToBuild]:
    """About what the specialists come to that are masks and have no file, from their parent's header.

    shared:  those that are filled from their parent: on the disk they take their mask and nothing else.
    dry_run: ask llama.cpp what the parent would take.
    """
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
            sizes[specialist.name] = ToBuild(missing=" ".join(without_parent(location)), how=how)
            continue
        try:
            parent = Parent.open(location.path)
            kept = experts_kept(
                Path(specialist.mask), parent, None if specialist.experts == "fit" else specialist.experts
            )
            size = specialist_bytes(parent, kept)
            gone = sum(path.stat().st_size for path in parent.paths) - size
            whole = (await predict(specialist.load_spec(location.path))).footprint.total_bytes if dry_run else None
            total = None if whole is None else max(whole - gone, 0)
            sizes[specialist.name] = ToBuild(_mask_bytes(specialist.mask) if filled else size, total, how=how)
        except (SurgeryError, EngineError) as error:
            sizes[specialist.name] = ToBuild(missing=str(error), how=how)
    return sizes


def _mask_bytes(mask: str) -> int:
    return Path(mask).stat().st_size
