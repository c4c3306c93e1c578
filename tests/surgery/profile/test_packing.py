"""Packing: every token of every document is evaluated once, in order, beside none that is not its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from coe.surgery.profile.packing import Pack, plan_packs, windows_of


def replayed(packs: Sequence[Pack], lengths: Sequence[int], n_batch: int, n_seq: int) -> list[list[int]]:
    """Positions evaluated of each window; fails where a decode would see cells that are not its own."""
    seen: list[list[int]] = [[] for _ in lengths]
    for pack in packs:
        holder: dict[int, int] = {}
        for decode in pack:
            assert sum(chunk.count for chunk in decode) <= n_batch
            assert len({chunk.sequence for chunk in decode}) == len(decode) <= n_seq
            for chunk in decode:
                assert holder.setdefault(chunk.sequence, chunk.window) == chunk.window
                seen[chunk.window].extend(range(chunk.start, chunk.start + chunk.count))
                assert chunk.ends == (chunk.start + chunk.count == lengths[chunk.window])
            for chunk in decode:
                if chunk.ends:
                    del holder[chunk.sequence]
            assert len(holder) <= 1
        assert not holder
    return seen


@given(
    st.lists(st.integers(1, 70), min_size=1, max_size=40),
    st.integers(1, 32),
    st.integers(2, 6),
    st.integers(1, 100),
    st.booleans(),
)
def test_every_token_of_every_window_is_evaluated_once_and_in_order(
    lengths: list[int], n_batch: int, n_seq: int, pack_tokens: int, together: bool
) -> None:
    packs = plan_packs(lengths, n_batch=n_batch, n_seq=n_seq, pack_tokens=pack_tokens, together=together)
    assert replayed(packs, lengths, n_batch, n_seq) == [list(range(length)) for length in lengths]
    for pack in packs:
        if not together:
            assert all(len(decode) == 1 for decode in pack)
        for decode in pack[:-1]:
            full = sum(chunk.count for chunk in decode) == n_batch
            assert full or len(decode) == n_seq or (not together and decode[0].ends)


def test_short_documents_share_a_decode() -> None:
    (pack,) = plan_packs([10] * 20, n_batch=100, n_seq=32, pack_tokens=10_000)
    assert [len(decode) for decode in pack] == [10, 10]


def test_long_documents_are_read_in_windows_and_nothing_is_dropped() -> None:
    documents = [np.arange(n, dtype=np.int32) for n in (5, 12, 4)]
    windows = windows_of(documents, 5)
    assert [(window.document, len(window.tokens), window.ends) for window in windows] == [
        (0, 5, True), (1, 5, False), (1, 5, False), (1, 2, True), (2, 4, True),
    ]  # fmt: skip
    assert np.concatenate([window.tokens for window in windows if window.document == 1]).tolist() == list(range(12))
