"""What the batch loop does next, decided by pure functions over plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


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
    usable: False for what another specialist wrote: its cells mean nothing to this one.
    """

    slot: int
    tokens: Sequence[int]
    busy: bool
    last_used: int
    forgotten_before: int = 0
    checkpoint: int = 0
    window: int = 0
    usable: bool = True


@dataclass(frozen=True)
class Placement:
    """Where a prompt goes: its slot, how many of its tokens are there already, and how they get there.

    restore: from the slot's checkpoint. copy_from: from another slot, by sharing its cells.
    unpark:  number of the parked cache that is brought back into the slot first.
    """

    slot: int
    reused: int
    restore: bool = False
    copy_from: int | None = None
    unpark: int | None = None


def reusable(prompt: Sequence[int], cache: CacheView) -> tuple[int, bool]:
    """Tokens of a prompt that a slot's cells can serve, and whether that takes its checkpoint.

    At least one token of the prompt is always left to evaluate: its logits are needed.
    Source: a sliding-window cache that goes back to position p needs the window before p; llama_memory_seq_rm
    succeeds without it, and the next logits are wrong.
    """
    shared = min(common_prefix(prompt, cache.tokens), len(prompt) - 1) if cache.usable else 0
    if shared <= 0:
        return 0, False
    goes_back = shared < len(cache.tokens)
    if not cache.window or not goes_back or cache.forgotten_before <= max(0, shared - cache.window):
        return shared, False
    if 0 < cache.checkpoint <= shared:
        return cache.checkpoint, True
    return 0, False


def choose_slot(
    prompt: Sequence[int], caches: Sequence[CacheView], *, share: bool = True, parked: Sequence[CacheView] = ()
) -> Placement | None:
    """The slot for a new prompt, None while all are busy.

    A conversation that goes on takes its own cells. A prompt that only shares its beginning with another conversation
    (a system prompt, say) copies that part into the least recently used slot, and leaves the other intact; not with
    share=False, for a prompt that has met a cache which shared cells had filled. A parked cache (its `slot` is the
    number it is parked under) comes back when it serves more than what is in the slots.
    """
    idle = [cache for cache in caches if not cache.busy]
    if not idle:
        return None
    served = {cache.slot: reusable(prompt, cache) for cache in caches}
    target = min(idle, key=lambda cache: (len(cache.tokens) > 0, cache.last_used))
    placement = _place_in_slots(served, idle, caches, target, share)
    outside = [(*reusable(prompt, cache), cache.slot) for cache in parked]
    reused, restore, number = max(outside, default=(0, False, 0))
    return placement if reused <= placement.reused else Placement(target.slot, reused, restore, unpark=number)


def _place_in_slots(
    served: Mapping[int, tuple[int, bool]],
    idle: Sequence[CacheView],
    caches: Sequence[CacheView],
    target: CacheView,
    share: bool,
) -> Placement:
    best = max(idle, key=lambda cache: (served[cache.slot][0], -cache.last_used))
    reused, restore = served[best.slot]
    if reused and 2 * reused >= len(best.tokens):
        return Placement(best.slot, reused, restore)
    donors = [cache for cache in caches if share and cache.slot != target.slot and not served[cache.slot][1]]
    donor = max(donors, key=lambda cache: served[cache.slot][0], default=None)
    own, own_restore = served[target.slot]
    if donor is not None and served[donor.slot][0] > own:
        return Placement(target.slot, served[donor.slot][0], copy_from=donor.slot)
    return Placement(target.slot, own, own_restore)


@dataclass(frozen=True)
class Occupant:
    """Cells in use: by an idle slot's cache, or by a running sequence, the tokens it has yet to evaluate included.

    resting: a sequence whose specialist does not have its turn.
    """

    slot: int
    cells: int
    busy: bool
    age: int  # idle: when last used; busy: when started. A counter, larger is later.
    resting: bool = False


@dataclass(frozen=True)
class Room:
    """How to make room: slots whose caches go, sequences that are parked, and sequences that start again later."""

    drop: tuple[int, ...]
    preempt: tuple[int, ...]
    park: tuple[int, ...] = ()


def make_room(
    need: int,
    occupants: Sequence[Occupant],
    cells: int,
    *,
    preempt: bool = True,
    parkable: frozenset[int] = frozenset(),
) -> Room | None:
    """Free cells for `need` more: idle caches first, least recently used first; then resting sequences that can be
    parked, youngest first; then the youngest of the others.

    The oldest running sequence is never preempted, so something always ends; with preempt=False none is. None when
    even that does not help. parkable: slots of resting sequences that may be parked without losing anything.
    """
    used = sum(occupant.cells for occupant in occupants)
    drop: list[int] = []
    park: list[int] = []
    stop: list[int] = []
    idle = sorted((o for o in occupants if not o.busy and o.cells), key=lambda o: o.age)
    busy = sorted((o for o in occupants if o.busy), key=lambda o: -o.age)
    rest = [o for o in busy if o.resting and o.slot in parkable]
    others = [o for o in busy if o.resting and o.slot not in parkable]
    others += [o for o in busy if not o.resting][:-1]
    steps = [(o, drop) for o in idle] + [(o, park) for o in rest]
    if preempt:
        # Where nobody runs, the oldest of those that rest is the one to keep.
        steps += [(o, stop) for o in (others if any(not o.resting for o in busy) else others[:-1])]
    for occupant, goes in steps:
        if used + need <= cells:
            break
        goes.append(occupant.slot)
        used -= occupant.cells
    return Room(tuple(drop), tuple(stop), tuple(park)) if used + need <= cells else None


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two lists share from the start."""
    size = min(len(left), len(right))
    if left[:size] == right[:size]:
        return size
    low, high = 0, size  # left[:low] is shared, left[:high] is not
    while high - low > 1:
        middle = (low + high) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle
    return low
