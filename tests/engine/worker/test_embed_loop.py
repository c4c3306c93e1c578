"""Embeddings by llama.cpp, held against llama-cpp-python's own; several texts a decode, none of which sees another."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp import Llama
from numpy.typing import NDArray

from coe.engine.errors import LoadError, ModelFileError
from coe.engine.llama.context import Context
from coe.engine.llama.model import Model
from coe.engine.llama.pooling import pooled_reading
from coe.engine.pool.memory import predict
from coe.engine.pool.resident import WorkerResident
from coe.engine.request import Embedded, EmbedRequest, Event, Rejected
from coe.engine.spec import LoadSpec
from coe.engine.worker.embed_loop import EmbedLoop
from fakes.device import tolerance
from fakes.random_encoder import POOLING, WIDTH, write_decoder, write_encoder

pytestmark = pytest.mark.model

TEXTS = ["red rose", "the sky is blue over the grass", "rose", "zyx green!", "The sky " * 7]


def close() -> float:
    """llama.cpp keeps keys and values of a cache as float16, and computes batches of other sizes in another order."""
    return tolerance(2e-3, 5e-3)


class Local:
    """A loop over a model in this process."""

    def __init__(self, path: Path, **spec: Any) -> None:
        self.spec = LoadSpec(path, **{"context_tokens": 1024, "parallel": 4, "threads": 1, "embeddings": True, **spec})
        self.model = Model(self.spec)
        self.context = Context(self.model, self.spec)
        self.events: list[Event] = []
        self.loop = EmbedLoop(
            self.model, self.context, pooled_reading(self.model, self.spec), lambda event: self.events.append(event)
        )

    def ask(self, texts: list[str], **fields: Any) -> Event:
        self.loop.submit(EmbedRequest("r", texts, **fields))
        while self.loop.step():
            pass
        return self.events.pop()

    def vectors(self, texts: list[str]) -> NDArray[np.float32]:
        return rows(self.ask(texts))

    def close(self) -> None:
        self.context.close()
        self.model.close()


def rows(event: Event) -> NDArray[np.float32]:
    assert isinstance(event, Embedded), event
    return np.frombuffer(base64.b64decode(event.vectors), "<f4").reshape(-1, WIDTH)


@pytest.fixture
def local() -> Iterator[Callable[..., Local]]:
    made: list[Local] = []

    def make(path: Path, **spec: Any) -> Local:
        made.append(Local(path, **spec))
        return made[-1]

    yield make
    for one in made:
        one.close()


MODELS: dict[str, Callable[[Path], Path]] = {
    "encoder, mean": lambda path: write_encoder(path, POOLING.MEAN),
    "encoder, first token": lambda path: write_encoder(path, POOLING.CLS),
    "decoder, last token": lambda path: write_decoder(path, POOLING.LAST),
    "decoder, mean": lambda path: write_decoder(path, POOLING.MEAN),
}


@pytest.mark.parametrize("kind", MODELS)
def test_vectors_are_llama_cpps_own_and_of_unit_length(kind: str, tmp_path: Path, local: Callable[..., Local]) -> None:
    path = MODELS[kind](tmp_path / "model.gguf")
    # A text of more than one decode, where the model reads as much.
    texts = [*TEXTS, "red sky " * 80] if "decoder" in kind else TEXTS
    found = local(path).vectors(texts)
    room = 64 if "encoder" in kind else 1024
    plain = Llama(str(path), embedding=True, n_ctx=room, n_batch=room, n_ubatch=room, n_threads=1, verbose=False)
    expected = np.array([plain.embed(text, normalize=True, truncate=False) for text in texts])
    plain.close()
    assert np.abs(found - expected).max() < close()
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 10 * close(), "texts differ"


@pytest.mark.parametrize("kind", MODELS)
def test_a_texts_vector_is_the_same_in_any_company(kind: str, tmp_path: Path, local: Callable[..., Local]) -> None:
    one = local(MODELS[kind](tmp_path / "model.gguf"))
    together = one.vectors(TEXTS * 3)
    alone = np.vstack([one.vectors([text]) for text in TEXTS])
    assert np.abs(together - np.tile(alone, (3, 1))).max() < close()


def test_requests_are_answered_in_their_order_and_a_cancelled_one_not_at_all(
    tmp_path: Path, local: Callable[..., Local]
) -> None:
    one = local(write_encoder(tmp_path / "bert.gguf"), parallel=2)
    for name in ("a", "b", "c"):
        one.loop.submit(EmbedRequest(name, TEXTS[:3]))
    one.loop.step()
    one.loop.cancel("a")  # two of its texts are done
    one.loop.cancel("b")
    while one.loop.step():
        pass
    assert [event.id for event in one.events] == ["c"]
    assert (one.loop.status.active, one.loop.status.waiting) == (0, 0)


def test_a_text_too_long_is_refused_or_cut(tmp_path: Path, local: Callable[..., Local]) -> None:
    one = local(write_encoder(tmp_path / "bert.gguf"))
    refused = one.ask(["red", "red " * 63])
    assert isinstance(refused, Rejected)
    assert (refused.error, refused.facts["index"], refused.facts["tokens"]) == ("InputTooLongError", 1, 65)
    assert isinstance(one.ask(["x" * 10_000_000]), Rejected), "and is not read to its end"
    fits, cut = one.ask(["red " * 62]), one.ask(["red", "red " * 500], cut_to=2**31 - 1)
    assert isinstance(cut, Embedded)
    assert (cut.tokens, cut.cut) == ([3, 64], [1])
    assert np.abs(rows(cut)[1] - rows(fits)[0]).max() < close(), "what is cut ends as a text does"
    assert one.ask(["red " * 20], cut_to=5).tokens == [5]  # type: ignore[union-attr]


def test_what_a_text_spells_of_control_tokens_is_text(tmp_path: Path, local: Callable[..., Local]) -> None:
    spelt, word = (local(write_encoder(tmp_path / "bert.gguf")).ask([text]) for text in ("[SEP]", "rose"))
    assert isinstance(spelt, Embedded)
    assert isinstance(word, Embedded)
    assert spelt.tokens[0] > word.tokens[0]


def test_numbers_that_are_none_are_told_as_a_damaged_file(tmp_path: Path, local: Callable[..., Local]) -> None:
    one = local(write_encoder(tmp_path / "bert.gguf"))
    one.context.embedding = lambda sequence: np.full(WIDTH, np.nan, np.float32)  # type: ignore[method-assign]
    refused = one.ask(TEXTS)
    assert isinstance(refused, Rejected)
    assert refused.error == "ModelFileError"


async def test_the_dry_run_says_what_a_model_gives_and_takes(tmp_path: Path) -> None:
    told = await predict(LoadSpec(write_encoder(tmp_path / "bert.gguf"), threads=1, embeddings=True))
    assert told.embedding is not None
    assert (told.embedding.dimensions, told.embedding.input_tokens) == (WIDTH, 64)
    assert told.footprint.total_bytes > 0
    told = await predict(LoadSpec(write_decoder(tmp_path / "q.gguf"), context_tokens=512, threads=1, embeddings=True))
    assert told.embedding is not None
    assert told.embedding.input_tokens == 512
    assert told.footprint.kv_bytes > 0


@pytest.mark.parametrize(
    ("pooling", "said"), [(None, "bert.pooling_type"), (POOLING.NONE, "one vector"), (POOLING.RANK, "cross-encoder")]
)
async def test_a_file_that_gives_no_embeddings_is_refused_with_the_reason(
    pooling: Any, said: str, tmp_path: Path
) -> None:
    path = write_encoder(tmp_path / "bert.gguf", pooling)
    with pytest.raises(ModelFileError, match=said):
        await predict(LoadSpec(path, threads=1, embeddings=True))


async def test_an_encoder_is_not_loaded_to_answer(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="embeddings: true"):
        await predict(LoadSpec(write_encoder(tmp_path / "bert.gguf"), threads=1))


async def test_a_worker_embeds(tmp_path: Path) -> None:
    spec = LoadSpec(write_encoder(tmp_path / "bert.gguf"), threads=1, embeddings=True)
    resident = await WorkerResident.start(spec, {})
    try:
        told = await resident.embed(EmbedRequest("a", TEXTS))
        assert rows(told).shape == (len(TEXTS), WIDTH)
        assert told.tokens[0] == 4
    finally:
        await resident.stop()
