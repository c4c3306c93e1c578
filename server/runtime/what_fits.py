"""Which residents a roster comes to, and which of them fit together in the budget."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from coe.engine.pool.memory import booked_memory, cards_of
from coe.engine.pool.places import HOST, Memory
from coe.engine.spec import LoadSpec

from ..roster.models import Roster
from .availability import Servable, Unavailable

_MOST_ENUMERATED = 12  # residents of which every combination is tried: 4,096 sums


@dataclass(frozen=True)
class ResidentPlan:
    """One resident: the specialists that share a load, and the memory it takes.

    cards: any one of which may take it, `memory` being for the first; () where there is no choice.
    """

    names: tuple[str, ...]
    memory: Memory
    cards: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """`coding`, or `coding + math` for a resident that specialists share."""
        return " + ".join(self.names)

    @property
    def options(self) -> tuple[Memory, ...]:
        """What it takes on each of the cards that may take it."""
        return tuple(self.memory.moved(self.cards[0], card) for card in self.cards) or (self.memory,)


def residents(entries: Mapping[str, Servable | Unavailable], budget: Memory | None = None) -> tuple[ResidentPlan, ...]:
    """The distinct residents of what can be served and is predicted, in the roster's order. budget: None unknown."""
    names: dict[LoadSpec, list[str]] = {}
    sizes: dict[LoadSpec, Memory] = {}
    for name, item in entries.items():
        if isinstance(item, Servable) and item.footprint is not None:
            names.setdefault(item.spec, []).append(name)
            sizes[item.spec] = booked_memory(item.footprint, budget or Memory(), item.spec.devices)
    return tuple(ResidentPlan(tuple(names[spec]), sizes[spec], cards_of(spec, budget or Memory())) for spec in names)


def assign(plans: Sequence[ResidentPlan], budget: Memory) -> tuple[Memory, ...] | None:
    """What each resident takes where all of them lie in the budget at once, each on the card with the most room as far
    as that leads there; None where they cannot."""
    # Those without a choice first; then the largest, which have the least of it.
    order = sorted(range(len(plans)), key=lambda at: (len(plans[at].options) > 1, -plans[at].memory.card_bytes))
    alike = all(set(plan.cards) == set(budget.cards) for plan in plans if len(plan.options) > 1)
    in_vain: set[tuple[int, tuple[int, ...]]] = set()  # how many are placed, and what is left on the cards then

    def place(n_placed: int, free: Memory) -> dict[int, Memory] | None:
        if n_placed == len(plans):
            return {}
        left = [free[card] for card in budget.cards]
        plan = plans[order[n_placed]]
        # Those that are left may go to any card: cards that swap what they have left make no difference.
        state = n_placed, tuple(sorted(left) if alike and len(plan.options) > 1 else left)
        if state in in_vain:
            return None
        for memory in sorted(plan.options, key=lambda memory: _room_left(free, memory), reverse=True):
            if memory.fits_in(free) and (others := place(n_placed + 1, free - memory)) is not None:
                return {order[n_placed]: memory, **others}
        in_vain.add(state)
        return None

    if not Memory.at(HOST, sum(plan.memory.host_bytes for plan in plans)).fits_in(budget):
        return None
    if sum(plan.memory.card_bytes for plan in plans) > budget.card_bytes:
        return None
    placed = place(0, budget)
    return tuple(placed[at] for at in range(len(plans))) if placed is not None else None


def _room_left(free: Memory, memory: Memory) -> int:
    """What the fullest of the places that a resident lies in has left then."""
    return min(((free - memory)[place] for place in memory.places if place != HOST), default=0)


def together(plans: Sequence[ResidentPlan], budget: Memory | None = None) -> Memory:
    """What residents take all at once: where they fit the budget, on cards on which they do."""
    assigned = assign(plans, budget) if budget is not None else None
    return Memory.total(assigned if assigned is not None else (plan.memory for plan in plans))


def fit_in_order(plans: Iterable[ResidentPlan], budget: Memory) -> tuple[ResidentPlan, ...]:
    """The residents taken in order, each that still fits beside those before it, on the card with the most room."""
    taken: list[ResidentPlan] = []
    free = budget
    for plan in plans:
        fitting = [memory for memory in plan.options if memory.fits_in(free)]
        if fitting:
            taken.append(plan)
            free -= max(fitting, key=lambda memory: _room_left(free, memory))
    return tuple(taken)


def maximal_sets(
    plans: Sequence[ResidentPlan], budget: Memory, most: int | None = None
) -> tuple[tuple[ResidentPlan, ...], ...] | None:
    """Every set of residents that fits and to which no other can be added, larger ones first; None where the
    residents are too many to try all combinations, or the sets are more than `most`."""
    if len(plans) > _MOST_ENUMERATED:
        return None
    found: list[tuple[ResidentPlan, ...]] = []
    for count in range(len(plans), 0, -1):
        for chosen in combinations(plans, count):
            if any(set(chosen) < set(larger) for larger in found) or assign(chosen, budget) is None:
                continue
            if len(found) == most:
                return None
            found.append(chosen)
    return tuple(found)


def most_that_fit(plans: Collection[ResidentPlan], budget: Memory) -> int:
    """How many residents fit together at best; an upper bound where they need more than one place, or have a choice."""
    if any(len(plan.cards) > 1 for plan in plans):
        # Of what the cards have together.
        plans = [ResidentPlan(plan.names, _as_one_card(plan.memory)) for plan in plans]
        budget = _as_one_card(budget)
    return min((_most_at(place, plans, budget[place]) for place in budget.places), default=len(plans))


def _as_one_card(memory: Memory) -> Memory:
    return Memory({"cards": memory.card_bytes, HOST: memory.host_bytes})


def _most_at(place: str, plans: Iterable[ResidentPlan], budget_bytes: int) -> int:
    count = total = 0
    for size in sorted(plan.memory[place] for plan in plans):
        total += size
        if total > budget_bytes:
            break
        count += 1
    return count


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
        chosen = [plan for plan in plans if wanted.intersection(plan.names)]
        if budget is not None and assign(chosen, budget) is None:
            doubts.append(f"{what}: together {together(chosen)}, the budget is {budget}.")
    if pinned and budget is not None:
        held = [plan for plan in plans if pinned.intersection(plan.names)]
        shut_out = [plan.title for plan in plans if plan not in held and assign([*held, plan], budget) is None]
        if shut_out and assign(held, budget) is not None:
            free = budget - together(held, budget)
            doubts.append(f"What is pinned leaves {free}: {', '.join(shut_out)} can never load.")
    fallback = entries.get(roster.fallback) if roster.fallback is not None else None
    if isinstance(fallback, Unavailable):
        instead = "whatever is warm answers in its place" if roster.fallback_warm else "nothing answers in its place"
        doubts.append(f"The fallback {roster.fallback} cannot be served: {instead}.")
    return tuple(doubts)
