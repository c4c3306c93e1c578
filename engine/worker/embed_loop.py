"""Embedding texts with one resident model: several texts a decode, those of all requests in the order they came."""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ..errors import EmptyInputError, EngineError, InputTooLongError, ModelFileError, OutOfMemoryError
from ..llama.context import Context
from ..llama.model import Model
from ..llama.pooling import PooledReading
from ..request import Embedded, EmbedRequest, Event
from .batch import BatchStatus, rejected, unforeseen

_CHARS_A_TOKEN: Final = (
    64  # no text of a human's is longer: what is, is not read to its end before it is refused, or cut
)


@dataclass(eq=False)
class _Wanted:
    """A request under way. left: texts that have no embedding yet."""

    request: EmbedRequest
    tokens: list[int]
    cut: list[int]
    left: int
    rows: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    ended: bool = False


@dataclass(eq=False)
class _Text:
    """One of its texts. done: tokens that were decoded."""

    wanted: _Wanted
    index: int
    tokens: list[int]
    done: int = 0


class EmbedLoop:
    """Owns a context that was made for embeddings. `submit` and `cancel` between steps, as those of BatchLoop."""

    renderer_bytes = 0  # a template has no say here

    def __init__(self, model: Model, context: Context, reading: PooledReading, emit: Callable[[Event], None]) -> None:
        """emit: receives an Embedded or a Rejected for each request."""
        self._vocab = model.vocab
        self._context = context
        self._reading = reading
        self._emit = emit
        self._waiting: deque[_Text] = deque()
        self._group: list[_Text] = []  # texts whose cells are in the cache, each as the sequence of its place
        self._closing = _closing(model)
        self.steps = 0

    @property
    def status(self) -> BatchStatus:
        """See BatchLoop.status."""
        cells = sum(text.done for text in self._group)
        return BatchStatus(len(self._group), len(self._waiting), cells, self.steps, 0, 0, 0.0, 0, 0.0, 0.0)

    def submit(self, request: EmbedRequest) -> None:
        """Queue a request's texts; Rejected is emitted at once where one cannot be read."""
        try:
            read = [self._read(index, text, request.cut_to) for index, text in enumerate(request.texts)]
        except EngineError as error:
            self._emit(rejected(request.id, error))
            return
        except Exception as error:  # one request of an unforeseen kind must not take the others' worker down
            self._emit(rejected(request.id, unforeseen("The texts cannot be read", request.id, error)))
            return
        cut = [index for index, (_, is_cut) in enumerate(read) if is_cut]
        wanted = _Wanted(request, [len(tokens) for tokens, _ in read], cut, len(read))
        self._waiting.extend(_Text(wanted, index, tokens) for index, (tokens, _) in enumerate(read))

    def _read(self, index: int, text: str, cut_to: int | None) -> tuple[list[int], bool]:
        """A text's tokens, and whether its end was left out. What it spells of control tokens is text."""
        limit = self._reading.input_tokens
        head = text[: limit * max(_CHARS_A_TOKEN, self._vocab.longest_piece_bytes)]
        tokens = self._vocab.tokenize(head, special=False, bos=True)
        more = len(head) < len(text)
        if not tokens:
            raise EmptyInputError(index)
        if cut_to is None and (more or len(tokens) > limit):
            raise InputTooLongError(index, max(len(tokens), limit + more), limit, at_least=more)
        limit = min(limit, cut_to or limit)
        if len(tokens) <= limit:
            return tokens, more
        n_kept = max(limit - len(self._closing), 0)
        return [*tokens[:n_kept], *self._closing][:limit], True

    def cancel(self, request_id: str) -> None:
        """No further text of a request is embedded; nothing is emitted for it."""
        for text in [*self._waiting, *self._group]:
            if text.wanted.request.id == request_id:
                text.wanted.ended = True
        self._waiting = deque(text for text in self._waiting if not text.wanted.ended)

    def step(self) -> bool:
        """Evaluate one batch, and emit what is complete. False when there is nothing to do.

        Raises OutOfMemoryError, after refusing all requests, when there is too little memory for a batch.
        """
        if not self._group:
            self._begin_group()
        if not self._group:
            return False
        entries: list[tuple[int, int, int, bool]] = []
        complete: list[int] = []
        for sequence, text in enumerate(self._group):
            room = self._context.n_batch - len(entries)
            count = min(len(text.tokens) - text.done, room)
            if not count:
                continue
            entries += [
                (text.tokens[position], position, sequence, True) for position in range(text.done, text.done + count)
            ]
            text.done += count
            if text.done == len(text.tokens):
                complete.append(sequence)
        try:
            result = self._context.decode(entries)
        except OutOfMemoryError as error:
            for name in {text.wanted.request.id for text in (*self._group, *self._waiting) if not text.wanted.ended}:
                self._emit(rejected(name, error))
            raise
        if result:
            raise EngineError(f"llama_decode failed with {result}.")
        self.steps += 1
        for sequence in complete:
            self._complete(self._group[sequence], self._context.embedding(sequence))
        if all(text.done == len(text.tokens) for text in self._group):
            self._end_group()
        return True

    def _begin_group(self) -> None:
        """The texts that wait longest, as many as one decode, or the cache, holds."""
        most = self._context.n_batch if self._reading.whole else self._context.n_cells
        room = most
        while self._waiting and len(self._group) < self._context.n_seq and len(self._waiting[0].tokens) <= room:
            text = self._waiting.popleft()
            room -= len(text.tokens)
            self._group.append(text)

    def _end_group(self) -> None:
        for sequence in range(len(self._group)):
            self._context.forget(sequence)
        self._group = []

    def _complete(self, text: _Text, vector: NDArray[Any]) -> None:
        wanted = text.wanted
        if wanted.ended:
            return
        length = float(np.linalg.norm(vector))
        if not np.isfinite(length):
            wanted.ended = True
            self._waiting = deque(text for text in self._waiting if not text.wanted.ended)
            damaged = ModelFileError("The model's vectors are no numbers.", "Fetch its file again.")
            self._emit(rejected(wanted.request.id, damaged))
            return
        wanted.rows[text.index] = np.asarray(vector / max(length, 1e-12), "<f4")
        wanted.left -= 1
        if not wanted.left:
            wanted.ended = True
            rows = b"".join(wanted.rows[index].tobytes() for index in range(len(wanted.rows)))
            self._emit(Embedded(wanted.request.id, base64.b64encode(rows).decode(), wanted.tokens, wanted.cut))

    def close(self) -> None:
        """Nothing is left to close: the context's owner frees it."""


def _closing(model: Model) -> list[int]:
    """The token with which the vocabulary ends every text, such as [SEP]; none where it does not."""
    ends = {tuple(model.vocab.tokenize(text, special=False, bos=True)[-1:]) for text in ("a", "b 1")}
    (last, *others) = ends
    return list(last) if not others and last and model.vocab.is_control(last[0]) else []
