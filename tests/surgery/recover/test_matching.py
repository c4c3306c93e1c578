"""Router rows are matched by their bytes, one to one; what cannot be decided is said, never guessed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.surgery.recover.matching import Twins, match_nearest, match_rows

PARENT = np.random.default_rng(0).standard_normal((8, 16), np.float32)


@given(st.permutations(range(8)), st.integers(1, 8))
def test_rows_in_any_order_are_found(order: list[int], count: int) -> None:
    found = match_rows(PARENT[order[:count]], PARENT)
    assert found.experts == dict(enumerate(order[:count]))
    assert (found.unmatched, found.repeated, found.twins) == ((), (), ())


def test_a_row_that_differs_in_one_bit_is_unmatched() -> None:
    rows = PARENT[[1, 5]].copy()
    rows.view(np.uint32)[1, 3] ^= 1
    found = match_rows(rows, PARENT)
    assert found.unmatched == (1,)
    assert found.experts == {0: 1}


def test_a_row_that_stands_more_often_than_in_the_parent_is_repeated() -> None:
    assert match_rows(PARENT[[2, 3, 2]], PARENT).repeated == (0, 2)


def test_twins_are_told_when_only_some_are_kept() -> None:
    parent = PARENT.copy()
    parent[6] = parent[2]
    found = match_rows(parent[[2, 3]], parent)
    assert found.twins == (Twins((0,), (2, 6)),)
    assert found.experts == {1: 3}


def test_twins_that_are_all_kept_are_no_question() -> None:
    parent = PARENT.copy()
    parent[6] = parent[2]
    assert set(match_rows(parent[[6, 1, 2]], parent).experts.values()) == {1, 2, 6}


def test_near_rows_get_an_expert_each_and_none_that_is_taken() -> None:
    parent = PARENT.copy()
    parent[1] = parent[0] + np.float32(0.01)
    rows = np.stack([parent[0], parent[0] + np.float32(0.001), parent[5]])
    found = match_nearest(rows, parent, [0, 1], taken={5})
    assert {near.expert for near in found} == {0, 1}
    assert all(near.cosine > 0.999 for near in found)
    assert all(near.expert != 5 for near in match_nearest(rows, parent, [2], taken={5}))


def test_the_second_best_is_told() -> None:
    [near] = match_nearest(PARENT[[4]], PARENT, [0])
    assert near.expert == 4
    assert near.cosine == pytest.approx(1)
    assert near.second < 0.9


def test_rows_of_zeros_and_of_no_numbers_are_near_nothing() -> None:
    rows = np.zeros((2, 16), np.float32)
    rows[1] = np.nan
    assert all(near.cosine == 0 for near in match_nearest(rows, PARENT, [0, 1]))
