"""A roster resolved on this machine: files of each entry, groups that share residents, loads, dry runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from coe.engine.errors import EngineError, ModelTemplateError, NoRoomToTryError
from coe.engine.expert_offload import layers_on_cpu
from coe.engine.files import stamp
from coe.engine.layer_split import split_layers
from coe.engine.pool.memory import Prediction, booked_memory, cards_of, predict
from coe.engine.pool.placement import Distances
from coe.engine.pool.places import HOST, Memory
from coe.engine.pool.types import Entry
from coe.engine.request import GenerateRequest
from coe.engine.spec import EmbeddingForm, Footprint, LoadSpec, ModelFacts, Sharing, Thinking, ToolForm
from coe.engine.swap.groups import Contender, Group, find_groups

from ..roster.model_files import Location
from ..roster.models import Roster, Specialist
from .availability import Located, Servable, Unavailable, availability, locate
from .mask_models import MaskSource, Missing, cut_masked, prepare_masks
from .request import with_system_prompt

_log = logging.getLogger(__name__)
_DRY_RUNS_AT_ONCE = 2
_MOST_RAM = 2 * 2**30  # for KV caches offloaded to host memory, where the roster does not say


@dataclass(frozen=True)
class Tried:
    """A dry run's result. stamp: of the file that was tried, another when it changed."""

    prediction: Prediction
    stamp: str


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
    """

    budget: Memory
    availability: Mapping[str, Servable | Unavailable]
    groups: tuple[Group, ...]
    unshared: Mapping[str, str]
    unhashed: tuple[Path, ...]
    stamps: Mapping[str, tuple[str, ...]]
    facts: Mapping[str, ModelFacts] = field(default_factory=dict)
    tried: Mapping[LoadSpec, Tried] = field(default_factory=dict)

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


class Predictions:
    """Dry runs of loads, each but once; errors are kept beside the results.

    Two at a time, and one at a time on a GPU, of which each takes some hundred MiB for itself.
    """

    def __init__(self, max_prompt_tokens: int | None = None, before: Mapping[LoadSpec, Tried] | None = None) -> None:
        """max_prompt_tokens: the roster's own bound; None for the context's alone.
        before: results of earlier dry runs, which hold where the GPU has no room for another of an unchanged file.
        """
        self._max_prompt_tokens = max_prompt_tokens
        self._before = before or {}
        self._results: dict[LoadSpec, Prediction | EngineError] = {}
        self._stamps: dict[LoadSpec, str] = {}
        self._gate = asyncio.Semaphore(_DRY_RUNS_AT_ONCE)
        self._gpu = asyncio.Lock()
        self._may_have_gpu = True  # until a dry run has shown that there is none

    @property
    def tried(self) -> dict[LoadSpec, Tried]:
        """What came of the dry runs that went well."""
        good = {spec: result for spec, result in self._results.items() if isinstance(result, Prediction)}
        return {spec: Tried(result, self._stamps[spec]) for spec, result in good.items()}

    async def make(self, loads: Collection[tuple[Specialist, LoadSpec]]) -> None:
        """Try out loads, each distinct one with the thinking policies and system prompts that it is to carry out."""
        policies: dict[LoadSpec, dict[str, Thinking]] = {}
        chats: dict[LoadSpec, list[GenerateRequest]] = {}
        for entry, spec in loads:
            told, asked = policies.setdefault(spec, {}), chats.setdefault(spec, [])
            if not entry.embeddings:
                told[entry.name] = entry.thinking_policy()
                asked.append(self._shortest_chat(entry))

        async def one(spec: LoadSpec) -> None:
            async with self._gate, self._gpu if spec.gpu_layers and self._may_have_gpu else contextlib.nullcontext():
                self._results[spec] = await self._try(spec, policies[spec], chats[spec])

        await asyncio.gather(*(one(spec) for spec in policies))

    async def _try(
        self, spec: LoadSpec, policies: Mapping[str, Thinking], chats: Sequence[GenerateRequest]
    ) -> Prediction | EngineError:
        try:
            with contextlib.suppress(OSError):  # whoever reads the file says it better
                self._stamps[spec] = stamp(spec.path)
            found = await predict(spec, policies, chats)
        except NoRoomToTryError as error:
            before = self._before.get(spec)
            return before.prediction if before is not None and before.stamp == self._stamps.get(spec) else error
        except EngineError as error:
            return error
        if spec.gpu_layers and not found.on_gpu:
            self._may_have_gpu = False
        return found

    def _shortest_chat(self, entry: Specialist) -> GenerateRequest:
        return GenerateRequest(
            "",
            entry.name,
            with_system_prompt([{"role": "user", "content": "?"}], entry.system_prompt),
            thinking=entry.thinking_policy(),
            max_prompt_tokens=self._max_prompt_tokens,
        )

    def __getitem__(self, spec: LoadSpec) -> Footprint:
        """Raises the EngineError that the dry run ended in."""
        return self.require(spec).footprint

    def require(self, spec: LoadSpec) -> Prediction:
        """The dry run's result. Raises the EngineError that it ended in."""
        result = self._results[spec]
        if isinstance(result, EngineError):
            raise result
        return result

    def of(self, spec: LoadSpec) -> Prediction | None:
        """The dry run's result, None where it ended in an error."""
        result = self._results.get(spec)
        return result if isinstance(result, Prediction) else None

    def refused(self, spec: LoadSpec) -> Mapping[str, str]:
        """Specialists whose thinking policy or system prompt this model cannot carry out: specialist -> why."""
        result = self._results.get(spec)
        return result.refused if isinstance(result, Prediction) else {}

    def chat_fault(self, spec: LoadSpec) -> ModelTemplateError | None:
        """Why this model answers no chats; None where it does, or does not load at all."""
        result = self._results.get(spec)
        return result.chat_fault if isinstance(result, Prediction) else None

    def tool_form(self, spec: LoadSpec) -> ToolForm | None:
        """How this model's chat template writes calls of tools; None where it is not known."""
        result = self._results.get(spec)
        return result.tools if isinstance(result, Prediction) else None

    def embedding_form(self, spec: LoadSpec) -> EmbeddingForm | None:
        """What this model for embeddings gives; None for others, and where it is not known."""
        result = self._results.get(spec)
        return result.embedding if isinstance(result, Prediction) else None

    def infill(self, spec: LoadSpec) -> bool | None:
        """Whether this model can fill the middle between two texts; None where it is not known."""
        result = self._results.get(spec)
        return result.infill if isinstance(result, Prediction) else None

    def movable_expert_bytes(self, spec: LoadSpec) -> int:
        """Of the experts that this load has on a GPU, and could have in host memory; 0 where it is not known."""
        found = self.of(spec)
        layers = spec.cpu_expert_layers
        return sum(found.expert_bytes[layers:]) if found is not None and layers >= 0 else 0

    def facts(self, spec: LoadSpec) -> ModelFacts | None:
        """What this model's file says of itself; None where it does not load."""
        result = self._results.get(spec)
        return result.facts if isinstance(result, Prediction) else None


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
    located = {one.entry.name: one for one in await asyncio.to_thread(locate, roster)}
    sharers = [one for one in located.values() if one.entry.share is not False and one.entry.name not in unshared]
    sharers = [one for one in sharers if not one.entry.embeddings]
    prepared = await prepare_masks(roster, scratch) if any(one.entry.mask is not None for one in sharers) else {}
    missing: dict[str, Missing] = {n: it for n, it in prepared.items() if not isinstance(it, MaskSource)}
    found = await find_groups(_contenders(sharers, prepared))
    predictions = Predictions(roster.server.max_prompt_tokens, before)
    devices = devices_of(roster, budget)
    missing |= _wrong_splits(roster, devices)
    loads: dict[str, LoadSpec] = {}
    groups: list[Group] = []
    why_unshared = dict(found.unshared)
    for group in found.groups:
        if group.n_weights == 1 and not any(member.kept for member in group.members):
            continue  # names for one file: they share its load without any change
        members = [located[member.name].entry for member in group.members]
        shared = await _shared_load(roster, group, members, predictions, budget, devices)
        if isinstance(shared, LoadSpec):
            groups.append(group)
            loads |= {member.name: shared for member in members}
        else:
            why_unshared |= {member.name: shared for member in members}
    masks = {name for name, one in located.items() if one.entry.mask is not None}
    filled = masks & loads.keys()
    if scratch is None and (to_cut := masks - filled - missing.keys()):
        missing |= await cut_masked(roster, to_cut)
        located |= {one.entry.name: one for one in await asyncio.to_thread(locate, roster, to_cut)}
    for name in filled:
        located[name] = replace(located[name], location=_filled_location(roster, located[name].entry))
    own = [
        (one.entry, _on_cards(one.entry.load_spec(one.location.path), devices, budget))
        for name, one in located.items()
        if name not in loads and name not in missing and one.location.path is not None
    ]
    await predictions.make(own)
    for entries_of_one, spec in _by_spec(own):
        spec = await _fitted(entries_of_one, spec, predictions, budget, devices)
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
    )
    stamps = {name: one.stamps for name, one in located.items()}
    facts = {name: told for name, spec in loads.items() if (told := predictions.facts(spec)) is not None}
    return Resolved(budget, entries, tuple(groups), why_unshared, found.unhashed, stamps, facts, predictions.tried)


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


def _filled_location(roster: Roster, entry: Specialist) -> Location:
    """Of a mask's specialist that is filled from its parent: it has no file beside the mask."""
    assert entry.mask is not None
    assert roster.parent is not None
    mask = Path(entry.mask)
    return Location(mask, (mask,), sources=roster.parent.location(roster.models_path).files)


async def _shared_load(
    roster: Roster,
    group: Group,
    members: Sequence[Specialist],
    predictions: Predictions,
    budget: Memory,
    devices: tuple[str, ...],
) -> LoadSpec | str:
    """The load that a group shares; or why its specialists are better loaded by themselves."""
    pool = roster.pool
    sharing = Sharing(group.members, pool.swap_share, pool.max_slice_wait_s, pool.check_swaps)
    spec = _on_cards(members[0].load_spec(group.members[0].path, sharing), devices, budget)
    on_gpu = spec.gpu_layers != 0 and bool(budget.cards)
    # Without a GPU this is memory of vram_budget.
    most = _MOST_RAM if on_gpu else min(_MOST_RAM, budget.host_bytes // 8)
    spec = replace(spec, ram_budget_bytes=most if pool.ram_budget == "auto" else pool.ram_budget)
    try:
        await _predicted(members, spec, predictions)
        spec = await _fitted(members, spec, predictions, budget, devices)
        memory = booked_memory(predictions[spec], budget, spec.devices)
        if HOST in memory.short_of(budget) and spec.ram_budget_bytes:
            # Conversations are read again, which is better than not to be served.
            spec = replace(spec, ram_budget_bytes=0)
            memory = booked_memory(await _predicted(members, spec, predictions), budget, spec.devices)
    except EngineError as error:
        _log.warning("%s cannot share a resident: %s", ", ".join(member.name for member in members), error)
        return str(error)
    if not memory.fits_in(budget):
        return f"one resident for all would need {memory}"
    indifferent = all(member.share == "auto" and member.mask is None for member in members)
    # Weights that are to be overwritten keep the file's layout, for which the processor has slower kernels. A GPU has
    # the same either way, an integrated one too: its changes are copies within host memory, and what sharing leaves of
    # that is the whole machine's.
    computed_on_gpu = predictions.require(spec).on_gpu
    if indifferent and not computed_on_gpu and Memory.total([memory] * len(members)).fits_in(budget):
        return "computed by the processor, and with room for all of them, each is faster by itself"
    return spec


def _by_spec(loads: Sequence[tuple[Specialist, LoadSpec]]) -> list[tuple[list[Specialist], LoadSpec]]:
    found: dict[LoadSpec, list[Specialist]] = {}
    for entry, spec in loads:
        found.setdefault(spec, []).append(entry)
    return [(entries, spec) for spec, entries in found.items()]


def devices_of(roster: Roster, budget: Memory) -> tuple[str, ...]:
    """The cards that loads are placed on, by name: those that the roster names, or all where there are several.

    None where llama.cpp takes the only one by itself.
    """
    if roster.pool.devices != "auto":
        return roster.pool.devices
    return budget.cards if len(budget.cards) > 1 else ()


def _wrong_splits(roster: Roster, devices: Sequence[str]) -> dict[str, Missing]:
    """Specialists whose tensor_split has no part for each card. Where there is one card it is of no account."""
    return {
        entry.name: (
            f"tensor_split has {len(entry.tensor_split)} parts, and these cards are used: {', '.join(devices)}.",
            "Write a part for each, or name the cards in pool.devices.",
        )
        for entry in roster.specialists
        if entry.tensor_split and len(devices) > 1 and len(entry.tensor_split) != len(devices)
    }


def _on_cards(spec: LoadSpec, devices: tuple[str, ...], budget: Memory) -> LoadSpec:
    """The load on one card, to be tried on that with the largest budget; on all where it says how to share it out."""
    if not spec.gpu_layers or len(devices) < 2:
        return replace(spec, devices=devices if spec.gpu_layers else (), tensor_split=())
    if spec.tensor_split:
        return replace(spec, devices=devices)
    return replace(spec, devices=(max(devices, key=lambda card: budget[card]),))


async def _fitted(
    members: Sequence[Specialist],
    spec: LoadSpec,
    predictions: Predictions,
    budget: Memory,
    devices: tuple[str, ...],
) -> LoadSpec:
    """The load, which was predicted, as it fits the budget: on one card; where it fits on none alone, its layers on all
    of them; where one of its specialists wants that (`cpu_expert_layers: auto`), with as few layers' experts in host
    memory as let the rest fit. What it gives was predicted.

    With all experts there where even that does not suffice.
    """
    spread = False
    if len(devices) > 1 and len(spec.devices) == 1 and _lacking(spec, predictions, budget):
        spread = True
        spec = await _spread(members, spec, predictions, budget, devices)
    if not any(member.cpu_expert_layers == "auto" for member in members):
        return spec
    while (found := predictions.of(spec)) is not None and found.on_gpu:
        lacking, experts, layers = _lacking(spec, predictions, budget), found.expert_bytes, spec.cpu_expert_layers
        if not lacking or not any(experts) or not 0 <= layers < len(experts):
            break
        # What the graph itself takes changes with where its weights lie: the next dry run says whether it fits now.
        enough = layers_on_cpu(sum(experts[:layers]) + lacking, 0, experts)
        spec = replace(spec, cpu_expert_layers=-1 if enough is None else max(enough, layers + 1))
        if spread:
            spec = await _spread(members, spec, predictions, budget, devices)
        else:
            await predictions.make([(member, spec) for member in members])
    if spec.cpu_expert_layers:
        names = ", ".join(member.name for member in members)
        _log.info("%s: experts of %s stay in host memory", names, offloaded_text(spec.cpu_expert_layers))
    return spec


def _lacking(spec: LoadSpec, predictions: Predictions, budget: Memory) -> int:
    """Bytes that a load has too little of on cards; 0 where it fits, or is not predicted."""
    found = predictions.of(spec)
    if found is None or not found.on_gpu:
        return 0
    if not budget.cards:  # an integrated GPU, which has the host's memory
        return max(0, found.footprint.total_bytes - budget.vram_bytes)
    need = booked_memory(found.footprint, budget, spec.devices)
    return sum(max(0, need[card] - budget[card]) for card in budget.cards)


async def _spread(
    members: Sequence[Specialist],
    spec: LoadSpec,
    predictions: Predictions,
    budget: Memory,
    devices: tuple[str, ...],
) -> LoadSpec:
    """The load with its layers on all cards, by the room that each has for them. What it gives was predicted."""
    alone = replace(spec, devices=spec.devices[:1], tensor_split=())
    if predictions.of(alone) is None:
        await predictions.make([(member, alone) for member in members])
    found = predictions.of(alone)
    if found is None or not found.layer_bytes:
        return spec
    sizes = found.footprint
    cache = sizes.kv_bytes // len(found.layer_bytes)
    room = [max(1, budget[card] - sizes.compute_bytes - sizes.overhead_bytes) for card in devices]
    counts = split_layers([weights + cache for weights in found.layer_bytes], room)
    spec = replace(alone, devices=devices, tensor_split=tuple(map(float, counts)))
    await predictions.make([(member, spec) for member in members])
    names = ", ".join(member.name for member in members)
    _log.info("%s: the layers lie on %s, %s of them", names, " and ".join(devices), " and ".join(map(str, counts)))
    return spec


def offloaded_text(cpu_expert_layers: int) -> str:
    """Of which layers the experts stay in host memory: `the first 12 layers`."""
    if cpu_expert_layers < 0:
        return "all layers"
    return f"the first {cpu_expert_layers} layers" if cpu_expert_layers > 1 else "the first layer"


async def _predicted(members: Sequence[Specialist], spec: LoadSpec, predictions: Predictions) -> Footprint:
    await predictions.make([(member, spec) for member in members])
    return predictions[spec]


async def load_by_itself(entry: Specialist, file: Path, budget: Memory) -> tuple[LoadSpec, Prediction]:
    """How a specialist's file is loaded where nothing is shared, and what that would take. Raises the EngineError that
    its dry run ends in."""
    predictions = Predictions()
    spec = entry.load_spec(file)
    await predictions.make([(entry, spec)])
    spec = await _fitted([entry], spec, predictions, budget, ())
    return spec, predictions.require(spec)
