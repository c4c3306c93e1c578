"""What of a roster this machine can serve, what each load takes, and which specialists share a resident."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from coe.engine.errors import EngineError
from coe.engine.files import stamp
from coe.engine.pool.memory import Prediction, free_device_bytes, predict
from coe.engine.pool.placement import Distances
from coe.engine.pool.types import Entry
from coe.engine.spec import Footprint, LoadSpec, Sharing, Thinking
from coe.engine.swap.groups import Contender, Group, find_groups
from coe.engine.units import size_text

from ..roster.load import Roster
from ..roster.model_files import Location
from ..roster.models import Specialist
from .availability import Available, Unavailable, availability
from .mask_models import Lack, MaskSource, cut_masked, prepare_masks

_log = logging.getLogger(__name__)
_DRY_RUNS_AT_ONCE = 2
_MOST_RAM = 2 * 2**30  # for conversations out of the cache's way, where the roster does not say


@dataclass(frozen=True)
class Arrangement:
    """A roster on this machine.

    judged:   what can be served, by name, in the roster's order.
    groups:   specialists that share residents.
    alone:    why somebody who might share shares with nobody, by name.
    unhashed: files of groups of which it is not known yet what they have in common.
    stamps:   what `file_stamps` gave of each specialist when this was made.
    """

    judged: Mapping[str, Available | Unavailable]
    groups: tuple[Group, ...]
    alone: Mapping[str, str]
    unhashed: tuple[Path, ...] = ()
    stamps: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def entries(self, roster: Roster) -> dict[str, Entry]:
        """What the pool has to know of those that can be served."""
        distances = {member.name: Distances(group.pairs) for group in self.groups for member in group.members}
        entries = {}
        for specialist in roster.specialists:
            item = self.judged[specialist.name]
            if isinstance(item, Available) and item.footprint is not None:
                entries[specialist.name] = Entry(
                    item.spec,
                    item.footprint.total_bytes,
                    specialist.thinking_policy(),
                    specialist.pin,
                    distances.get(specialist.name, Distances()),
                )
        return entries


class Predictions:
    """Dry runs of loads, two at a time and each but once; errors are kept beside the results."""

    def __init__(self) -> None:
        self._results: dict[LoadSpec, Prediction | EngineError] = {}
        self._gate = asyncio.Semaphore(_DRY_RUNS_AT_ONCE)

    async def make(self, policies: Mapping[LoadSpec, Mapping[str, Thinking]]) -> None:
        """Try out loads, each with the thinking policies that it is to carry out."""

        async def one(spec: LoadSpec) -> None:
            async with self._gate:
                try:
                    self._results[spec] = await predict(spec, policies[spec])
                except EngineError as error:
                    self._results[spec] = error

        await asyncio.gather(*(one(spec) for spec in policies))

    def __getitem__(self, spec: LoadSpec) -> Footprint:
        """Raises the EngineError that the dry run ended in."""
        result = self._results[spec]
        if isinstance(result, EngineError):
            raise result
        return result.footprint

    def refused(self, spec: LoadSpec) -> Mapping[str, str]:
        """Thinking policies that this model cannot carry out: specialist -> why."""
        result = self._results.get(spec)
        return result.refused if isinstance(result, Prediction) else {}


async def arrange(
    roster: Roster, budget_bytes: int, *, apart: Collection[str] = (), scratch: Path | None = None
) -> Arrangement:
    """Find out who can share, dry-run every distinct load, and judge. Masks are made ready for loading.

    apart:   names that are to be loaded by themselves, whatever they could share.
    scratch: a folder for what that writes, to change nothing in the models folder: then nothing is cut, either.
    """
    stamps = {name: await asyncio.to_thread(file_stamps, roster, name) for name in roster.names}
    sharers = [s for s in roster.specialists if s.share is not False and s.name not in apart]
    masks = {s.name for s in roster.specialists if s.mask is not None}
    files = {s.name: path for s in roster.specialists if (path := s.locate(roster.models_path)) is not None}
    prepared = await prepare_masks(roster, scratch) if any(s.mask is not None for s in sharers) else {}
    lacks: dict[str, Lack] = {}
    contenders = []
    for specialist in sharers:
        name, source = specialist.name, prepared.get(specialist.name)
        if isinstance(source, MaskSource):
            contenders.append(Contender(name, specialist.load_spec(source.skeleton), source.parent, source.kept))
        elif source is not None:
            lacks[name] = source
        elif name in files:
            contenders.append(Contender(name, specialist.load_spec(files[name])))
    found = await find_groups(contenders)
    predictions = Predictions()
    loads: dict[str, LoadSpec] = {}
    groups = []
    alone = dict(found.unshared)
    for group in found.groups:
        if group.n_weights == 1 and not any(member.kept for member in group.members):
            continue  # names for one file: they share its load without any change
        why = await _try_group(roster, group, predictions, budget_bytes, loads)
        if why is None:
            groups.append(group)
        else:
            alone |= {member.name: why for member in group.members}
    filled = {name: _filled(roster, name) for name in masks if name in loads}
    if scratch is None:
        lacks |= await cut_masked(roster, masks - loads.keys() - lacks.keys())
    alone_loads = {}
    for specialist in roster.specialists:
        if specialist.name not in loads and specialist.name not in lacks:
            path = specialist.locate(roster.models_path)
            if path is not None:
                alone_loads[specialist.name] = specialist.load_spec(path)
    await predictions.make(_policies(roster, alone_loads))
    loads |= alone_loads
    judged = await asyncio.to_thread(
        availability, roster, predictions.__getitem__, budget_bytes, predictions.refused, loads, lacks, filled
    )
    return Arrangement(judged, tuple(groups), alone, found.unhashed, stamps)


def file_stamps(roster: Roster, name: str) -> tuple[str, ...]:
    """The files that a specialist is loaded from, as far as they are there: others when one came, went or changed."""
    specialist = _specialist(roster, name)
    paths = list(roster.locate(specialist).files)
    if specialist.mask is not None and roster.parent is not None:
        paths += [Path(specialist.mask), *roster.parent.location(roster.models_path).files]
    stamps = []
    for path in paths:
        with contextlib.suppress(OSError):
            stamps.append(f"{path} {stamp(path)}")
    return tuple(stamps)


def _filled(roster: Roster, name: str) -> Location:
    """Where a mask's specialist is that is filled from its parent: it has no file beside the mask."""
    mask = Path(_specialist(roster, name).mask or "")
    assert roster.parent is not None
    parent = roster.parent.location(roster.models_path)
    return Location(mask, (mask,), sources=parent.files)


async def _try_group(
    roster: Roster, group: Group, predictions: Predictions, budget_bytes: int, loads: dict[str, LoadSpec]
) -> str | None:
    """Add the load that a group shares to `loads`; or say why its specialists are better loaded by themselves."""
    members = [_specialist(roster, member.name) for member in group.members]
    pool = roster.pool
    sharing = Sharing(group.members, pool.swap_share, pool.max_turn_wait_s, pool.check_swaps)
    spec = members[0].load_spec(group.members[0].path, sharing)
    on_gpu = spec.gpu_layers != 0 and await free_device_bytes() is not None
    # Without a GPU this is memory of the budget.
    most = _MOST_RAM if on_gpu else min(_MOST_RAM, budget_bytes // 8)
    spec = replace(spec, ram_budget_bytes=most if pool.ram_budget == "auto" else pool.ram_budget)
    names = [member.name for member in members]
    try:
        footprint = await _predicted(roster, names, spec, predictions)
        if footprint.total_bytes > budget_bytes and spec.ram_budget_bytes and not on_gpu:
            # Conversations are read again, which is better than not to be served.
            spec = replace(spec, ram_budget_bytes=0)
            footprint = await _predicted(roster, names, spec, predictions)
    except EngineError as error:
        _log.warning("%s cannot share a resident: %s", ", ".join(names), error)
        return str(error)
    if footprint.total_bytes > budget_bytes:
        return f"one resident for all would need {size_text(footprint.total_bytes)}"
    indifferent = all(member.share == "auto" and member.mask is None for member in members)
    if indifferent and not on_gpu and footprint.total_bytes * len(members) <= budget_bytes:
        return "without a GPU, and with room for all of them, each is faster by itself"
    loads |= dict.fromkeys(names, spec)
    return None


async def _predicted(roster: Roster, names: Sequence[str], spec: LoadSpec, predictions: Predictions) -> Footprint:
    await predictions.make(_policies(roster, dict.fromkeys(names, spec)))
    return predictions[spec]


def _policies(roster: Roster, loads: Mapping[str, LoadSpec]) -> dict[LoadSpec, dict[str, Thinking]]:
    """Each distinct load, and the thinking policies that it has to carry out."""
    policies: dict[LoadSpec, dict[str, Thinking]] = {}
    for name, spec in loads.items():
        policies.setdefault(spec, {})[name] = _specialist(roster, name).thinking_policy()
    return policies


def _specialist(roster: Roster, name: str) -> Specialist:
    found = roster.find(name)
    assert found is not None, name
    return found
