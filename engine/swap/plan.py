"""Weight swapping: what has to move for a resident to become another specialist. Pure functions over plain values.

A resident holds one specialist at a time. Experts carry no meaning by their order, so an expert that two specialists
have in common stays in its slot, and what belongs to an expert (router row, matrices, scales, biases) follows it.

What is decided where, from a roster to overwritten bytes:

    fingerprints   files, headers, masks -> Weights: shape, places on disk, keys that are equal where bytes are
    groups         Weights of a roster   -> Group: specialists of one shape; Pair: bytes that two have in common
    plan           current Weights, its SlotOrder, target Weights -> Swap: the new SlotOrder, and Moves to carry out
    swapper        Swap                  -> bytes read from files into the tensors that `weights` found in the model
    timeslice      waiting requests      -> when a resident swaps, and to which specialist
"""

from __future__ import annotations

import functools
from collections import defaultdict, deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Final

_FULL: Final = (0, 1, 30)  # ggml.h, enum ggml_type: F32, F16, BF16

CONTENT: Final = "content"  # the origin of keys that are fingerprints of the bytes themselves

SlotOrder = Mapping[int, tuple[int, ...]]  # layer -> for each slot, the number of the specialist's own expert in it


@dataclass(frozen=True)
class Shape:
    """What specialists that share a resident must have in common: everything but the bytes of their tensors.

    tensors:  name -> type and shape (ggml's order).
    metadata: key -> the value, or its hash; keys that only describe the file are left out.
    n_groups: contiguous groups of experts; an expert never leaves its group.
    """

    architecture: str
    n_expert: int
    n_groups: int
    tensors: Mapping[str, tuple[int, tuple[int, ...]]]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Place:
    """Where a tensor of a specialist lies on disk.

    layer, experts: for a tensor whose outermost dimension counts the experts, its layer and, for each of the
                    specialist's own experts, its number in the file; None and () for any other tensor.
    n_bytes:        of one expert's part, or of the whole of any other tensor.
    """

    name: str
    path: Path
    offset: int
    n_bytes: int
    layer: int | None = None
    experts: tuple[int, ...] = ()

    @property
    def total_bytes(self) -> int:
        """Bytes of the tensor in the resident."""
        return self.n_bytes * max(1, len(self.experts))


@dataclass(frozen=True)
class Keys:
    """What tensors hold, as keys that are equal where the bytes are. Only keys of one origin can be compared.

    experts: name of a per-expert tensor -> a key for each of the specialist's own experts.
    others:  name of any other tensor -> its key.
    """

    origin: str
    experts: Mapping[str, tuple[str, ...]]
    others: Mapping[str, str]


@dataclass(frozen=True)
class Weights:
    """A specialist's weights: their shape, where they lie, and what they are.

    keys:   by the mask that made it, by fingerprints of its bytes, or both; the first origin that two specialists have
            in common counts.
    parent: SHA-256 of the file it was cut out of, as it says itself; "" when it does not.
    files:  all parts of the file that its bytes come from, in order.
    """

    path: Path
    shape: Shape
    places: tuple[Place, ...]
    keys: tuple[Keys, ...] = ()
    parent: str = ""
    files: tuple[Path, ...] = ()

    @property
    def has_fingerprints(self) -> bool:
        """Whether its bytes can be compared with those of any other weights, whatever mask made them."""
        return any(keys.origin == CONTENT for keys in self.keys)

    @functools.cached_property
    def layers(self) -> tuple[int, ...]:
        """Layers with experts."""
        return tuple(sorted({place.layer for place in self.places if place.layer is not None}))

    @functools.cached_property
    def own_order(self) -> SlotOrder:
        """The slots of a resident that was loaded from this specialist's own file."""
        return {layer: tuple(range(self.shape.n_expert)) for layer in self.layers}

    def experts_by_key(self, origin: str) -> Mapping[int, Sequence[tuple[str, ...]]]:
        """Layer -> for each of its own experts what its tensors hold, the largest first, by the keys of an origin."""
        return self._experts_by_key[origin]

    @functools.cached_property
    def _experts_by_key(self) -> Mapping[str, Mapping[int, Sequence[tuple[str, ...]]]]:
        names: defaultdict[int, list[str]] = defaultdict(list)
        for place in sorted(self.places, key=lambda place: -place.n_bytes):
            if place.layer is not None:
                names[place.layer].append(place.name)
        return {
            keys.origin: {
                layer: list(zip(*(keys.experts[name] for name in names[layer]), strict=True)) for layer in self.layers
            }
            for keys in self.keys
        }


@dataclass(frozen=True)
class Span:
    """Bytes that lie together in a file."""

    path: Path
    offset: int
    n_bytes: int


@dataclass(frozen=True)
class Move:
    """Bytes of a resident's tensor to overwrite, from `at` on, with those of the spans one after the other."""

    tensor: str
    at: int
    spans: tuple[Span, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes that are overwritten."""
        return sum(span.n_bytes for span in self.spans)


@dataclass(frozen=True)
class Swap:
    """How a resident becomes another specialist.

    order:        the slots afterwards.
    changed:      bytes that differ; what is copied may be more, where one call does the work of many.
    shared_bytes: bytes that stay as they are because they are the same.
    """

    order: SlotOrder
    moves: tuple[Move, ...]
    changed_bytes: int
    shared_bytes: int

    @property
    def moved_bytes(self) -> int:
        """Bytes that are copied."""
        return sum(move.n_bytes for move in self.moves)


def mismatch(one: Shape, other: Shape) -> str | None:
    """What keeps specialists of two shapes from sharing a resident, a phrase; None where nothing does."""
    if one.architecture != other.architecture:
        return f"their architectures are {one.architecture} and {other.architecture}"
    if one.n_expert != other.n_expert:
        return f"they have {one.n_expert} and {other.n_expert} experts a layer"
    for name in (*one.tensors, *other.tensors):
        mine, theirs = one.tensors.get(name), other.tensors.get(name)
        if mine is None or theirs is None:
            return f"only one of them has {name}"
        if mine[0] != theirs[0]:
            return f"{name} is quantised in two ways"
        if mine[1] != theirs[1]:
            return f"{name} has two shapes"
    for key in (*one.metadata, *other.metadata):
        if one.metadata.get(key) != other.metadata.get(key):
            return f"{key} differs"
    return None


def quantised_after_cut(one: Weights, other: Weights) -> bool:
    """Whether two specialists of one parent have nothing in common, having been quantised after the cut, not before."""
    if not one.parent or one.parent != other.parent:
        return False
    kinds = {name: kind for name, (kind, _) in one.shape.tensors.items()}
    if kinds != {name: kind for name, (kind, _) in other.shape.tensors.items()}:
        return True
    same = comparable(one, other)
    if same is None:  # whether they have the same bytes is not known before their files have fingerprints
        return False
    # Whatever their masks, cuts have in common what is outside the experts; numbers in full are not quantised.
    outside = [name for name in same[0].others if kinds[name] not in _FULL]
    return bool(outside) and not any(same[0].others[name] == same[1].others[name] for name in outside)


def group_by_shape(shapes: Mapping[str, Shape]) -> list[tuple[str, ...]]:
    """Names of specialists by the resident they can share, in the order given."""
    found: list[list[str]] = []
    for name, shape in shapes.items():
        for group in found:
            if mismatch(shapes[group[0]], shape) is None:
                group.append(name)
                break
        else:
            found.append([name])
    return [tuple(group) for group in found]


def comparable(one: Weights, other: Weights) -> tuple[Keys, Keys] | None:
    """Keys of one origin of two specialists; None when nothing is known that could be compared."""
    theirs = {keys.origin: keys for keys in other.keys}
    return next(((keys, theirs[keys.origin]) for keys in one.keys if keys.origin in theirs), None)


def assign_slots(
    held: Sequence[tuple[Hashable, ...]], wanted: Sequence[tuple[Hashable, ...]], n_groups: int = 1
) -> tuple[int, ...]:
    """For each slot, the number of the wanted expert that it is to hold: a permutation.

    held: what is in each slot; wanted: the experts to have; a tuple of keys each, the largest tensor's first. An expert
    that is held stays where it is; next, an expert of which at least the largest tensor is held; the other experts take
    the slots that are left, in ascending order. Nothing changes its group (n_groups contiguous ones of equal size).
    """
    size = len(wanted) // n_groups
    result = [-1] * len(wanted)
    left = set(range(len(wanted)))
    for depth in (None, 1):
        waiting: defaultdict[Hashable, deque[int]] = defaultdict(deque)
        for index in sorted(left):
            waiting[index // size, wanted[index][:depth]].append(index)
        for slot in [slot for slot, index in enumerate(result) if index < 0]:
            if candidates := waiting.get((slot // size, held[slot][:depth])):
                result[slot] = candidates.popleft()
                left.discard(result[slot])
    for group in range(n_groups):
        rest = iter(sorted(index for index in left if index // size == group))
        for slot in range(group * size, (group + 1) * size):
            if result[slot] < 0:
                result[slot] = next(rest)
    return tuple(result)


def slots_for(current: Weights, order: SlotOrder, target: Weights) -> SlotOrder:
    """The slots that a resident has once it is `target`, when it is `current` in `order` now."""
    known = comparable(current, target)
    if known is None:
        return target.own_order
    mine, theirs = (each.experts_by_key(keys.origin) for each, keys in zip((current, target), known, strict=True))
    return {
        layer: assign_slots([mine[layer][index] for index in order[layer]], theirs[layer], target.shape.n_groups)
        for layer in target.layers
    }


def plan_swap(current: Weights, order: SlotOrder, target: Weights, *, whole_below: int = 0) -> Swap:
    """What makes a resident that is `current` in `order` the specialist `target`.

    whole_below: a tensor with something to change and at most this many bytes is copied as a whole, in one move.
    """
    new_order = slots_for(current, order, target)
    moves: list[Move] = []
    changed = shared = 0
    for place, slots, stale in _stale(current, order, target, new_order):
        changed += len(stale) * place.n_bytes
        shared += (len(slots) - len(stale)) * place.n_bytes
        if stale and place.total_bytes <= whole_below:
            moves.append(Move(place.name, 0, _spans(place, slots)))
        elif stale:
            moves += _runs(place, stale, slots)
    return Swap(new_order, tuple(moves), changed, shared)


def _stale(
    current: Weights, order: SlotOrder, target: Weights, new_order: SlotOrder
) -> Iterator[tuple[Place, tuple[int, ...], Sequence[int]]]:
    """Each tensor, what its slots are to hold, and those of them that have to change."""
    known = comparable(current, target)
    differing = _slots_that_differ(current, order, target, new_order)
    for place in target.places:
        slots: tuple[int, ...] = (0,)
        stale: Sequence[int] = (0,)
        if place.layer is not None:
            slots, stale = new_order[place.layer], differing[place.layer]
            if known is not None:
                before, mine, theirs = order[place.layer], *(keys.experts[place.name] for keys in known)
                stale = [slot for slot in stale if mine[before[slot]] != theirs[slots[slot]]]
        elif known is not None and known[0].others[place.name] == known[1].others[place.name]:
            stale = ()
        yield place, slots, stale


def _slots_that_differ(
    current: Weights, order: SlotOrder, target: Weights, new_order: SlotOrder
) -> Mapping[int, Sequence[int]]:
    """Layer -> slots of which some tensor has to change."""
    known = comparable(current, target)
    if known is None:
        return {layer: range(len(slots)) for layer, slots in new_order.items()}
    mine, theirs = (each.experts_by_key(keys.origin) for each, keys in zip((current, target), known, strict=True))
    return {
        layer: [
            slot
            for slot, (old, new) in enumerate(zip(order[layer], slots, strict=True))
            if mine[layer][old] != theirs[layer][new]
        ]
        for layer, slots in new_order.items()
    }


def plan_fill(target: Weights, *, whole_below: int = 0) -> Swap:
    """What fills a resident that was loaded from a skeleton: all of it, in the specialist's own order."""
    empty = Weights(target.path, target.shape, target.places)
    return plan_swap(empty, target.own_order, target, whole_below=whole_below)


def _runs(place: Place, stale: Sequence[int], slots: Sequence[int]) -> list[Move]:
    """Moves that overwrite slots, neighbours together where their bytes are neighbours in the file too."""
    size = place.n_bytes
    runs: list[list[int]] = []  # first slot, its number in the file, how many
    for slot in stale:
        number = place.experts[slots[slot]] if place.experts else 0
        last = runs[-1] if runs else None
        if last is not None and slot == last[0] + last[2] and number == last[1] + last[2]:
            last[2] += 1
        else:
            runs.append([slot, number, 1])
    return [
        Move(place.name, slot * size, (Span(place.path, place.offset + number * size, count * size),))
        for slot, number, count in runs
    ]


def _spans(place: Place, experts: Sequence[int]) -> tuple[Span, ...]:
    """Where the bytes of these experts lie, in order, neighbours in the file joined."""
    moves = _runs(place, range(len(experts)), experts)
    return tuple(span for move in moves for span in move.spans)


@dataclass(frozen=True)
class Pair:
    """Two specialists of one resident: the bytes they have in common, and those that a swap changes."""

    one: str
    other: str
    shared_bytes: int
    changed_bytes: int


def pairs(specialists: Mapping[str, Weights]) -> list[Pair]:
    """Every two of the specialists of one resident."""
    found = []
    for one, other in combinations(specialists, 2):
        current, target = specialists[one], specialists[other]
        order = current.own_order
        changed = shared = 0
        for place, slots, stale in _stale(current, order, target, slots_for(current, order, target)):
            changed += len(stale) * place.n_bytes
            shared += (len(slots) - len(stale)) * place.n_bytes
        found.append(Pair(one, other, shared, changed))
    return found
