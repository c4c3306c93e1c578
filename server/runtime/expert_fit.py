"""`experts: fit`: how many experts the masks of a roster keep, so that the resident they share fits the machine.

The decision is pure: what a resident takes grows by the same bytes with each expert, so that two dry runs, with all
experts and with the fewest, tell where the budget ends. A third shows that it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from coe.engine.errors import EngineError
from coe.engine.pool.memory import booked_memory, cards_of
from coe.engine.pool.places import HOST, Memory
from coe.engine.spec import LoadSpec, Member
from coe.surgery.errors import SurgeryError
from coe.surgery.formats import names_parent
from coe.surgery.mask import Mask

from ..roster.models import Roster, Specialist
from .fitting import Fitter, shared_load
from .mask_models import MaskSource, Missing, prepare_at
from .predictions import Predictions
from .what_fits import ResidentPlan, assign

_log = logging.getLogger(__name__)

# Left of a budget: a resident may take that much more than was predicted, and a dry run is not the same twice.
_LEFT: Final = 0.01
_SHOWN_GIB: Final = (6, 8, 10, 12, 16, 20, 24, 32, 48)


@dataclass(frozen=True)
class ExpertFit:
    """How many experts the masks of one shape keep.

    chosen:   a layer's. planned: what the masks themselves keep, the fewest and the most.
    shown:    (bytes of a budget, the experts that would fit it), ascending; None where not even the fewest do.
    lacking:  what does not fit, where not even the fewest experts do; `chosen` is then the number that was planned.
    """

    names: tuple[str, ...]
    n_expert: int
    chosen: int
    planned: tuple[int, int]
    shown: tuple[tuple[int, int | None], ...] = ()
    lacking: str = ""

    @property
    def text(self) -> str:
        """`112 of 128 experts; 40 in 8 GiB, 84 in 12 GiB, all in 24 GiB`."""
        steps: list[str] = []
        last: int | None = None
        for n_bytes, count in self.shown:
            if count is not None and count != last:
                steps.append(f"{'all' if count == self.n_expert else count} in {n_bytes / 2**30:g} GiB")
            last = count
        more = f"; with other budgets {', '.join(steps)}" if len(steps) > 1 else ""
        return f"{self.chosen} of {self.n_expert} experts{more}"

    @property
    def doubt(self) -> str:
        """What an operator has to know of the number; "" for nothing."""
        if self.lacking:
            return f"{self.lacking}. Raise the budget, or lower pool.residents or context_tokens."
        if self.chosen >= self.planned[0]:
            return ""
        return (
            f"{self.chosen} experts a layer are fewer than the {self.planned[0]} that the mask was planned with: "
            "answers get worse. A smaller quantisation of the parent, or a shorter context, leaves room for more."
        )


@dataclass(frozen=True)
class Choices:
    """The numbers of experts, ascending, that each of some masks can keep."""

    counts: tuple[int, ...]
    n_expert: int
    planned: tuple[int, int]


@dataclass(frozen=True)
class Line:
    """What a resident takes by its number of experts: known for two of them, and in proportion between."""

    few: int
    many: int
    at_few: Memory
    at_many: Memory
    cards: tuple[str, ...] = ()

    def at(self, count: int) -> Memory:
        """The memory with so many experts, rounded up."""
        span = max(self.many - self.few, 1)
        places = {*self.at_few.places, *self.at_many.places}
        return Memory(
            {
                place: self.at_few[place] - (self.at_few[place] - self.at_many[place]) * (count - self.few) // span
                for place in places
            }
        )

    def fits(self, count: int, budget: Memory, residents: int) -> bool:
        """Whether so many residents with so many experts lie in a budget at once."""
        return fit_in([ResidentPlan((), self.at(count), self.cards)] * residents, budget)


def fit_in(plans: Sequence[ResidentPlan], budget: Memory) -> bool:
    """Whether residents lie in a budget at once, with a little left of it."""
    left = Memory({place: int(budget[place] * (1 - _LEFT)) for place in budget.places})
    return assign(plans, left) is not None


def choices_of(masks: Sequence[Mask]) -> Choices:
    """What masks of one parent can all keep. Of masks without a ranking that is their own number, or all."""
    parent = masks[0].parent
    counts = [n for n in range(1, parent.n_expert + 1) if all(mask.can_keep(n) for mask in masks)]
    planned = [mask.n_keep for mask in masks]
    return Choices(tuple(counts), parent.n_expert, (min(planned), max(planned)))


def largest(counts: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The largest of the counts that fits, where all smaller ones do as well."""
    low, high = 0, len(counts)
    while low < high:
        middle = (low + high) // 2
        if fits(counts[middle]):
            low = middle + 1
        else:
            high = middle
    return counts[low - 1] if low else None


def budgets_shown(line: Line, counts: Sequence[int], budget: Memory, residents: int) -> list[tuple[int, int | None]]:
    """What other budgets would give, of the same kind as this one: on its first card, or of host memory."""
    place = budget.cards[0] if budget.cards else HOST
    rest = Memory({HOST: budget[HOST]}) if budget.cards else Memory()

    def moved(memory: Memory) -> Memory:
        """Of several cards the first alone."""
        return Memory({place: memory.card_bytes, HOST: memory[HOST]}) if budget.cards else memory

    here = replace(line, at_few=moved(line.at_few), at_many=moved(line.at_many), cards=())
    found = []
    for gib in _SHOWN_GIB:
        given = rest + Memory.at(place, gib * 2**30)
        found.append((gib * 2**30, largest(counts, lambda count, given=given: here.fits(count, given, residents))))  # type: ignore[misc]
    return found


@dataclass(frozen=True)
class Chosen:
    """What `experts: fit` comes to.

    counts:  by specialist, in place of `fit`; None for as many as the mask itself keeps.
    missing: what is wrong with those for which it cannot be found out.
    """

    fits: tuple[ExpertFit, ...] = ()
    counts: Mapping[str, int | None] = field(default_factory=dict)
    missing: Mapping[str, Missing] = field(default_factory=dict)


async def choose_experts(roster: Roster, fitter: Fitter) -> Chosen:
    """How many experts each mask of the roster keeps that says `experts: fit`.

    Masks of one parent that are loaded alike get one number, so that they share their residents. What is pinned has its
    room beside as many residents as the roster wants: others' first, then those of masks that are pinned, which leave
    that room. The probing loads are not kept among the fitter's.
    """
    wanted = [
        one for one in roster.specialists if one.experts == "fit" and one.mask is not None and not one.awaits_mask
    ]
    parent = roster.parent.locate(roster.models_path) if roster.parent is not None else None
    if not wanted or parent is None:  # of a parent that is not there everything else says so
        return Chosen()
    masks, counts, missing = await asyncio.to_thread(_read, wanted)
    fits: list[ExpertFit] = []
    prober = _Prober(roster, Fitter(Predictions(roster.server.max_prompt_tokens), fitter.budget, fitter.devices))
    with tempfile.TemporaryDirectory(prefix="coe-fit-") as folder:
        prober.folder = Path(folder)
        kept = await prober.pinned(wanted)
        groups = _alike([one for one in wanted if one.name in masks], masks)
        has_room = {one.name for one in roster.specialists if one.pin and one not in wanted}
        for members in sorted(groups, key=lambda members: not _is_pinned(members)):
            has_room.update(one.name for one in members if _is_pinned(members))
            is_kept = _is_pinned(members) and any(one.name not in has_room for one in roster.specialists)
            residents = roster.pool.residents + is_kept
            try:
                fit, memory = await prober.fit(members, [masks[one.name] for one in members], kept, residents)
            except EngineError as error:
                missing |= {one.name: (error.message, error.remedy) for one in members}
                continue
            fits.append(fit)
            if _is_pinned(members):
                kept += memory
    counts |= {name: fit.chosen for fit in fits for name in fit.names}
    return Chosen(tuple(fits), counts, missing)


def _read(wanted: Sequence[Specialist]) -> tuple[dict[str, Mask], dict[str, int | None], dict[str, Missing]]:
    """The masks that may be cut at other numbers; those of other tools, which rank nothing and do not say how many
    experts there are, keep their own."""
    masks: dict[str, Mask] = {}
    counts: dict[str, int | None] = {}
    missing: dict[str, Missing] = {}
    for one in wanted:
        assert one.mask is not None
        path = Path(one.mask)
        try:
            if names_parent(path):
                masks[one.name] = Mask.load(path)
            else:
                counts[one.name] = None
        except SurgeryError as error:
            missing[one.name] = (error.message, error.remedy)
    return masks, counts, missing


def _alike(wanted: Sequence[Specialist], masks: Mapping[str, Mask]) -> list[list[Specialist]]:
    """Those of one parent that are loaded alike. Masks without a ranking are not to bind those that have one."""
    found: dict[tuple[object, ...], list[Specialist]] = {}
    for one in wanted:
        mask = masks[one.name]
        of = mask.parent.router_sha256 or mask.parent.sha256  # another parent's is refused, and it alone
        shape = mask.parent.layers, mask.parent.n_expert, mask.parent.n_groups
        ranked = 0 if mask.ranking else mask.n_keep
        found.setdefault((of, shape, one.load_spec(Path()), one.share is False, ranked), []).append(one)
    return list(found.values())


def _is_pinned(members: Sequence[Specialist]) -> bool:
    """Whether a resident of theirs stays for good."""
    return any(one.pin for one in members)


@dataclass
class _Prober:
    """Tries out loads that are not kept, with skeletons in a folder that goes again."""

    roster: Roster
    fitter: Fitter
    folder: Path = Path()
    sources: dict[tuple[str, int], MaskSource] = field(default_factory=dict)  # of a mask by its number of experts

    async def pinned(self, wanted: Sequence[Specialist]) -> Memory:
        """What is pinned beside these and stays, as far as it can be told before groups are known."""
        found: dict[LoadSpec, Memory] = {}
        for one in self.roster.specialists:
            path = one.locate(self.roster.models_path)
            if one.pin and one not in wanted and path is not None:
                spec = self.fitter.on_cards(one.load_spec(path))
                with contextlib.suppress(EngineError):  # what cannot be loaded takes nothing
                    footprint = await self.fitter.predicted([one], spec)
                    found[spec] = booked_memory(footprint, self.fitter.budget, spec.devices)
        return Memory.total(found.values())

    async def fit(
        self, members: Sequence[Specialist], masks: Sequence[Mask], kept: Memory, residents: int
    ) -> tuple[ExpertFit, Memory]:
        """What fits beside what is kept, so many residents at once, and what one takes. Raises the EngineError of a
        load that cannot be tried."""
        choices = choices_of(masks)
        counts, budget = choices.counts, self.fitter.budget - kept
        if any(member.cpu_expert_layers == "auto" for member in members):
            # Rather experts in host memory than fewer of them.
            counts = tuple(n for n in counts if n >= choices.planned[0])
        chosen, line = await self.largest(members[0], counts, budget, residents, self.ram_budget)
        if self.ram_budget and (chosen or 0) < choices.planned[0]:
            # A load that is short of host memory goes without that for conversations, too.
            without = await self.largest(members[0], counts, budget, residents, 0)
            if (without[0] or 0) > (chosen or 0):
                chosen, line = without
        names = tuple(one.name for one in members)
        lacking = ""
        if chosen is None:
            many = f"{residents} residents" if residents > 1 else "a resident"
            lacking = f"Not even {counts[0]} experts a layer let {many} fit {budget}"
        shown = tuple(budgets_shown(line, counts, self.fitter.budget, residents))
        found = ExpertFit(
            names, choices.n_expert, chosen or choices.planned[0], choices.planned, shown, lacking=lacking
        )
        _log.info("%s: each layer keeps %s", ", ".join(names), found.text)
        return found, line.at(found.chosen)

    @property
    def ram_budget(self) -> int:
        """Host memory for conversations that is set; what is left over by itself is no reason to keep fewer experts."""
        size = self.roster.pool.ram_budget
        return 0 if size == "auto" else size

    async def largest(
        self, one: Specialist, counts: Sequence[int], budget: Memory, residents: int, ram_budget: int
    ) -> tuple[int | None, Line]:
        """The most experts with which as many residents fit as are to; what residents take by their number."""
        few, many = await self.take(one, (counts[0], counts[-1]), ram_budget)
        line = Line(counts[0], counts[-1], few.memory, many.memory, many.cards)
        left = counts
        while (chosen := largest(left, lambda count: line.fits(count, budget, residents))) is not None:
            if chosen in (line.few, line.many):
                break
            if fit_in(await self.take(one, (chosen,), ram_budget) * residents, budget):
                break
            left = tuple(count for count in left if count < chosen)
        return chosen, line

    async def take(self, one: Specialist, counts: Sequence[int], ram_budget: int) -> list[ResidentPlan]:
        """What a resident of a mask takes with each of some numbers of experts, none of them kept in host memory
        beside a GPU. The numbers of one call are tried side by side.

        Raises EngineError.
        """
        await self._prepare(one, counts)
        specs = [self._load(one, self.sources[one.name, count], ram_budget) for count in counts]
        await self.fitter.predictions.make([(one, spec) for spec in specs])
        found = []
        for spec in specs:
            memory = booked_memory(self.fitter.predictions[spec], self.fitter.budget, spec.devices)
            found.append(ResidentPlan((one.name,), memory, cards_of(spec, self.fitter.budget)))
        return found

    async def _prepare(self, one: Specialist, counts: Sequence[int]) -> None:
        """Have the sources of a mask at these numbers of experts. Raises EngineError."""
        lacking = [count for count in dict.fromkeys(counts) if (one.name, count) not in self.sources]
        if not lacking:
            return
        prepared = await prepare_at(self.roster, one, lacking, self.folder)
        for count, source in zip(lacking, prepared, strict=True):
            if not isinstance(source, MaskSource):
                raise EngineError(*source)
            self.sources[one.name, count] = source

    def _load(self, one: Specialist, source: MaskSource, ram_budget: int) -> LoadSpec:
        """How a mask is loaded, on the card where it is tried."""
        if one.cpu_expert_layers == "auto":
            one = one.model_copy(update={"cpu_expert_layers": 0})
        member = Member(one.name, source.skeleton, source.parent, kept=source.kept)
        load = one.load_spec(member.path)
        if one.share is not False:
            load = replace(shared_load(self.roster, one, [member], self.fitter.budget), ram_budget_bytes=ram_budget)
        return self.fitter.on_cards(load)
