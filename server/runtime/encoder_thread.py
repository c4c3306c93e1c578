"""The supervisor's sentence encoder at work for clients: in a thread of its own, so that a batch of texts keeps neither
the event loop nor a decision waiting."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from coe.engine.errors import InputTooLongError, QueueFullError, ShuttingDownError
from coe.router.encoder import STATES, Embeds

from ..roster.models import Roster
from ..roster.values import untagged

_T = TypeVar("_T")

_TURN_S: Final = 0.05  # so long the thread works for one request before another's turn comes
_TEXTS_A_TURN: Final = 64  # that are read into tokens
# No text of a human's is longer: what is, is not read to its end before it is refused, or cut.
_CHARS_A_TOKEN: Final = 64


@dataclass(frozen=True)
class Vectors:
    """Embeddings of texts: (n, dimensions), each of unit length; tokens that were read of each; indexes of those that
    were cut."""

    rows: NDArray[np.float32]
    tokens: tuple[int, ...]
    cut: tuple[int, ...] = ()


def is_of_encoder(name: str, roster: Roster, encoder: object) -> bool:
    """Whether a name that the roster's entries do not have is the encoder's, or an alias of it."""
    own = getattr(encoder, "name", None)
    return own is not None and untagged(name) in map(untagged, (own, *roster.router.encoder_aliases))


class EncoderThread:
    """Embeds texts with an encoder that is loaded. Requests take turns; one whose caller leaves has no further turn."""

    def __init__(self, max_requests: int) -> None:
        """max_requests: that may be under way; one more is refused."""
        self._max_requests = max_requests
        self._executor = ThreadPoolExecutor(1, "coe-embeddings")
        self._under_way = 0
        self._closed = False

    def close(self) -> None:
        """Let the thread end after its turn."""
        self._closed = True
        self._executor.shutdown(wait=False)

    async def embed(self, encoder: Embeds, texts: Sequence[str], cut_to: int | None) -> Vectors:
        """Embed texts, each by itself, so that none depends on its neighbours.

        cut_to: see EmbedRequest. All texts are read into tokens before the first is embedded: what is refused costs
        little. Raises InputTooLongError, and QueueFullError when too many requests are under way.
        """
        if self._under_way >= self._max_requests:
            raise QueueFullError(
                f"{self._under_way} requests for embeddings wait already.", "Try again a little later."
            )
        self._under_way += 1
        try:
            return await self._embed(encoder, texts, cut_to)
        finally:
            self._under_way -= 1

    async def _embed(self, encoder: Embeds, texts: Sequence[str], cut_to: int | None) -> Vectors:
        ids: list[list[int]] = []
        cut: list[int] = []
        while len(ids) < len(texts):
            await self._turn(partial(self._read, encoder, texts, cut_to, ids, cut))
        rows = np.zeros((len(texts), STATES), np.float32)
        done = 0
        while done < len(texts):
            done = await self._turn(partial(_fill, encoder, ids, rows, done))
        return Vectors(rows, tuple(map(len, ids)), tuple(cut))

    async def _turn(self, work: Callable[[], _T]) -> _T:
        if self._closed:
            raise ShuttingDownError
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _read(
        self, encoder: Embeds, texts: Sequence[str], cut_to: int | None, ids: list[list[int]], cut: list[int]
    ) -> None:
        """Tokens of the next texts, added to ids."""
        tokenizer = encoder.tokenizer()
        most_chars = encoder.positions * _CHARS_A_TOKEN
        limit = min(encoder.positions, cut_to or encoder.positions)
        start = len(ids)
        heads = [text[:most_chars] for text in texts[start : start + _TEXTS_A_TURN]]
        for at, read in enumerate(tokenizer.encode_batch(heads), start):  # unlike encode, it lets other threads run
            found = read.ids
            more = len(texts[at]) > most_chars and not texts[at][most_chars:].isspace()
            if len(found) > limit or more:
                if cut_to is None:
                    raise InputTooLongError(at, max(len(found), limit + more), limit, at_least=more)
                cut.append(at)
                found = [*found[: limit - 1], found[-1]] if len(found) > limit else found
            ids.append(found)


def _fill(encoder: Embeds, ids: Sequence[Sequence[int]], rows: NDArray[np.float32], done: int) -> int:
    """Embed the next texts for the length of a turn. Gives how many are done."""
    started = time.monotonic()
    while done < len(ids):
        rows[done] = encoder.embed(ids[done])
        done += 1
        if time.monotonic() - started > _TURN_S:
            break
    return done
