"""Which entries of a roster can be served on this machine, as which residents, and which fit together in the budget."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from pathlib import Path

from coe.engine.errors import EngineError, ModelTemplateError, NoRoomToTryError
from coe.engine.files import stamp
from coe.engine.pool.memory import booked_memory
from coe.engine.pool.places import HOST, Memory
from coe.engine.spec import EmbeddingForm, Footprint, LoadSpec, ToolForm
from coe.engine.units import size_text

from ..roster.model_files import Location
from ..roster.models import Roster, Specialist

Footprints = Callable[[LoadSpec], Footprint]
Refusals = Callable[[LoadSpec], Mapping[str, str]]
ChatFaults = Callable[[LoadSpec], ModelTemplateError | None]
ToolForms = Callable[[LoadSpec], ToolForm | None]
EmbeddingForms = Callable[[LoadSpec], EmbeddingForm | None]
Infills = Callable[[LoadSpec], bool | None]
MovableExperts = Callable[[LoadSpec], int]

_MOST_ENUMERATED = 12  # residents of which every combination is tried: 4,096 sums


@dataclass(frozen=True)
class Located:
    """A roster entry and its files on this machine.

    stamps: of the files that are there: others when one came, went or changed.
    """

    entry: Specialist
    location: Location
    stamps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Servable:
    """A specialist that can be served here: its entry, its files, and how it is loaded.

    footprint:  None unpredicted.
    chat_fault: why its model answers plain completions only; None where it answers chats too.
    tool_form:  how its chat template writes calls of tools; None where no dry run said so.
    embedding:  what a model made for embeddings gives; None for others, and where no dry run said so.
    infill:     whether it can fill the middle between two texts; None where no dry run said so.
    """

    entry: Specialist
    location: Location
    spec: LoadSpec
    footprint: Footprint | None
    chat_fault: ModelTemplateError | None = None
    tool_form: ToolForm | None = None
    embedding: EmbeddingForm | None = None
    infill: bool | None = None

    @property
    def tools(self) -> str:
        """What becomes of the tools that a chat offers: `gemma4`, `generic (why)`, `ignored`, `refused`."""
        asked, form = self.entry.tools, self.tool_form
        if asked in ("ignore", "refuse"):
            return {"ignore": "ignored", "refuse": "refused"}[asked]
        if self.chat_fault is not None:
            return "none (it answers no chats)"
        if asked == "generic":
            return "generic (the roster says so)"
        if form is None:
            return "not known yet"
        return form.family or f"generic ({form.fault.rstrip('.')})"

    @property
    def doubts(self) -> tuple[str, ...]:
        """What the dry run found that an operator has to know though it can be served."""
        notes = self.footprint.notes if self.footprint is not None else ()
        return (*((f"It answers no chats. {self.chat_fault}",) if self.chat_fault is not None else ()), *notes)


class Hindrance(StrEnum):
    """What keeps a specialist from being served, in the words of a table; `Unavailable.reason` is the sentence."""

    ABSENT = "absent"
    ALTERED = "not the pinned file"
    UNPREPARED = "cannot be prepared"
    UNLOADABLE = "cannot be loaded"
    UNTRIED = "no room to try"  # on the GPU: what it comes to is not known yet
    OVER_BUDGET = "over the budget"
    REFUSED = "its settings do not fit"


@dataclass(frozen=True)
class Unavailable:
    """A specialist that cannot be served here, why, and what to do. What is known of it stands beside that."""

    entry: Specialist
    reason: str
    remedy: str
    location: Location
    footprint: Footprint | None = None
    hindrance: Hindrance = Hindrance.UNLOADABLE


@dataclass(frozen=True)
class ToBuild:
    """About what a specialist will come to that has yet to be built, or cut; `missing` is why it cannot be made.

    file_bytes: of its file. total_bytes: of its resident, None where nothing predicts it.
    """

    file_bytes: int = 0
    total_bytes: int | None = None
    missing: str = ""
    how: str = "built"


@dataclass(frozen=True)
class ResidentPlan:
    """One resident: the specialists that share a load, and the memory it takes."""

    names: tuple[str, ...]
    memory: Memory

    @property
    def title(self) -> str:
        """`coding`, or `coding + math` for a resident that specialists share."""
        return " + ".join(self.names)


def locate(roster: Roster, names: Collection[str] | None = None) -> tuple[Located, ...]:
    """The roster's entries (of these names) with their files, in the roster's order. Looks at the disk."""
    found = []
    for entry in roster.specialists:
        if names is None or entry.name in names:
            location = roster.locate(entry)
            paths = list(location.files)
            if entry.mask is not None and roster.parent is not None:
                paths += [Path(entry.mask), *roster.parent.location(roster.models_path).files]
            found.append(Located(entry, location, tuple(_stamps(paths))))
    return tuple(found)


def _stamps(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        with contextlib.suppress(OSError):
            yield f"{path} {stamp(path)}"


def availability(
    located: Sequence[Located],
    footprints: Footprints | None,
    budget: Memory | None,
    refusals: Refusals = lambda spec: {},
    loads: Mapping[str, LoadSpec] | None = None,
    missing: Mapping[str, tuple[str, str]] | None = None,
    chat_faults: ChatFaults = lambda spec: None,
    tool_forms: ToolForms = lambda spec: None,
    embedding_forms: EmbeddingForms = lambda spec: None,
    infills: Infills = lambda spec: None,
    movable_experts: MovableExperts = lambda spec: 0,
) -> dict[str, Servable | Unavailable]:
    """What can be served, by name, in the order given. Equal loads are predicted once.

    footprints:   predicts what a load takes; raises EngineError for a file that cannot be loaded. None: not predicted.
    budget:       what residents may take together; None: no bound.
    refusals:     whose thinking policy or system prompt the loaded model cannot carry out: specialist -> why.
    loads:        how specialists are loaded, by name; those left out by themselves, from their own files.
    missing:      specialists that cannot be prepared for loading: name -> reason and remedy.
    chat_faults:  why the loaded model answers no chats; None where it does.
    tool_forms:   how its chat template writes calls of tools; None where it is not known.
    embedding_forms: what a model made for embeddings gives; None where it is not known.
    infills:      whether the loaded model can fill the middle; None where it is not known.
    movable_experts: bytes of the experts that it has on a GPU, and could have in host memory.
    """
    loads, missing = loads or {}, missing or {}
    predicted: dict[LoadSpec, Footprint | EngineError] = {}

    def judge(one: Located, spec: LoadSpec) -> Servable | Unavailable:
        if footprints is None:
            return Servable(one.entry, one.location, spec, None)
        if spec not in predicted:
            try:
                predicted[spec] = footprints(spec)
            except EngineError as error:
                predicted[spec] = error
        result = predicted[spec]
        if isinstance(result, EngineError):
            untried = isinstance(result, NoRoomToTryError)
            hindrance = Hindrance.UNTRIED if untried else Hindrance.UNLOADABLE
            return Unavailable(one.entry, result.message, result.remedy, one.location, hindrance=hindrance)
        if budget is not None and (short := booked_memory(result, budget).short_of(budget)):
            reason, remedy = over_budget(result, budget, short, spec, movable_experts(spec))
            return Unavailable(one.entry, reason, remedy, one.location, result, Hindrance.OVER_BUDGET)
        if why := refusals(spec).get(one.entry.name):
            return Unavailable(one.entry, why, "", one.location, result, Hindrance.REFUSED)
        if one.entry.embeddings:
            given = embedding_forms(spec)
            if given is not None and max(one.entry.dimensions, default=0) > given.dimensions:
                reason = (
                    f"`dimensions` has {max(one.entry.dimensions)}, and its vectors have {given.dimensions} numbers."
                )
                remedy = f"Write numbers below {given.dimensions}."
                return Unavailable(one.entry, reason, remedy, one.location, result, Hindrance.REFUSED)
            return Servable(one.entry, one.location, spec, result, embedding=given)
        fault, form = chat_faults(spec), tool_forms(spec)
        if one.entry.tools == "native" and fault is None and form is not None and form.family is None:
            reason = f"`tools: native` cannot be: {form.fault.rstrip('.')}."
            remedy = "Write `tools: generic`, or auto."
            return Unavailable(one.entry, reason, remedy, one.location, result, Hindrance.REFUSED)
        return Servable(one.entry, one.location, spec, result, fault, form, infill=infills(spec))

    entries: dict[str, Servable | Unavailable] = {}
    for one in located:
        name, location = one.entry.name, one.location
        if name in missing:
            entries[name] = Unavailable(one.entry, *missing[name], location, hindrance=Hindrance.UNPREPARED)
        elif location.path is None:
            hindrance = Hindrance.ALTERED if location.altered else Hindrance.ABSENT
            entries[name] = Unavailable(one.entry, location.reason, location.remedy, location, hindrance=hindrance)
        else:
            entries[name] = judge(one, loads.get(name) or one.entry.load_spec(location.path))
    return entries


def sum_text(footprint: Footprint) -> str:
    """The sum that a load comes to: `8.60 GiB weights + 620 MiB KV + 12 MiB compute = 9.22 GiB`."""
    parts = [
        (footprint.weights_bytes, "weights"),
        (footprint.kv_bytes, "KV"),
        (footprint.compute_bytes, "compute"),
        (footprint.overhead_bytes, "overhead"),
    ]
    terms = " + ".join(f"{size_text(size)} {what}" for size, what in parts if size or what != "overhead")
    return f"{terms} = {size_text(footprint.total_bytes)}"


def over_budget(
    footprint: Footprint, budget: Memory, short: Collection[str], spec: LoadSpec, movable_bytes: int
) -> tuple[str, str]:
    """Why a load is over the budget, and what would make it fit. short: the places that are too small for it.
    movable_bytes: of its experts on a GPU."""
    if not budget.cards or any(place != HOST for place in short):
        n_bytes = budget.vram_bytes
        reason = f"It needs {sum_text(footprint)}; the budget is {size_text(n_bytes)}."
        return reason, shrink_remedy(footprint, budget, spec, movable_bytes)
    needed, there = size_text(footprint.host_bytes), size_text(budget.host_bytes)
    cards = " and ".join(budget.cards)
    reason = f"It needs {needed} of host memory beside what it takes of {cards}; pool.host_budget is {there}."
    if spec.cpu_expert_layers and spec.gpu_layers:
        return reason, "Keep fewer layers' experts there (cpu_expert_layers), or raise pool.host_budget."
    return reason, "Put more layers on the GPU (gpu_layers), or raise pool.host_budget."


def shrink_remedy(footprint: Footprint, budget: Memory, spec: LoadSpec, movable_bytes: int) -> str:
    """What would make a load that is over pool.vram_budget fit. movable_bytes: of its experts on a GPU."""
    lacking = footprint.total_bytes - budget.vram_bytes
    if lacking <= footprint.kv_bytes // 2:
        narrower = ", or set kv_type to q8_0" if spec.kv_type != "q8_0" else ""
        return f"Lower context_tokens or cache_tokens{narrower}."
    ways = ["choose a smaller quantisation", "or raise pool.vram_budget"]
    if movable_bytes >= lacking:
        ways.insert(0, "keep experts in host memory (cpu_expert_layers)")
    elif budget.cards:  # it has too few experts there that could go, or none
        ways.insert(0, "put fewer layers on the GPU (gpu_layers)")
    # Where all memory is the host's, its layers are counted wherever they are computed.
    return f"It lacks {size_text(lacking)}: {', '.join(ways)}."


def residents(entries: Mapping[str, Servable | Unavailable], budget: Memory | None = None) -> tuple[ResidentPlan, ...]:
    """The distinct residents of what can be served and is predicted, in the roster's order. budget: None unknown."""
    names: dict[LoadSpec, list[str]] = {}
    sizes: dict[LoadSpec, Memory] = {}
    for name, item in entries.items():
        if isinstance(item, Servable) and item.footprint is not None:
            names.setdefault(item.spec, []).append(name)
            sizes[item.spec] = booked_memory(item.footprint, budget or Memory())
    return tuple(ResidentPlan(tuple(names[spec]), sizes[spec]) for spec in names)


def fit_in_order(plans: Iterable[ResidentPlan], budget: Memory) -> tuple[ResidentPlan, ...]:
    """The residents taken in order, each that still fits beside those before it."""
    taken: list[ResidentPlan] = []
    free = budget
    for plan in plans:
        if plan.memory.fits_in(free):
            taken.append(plan)
            free -= plan.memory
    return tuple(taken)


def maximal_sets(plans: Sequence[ResidentPlan], budget: Memory) -> tuple[tuple[ResidentPlan, ...], ...] | None:
    """Every set of residents that fits and to which no other can be added, larger ones first; None where the
    residents are too many to try all combinations."""
    if len(plans) > _MOST_ENUMERATED:
        return None
    found: list[tuple[ResidentPlan, ...]] = []
    for count in range(len(plans), 0, -1):
        for chosen in combinations(plans, count):
            free = budget - together(chosen)
            if not free.overdrawn and not any(plan.memory.fits_in(free) for plan in plans if plan not in chosen):
                found.append(chosen)
    return tuple(found)


def most_that_fit(plans: Collection[ResidentPlan], budget: Memory) -> int:
    """How many residents fit together at best; an upper bound where they need more than one place."""
    return min((_most_at(place, plans, budget[place]) for place in budget.places), default=len(plans))


def _most_at(place: str, plans: Iterable[ResidentPlan], budget_bytes: int) -> int:
    count = total = 0
    for size in sorted(plan.memory[place] for plan in plans):
        total += size
        if total > budget_bytes:
            break
        count += 1
    return count


def together(plans: Iterable[ResidentPlan]) -> Memory:
    """What residents take all at once."""
    return Memory.total(plan.memory for plan in plans)


def page_cache_bytes(entries: Mapping[str, Servable | Unavailable]) -> int:
    """Host memory that keeps the files of everything that can be served in the page cache, each file once."""
    served = [item.location for item in entries.values() if isinstance(item, Servable)]
    files = {file for location in served for file in (*location.files, *location.sources)}
    return sum(file.stat().st_size for file in files)


def budget_doubts(
    roster: Roster, entries: Mapping[str, Servable | Unavailable], budget: Memory | None
) -> tuple[str, ...]:
    """What the roster asks for that this machine cannot give: pins and preloads beyond the budget or not servable."""
    doubts = []
    plans = residents(entries, budget)
    pinned = {specialist.name for specialist in roster.specialists if specialist.pin}
    for what, wanted in (("Pinned", pinned), ("pool.preload", set(roster.pool.preload))):
        absent = sorted(name for name in wanted if isinstance(entries[name], Unavailable))
        if absent:
            doubts.append(f"{what}: {', '.join(absent)} cannot be served.")
        total = together(plan for plan in plans if wanted.intersection(plan.names))
        if budget is not None and not total.fits_in(budget):
            doubts.append(f"{what}: together {total}, the budget is {budget}.")
    if pinned and budget is not None:
        held = [plan for plan in plans if pinned.intersection(plan.names)]
        free = budget - together(held)
        shut_out = [plan.title for plan in plans if plan not in held and not plan.memory.fits_in(free)]
        if shut_out and not free.overdrawn:
            doubts.append(f"What is pinned leaves {free}: {', '.join(shut_out)} can never load.")
    fallback = entries.get(roster.fallback) if roster.fallback is not None else None
    if isinstance(fallback, Unavailable):
        instead = "whatever is warm answers in its place" if roster.fallback_warm else "nothing answers in its place"
        doubts.append(f"The fallback {roster.fallback} cannot be served: {instead}.")
    return tuple(doubts)
