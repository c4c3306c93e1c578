"""Which card a resident is loaded on, where there are several that could hold it. Pure functions over the ledger."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from .admission import ResidentView, State, plan_evictions
from .places import Memory


@dataclass(frozen=True)
class Placement:
    """One way to load a resident. devices: its cards, by name; () for those that llama.cpp takes by itself.

    memory:    what it takes there, and of the host.
    shuts_out: of one that never goes, how many could not be loaded beside it.
    """

    devices: tuple[str, ...]
    memory: Memory
    shuts_out: int = 0


def choose_placement(
    options: Sequence[Placement], residents: Collection[ResidentView], budget: Memory, promised: Memory | None = None
) -> Placement:
    """The placement for which the least has to go. options: at least one. promised: what older waiters get.

    First come cards on which one that never goes is in the fewest others' way. Of those, cards that have room, the one
    with the most of it; then those where memory is on its way back; then those where idle residents would go, the least
    recently used first; then those that busy residents may leave.
    """
    if len(options) == 1:
        return options[0]
    aside = promised or Memory()
    pinned = Memory.total(resident.memory for resident in residents if resident.pinned)
    kept = Memory.total(resident.memory for resident in residents if resident.state is not State.DRAINING)
    booked = Memory.total(resident.memory for resident in residents)
    by_key = {resident.key: resident for resident in residents}

    def cost(option: Placement) -> tuple[int, float]:
        need = option.memory + aside
        # Of the cards that it wants: the host is the same for all.
        left = min((budget - booked - need)[device] for device in option.devices)
        if need.fits_in(budget - booked):
            return 0, -left
        if need.fits_in(budget - kept):
            return 1, -left
        victims = plan_evictions(need, tuple(residents), budget)
        if victims is not None:
            return 2, max((by_key[key].last_used for key in victims), default=0.0)
        return (3, -left) if need.fits_in(budget - pinned) else (4, -left)

    return min(options, key=lambda option: (option.shuts_out, *cost(option)))


def possible(options: Sequence[Placement], kept: Memory, budget: Memory) -> Sequence[Placement]:
    """Those that can be, sooner or later: beside what never goes. Where none can, the one that lacks the least.

    kept: what never goes.
    """
    if len(options) == 1:
        return options
    free = budget - kept
    fitting = [option for option in options if option.memory.fits_in(free)]

    def left(option: Placement) -> int:
        return min((free - option.memory)[device] for device in option.devices)

    return fitting or [max(options, key=left)]


def counting_shut_out(
    options: Sequence[Placement], others: Collection[Sequence[Placement]], kept: Memory, budget: Memory
) -> Sequence[Placement]:
    """The placements of a resident that never goes, each with how many of the others could not be loaded beside it.

    others: of each, the ways to load it. kept: what else never goes.
    """
    if len(options) == 1:
        return options
    counted = []
    for option in options:
        free = budget - kept - option.memory
        n_out = sum(not any(one.memory.fits_in(free) for one in placements) for placements in others)
        counted.append(replace(option, shuts_out=n_out))
    return counted


def place_all(
    waiting: Sequence[tuple[str, Sequence[Placement]]], residents: Collection[ResidentView], budget: Memory
) -> list[Placement]:
    """A placement for each of those that wait: group and options, oldest first. One group is loaded once."""
    if all(len(options) == 1 for _, options in waiting):
        return [options[0] for _, options in waiting]
    present = {resident.group for resident in residents}
    promised = Memory()
    chosen = []
    for group, options in waiting:
        chosen.append(choose_placement(options, residents, budget, promised))
        if group not in present:
            present.add(group)
            promised += chosen[-1].memory
    return chosen
