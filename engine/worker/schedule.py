"""What the batch loop does next, decided by pure functions over plain values: chunked prefill, prefix reuse, eviction
and preemption.

A decision's `reason` is one phrase for logs. It is left out of comparisons: two plans that do the same are equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True)
class Work:
    """What one sequence has to evaluate: `pending` tokens, more than one while its prompt is being read.

    boundary: evaluate at most so many in this step, so that a checkpoint can be taken there; 0 for none.
    scored:   each of the tokens wants logits, not the last one alone.
    """

    sequence: int
    pending: int
    boundary: int = 0
    scored: bool = False


_OLDEST_SHARE: Final = 0.25  # of the room for prompts, which the oldest has whoever comes after it


def plan_step(works: Sequence[Work], n_batch: int, n_outputs: int | None = None) -> list[tuple[int, int]]:
    """(sequence, tokens) for one decode of at most n_batch tokens. works: the oldest first.

    Every sequence that generates gets its one token first, so no stream stalls while a prompt is read. Of the room that
    is left a share goes to the oldest prompt, so that it ends however many come after it; the rest to the prompts that
    are nearest to their ends: a short one does not wait for a long one that is being read.

    n_outputs: tokens that may want logits, one a sequence at least; None for as many as there are. What the others
    leave of them is the room of the prompts that are scored.
    """
    plan = [(work.sequence, 1) for work in works if work.pending == 1][:n_batch]
    room = n_batch - len(plan)
    prompts = [work for work in works if work.pending > 1]
    if not prompts or not room:
        return plan
    # Each of the prompts that are merely read may come to its end, and want one.
    outputs = room if n_outputs is None else n_outputs - len(plan) - sum(not work.scored for work in prompts)
    wanted = {work.sequence: min(work.pending, work.boundary or work.pending) for work in prompts}
    taken = dict.fromkeys(wanted, 0)
    nearest = sorted(prompts, key=lambda work: work.pending)  # the older of equals first
    oldest = prompts[0]
    share = math.ceil((min(room, outputs) if oldest.scored else room) * _OLDEST_SHARE)
    for work, most in [(oldest, share), *((work, room) for work in nearest)]:
        take = min(wanted[work.sequence] - taken[work.sequence], most, room)
        if work.scored:
            take = min(take, outputs)
            outputs -= take
        taken[work.sequence] += take
        room -= take
    return plan + [(sequence, count) for sequence, count in taken.items() if count]


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

    from_checkpoint: from the slot's checkpoint. copy_from: from another slot, by sharing its cells.
    from_offload:    number of the offloaded cache that is restored into the slot first.
    """

    slot: int
    reused: int
    from_checkpoint: bool = False
    copy_from: int | None = None
    from_offload: int | None = None
    reason: str = field(default="", compare=False)


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


def least_recently_used(idle: Sequence[CacheView]) -> CacheView:
    """The idle slot whose conversation is the smallest loss: an empty one, else the least recently used."""
    return min(idle, key=lambda cache: (len(cache.tokens) > 0, cache.last_used))


def choose_slot(
    prompt: Sequence[int], caches: Sequence[CacheView], *, share: bool = True, offloaded: Sequence[CacheView] = ()
) -> Placement | None:
    """The slot for a new prompt, None while all are busy.

    A conversation that goes on takes its own cells. A prompt that only shares its beginning with another conversation
    (a system prompt, say) copies that part into the least recently used slot, and leaves the other intact; not with
    share=False, for a prompt that has met a cache which shared cells had filled. An offloaded cache (its `slot` is its
    number) is restored when it serves more than what is in the slots.
    """
    idle = [cache for cache in caches if not cache.busy]
    if not idle:
        return None
    served = {cache.slot: reusable(prompt, cache) for cache in caches}
    target = least_recently_used(idle)
    placement = _place_in_slots(served, idle, caches, target, share)
    outside = [(*reusable(prompt, cache), cache.slot) for cache in offloaded]
    reused, from_checkpoint, number = max(outside, default=(0, False, 0))
    if reused <= placement.reused:
        return placement
    reason = "its conversation is restored from host memory"
    return Placement(target.slot, reused, from_checkpoint, from_offload=number, reason=reason)


def _place_in_slots(
    served: Mapping[int, tuple[int, bool]],
    idle: Sequence[CacheView],
    caches: Sequence[CacheView],
    target: CacheView,
    share: bool,
) -> Placement:
    best = max(idle, key=lambda cache: (served[cache.slot][0], -cache.last_used))
    reused, from_checkpoint = served[best.slot]
    if reused and 2 * reused >= len(best.tokens):
        return Placement(best.slot, reused, from_checkpoint, reason="its conversation goes on")
    donors = [cache for cache in caches if share and cache.slot != target.slot and not served[cache.slot][1]]
    donor = max(donors, key=lambda cache: served[cache.slot][0], default=None)
    own, own_from_checkpoint = served[target.slot]
    if donor is not None and served[donor.slot][0] > own:
        reason = f"its beginning is copied from slot {donor.slot}"
        return Placement(target.slot, served[donor.slot][0], copy_from=donor.slot, reason=reason)
    reason = "the least recently used conversation is replaced" if target.tokens else "the slot is empty"
    return Placement(target.slot, own, own_from_checkpoint, reason=reason)


@dataclass(frozen=True)
class Occupant:
    """Cells in use: by an idle slot's cache, or by a running sequence, the tokens it has yet to evaluate included.

    resting: a sequence whose specialist does not have the time slice.
    """

    slot: int
    cells: int
    busy: bool
    age: int  # idle: when last used; busy: when started. A counter, larger is later.
    resting: bool = False


@dataclass(frozen=True)
class Room:
    """How to make room: slots whose caches go, sequences that start again later, and sequences that are offloaded."""

    drop: tuple[int, ...]
    preempt: tuple[int, ...]
    offload: tuple[int, ...] = ()
    reason: str = field(default="", compare=False)


def make_room(
    need: int,
    occupants: Sequence[Occupant],
    cells: int,
    *,
    preempt: bool = True,
    offloadable: frozenset[int] = frozenset(),
) -> Room | None:
    """Free cells for `need` more: idle caches first, least recently used first; then resting sequences that can be
    offloaded, youngest first; then the youngest of the others.

    The oldest running sequence is never preempted, so something always ends; with preempt=False none is. None when
    even that does not help. offloadable: slots of resting sequences that may be offloaded without losing anything.
    """
    used = sum(occupant.cells for occupant in occupants)
    if used + need <= cells:
        return Room((), ())
    reason = f"{used + need} cells are wanted, there are {cells}"
    drop: list[int] = []
    offload: list[int] = []
    stop: list[int] = []
    idle = sorted((o for o in occupants if not o.busy and o.cells), key=lambda o: o.age)
    busy = sorted((o for o in occupants if o.busy), key=lambda o: -o.age)
    rest = [o for o in busy if o.resting and o.slot in offloadable]
    others = [o for o in busy if o.resting and o.slot not in offloadable]
    others += [o for o in busy if not o.resting][:-1]
    steps = [(o, drop) for o in idle] + [(o, offload) for o in rest]
    if preempt:
        # Where no sequence runs, the oldest of those that rest is the one to keep.
        steps += [(o, stop) for o in (others if any(not o.resting for o in busy) else others[:-1])]
    for occupant, goes in steps:
        if used + need <= cells:
            break
        goes.append(occupant.slot)
        used -= occupant.cells
    return Room(tuple(drop), tuple(stop), tuple(offload), reason) if used + need <= cells else None


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
