"""Sequence packing: which tokens of which documents go into which decode, so that every batch is full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class Window:
    """Consecutive tokens of a document, read from position 0: all of them, or as many as the context holds."""

    document: int
    tokens: Tokens
    ends: bool  # the document ends with it


@dataclass(frozen=True)
class Chunk:
    """`count` tokens of a window from `start` on, in one decode. ends: the window ends with it."""

    window: int
    start: int
    count: int
    sequence: int
    ends: bool


Pack = tuple[tuple[Chunk, ...], ...]  # decodes, each of its chunks


def windows_of(documents: Sequence[Tokens], context_tokens: int) -> list[Window]:
    """Documents in their order; those longer than the context cut into windows of that many tokens, nothing dropped."""
    return [
        Window(at, tokens[start : start + context_tokens], start + context_tokens >= len(tokens))
        for at, tokens in enumerate(documents)
        for start in range(0, len(tokens), context_tokens)
    ]


def plan_packs(
    lengths: Sequence[int], *, n_batch: int, n_seq: int, pack_tokens: int, together: bool = True
) -> list[Pack]:
    """Which tokens of which windows go into which decode.

    Every decode is full (n_batch tokens, or chunks of n_seq windows) but the last of a pack. A pack ends with the
    first window that brings it to pack_tokens; nothing goes on from one pack to the next. At most one window is
    unfinished between two decodes. together: one decode may hold several windows.
    """
    packs: list[Pack] = []
    decodes: list[tuple[Chunk, ...]] = []
    chunks: list[Chunk] = []
    filled = packed = 0

    def end_decode() -> None:
        nonlocal chunks, filled
        if chunks:
            decodes.append(tuple(chunks))
        chunks, filled = [], 0

    for window, length in enumerate(lengths):
        if len(chunks) == n_seq or (chunks and not together):
            end_decode()
        held = {chunk.sequence for chunk in chunks}
        sequence = next(number for number in range(n_seq) if number not in held)
        start = 0
        while start < length:
            if filled == n_batch:
                end_decode()
            count = min(n_batch - filled, length - start)
            chunks.append(Chunk(window, start, count, sequence, start + count == length))
            start += count
            filled += count
        packed += length
        if packed >= pack_tokens:
            end_decode()
            packs.append(tuple(decodes))
            decodes, packed = [], 0
    end_decode()
    if decodes:
        packs.append(tuple(decodes))
    return packs


def entries_of(decode: Sequence[Chunk], windows: Sequence[Window]) -> list[tuple[int, int, int]]:
    """(token, position, sequence) of each row of a decode, in order."""
    return [
        (token, position, chunk.sequence)
        for chunk in decode
        for position, token in enumerate(
            windows[chunk.window].tokens[chunk.start : chunk.start + chunk.count].tolist(), chunk.start
        )
    ]
