"""Embeddings of texts: by a model of the roster that is made for them, in a worker of its own, or by the sentence
encoder that the supervisor reads questions with."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coe.engine.errors import InputError, UnavailableError
from coe.engine.logs import REQUEST_ID
from coe.engine.pool.leases import Lease
from coe.engine.request import EmbedRequest
from coe.router.encoder import STATES, Embeds, QuantisedEncoder, SentenceEncoder
from coe.router.supervisor import Supervisor

from ..roster.models import Roster, Specialist
from ..roster.values import AUTO
from .availability import Servable, Unavailable
from .catalog import Catalog
from .encoder_thread import EncoderThread, Vectors, is_of_encoder
from .errors import Part, RequestError, UnknownModelError

# Of one frame to a worker: what others wait for meanwhile.
_CHUNK_TEXTS: Final = 32
_CHUNK_CHARS: Final = 64 * 1024


@dataclass(frozen=True)
class Wanted:
    """What a client wants embedded.

    model:      of the roster, the encoder's, or `auto`.
    dimensions: of its vectors; None for all that the model gives.
    cut_to:     tokens that each text may be cut to, at most as many as the model reads; None: longer ones are refused.
    """

    model: str
    texts: tuple[str, ...]
    dimensions: int | None = None
    cut_to: int | None = None


@dataclass(frozen=True)
class Result:
    """What came of it. model: which gave them."""

    model: str
    vectors: Vectors


class Embeddings:
    """Finds what is to embed texts, and has it done."""

    def __init__(
        self,
        roster: Roster,
        catalog: Catalog,
        supervisor: Supervisor,
        lease: Callable[[Specialist], Awaitable[Lease]],
    ) -> None:
        self._roster = roster
        self._catalog = catalog
        self._supervisor = supervisor
        self._lease = lease
        self._thread = EncoderThread(roster.server.max_queue)

    def close(self) -> None:
        """Take no more texts."""
        self._thread.close()

    @property
    def encoder(self) -> Embeds | None:
        """The sentence encoder, where it is on board."""
        encoder = self._supervisor.encoder
        return encoder if isinstance(encoder, QuantisedEncoder | SentenceEncoder) else None

    @property
    def models(self) -> tuple[Specialist, ...]:
        """Models of the roster that are made for embeddings."""
        return tuple(one for one in self._roster.specialists if one.embeddings)

    @property
    def names(self) -> tuple[str, ...]:
        """What may be asked for embeddings, `auto`'s choice first."""
        own = () if self.encoder is None else (self.encoder.name,)
        return (*(one.name for one in self.models), *own)

    def is_encoder(self, name: str) -> bool:
        """Whether a name is the encoder's, or an alias of it; the roster's own entries come first."""
        return self._roster.find(name) is None and is_of_encoder(name, self._roster, self.encoder)

    def require(self, model: str) -> None:
        """Raises what `embed` raises for a model that gives no embeddings."""
        self._find(model)

    async def embed(self, wanted: Wanted) -> Result:
        """Embed texts.

        Raises UnknownModelError; RequestError for a model that answers chats, and for dimensions that it cannot give;
        InputError; UnavailableError and what a lease may raise.
        """
        specialist = self._find(wanted.model)
        if specialist is None:
            encoder = self.encoder
            assert encoder is not None
            if wanted.dimensions not in (None, STATES):
                raise RequestError(
                    f"dimensions: {encoder.name} gives {STATES}, and was not trained to be cut shorter. Leave it out.",
                    param="dimensions",
                )
            return Result(encoder.name, await self._thread.embed(encoder, wanted.texts, wanted.cut_to))
        item = await self._servable(specialist)
        own = item.embedding.dimensions if item.embedding is not None else None
        sizes = sorted({*specialist.dimensions, *([own] if own is not None else [])}, reverse=True)
        if wanted.dimensions is not None and wanted.dimensions not in sizes:
            listed = " or ".join(map(str, sizes))
            raise RequestError(
                f"dimensions: {specialist.name} gives {listed}. Ask for that, or leave it out.", param="dimensions"
            )
        lease = await self._lease(item.entry)
        try:
            vectors = await self._by_worker(lease, wanted)
        finally:
            lease.release()
        if wanted.dimensions is not None and wanted.dimensions < vectors.rows.shape[1]:
            vectors = replace(vectors, rows=_shortened(vectors.rows, wanted.dimensions))
        return Result(specialist.name, vectors)

    def _find(self, model: str) -> Specialist | None:
        """The model of the roster; None for the encoder. `auto` is always the same, for vectors of two models cannot
        be compared: the roster's first, and the encoder where it has none."""
        if model == AUTO and self.models:
            return self.models[0]
        entry = self._roster.find(model)
        if entry is not None and not entry.embeddings:
            asked = f"Ask for {' or '.join(self.names)}." if self.names else self._remedy()
            raise RequestError(f"model: {entry.name} answers chats and gives no embeddings. {asked}", param=Part.MODEL)
        if entry is not None:
            return entry
        if self.is_encoder(model) or (model == AUTO and self.encoder is not None):
            return None
        if self.names:
            known = ", ".join([AUTO, *self.names])
            raise UnknownModelError(f"No model {model!r} gives embeddings. Known: {known}.", param=Part.MODEL)
        raise UnavailableError("Nothing here gives embeddings.", self._remedy())

    def _remedy(self) -> str:
        first = {
            "none": "Write router.encoder: auto in the roster",
            "auto": "Install the encoder (coe doctor says how)",
        }
        default = "Write router.encoder: auto in the roster"
        return f"{first.get(self._roster.router.encoder, default)}, or add an entry with embeddings: true."

    async def _servable(self, specialist: Specialist) -> Servable:
        """Raises UnavailableError where it cannot be served, even after another look at its files."""
        await self._catalog.recheck(specialist.name, being_built=())
        item = self._catalog.availability[specialist.name]
        if isinstance(item, Unavailable):
            raise UnavailableError(f"{specialist.name} cannot be served: {item.reason}", item.remedy)
        return item

    async def _by_worker(self, lease: Lease, wanted: Wanted) -> Vectors:
        """In frames of a few texts, so that those of other requests come between them."""
        rows: list[NDArray[np.float32]] = []
        tokens: list[int] = []
        cut: list[int] = []
        for start, texts in _chunks(wanted.texts):
            asked = EmbedRequest(f"{REQUEST_ID.get()}/{uuid.uuid4().hex}-0-0", texts, wanted.cut_to)
            try:
                told = await lease.embed(asked)
            except InputError as error:
                error.index += start
                raise
            flat = np.frombuffer(base64.b64decode(told.vectors), "<f4")
            rows.append(flat.reshape(len(texts), -1))
            tokens += told.tokens
            cut += [start + index for index in told.cut]
        return Vectors(np.vstack(rows), tuple(tokens), tuple(cut))


def _chunks(texts: Sequence[str]) -> list[tuple[int, Sequence[str]]]:
    """Runs of texts that are sent together, each with the index of its first."""
    found: list[tuple[int, Sequence[str]]] = []
    start = chars = 0
    for at, text in enumerate(texts):
        if at > start and (at - start == _CHUNK_TEXTS or chars + len(text) > _CHUNK_CHARS):
            found.append((start, texts[start:at]))
            start, chars = at, 0
        chars += len(text)
    return [*found, (start, texts[start:])]


def _shortened(rows: NDArray[np.float32], dimensions: int) -> NDArray[np.float32]:
    """The first numbers of each vector, as a vector of unit length (Matryoshka representation learning)."""
    kept = rows[:, :dimensions]
    return np.asarray(kept / np.maximum(np.linalg.norm(kept, axis=1, keepdims=True), 1e-12), np.float32)
