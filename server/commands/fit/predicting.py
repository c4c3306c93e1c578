"""Predicted memory of the rows of `coe fit`, by the dry runs that the server makes; weights are nowhere read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coe.engine.errors import EngineError
from coe.engine.gguf.header import Header
from coe.engine.gguf.reader import read_split
from coe.engine.pool.memory import booked_memory, cards_of
from coe.engine.pool.places import Memory
from coe.engine.spec import LoadSpec, untrained_note
from coe.surgery.architectures import Experts, expert_bytes, experts_of, is_per_expert
from coe.surgery.cut.cut import write_outline
from coe.surgery.errors import SurgeryError
from coe.surgery.parent import Parent
from coe.surgery.study.inspect import fewest, usual_counts

from ...roster.models import Specialist
from ...runtime.fitting import Fitter
from ...runtime.predictions import Predictions
from .._speeds import Placed, Speed
from .values import LADDER, Model, Need, Row, Way, context_text, fits_always, most_experts

_TRIES: Final = 4  # dry runs to find the most experts that fit, beyond the sum that they begin with


@dataclass(frozen=True)
class Candidate:
    """A model to choose: its first file here, or of one on the hub a file with its header."""

    title: str
    path: Path


class Predictor:
    """Makes the rows of models, one after the other, within a budget."""

    def __init__(
        self,
        budget: Memory,
        contexts: Sequence[int],
        scratch: Path,
        speeds: Sequence[Speed] = (),
        tell: Callable[[str, int, int], None] | None = None,
    ) -> None:
        """scratch: a folder for headers of cuts. speeds: that were measured. tell: called with a step, done, of how
        many."""
        self._budget, self._contexts = budget, tuple(sorted(set(contexts)))
        self._scratch = scratch
        self._speeds = {speed.placed: speed.tokens_per_s for speed in speeds}
        self._tell = tell or (lambda step, done, total: None)
        self._predictions = Predictions()
        self._fitter = Fitter(self._predictions, budget, budget.cards if len(budget.cards) > 1 else ())
        self._remarks: dict[str, None] = {}
        self._told: set[str] = set()  # notes of dry runs of which a remark in this command's words tells
        self.on_gpu = False

    @property
    def remarks(self) -> tuple[str, ...]:
        """What dry runs noted, and why models or ways to hold them are left out, each once."""
        return tuple(self._remarks)

    async def rows(self, candidates: Sequence[Candidate]) -> tuple[Row, ...]:
        """The rows of all models. Of several models fewer experts are tried where the whole of one does not fit."""
        found: list[Row] = []
        for at, candidate in enumerate(candidates):
            self._tell("dry runs", at, len(candidates))
            try:
                found += await self._rows_of(candidate, is_alone=len(candidates) == 1)
            except (EngineError, SurgeryError) as error:
                self._remark(f"{candidate.title} is left out. {error}")
        self._tell("dry runs", len(candidates), len(candidates))
        return tuple(found)

    async def _rows_of(self, candidate: Candidate, *, is_alone: bool) -> list[Row]:
        headers = read_split(candidate.path)
        n_expert = headers[0].count("expert_count")
        n_bytes = sum(header.path.stat().st_size for header in headers)
        trained = headers[0].count("context_length")
        model = Model(candidate.title, candidate.path.name, n_bytes, n_expert if n_expert > 1 else 0, trained)
        if beyond := model.untrained(self._contexts):
            told = " and ".join(map(context_text, beyond))
            self._remark(
                f"{candidate.title} was trained for {trained:,} tokens: beyond that, at {told}, answers suffer."
            )
        self._told |= {untrained_note(context, trained) for context in beyond}
        whole = self._row(model, Way.WHOLE, model.n_expert, n_bytes, await self._needs(candidate, candidate.path))
        rows = [whole]
        if all(need.memory is None for need in whole.needs.values()):
            return rows
        if not model.n_expert:
            self._remark(f"{candidate.title} is dense: it has no experts to cut, or to keep in host memory.")
            return rows
        is_short = not fits_always(whole, self._budget)
        if self.on_gpu and is_short:
            needs = await self._needs(candidate, candidate.path, offloads=True)
            rows.append(self._row(model, Way.OFFLOADED, n_expert, n_bytes, needs))
        if is_alone or is_short:
            try:
                rows += await self._cuts(candidate, model, whole, headers, with_all=is_alone)
            except (EngineError, SurgeryError) as error:
                self._remark(f"{candidate.title} is shown whole alone. {error}")
        return rows

    async def _cuts(
        self, candidate: Candidate, model: Model, whole: Row, headers: Sequence[Header], *, with_all: bool
    ) -> list[Row]:
        """With fewer experts: the most that fit with each of the contexts, and those of the ladder that are no more.
        with_all: the whole ladder."""
        experts = experts_of(headers)
        parent = Parent(candidate.path, tuple(headers), experts)
        tensors = [tensor for header in headers for tensor in header.tensors]
        of_one = sum(expert_bytes(one) for one in tensors if is_per_expert(experts.architecture, one.name))
        found: dict[int, Row] = {}

        async def cut(n_keep: int) -> Row:
            if n_keep not in found:
                self._tell(f"{candidate.title}, fewer experts", len(found), len(found) + 1)
                found[n_keep] = await self._cut(candidate, parent, model, n_keep)
            return found[n_keep]

        most = 0
        for context, need in whole.needs.items():
            if whole.fits(context, self._budget):
                most = experts.n_expert
                continue
            about = most_experts(need, self._budget, of_one, experts.n_expert, experts.n_groups)
            most = max(most, await self._most(cut, context, about, experts))
        for n_keep in usual_counts(experts, LADDER):
            if with_all or n_keep <= most:
                await cut(n_keep)
        self._tell(f"{candidate.title}, fewer experts", len(found), len(found))
        chosen = [n_keep for n_keep in found if with_all or n_keep <= most]
        return [found[n_keep] for n_keep in sorted(chosen, reverse=True)]

    async def _most(self, cut: Callable[[int], Awaitable[Row]], context: int, about: int, experts: Experts) -> int:
        """The most experts that fit with a context, short of all; 0 where none do. about: where dry runs begin."""
        step, n_keep, fitting = experts.n_groups, min(about, experts.n_expert - experts.n_groups), 0
        for _ in range(_TRIES):
            if not fewest(experts) <= n_keep < experts.n_expert or n_keep == fitting:
                break
            if not (await cut(n_keep)).fits(context, self._budget):
                n_keep -= step
                if n_keep == fitting:
                    break
            else:
                fitting, n_keep = n_keep, n_keep + step
        return fitting

    async def _cut(self, candidate: Candidate, parent: Parent, model: Model, n_keep: int) -> Row:
        out = self._scratch / f"{candidate.path.stem}-{n_keep}.gguf"
        write_outline(parent, n_keep, out)
        try:
            needs = await self._needs(candidate, out)
            return self._row(model, Way.CUT, n_keep, out.stat().st_size, needs)
        finally:
            out.unlink(missing_ok=True)

    async def _needs(self, candidate: Candidate, path: Path, *, offloads: bool = False) -> dict[int, Need]:
        """Context -> what a resident takes with one conversation. offloads: experts go to host memory as needed."""
        loads = {}
        for context in self._contexts:
            entry = _entry(path, context, offloads=offloads)
            loads[context] = entry, self._fitter.on_cards(entry.load_spec(path))
        await self._predictions.make([load for load in loads.values() if self._predictions.of(load[1]) is None])
        return {context: await self._need(candidate, entry, spec) for context, (entry, spec) in loads.items()}

    async def _need(self, candidate: Candidate, entry: Specialist, spec: LoadSpec) -> Need:
        try:
            spec = await self._fitter.fitted([entry], spec)
            found = self._predictions.require(spec)
        except EngineError as error:
            self._remark(f"{candidate.title}: what it takes in memory is not known. {error}")
            return Need(None)
        self.on_gpu |= found.on_gpu
        for note in found.footprint.notes:
            if note not in self._told:
                self._remark(f"{note}.")
        memory = booked_memory(found.footprint, self._budget, spec.devices)
        return Need(memory, spec.cpu_expert_layers, cards_of(spec, self._budget))

    def _row(self, model: Model, way: Way, n_keep: int, n_bytes: int, needs: Mapping[int, Need]) -> Row:
        """With its speed, where one was measured of the same placement with any of the contexts."""
        kept = n_keep if way is Way.CUT else 0
        layers = dict.fromkeys(need.cpu_expert_layers for need in needs.values() if need.memory is not None)
        placed = [Placed(model.file, model.n_bytes, kept, cpu_expert_layers=count) for count in layers]
        speed = next((self._speeds[one] for one in placed if one in self._speeds), None)
        return Row(model, way, n_keep, n_bytes, needs, speed)

    def _remark(self, text: str) -> None:
        self._remarks[text] = None


def _entry(path: Path, context: int, *, offloads: bool) -> Specialist:
    """A roster's entry as the rows mean it: one conversation, and weights that are there but once."""
    return Specialist(
        name="fit",
        file=str(path),
        context_tokens=context,
        parallel=1,
        mmap=False,
        cpu_expert_layers="auto" if offloads else 0,
    )
