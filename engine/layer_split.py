"""How many of a model's layers each of several cards holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_HALVINGS: Final = 40
_ABOVE: Final = 1 + 1e-9  # for what floats round off


def split_layers(layer_bytes: Sequence[int], room_bytes: Sequence[int]) -> tuple[int, ...]:
    """Layers for each card, in order, so that the fullest card is as little full as can be.

    layer_bytes: of each layer, in order, the output as one more. room_bytes: of each card, positive.
    What is given sums up to all layers, and is what llama.cpp takes as `tensor_split`.
    """
    lower, upper = 0.0, sum(layer_bytes) / max(room_bytes) * _ABOVE  # then the roomiest can have all of them
    for _ in range(_HALVINGS):
        middle = (lower + upper) / 2
        if sum(_filled(layer_bytes, room_bytes, middle)) == len(layer_bytes):
            upper = middle
        else:
            lower = middle
    return _filled(layer_bytes, room_bytes, upper)


def _filled(layer_bytes: Sequence[int], room_bytes: Sequence[int], part: float) -> tuple[int, ...]:
    """Layers that fit where each card in turn is filled up to a part of its room."""
    counts, at = [], 0
    for room in room_bytes:
        left, start = part * room, at
        while at < len(layer_bytes) and layer_bytes[at] <= left:
            left -= layer_bytes[at]
            at += 1
        counts.append(at - start)
    return tuple(counts)
