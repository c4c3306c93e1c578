"""Which entries of a roster can be served on this machine, and why the rest cannot."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
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
    """About what a specialist will come to that has yet to be built, or cut.

    missing:    why it cannot be made, and what to do about it; "" where it can.
    file_bytes: of its file. total_bytes: of its resident, None where nothing predicts it.
    """

    file_bytes: int = 0
    total_bytes: int | None = None
    missing: str = ""
    how: str = "built"


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
    unfit: Mapping[str, tuple[str, str]] | None = None,
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
    unfit:        specialists whose settings do not fit this machine, whatever their files: name -> reason and remedy.
    """
    loads, missing, unfit = loads or {}, missing or {}, unfit or {}
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
        if budget is not None and (short := booked_memory(result, budget, spec.devices).short_of(budget)):
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
        if name in unfit:
            entries[name] = Unavailable(one.entry, *unfit[name], location, hindrance=Hindrance.REFUSED)
        elif name in missing:
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
        if parts := dict(footprint.card_bytes):
            lacking = sum(max(0, size - budget[card]) for card, size in parts.items())
            where = (
                f"{size_text(size)} of {card}, which has {size_text(budget[card])}" for card, size in parts.items()
            )
            told = ": " + ", ".join(where)
        else:
            n_bytes = max((budget[card] for card in short if card != HOST), default=budget.vram_bytes)
            lacking = footprint.total_bytes - n_bytes
            told = f"; the budget is {size_text(n_bytes)}"
        remedy = shrink_remedy(footprint, lacking, spec, movable_bytes, on_card=bool(budget.cards))
        return f"It needs {sum_text(footprint)}{told}.", remedy
    needed, there = size_text(footprint.host_bytes), size_text(budget.host_bytes)
    cards = " and ".join(budget.cards)
    reason = f"It needs {needed} of host memory beside what it takes of {cards}; pool.host_budget is {there}."
    if spec.cpu_expert_layers and spec.gpu_layers:
        return reason, "Keep fewer layers' experts there (cpu_expert_layers), or raise pool.host_budget."
    return reason, "Put more layers on the GPU (gpu_layers), or raise pool.host_budget."


def shrink_remedy(footprint: Footprint, lacking: int, spec: LoadSpec, movable_bytes: int, *, on_card: bool) -> str:
    """What would make a load fit that lacks so many bytes of pool.vram_budget. movable_bytes: of its experts on a GPU.
    on_card: a GPU has a memory of its own."""
    if lacking <= footprint.kv_bytes // 2:
        narrower = ", or set kv_type to q8_0" if spec.kv_type != "q8_0" else ""
        return f"Lower context_tokens or cache_tokens{narrower}."
    ways = ["choose a smaller quantisation", "or raise pool.vram_budget"]
    if movable_bytes >= lacking:
        ways.insert(0, "keep experts in host memory (cpu_expert_layers)")
    elif on_card:  # it has too few experts there that could go, or none
        ways.insert(0, "put fewer layers on the GPU (gpu_layers)")
    # Where all memory is the host's, its layers are counted wherever they are computed.
    return f"It lacks {size_text(lacking)}: {', '.join(ways)}."
