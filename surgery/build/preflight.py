"""Preflight checks of a build: whether its order can be carried out, and how its models are loaded so that they fit.

Nothing is loaded but headers, so that a mistake in a roster shows at once and not after hours.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from coe.engine.errors import UnavailableError
from coe.engine.expert_offload import layers_on_cpu
from coe.engine.pool.memory import booked_memory, predict
from coe.engine.pool.places import HOST, Memory
from coe.engine.process import rss_bytes
from coe.engine.spec import Footprint, LoadSpec
from coe.engine.units import size_text

from ..architectures import block_tensor, expert_bytes, is_per_expert
from ..cut.quantize import require_file_type
from ..cut.shared_scale import scaling
from ..errors import BuildError, CorpusError
from ..judge import gate
from ..judge.questions import gradable_questions, read_questions, records
from ..judge.values import Question
from ..parent import Parent
from ..plan.methods import DropMap, ThreePass
from ..profile.corpus import UNCLASSED, CorpusFile, read_corpus
from ..profile.fitting import expert_bytes_by_layer, load_spec, needed, profiling_load
from .job import BuildOrder, Machine

_DISK_SLACK: Final = 256 * 2**20
_JSONL: Final = (".jsonl", ".ndjson")


def specialist_bytes(parent: Parent, n_keep: int) -> int:
    """About what a specialist's file takes: the parent's bytes without the experts that go."""
    gone = sum(
        expert_bytes(tensor) * (parent.experts.n_expert - n_keep)
        for header in parent.headers
        for tensor in header.tensors
        if is_per_expert(parent.experts.architecture, tensor.name)
    )
    return sum(path.stat().st_size for path in parent.paths) - gone


@dataclass(frozen=True)
class DiskRoom:
    """What a build still takes of a disk, and what is free there."""

    need_bytes: int
    free_bytes: int
    folder: Path

    def __str__(self) -> str:
        return f"{size_text(self.need_bytes)} of disk; {size_text(self.free_bytes)} are free at {self.folder}"


def disk_room(order: BuildOrder, parent: Parent, folder: Path) -> DiskRoom:
    """The room that a build in a folder, which need not be there yet, still takes."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    written = folder / "specialist.gguf"
    need = specialist_bytes(parent, order.experts) + _DISK_SLACK - (written.stat().st_size if written.exists() else 0)
    return DiskRoom(need, shutil.disk_usage(there).free, there)


def check(order: BuildOrder, folder: Path) -> str:
    """Check an order; gives a warning of what its end will suffer from, "" for nothing. Loads nothing.

    Raises SurgeryError or EngineError for what would make it fail hours later.
    """
    parent = Parent.open(order.parent)
    _require_count(parent, order.experts)
    if order.quantize is not None:
        require_file_type(order.quantize)
    if order.shared_scale is not None:
        _require_scale(parent, order.shared_scale)
    files = [CorpusFile.parse(text) for text in order.corpus]
    if order.answer and (plain := [file.path.name for file in files if not is_jsonl(file)]):
        raise CorpusError(f"{', '.join(plain)} holds no questions to answer.", "Give JSON lines, or set answer: false.")
    classes = _classes_of_lines(files) if order.answer else read_corpus(files).classes
    if isinstance(order.recipe.method, DropMap):
        _require_classes(order.recipe.method, classes)
    if order.reasoning:
        if not isinstance(order.recipe.method, ThreePass):
            raise BuildError(
                f"The recipe {order.recipe.name} makes no use of `reasoning`.",
                "Leave it out, or take the recipe three-pass.",
            )
        read_corpus([CorpusFile.parse(text) for text in order.reasoning])
    questions = judged_by(order)
    room = disk_room(order, parent, folder)
    if room.free_bytes < room.need_bytes:
        raise BuildError(f"Building {order.name} takes {room}.", "Make room there, or set models_dir to another disk.")
    return gate.foresee(len(questions.all), order.bound)


def _require_count(parent: Parent, n_keep: int) -> None:
    """Raises BuildError when the parent's layers cannot keep so many experts."""
    experts = parent.experts
    asked = f"experts: {n_keep} cannot be. {parent.name}"
    if not max(experts.n_used, 2) <= n_keep <= experts.n_expert:
        raise BuildError(
            f"{asked} has {experts.n_expert} a layer, a token uses {experts.n_used}, and 2 have to stay at least.",
            "Correct `experts` in the roster.",
        )
    of_group = max(2, -(-experts.n_used // experts.n_groups_used))  # a group is judged by its best two
    if experts.n_groups > 1 and (n_keep % experts.n_groups or n_keep < of_group * experts.n_groups):
        raise BuildError(
            f"{asked} chooses among {experts.n_groups} groups first, and has to keep as many of each, {of_group} at "
            "least.",
            f"Set `experts` in the roster to a multiple of {experts.n_groups} from {of_group * experts.n_groups}.",
        )


def _require_scale(parent: Parent, factor: float) -> None:
    """Raises BuildError without a shared expert to scale, CutError for a factor or a type that cannot be."""
    experts = parent.experts
    layers = (*experts.layers, *experts.draft_layers)
    tensors = [tensor for header in parent.headers for tensor in header.tensors]
    places = {tensor.name: block_tensor(tensor.name) for tensor in tensors}
    scaled = [
        tensor
        for tensor in tensors
        if (place := places[tensor.name]) and place[0] in layers and place[1] == experts.architecture.shared_output
    ]
    if not scaled:
        raise BuildError(
            f"{parent.name} ({experts.architecture.name}) has no shared expert to scale.",
            "Leave `shared_scale` out of the roster.",
        )
    for tensor in scaled:
        scaling(tensor.name, tensor.type, factor)


def _require_classes(method: DropMap, classes: Sequence[str]) -> None:
    """Raises BuildError when the recipe weighs classes that the corpus does not have, or gives none any weight."""
    if missing := [name for name in method.weights if name not in classes]:
        raise BuildError(
            f"The recipe weighs classes that the corpus does not have: {', '.join(missing)}.",
            f"It has: {', '.join(classes)}. Give texts of the others as CLASS=FILE, or set `weights` of the recipe.",
        )
    if method.weights and not any(method.weights.values()):
        raise BuildError("The recipe gives no class any weight.", "Correct `weights` of the recipe in the roster.")


def _classes_of_lines(files: Sequence[CorpusFile]) -> tuple[str, ...]:
    """The classes that a corpus of questions will have when they are answered."""
    found = (
        record.get("class") or file.category or record.get("subdomain") or record.get("category") or UNCLASSED
        for file in files
        for _, record in records(file.path)
    )
    return tuple(dict.fromkeys(str(category) for category in found))


def is_jsonl(file: CorpusFile) -> bool:
    """Whether a corpus file holds records, which may be questions; plain text otherwise."""
    return file.path.suffix.lower() in _JSONL


@dataclass(frozen=True)
class Judging:
    """What a specialist is judged by: questions held out of its corpus, and all, with those that the roster gives."""

    held: tuple[Question, ...]
    all: tuple[Question, ...]


def judged_by(order: BuildOrder) -> Judging:
    """Raises EvaluationError for questions that cannot be read or contradict themselves."""
    files = [CorpusFile.parse(text) for text in order.corpus]
    gradable = gradable_questions([file.path for file in files if is_jsonl(file)]).questions
    held = tuple(gradable[index] for index in gate.hold_out(gradable))
    given = read_questions(order.questions).questions if order.questions else ()
    return Judging(held, tuple({question.id: question for question in (*held, *given)}.values()))


@dataclass(frozen=True)
class BuildFit:
    """How a build's models are loaded so that they fit, and what the build takes of each place at most."""

    machine: Machine
    memory: Memory


def fit(order: BuildOrder, machine: Machine, budget: Memory) -> BuildFit:
    """As many layers' experts in host memory as the budget asks for.

    Raises UnavailableError with the sum when that does not help, ModelFileError for a parent that cannot be loaded.
    """
    parent = Parent.open(order.parent)
    needs = _needs(parent, machine, budget)
    need_bytes = needs.memory.vram_bytes
    if need_bytes > budget.vram_bytes and machine.cpu_expert_layers == 0:
        layers = layers_on_cpu(need_bytes, budget.vram_bytes, expert_bytes_by_layer(parent))
        if layers is not None:
            # Without a GPU the experts are in host memory anyway, and that is what is counted.
            lighter = replace(machine, cpu_expert_layers=layers)
            less = _needs(parent, lighter, budget)
            if less.memory.vram_bytes < need_bytes:
                machine, needs = lighter, less
    short = needs.memory.short_of(budget)
    if budget.cards and short == (HOST,):
        raise UnavailableError(
            f"Building {order.name} needs {size_text(needs.memory.host_bytes)} of host memory beside the GPU's for its "
            f"parent; the budget is {size_text(budget.host_bytes)}.",
            "Raise pool.host_budget, keep fewer layers' experts there (cpu_expert_layers of the entry), or take a "
            "smaller quantisation of the parent.",
        )
    if short:
        watched, asked = needs.watched.total_bytes, needs.asked.total_bytes
        raise UnavailableError(
            f"Building {order.name} needs {size_text(needs.memory.vram_bytes)} for its parent ({size_text(watched)} "
            f"while its router is watched, {size_text(asked)} while it answers); the budget is "
            f"{size_text(budget.vram_bytes)}.",
            "Raise pool.vram_budget, lower context_tokens or parallel of the entry, or take a smaller quantisation of "
            "the parent.",
        )
    return BuildFit(machine, needs.memory)


@dataclass(frozen=True)
class _Needs:
    """While the parent is watched, while it answers, and at most."""

    watched: Footprint
    asked: Footprint
    memory: Memory


def _needs(parent: Parent, machine: Machine, budget: Memory) -> _Needs:
    """The build's own process watches the parent, and a worker beside it has it answer. Files that the other steps read
    are in the page cache, which gives way, and are not counted."""
    load = LoadSpec(parent.path, **asdict(machine))
    watched = needed(load_spec(parent.path, profiling_load(load)), parent)
    found = asyncio.run(predict(load))
    asked = found.footprint
    if found.on_gpu:  # whose runtime stays in the process that has watched
        kept = watched.overhead_bytes
        by_card = tuple((card, n_bytes + kept // len(asked.card_bytes)) for card, n_bytes in asked.card_bytes)
        asked = replace(asked, overhead_bytes=asked.overhead_bytes + kept, card_bytes=by_card)
    own = Memory.at(HOST, rss_bytes())  # this process has imported what the build's will
    return _Needs(
        watched,
        asked,
        booked_memory(watched, budget, machine.devices).larger(booked_memory(asked, budget, machine.devices) + own),
    )
