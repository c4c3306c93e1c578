"""Prompts that come before their answers, each token with its log-probability: held against the logits of a plain
evaluation by llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from coe.engine.llama.context import Context
from coe.engine.llama.model import Model
from coe.engine.request import Delta, Finish, Reading
from coe.engine.spec import LoadSpec
from fakes.device import tolerance
from fakes.local_engine import Answer, LocalEngine

NewEngine = Callable[..., LocalEngine]

TEXT = "The capital of France is Paris, and the capital of Italy is Rome. Größe: 😀 tall\n" * 3


def plain(model: Model, tokens: list[int], at_once: int = 512) -> NDArray[np.float64]:
    """[tokens - 1, vocabulary] log-probabilities of what follows each token but the last."""
    context = Context(model, LoadSpec(Path(), context_tokens=512, parallel=1, threads=1), all_logits=True)
    rows = []
    for start in range(0, len(tokens), at_once):
        part = tokens[start : start + at_once]
        assert context.decode((token, start + at, 0, True) for at, token in enumerate(part)) == 0
        rows += [context.logits(at).astype(np.float64) for at in range(len(part))]
    context.close()
    logits = np.stack(rows[:-1])
    return logits - np.logaddexp.reduce(logits, axis=1)[:, None]


def tokens_of(model: Model, text: str) -> list[int]:
    return model.vocab.tokenize(text, bos=model.vocab.adds_bos)


def scored(engine: LocalEngine, text: str | None = None, **fields: object) -> Answer:
    return engine.ask(text or "", **{"echo": True, "top_logprobs": 3, "max_tokens": 1, **fields})


@pytest.fixture(params=["smollm2_model", "gemma4_model"])
def model(request: pytest.FixtureRequest) -> Model:
    found: Model = request.getfixturevalue(request.param)
    return found


class TestScores:
    def test_they_are_those_of_an_evaluation_with_all_logits(self, model: Model, new_engine: NewEngine) -> None:
        tokens = tokens_of(model, TEXT)
        engine = new_engine(model)
        wanted = plain(model, tokens, engine.context.n_outputs)
        entries = scored(engine, TEXT).logprobs
        assert len(entries) == len(tokens) + 1
        assert engine.context.n_outputs < len(tokens), "it took several pieces"
        assert entries[0].logprob is None
        assert entries[0].top == []
        found = [entry.logprob for entry in entries[1:-1]]
        assert found == pytest.approx([wanted[at, token] for at, token in enumerate(tokens[1:])], abs=tolerance(1e-4))
        best = [[value for _, _, value in entry.top] for entry in entries[1:-1]]
        np.testing.assert_allclose(best, np.sort(wanted, axis=1)[:, -3:][:, ::-1], atol=tolerance(1e-4))
        # At once llama.cpp rounds otherwise.
        whole = plain(model, tokens)
        assert found == pytest.approx([whole[at, token] for at, token in enumerate(tokens[1:])], abs=0.1)
        assert [bytes(entry.bytes) for entry in entries[:-1]] == [model.vocab.piece(t, special=True) for t in tokens]

    def test_the_text_is_the_prompt_and_then_the_answer(self, model: Model, new_engine: NewEngine) -> None:
        engine = new_engine(model)
        answer = engine.ask(TEXT, max_tokens=8).text
        got = scored(engine, TEXT, max_tokens=8)
        assert got.text == TEXT + answer
        assert engine.ask(TEXT, max_tokens=8, echo=True).text == TEXT + answer, (
            "without log-probabilities, from the cache"
        )

    def test_offsets_say_where_each_token_begins(self, model: Model, new_engine: NewEngine) -> None:
        got = scored(new_engine(model), TEXT, max_tokens=8)
        entries = got.logprobs
        offsets = [entry.offset for entry in entries]
        assert offsets == sorted(offsets)
        assert entries[-8].offset == len(TEXT)
        for entry, follows in zip(entries, [*offsets[1:], None], strict=True):
            part = got.text[entry.offset : follows]
            if "\ufffd" not in entry.token and part and entry is not entries[0]:
                assert part == entry.token

    def test_no_token_is_drawn_where_none_is_wanted(self, model: Model, new_engine: NewEngine) -> None:
        got = scored(new_engine(model), TEXT, max_tokens=0)
        assert got.text == TEXT
        assert len(got.logprobs) == got.finished.prompt_tokens
        assert got.finished.completion_tokens == 0

    def test_a_prompt_of_one_token(self, model: Model, new_engine: NewEngine) -> None:
        got = scored(new_engine(model), prompt_ids=[300])
        assert [entry.logprob is None for entry in got.logprobs] == [True, False]

    def test_an_answer_that_ends_at_once_still_lists_the_token_that_ended_it(
        self, smollm2_model: Model, new_engine: NewEngine
    ) -> None:
        """Clients take the last entry for the answer's, whatever it was."""
        eos = smollm2_model.vocab.eos
        got = scored(new_engine(smollm2_model), TEXT, logit_bias={eos: 100.0})
        assert got.finished.reason is Finish.STOP
        assert got.text == TEXT
        assert len(got.logprobs) == got.finished.prompt_tokens + 1
        assert (got.logprobs[-1].token, got.logprobs[-1].offset) == (smollm2_model.vocab.text(eos), len(TEXT))

    def test_so_does_one_whose_only_token_is_a_part_of_a_character(
        self, smollm2_model: Model, new_engine: NewEngine
    ) -> None:
        part = smollm2_model.vocab.tokenize("😀")[0]
        got = scored(new_engine(smollm2_model), "Hi", logit_bias={part: 100.0})
        assert got.text == "Hi"
        assert len(got.logprobs) == got.finished.prompt_tokens + 1


class TestTokenIds:
    def test_they_are_read_as_they_are(self, model: Model, new_engine: NewEngine) -> None:
        ids = model.vocab.tokenize("Rome and Paris")
        got = scored(new_engine(model), prompt_ids=ids, max_tokens=0)
        assert got.finished.prompt_tokens == len(ids)
        assert got.text == b"".join(model.vocab.piece(token, special=True) for token in ids).decode()

    def test_control_tokens_among_them_are_what_they_are(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        ids = smollm2_model.vocab.tokenize("<|im_start|>user\nHi<|im_end|>\n", special=True)
        got = scored(new_engine(smollm2_model), prompt_ids=ids, max_tokens=0)
        assert got.text == "<|im_start|>user\nHi<|im_end|>\n"
        assert got.logprobs[0].token == "<|im_start|>"

    def test_one_that_no_vocabulary_has_is_refused(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        engine = new_engine(smollm2_model)
        refused = engine.rejection(engine.submit("", prompt_ids=[5, smollm2_model.vocab.n_tokens]))
        assert refused.error == "UnknownTokenError"
        assert str(smollm2_model.vocab.n_tokens - 1) in refused.message

    def test_they_may_be_too_many(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        engine = new_engine(smollm2_model)
        assert engine.rejection(engine.submit("", prompt_ids=[5] * 600)).error == "PromptTooLongError"


class TestBesideOthers:
    def test_a_stream_beside_it_says_what_it_says_alone(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        alone = new_engine(smollm2_model).ask("Water boils at a temperature of").text
        engine = new_engine(smollm2_model, parallel=2)
        stream = engine.submit("Water boils at a temperature of")
        engine.step(2)
        scoring = engine.submit(TEXT, echo=True, top_logprobs=0, max_tokens=0)
        before = len(engine.of(stream))
        engine.step()
        assert len(engine.of(stream)) == before + 1, "it goes on while the prompt is read"
        engine.run()
        assert engine.answer(stream).text[:12] == alone[:12]
        assert engine.answer(scoring).text == TEXT

    def test_a_cached_prompt_is_scored_all_the_same(self, model: Model, new_engine: NewEngine) -> None:
        engine = new_engine(model, parallel=2)
        first = scored(engine, TEXT)
        again = scored(engine, TEXT)
        assert again.finished.cached_tokens == 0
        # Beside other cells of the cache llama.cpp rounds otherwise.
        assert [entry.logprob for entry in again.logprobs[1:]] == pytest.approx(
            [entry.logprob for entry in first.logprobs[1:]], abs=0.5
        )

    def test_and_what_it_leaves_in_the_cache_serves_the_next(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        engine = new_engine(smollm2_model)
        scored(engine, TEXT)
        after = engine.ask(TEXT + "And so on")
        assert after.finished.cached_tokens == len(tokens_of(smollm2_model, TEXT))

    def test_one_that_gave_way_tells_nothing_twice(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        whole = scored(new_engine(smollm2_model), TEXT).logprobs
        engine = new_engine(smollm2_model, parallel=2)
        name = engine.submit(TEXT, echo=True, top_logprobs=3, max_tokens=1)
        engine.step()
        slot = engine.loop._slots.busy[0]
        assert 0 < slot.sequence.evaluated < slot.sequence.n_prompt
        engine.loop._queue._preempt(slot, "the test says so")
        engine.run()
        got = engine.answer(name)
        assert got.text.startswith(TEXT)
        assert [entry.logprob for entry in got.logprobs[1:]] == pytest.approx(
            [entry.logprob for entry in whole[1:]], abs=0.1
        )

    def test_no_decode_wants_more_logits_than_there_is_room_for(
        self, gemma4_model: Model, new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = new_engine(gemma4_model, parallel=4, context_tokens=512, cache_tokens=2048)
        wanted: list[int] = []
        decode = engine.context.decode

        def counted(entries: list[tuple[int, int, int, bool]]) -> int:
            wanted.append(sum(entry[3] for entry in entries))
            return decode(entries)

        monkeypatch.setattr(engine.context, "decode", counted)
        names = [engine.submit(TEXT, echo=True, top_logprobs=1, max_tokens=4) for _ in range(2)]
        names += [engine.submit(f"{number} {TEXT}", max_tokens=4) for number in range(3)]
        engine.run()
        assert max(wanted) == engine.context.n_outputs
        assert all(engine.answer(name).finished.completion_tokens for name in names)

    def test_reading_is_told_of_as_ever(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        engine = new_engine(smollm2_model)
        name = engine.submit(TEXT, echo=True, top_logprobs=0, max_tokens=0, tells_reading=True)
        engine.run()
        assert any(isinstance(event, Reading) for event in engine.of(name))
        assert sum(isinstance(event, Delta) for event in engine.of(name)) > 1, "and the echo comes as it is read"


class TestRanking:
    def test_the_end_says_how_likely_the_answer_was(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        engine = new_engine(smollm2_model)
        entries = engine.ask("The capital of France is", top_logprobs=0).logprobs
        ranked = engine.ask("The capital of France is", ranked=True)
        assert ranked.logprobs == []
        assert ranked.finished.mean_logprob == pytest.approx(
            np.mean([entry.logprob for entry in entries]), abs=tolerance(1e-4)
        )

    def test_the_token_that_ends_it_counts(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        biased = {smollm2_model.vocab.eos: 100.0}
        ended = new_engine(smollm2_model).ask("The capital of France is", ranked=True, logit_bias=biased).finished
        assert ended.completion_tokens == 0
        assert ended.mean_logprob is not None
        assert ended.mean_logprob < 0
