"""What the batch loop does next, decided by pure functions over plain values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .llama import common_prefix


@dataclass(frozen=True)
class Work:
    """What one sequence has to evaluate: `pending` tokens, more than one while its prompt is being read.

    boundary: evaluate at most so many in this step, so that a checkpoint can be taken there; 0 for none.
    """

    sequence: int
    pending: int
    boundary: int = 0


def plan_step(works: Sequence[Work], n_batch: int) -> list[tuple[int, int]]:
    """(sequence, tokens) for one decode of at most n_batch tokens.

    Every sequence that generates gets its one token first, so nobody's stream stalls while a prompt is read; what is
    left goes to the prompts, in the order given.
    """
    plan = [(work.sequence, 1) for work in works if work.pending == 1][:n_batch]
    room = n_batch - len(plan)
    for work in works:
        if work.pending > 1 and room:
            take = min(work.pending, work.boundary or work.pending, room)
            plan.append((work.sequence, take))
            room -= take
    return plan


@dataclass(frozen=True)
class CacheView:
    """What one slot of the KV cache holds.

    tokens: evaluated tokens, by position. busy: a sequence is using it. last_used: a counter, larger is later.
    forgotten_before: positions below are gone for the sliding-window layers; 0 when all is there.
    checkpoint: position that a snapshot can bring back, 0 for none.
    window: 0 when the cache can go back to any position; else the sliding window in tokens. A cache that cannot go
            back at all (recurrent state) has forgotten_before at its end.
    """

    slot: int
    tokens: Sequence[int]
    busy: bool
    last_used: int
    forgotten_before: int = 0
    checkpoint: int = 0
    window: int = 0


@dataclass(frozen=True)
class Placement:
    """Where a prompt goes: its slot, how many of its tokens are there already, and how they get there.

    restore: from the slot's checkpoint. copy_from: from another slot, by sharing its cells.
    """

    slot: int
    reused: int
    restore: bool = False
    copy_from: int | None = None


def reusable(prompt: Sequence[int], cache: CacheView) -> tuple[int, bool]:
    """Tokens of a prompt that a slot's cells can serve, and whether that takes its checkpoint.

    At least one token of the prompt is always left to evaluate: its logits are needed.
    Source: a sliding-window cache that goes back to position p needs the window before p; llama_memory_seq_rm
    succeeds without it, and the next logits are wrong.
    """
    shared = min(common_prefix(prompt, cache.tokens), len(prompt) - 1)
    if shared <= 0:
        return 0, False
    goes_back = shared < len(cache.tokens)
    if not cache.window or not goes_back or cache.forgotten_before <= max(0, shared - cache.window):
        return shared, False
    if 0 < cache.checkpoint <= shared:
        return cache.checkpoint, True
    return 0, False


def choose_slot(prompt: Sequence[int], caches: Sequence[CacheView], *, share: bool = True) -> Placement | None:
    """The slot for a new prompt, None while all are busy.

    A conversation that goes on takes its own cells. A prompt that only shares its beginning with another conversation
    (a system prompt, say) copies that part into the least recently used slot, and leaves the other intact; not with
    share=False, for a prompt that has met a cache which shared cells had filled.
    """
    idle = [cache for cache in caches if not cache.busy]
    if not idle:
        return None
    served = {cache.slot: reusable(prompt, cache) for cache in caches}
    best = max(idle, key=lambda cache: (served[cache.slot][0], -cache.last_used))
    reused, restore = served[best.slot]
    if reused and 2 * reused >= len(best.tokens):
        return Placement(best.slot, reused, restore)
    target = min(idle, key=lambda cache: (len(cache.tokens) > 0, cache.last_used))
    donors = [cache for cache in caches if share and cache.slot != target.slot and not served[cache.slot][1]]
    donor = max(donors, key=lambda cache: served[cache.slot][0], default=None)
    own, own_restore = served[target.slot]
    if donor is not None and served[donor.slot][0] > own:
        return Placement(target.slot, served[donor.slot][0], copy_from=donor.slot)
    return Placement(target.slot, own, own_restore)


@dataclass(frozen=True)
class Occupant:
    """Cells in use: by an idle slot's cache, or by a running sequence, the tokens it has yet to evaluate included."""

    slot: int
    cells: int
    busy: bool
    age: int  # idle: when last used; busy: when started. A counter, larger is later.


@dataclass(frozen=True)
class Room:
    """How to make room: slots whose caches go, and sequences that start again later."""

    drop: tuple[int, ...]
    preempt: tuple[int, ...]


def make_room(need: int, occupants: Sequence[Occupant], cells: int, *, preempt: bool = True) -> Room | None:
    """Free cells for `need` more: idle caches first, least recently used first, then the youngest sequences.

    The oldest running sequence is never preempted, so something always ends; with preempt=False none is. None when
    even that does not help.
    """
    used = sum(occupant.cells for occupant in occupants)
    drop: list[int] = []
    stop: list[int] = []
    idle = sorted((o for o in occupants if not o.busy and o.cells), key=lambda o: o.age)
    running = sorted((o for o in occupants if o.busy), key=lambda o: -o.age)[:-1] if preempt else []
    steps: list[tuple[Occupant, Callable[[int], None]]] = [(o, drop.append) for o in idle]
    steps += [(o, stop.append) for o in running]
    for occupant, note in steps:
        if used + need <= cells:
            break
        note(occupant.slot)
        used -= occupant.cells
    return Room(tuple(drop), tuple(stop)) if used + need <= cells else None
