"""Top-k selection: the best experts of every layer, as many of each, ties broken the same way every time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MaskError
from ..mask import ExpertSwap, Pin
from ..parent import Identity

Kept = NDArray[np.bool_]


def top_k(scores: NDArray[Any], n_keep: int, n_groups: int = 1) -> Kept:
    """[L, E]: the n_keep experts of highest score of each layer; of equal ones those of lowest index."""
    return best((scores,), n_keep, n_groups)


def best(keys: Sequence[NDArray[Any]], n_keep: int, n_groups: int = 1) -> Kept:
    """[L, E]: the first n_keep of each layer, sorted by the keys, highest first, the first key before the second.

    Equal ones stand in the order of their index. With groups, n_keep / n_groups of each contiguous group.
    """
    n_layers, n_expert = keys[0].shape
    by_group = (n_layers * n_groups, n_expert // n_groups)
    order = np.lexsort([-np.asarray(key, np.float64).reshape(by_group) for key in reversed(keys)], axis=-1)
    kept = np.zeros(by_group, np.bool_)
    np.put_along_axis(kept, order[:, : n_keep // n_groups], True, axis=1)
    return kept.reshape(n_layers, n_expert)


def ranked(keys: Sequence[NDArray[Any]]) -> NDArray[np.int_]:
    """[L, E]: the experts of each layer, sorted by the keys as `best` does."""
    return np.lexsort([-np.asarray(key, np.float64) for key in reversed(keys)], axis=-1)


def pinned(parent: Identity, pins: Sequence[Pin], n_keep: int) -> Kept:
    """[L, E]: True where an expert is pinned. Raises MaskError for pins that do not exist or do not fit."""
    fixed = np.zeros((len(parent.layers), parent.n_expert), np.bool_)
    for pin in pins:
        if pin.layer not in parent.layers or not 0 <= pin.expert < parent.n_expert:
            raise MaskError(f"There is no expert {pin.expert} in layer {pin.layer} to pin.", "Correct the pin.")
        fixed[parent.layers.index(pin.layer), pin.expert] = True
    room = n_keep // parent.n_groups
    counts = fixed.reshape(len(parent.layers), parent.n_groups, -1).sum(2)
    if counts.max(initial=0) > room:
        layer = parent.layers[int(counts.max(1).argmax())]
        where = f"layer {layer}" + (" (a group of it)" if parent.n_groups > 1 else "")
        raise MaskError(f"{counts.max()} experts are pinned in {where}, and only {room} are kept.", "Keep more.")
    return fixed


def exchanged(
    parent: Identity, before: Kept, after: Kept, why: dict[tuple[int, int], str], otherwise: str
) -> list[ExpertSwap]:
    """What a pass changed, as swaps within a layer and group, ascending on both sides.

    why: (layer, expert that came) -> reason; `otherwise` for those not named.
    """
    size = parent.n_expert // parent.n_groups
    swaps = []
    for row, layer in enumerate(parent.layers):
        for start in range(0, parent.n_expert, size):
            part = slice(start, start + size)
            outs = start + np.flatnonzero(before[row, part] & ~after[row, part])
            intos = start + np.flatnonzero(after[row, part] & ~before[row, part])
            for out, into in zip(outs.tolist(), intos.tolist(), strict=True):
                swaps.append(ExpertSwap(layer, out, into, why.get((layer, into), otherwise)))
    return swaps
