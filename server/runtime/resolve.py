"""A roster resolved on this machine: files of each entry, groups that share residents, how each is loaded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from coe.engine.errors import EngineError
from coe.engine.pool.memory import booked_memory, cards_of
from coe.engine.pool.placement import Distances
from coe.engine.pool.places import HOST, Memory
from coe.engine.pool.types import Entry
from coe.engine.spec import LoadSpec, ModelFacts
from coe.engine.swap.groups import Contender, Group, find_groups

from ..roster.model_files import Location
from ..roster.models import Roster, Specialist
from .availability import Located, Servable, Unavailable, availability, locate
from .expert_fit import ExpertFit, choose_experts
from .fitting import Fitter, devices_of, shared_load, wrong_splits
from .mask_models import MaskSource, Missing, cut_masked, prepare_masks
from .predictions import Predictions, Tried

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resolved:
    """A roster on this machine: each entry looked up once, in a frozen value that every later stage reads.

    budget:       what residents may take.
    availability: what can be served, and why the rest cannot, by name, in the roster's order.
    groups:       specialists that share residents.
    unshared:     why a specialist that might share does not, by name.
    unhashed:     files of groups of which it is not known yet what they have in common.
    stamps:       by name, `Located.stamps` at the time.
    facts:        by name, what the files of those that can be loaded say of themselves.
    tried:        dry runs that went well, by load.
    fits:         what `experts: fit` came to.
    """

    budget: Memory
    availability: Mapping[str, Servable | Unavailable]
    groups: tuple[Group, ...]
    unshared: Mapping[str, str]
    unhashed: tuple[Path, ...]
    stamps: Mapping[str, tuple[str, ...]]
    facts: Mapping[str, ModelFacts] = field(default_factory=dict)
    tried: Mapping[LoadSpec, Tried] = field(default_factory=dict)
    fits: tuple[ExpertFit, ...] = ()

    def entries(self) -> dict[str, Entry]:
        """What the pool has to know of the specialists that can be served."""
        distances = {member.name: Distances(group.pairs) for group in self.groups for member in group.members}
        return {
            name: Entry(
                item.spec,
                booked_memory(item.footprint, self.budget, item.spec.devices),
                item.entry.thinking_policy(),
                item.entry.pin,
                distances.get(name, Distances()),
                cards_of(item.spec, self.budget),
            )
            for name, item in self.availability.items()
            if isinstance(item, Servable) and item.footprint is not None
        }


async def resolve(
    roster: Roster,
    budget: Memory,
    *,
    unshared: Collection[str] = (),
    scratch: Path | None = None,
    before: Mapping[LoadSpec, Tried] | None = None,
) -> Resolved:
    """Locate every entry, find groups, dry-run every distinct load, and judge. Masks are made ready for loading.

    unshared: names that are to be loaded by themselves, whatever they could share.
    before:   dry runs of an earlier time, see Predictions.
    scratch:  a folder for what that writes, to change nothing in the models folder: then nothing is cut, either.
    """
    devices = devices_of(roster, budget)
    predictions = Predictions(roster.server.max_prompt_tokens, before)
    fitter = Fitter(predictions, budget, devices)
    chosen = await choose_experts(roster, fitter)
    roster, unfit = roster.with_experts(chosen.counts), chosen.missing
    located = {one.entry.name: one for one in await asyncio.to_thread(locate, roster)}
    wrong = {**wrong_splits(roster, devices), **unfit}
    sharers = [one for one in located.values() if one.entry.share is not False and one.entry.name not in unshared]
    sharers = [one for one in sharers if not one.entry.embeddings and one.entry.name not in wrong]
    prepared: dict[str, MaskSource | Missing] = {}
    if any(one.entry.mask is not None for one in (*sharers, *_uncut(located.values()))):
        prepared = await prepare_masks(roster, scratch, located.keys() - unfit.keys())
    missing: dict[str, Missing] = {n: it for n, it in prepared.items() if not isinstance(it, MaskSource)}
    found = await find_groups(_contenders(sharers, prepared))
    loads: dict[str, LoadSpec] = {}
    groups: list[Group] = []
    why_unshared = dict(found.unshared)
    for group in found.groups:
        if group.n_weights == 1 and not any(member.kept for member in group.members):
            continue  # names for one file: they share its load without any change
        members = [located[member.name].entry for member in group.members]
        shared = await _shared_load(roster, group, members, fitter)
        if isinstance(shared, LoadSpec):
            groups.append(group)
            loads |= {member.name: shared for member in members}
        else:
            why_unshared |= {member.name: shared for member in members}
    masks = {name for name, one in located.items() if one.entry.mask is not None}
    filled = masks & loads.keys()
    uncut = [one for one in _uncut(located.values()) if one.entry.name not in filled]
    too_large = await _too_large(uncut, prepared, fitter)
    loads |= too_large
    filled |= too_large.keys()
    if scratch is None and (to_cut := masks - filled - missing.keys() - wrong.keys()):
        missing |= await cut_masked(roster, to_cut)
        located |= {one.entry.name: one for one in await asyncio.to_thread(locate, roster, to_cut)}
    for name in filled:
        located[name] = replace(located[name], location=_filled_location(roster, located[name].entry))
    own = [
        (one.entry, fitter.on_cards(one.entry.load_spec(one.location.path)))
        for name, one in located.items()
        if name not in loads and name not in missing and name not in wrong and one.location.path is not None
    ]
    await predictions.make(own)
    for entries_of_one, spec in _by_spec(own):
        spec = await fitter.fitted(entries_of_one, spec)
        loads |= {entry.name: spec for entry in entries_of_one}
    entries = availability(
        tuple(located.values()),
        predictions.__getitem__,
        budget,
        predictions.refused,
        loads,
        missing,
        predictions.chat_fault,
        predictions.tool_form,
        predictions.embedding_form,
        predictions.infill,
        predictions.movable_expert_bytes,
        wrong,
    )
    stamps = {name: one.stamps for name, one in located.items()}
    facts = {name: told for name, spec in loads.items() if (told := predictions.facts(spec)) is not None}
    return Resolved(
        budget, entries, tuple(groups), why_unshared, found.unhashed, stamps, facts, predictions.tried, chosen.fits
    )


def _contenders(sharers: Sequence[Located], prepared: Mapping[str, MaskSource | Missing]) -> list[Contender]:
    """Those of the entries that have what a shared resident is loaded from: a file, or a mask made ready."""
    contenders = []
    for one in sharers:
        name, source = one.entry.name, prepared.get(one.entry.name)
        if isinstance(source, MaskSource):
            contenders.append(Contender(name, one.entry.load_spec(source.skeleton), source.parent, source.kept))
        elif source is None and one.location.path is not None:
            contenders.append(Contender(name, one.entry.load_spec(one.location.path)))
    return contenders


def _uncut(located: Iterable[Located]) -> list[Located]:
    """Those that are masks and have no file of their own."""
    return [one for one in located if one.entry.mask is not None and one.location.path is None]


async def _too_large(
    uncut: Sequence[Located], prepared: Mapping[str, MaskSource | Missing], fitter: Fitter
) -> dict[str, LoadSpec]:
    """Loads of skeletons that are over the budget: to find that out no file of gigabytes has to be cut first."""
    sources = [(one.entry, prepared.get(one.entry.name)) for one in uncut]
    tried = [
        (entry, fitter.on_cards(entry.load_spec(source.skeleton)))
        for entry, source in sources
        if isinstance(source, MaskSource)
    ]
    await fitter.predictions.make(tried)
    found: dict[str, LoadSpec] = {}
    for entries, spec in _by_spec(tried):
        fitted = await fitter.fitted(entries, spec)
        result = fitter.predictions.of(fitted)
        if result is None:
            continue  # what is wrong with it shows once it is cut
        if booked_memory(result.footprint, fitter.budget, fitted.devices).short_of(fitter.budget):
            found |= {entry.name: fitted for entry in entries}
    return found


def _filled_location(roster: Roster, entry: Specialist) -> Location:
    """Of a mask's specialist that is filled from its parent: it has no file beside the mask."""
    assert entry.mask is not None
    assert roster.parent is not None
    mask = Path(entry.mask)
    return Location(mask, (mask,), sources=roster.parent.location(roster.models_path).files)


async def _shared_load(roster: Roster, group: Group, members: Sequence[Specialist], fitter: Fitter) -> LoadSpec | str:
    """The load that a group shares; or why its specialists are better loaded by themselves."""
    budget = fitter.budget
    spec = fitter.on_cards(shared_load(roster, members[0], group.members, budget))
    try:
        await fitter.predicted(members, spec)
        spec = await fitter.fitted(members, spec)
        memory = booked_memory(fitter.predictions[spec], budget, spec.devices)
        if HOST in memory.short_of(budget) and spec.ram_budget_bytes:
            # Conversations are read again, which is better than not to be served.
            spec = replace(spec, ram_budget_bytes=0)
            memory = booked_memory(await fitter.predicted(members, spec), budget, spec.devices)
    except EngineError as error:
        _log.warning("%s cannot share a resident: %s", ", ".join(member.name for member in members), error)
        return str(error)
    if not memory.fits_in(budget):
        return f"one resident for all would need {memory}"
    indifferent = all(member.share == "auto" and member.mask is None for member in members)
    # Weights that are to be overwritten keep the file's layout, for which the processor has slower kernels. A GPU has
    # the same either way, an integrated one too: its changes are copies within host memory, and what sharing leaves of
    # that is the whole machine's.
    computed_on_gpu = fitter.predictions.require(spec).on_gpu
    if indifferent and not computed_on_gpu and Memory.total([memory] * len(members)).fits_in(budget):
        return "computed by the processor, and with room for all of them, each is faster by itself"
    return spec


def _by_spec(loads: Sequence[tuple[Specialist, LoadSpec]]) -> list[tuple[list[Specialist], LoadSpec]]:
    found: dict[LoadSpec, list[Specialist]] = {}
    for entry, spec in loads:
        found.setdefault(spec, []).append(entry)
    return [(entries, spec) for spec, entries in found.items()]
