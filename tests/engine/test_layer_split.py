"""Layers shared out among cards."""

from __future__ import annotations

import itertools

from hypothesis import example, given
from hypothesis import strategies as st

from coe.engine.layer_split import split_layers


def fullest(counts: tuple[int, ...], layers: list[int], room: list[int]) -> float:
    ends = list(itertools.accumulate(counts))
    parts = [layers[end - count : end] for count, end in zip(counts, ends, strict=True)]
    return max(sum(part) / space for part, space in zip(parts, room, strict=True))


def test_equal_layers_go_by_room() -> None:
    assert split_layers([10] * 12, [200, 100]) == (8, 4)
    assert split_layers([10] * 12, [100, 100, 100]) == (4, 4, 4)


def test_what_layers_weigh_decides_and_not_how_many_they_are() -> None:
    assert split_layers([1, 1, 1, 1, 8, 1], [100, 100]) == (4, 2)


def test_a_card_that_is_full_gets_none() -> None:
    assert split_layers([10, 10], [1, 1000]) == (0, 2)


def test_layers_that_weigh_nothing_have_a_place_too() -> None:
    assert sum(split_layers([0, 0, 0], [1, 1])) == 3


sizes = st.lists(st.integers(0, 1000), min_size=1, max_size=7)
rooms = st.lists(st.integers(1, 5000), min_size=1, max_size=3)
big = 10**10


@given(sizes, rooms)
@example([7 * big, 2 * big, 5 * big, 5 * big, 9 * big, 9 * big, 4 * big], [47 * big, 44 * big, 1])
@example([7 * big, 9 * big, 8 * big, 10 * big, 10 * big, 4 * big, 5 * big], [47 * big, 1, 35 * big])
def test_no_other_way_leaves_the_fullest_card_emptier(layers: list[int], room: list[int]) -> None:
    counts = split_layers(layers, room)
    assert sum(counts) == len(layers)
    ways = (way for way in itertools.product(range(len(layers) + 1), repeat=len(room)) if sum(way) == len(layers))
    best = min(fullest(way, layers, room) for way in ways)
    assert fullest(counts, layers, room) <= best * (1 + 1e-6) + 1e-9
