"""The batch loop on a real model, and on a random one that forgets as Gemma 4 does."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from coe.engine.llama.model import Model
from coe.engine.request import Delta, Finish, Finished, Patience
from coe.engine.spec import LoadSpec, Sampling, Thinking, ThinkingMode
from fakes.device import cards, tolerance
from fakes.local_engine import LocalEngine

NewEngine = Callable[..., LocalEngine]

GRAVITY = [{"role": "user", "content": "What is gravity?"}]
PROMPTS = [
    "The capital of France is",
    "Water boils at a temperature of",
    "Once upon a time, there was",
    "The first president of the United States was",
]
DRAWN = Sampling(temperature=0.8, top_k=0, top_p=1.0, min_p=0.0, repeat_penalty=1.0)


@pytest.fixture(scope="module")
def alone(smollm2_model: Model) -> dict[str, str]:
    """Greedy texts, each made alone from an empty cache."""
    texts = {}
    for prompt in PROMPTS:
        engine = LocalEngine(smollm2_model, LoadSpec(Path(), context_tokens=512, parallel=1, threads=1))
        texts[prompt] = engine.ask(prompt).text
        engine.close()
    return texts


class TestAnswers:
    def test_a_real_model_answers_a_question(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        assert "Gravity is" in new_engine(smollm2_model).ask(GRAVITY).text

    def test_the_answer_ends_with_the_models_own_end_of_turn(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        finished = new_engine(smollm2_model).ask(GRAVITY, logit_bias={smollm2_model.vocab.eos: 100.0}).finished
        assert (finished.reason, finished.completion_tokens) == (Finish.STOP, 0)

    def test_the_same_seed_alone_from_an_empty_cache_gives_the_same_answer(
        self, smollm2_model: Model, new_engine: NewEngine
    ) -> None:
        texts = {new_engine(smollm2_model).ask(PROMPTS[2], sampling=DRAWN, seed=7).text for _ in range(2)}
        assert len(texts) == 1

    def test_what_reading_and_answering_took_is_told(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        engine = new_engine(smollm2_model)
        moments = map(float, itertools.count())
        engine.loop._now = engine.loop._queue._now = lambda: next(moments)
        one, many = engine.ask(PROMPTS[0], max_tokens=1).finished, engine.ask(PROMPTS[1], max_tokens=9).finished
        assert one.prompt_s == many.prompt_s > 0
        assert many.answer_s > one.answer_s > 0

    def test_other_seeds_give_other_answers(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        engine = new_engine(smollm2_model)
        texts = {engine.ask(PROMPTS[2], sampling=DRAWN, seed=seed).text for seed in range(4)}
        assert len(texts) == 4

    def test_without_a_seed_each_answer_is_another(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        engine = new_engine(smollm2_model)
        assert engine.ask(PROMPTS[2], sampling=DRAWN).text != engine.ask(PROMPTS[2], sampling=DRAWN).text

    def test_a_batch_of_four_says_what_each_says_alone(
        self, smollm2_model: Model, new_engine: NewEngine, alone: dict[str, str]
    ) -> None:
        engine = new_engine(smollm2_model, parallel=4)
        ids = {prompt: engine.submit(prompt) for prompt in PROMPTS}
        engine.run()
        together = {prompt: engine.answer(request_id).text for prompt, request_id in ids.items()}
        # Batching rounds differently, so a near tie may fall the other way late in a text; hardly in its beginning.
        assert {p: text[:12] for p, text in together.items()} == {p: text[:12] for p, text in alone.items()}
        assert sum(together[prompt] == alone[prompt] for prompt in PROMPTS) >= 3

    def test_more_requests_than_slots_wait_and_are_all_answered(
        self, smollm2_model: Model, new_engine: NewEngine, alone: dict[str, str]
    ) -> None:
        engine = new_engine(smollm2_model, parallel=2)
        ids = [engine.submit(prompt) for prompt in PROMPTS + PROMPTS[:1]]
        engine.step()
        assert (engine.loop.active, engine.loop.waiting) == (2, 3)
        engine.run()
        assert [engine.answer(i).text[:12] for i in ids] == [alone[p][:12] for p in PROMPTS + PROMPTS[:1]]

    def test_a_short_prompt_is_answered_while_a_long_one_is_read(
        self, gemma4_model: Model, new_engine: NewEngine
    ) -> None:
        long, short = "one two three four " * 12, "five six"
        alone = [new_engine(gemma4_model).ask(text).text for text in (long, short)]
        engine = new_engine(gemma4_model, parallel=2, batch_tokens=12)
        slow = engine.submit(long)
        engine.step(2)
        quick = engine.submit(short)
        engine.run()
        order = [event.id for event in engine.events if isinstance(event, Finished)]
        assert order == [quick, slow], "it is over before the long prompt has been read"
        assert [engine.answer(one).text for one in (slow, quick)] == alone

    def test_the_answer_ends_after_max_tokens(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        finished = new_engine(smollm2_model).ask(PROMPTS[2], max_tokens=5).finished
        assert (finished.reason, finished.completion_tokens) == (Finish.LENGTH, 5)

    def test_the_answer_ends_where_the_context_does(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        finished = (
            new_engine(smollm2_model, context_tokens=48)
            .ask(PROMPTS[2], max_tokens=None, logit_bias={smollm2_model.vocab.eos: -100.0})
            .finished
        )
        assert finished.reason is Finish.LENGTH
        assert finished.prompt_tokens + finished.completion_tokens == 48

    def test_a_looping_answer_is_ended_by_the_guard(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        vocab = smollm2_model.vocab
        looping = "The cat sat on the mat. " * 4
        bias = {vocab.eos: -100.0}
        finished = (
            new_engine(smollm2_model)
            .ask(looping, max_tokens=None, loop_guard=Patience.NORMAL, logit_bias=bias)
            .finished
        )
        assert finished.reason is Finish.LOOP
        assert finished.loop


class TestRejections:
    def test_a_prompt_that_cannot_fit_is_rejected_with_both_numbers(
        self, smollm2_model: Model, new_engine: NewEngine
    ) -> None:
        engine = new_engine(smollm2_model, context_tokens=64)
        rejected = engine.rejection(engine.submit("word " * 100))
        assert rejected.error == "PromptTooLongError"
        assert rejected.facts["prompt_tokens"] > 64
        assert rejected.facts["limit_tokens"] == 64

    def test_a_prompt_longer_than_the_rosters_limit_is_rejected(
        self, smollm2_model: Model, new_engine: NewEngine
    ) -> None:
        engine = new_engine(smollm2_model)
        rejected = engine.rejection(engine.submit("word " * 20, max_prompt_tokens=10))
        assert rejected.error == "PromptTooLongError"
        assert "max_prompt_tokens" in rejected.remedy

    @pytest.mark.parametrize(
        "schema", [{"type": "no such type"}, {"$ref": "#/nowhere"}, {"type": "string", "pattern": "("}]
    )
    def test_a_schema_that_makes_no_grammar_is_rejected(
        self, smollm2_model: Model, new_engine: NewEngine, schema: dict[str, str]
    ) -> None:
        engine = new_engine(smollm2_model)
        wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
        assert engine.rejection(engine.submit(GRAVITY, response_format=wanted)).error == "GrammarError"
        assert engine.ask(PROMPTS[0], max_tokens=1).finished.completion_tokens == 1

    @pytest.mark.parametrize("fields", [{"stop": [""]}, {"response_format": {"type": "json_schema"}}])
    def test_a_request_of_an_unforeseen_kind_harms_no_other(
        self, smollm2_model: Model, new_engine: NewEngine, fields: dict[str, object]
    ) -> None:
        engine = new_engine(smollm2_model, parallel=2)
        running = engine.submit(PROMPTS[0], max_tokens=4)
        engine.step(2)
        bad = engine.submit(PROMPTS[0], **fields)
        engine.run()
        assert engine.rejection(bad).message
        assert engine.answer(running).finished.completion_tokens == 4

    def test_nul_and_surrogates_in_a_prompt_are_only_text(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        answer = new_engine(smollm2_model).ask("a\0b \ud800 c", max_tokens=1)
        assert answer.finished.completion_tokens == 1
        assert answer.finished.prompt_tokens > 3

    def test_an_empty_prompt_is_continued(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        assert new_engine(smollm2_model).ask("", max_tokens=2).finished.prompt_tokens == 1


class TestPrefixReuse:
    def test_the_second_turn_reads_only_what_is_new(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        engine = new_engine(smollm2_model, parallel=2)
        first = engine.ask(GRAVITY)
        then = [*GRAVITY, {"role": "assistant", "content": first.text}, {"role": "user", "content": "Who found it?"}]
        second = engine.ask(then)
        assert second.finished.cached_tokens > first.finished.prompt_tokens
        assert second.text[:20] == new_engine(smollm2_model).ask(then).text[:20]

    def test_a_shared_beginning_is_copied_and_its_conversation_goes_on(
        self, smollm2_model: Model, new_engine: NewEngine
    ) -> None:
        system = {"role": "system", "content": "You are a geographer who answers in one short sentence, always."}
        talks = [
            [system, {"role": "user", "content": f"What is the capital of {land}?"}] for land in ("France", "Spain")
        ]
        engine = new_engine(smollm2_model, parallel=2)
        first = engine.submit(talks[0], max_tokens=12)
        engine.step(4)
        second = engine.submit(talks[1], max_tokens=12)
        engine.run()
        assert engine.answer(second).finished.cached_tokens > 15
        for talk, request_id in zip(talks, (first, second), strict=True):
            assert engine.answer(request_id).text == new_engine(smollm2_model).ask(talk, max_tokens=12).text

    def test_the_same_prompt_again_leaves_one_token_to_read(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        engine = new_engine(smollm2_model)
        first, second = engine.ask(PROMPTS[0]), engine.ask(PROMPTS[0])
        assert second.finished.cached_tokens == second.finished.prompt_tokens - 1
        assert second.text == first.text


class TestCancelling:
    def test_a_cancelled_request_stops_and_the_others_go_on(
        self, smollm2_model: Model, new_engine: NewEngine, alone: dict[str, str]
    ) -> None:
        engine = new_engine(smollm2_model, parallel=2)
        leaving, staying = engine.submit(PROMPTS[0], max_tokens=400), engine.submit(PROMPTS[1])
        engine.step(3)
        engine.loop.cancel(leaving)
        engine.run()
        assert engine.answer(leaving).finished.reason is Finish.CANCELLED
        assert engine.answer(leaving).finished.completion_tokens == 3
        assert engine.answer(staying).text[:12] == alone[PROMPTS[1]][:12]

    def test_its_slot_goes_to_the_next(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        engine = new_engine(smollm2_model)
        leaving, waiting = engine.submit(PROMPTS[0], max_tokens=400), engine.submit(PROMPTS[1], max_tokens=2)
        engine.step()
        engine.loop.cancel(leaving)
        engine.run()
        assert engine.answer(waiting).finished.completion_tokens == 2

    def test_one_that_still_waits_is_cancelled_too(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        engine = new_engine(smollm2_model)
        running, waiting = engine.submit(PROMPTS[0], max_tokens=3), engine.submit(PROMPTS[1])
        engine.step()
        engine.loop.cancel(waiting)
        assert engine.answer(waiting).finished.completion_tokens == 0
        engine.run()
        assert engine.answer(running).finished.completion_tokens == 3

    def test_cancelling_what_is_not_there_does_nothing(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        engine = new_engine(smollm2_model)
        engine.loop.cancel("unknown")
        assert engine.events == []


class TestFullCache:
    """cache_tokens hold less than all sequences together want."""

    LONG = ("Write a long story about a ship. " * 4, "List the planets and their moons. " * 4)

    def test_a_sequence_that_gives_way_says_what_it_says_alone(
        self, smollm2_model: Model, new_engine: NewEngine
    ) -> None:
        keep_going = {"max_tokens": 48, "logit_bias": {smollm2_model.vocab.eos: -100.0}}
        engine = new_engine(smollm2_model, parallel=2, context_tokens=128)
        ids = [engine.submit(text, **keep_going) for text in self.LONG]
        starts: list[int] = []
        while engine.loop.step():
            starts.append(engine.loop.active)
            assert engine.loop.status.cells <= 128
        assert 2 in starts, "they ran together"
        changes = [a for a, b in itertools.pairwise(starts) if a != b]
        assert changes[:1] == [2], "until one gave way"
        for text, request_id in zip(self.LONG, ids, strict=True):
            answer = engine.answer(request_id)
            assert answer.finished.completion_tokens == 48
            if not cards():  # a device rounds batches of other sizes otherwise, and a near tie falls the other way
                alone = new_engine(smollm2_model, context_tokens=128).ask(text, **keep_going)
                assert answer.text[:60] == alone.text[:60]

    def test_a_newcomer_that_does_not_fit_waits_and_none_is_lost(
        self, smollm2_model: Model, new_engine: NewEngine
    ) -> None:
        engine = new_engine(smollm2_model, parallel=3, context_tokens=128)
        prompts = ["one two three " * 20, "four five six " * 20, "seven eight nine " * 20, "ten"]
        ids = [engine.submit(prompt, max_tokens=20) for prompt in prompts]
        engine.run()
        assert all(isinstance(engine.of(request_id)[-1], Finished) for request_id in ids)
        assert engine.loop.status.cells <= 128

    def test_an_idle_conversation_makes_room(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        engine = new_engine(smollm2_model, parallel=2, context_tokens=128)
        engine.ask("one two three " * 20)
        fresh = new_engine(smollm2_model, context_tokens=128).ask("seven eight nine " * 20)
        assert engine.ask("seven eight nine " * 20).text == fresh.text
        assert engine.loop.status.cells <= 128

    def test_what_is_kept_of_an_idle_conversation_survives_making_room(
        self, smollm2_model: Model, new_engine: NewEngine
    ) -> None:
        prompt, other = "one two three " * 15, "seven eight nine " * 12
        engine = new_engine(smollm2_model, parallel=2, context_tokens=160)
        engine.ask(prompt)
        engine.ask(other)
        again = engine.ask(prompt + "four", max_tokens=60)
        assert (
            again.text[:40]
            == new_engine(smollm2_model, context_tokens=160).ask(prompt + "four", max_tokens=60).text[:40]
        )

    def test_a_sequence_that_gave_way_can_be_cancelled(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        keep_going = {"max_tokens": 48, "logit_bias": {smollm2_model.vocab.eos: -100.0}}
        engine = new_engine(smollm2_model, parallel=2, context_tokens=128)
        first, second = (engine.submit(text, **keep_going) for text in self.LONG)
        while not (engine.loop.waiting and any(isinstance(event, Delta) for event in engine.of(second))):
            assert engine.loop.step()
        engine.loop.cancel(second)
        engine.run()
        assert engine.answer(second).finished.reason is Finish.CANCELLED
        assert engine.answer(first).finished.completion_tokens == 48


class TestText:
    def test_a_stop_string_ends_the_answer_wherever_tokens_end(
        self, smollm2_model: Model, new_engine: NewEngine, alone: dict[str, str]
    ) -> None:
        engine = new_engine(smollm2_model)
        text = alone[PROMPTS[2]]
        for start in range(2, 20, 3):
            stop = text[start : start + 7]
            answer = engine.ask(PROMPTS[2], stop=["no such text", stop])
            assert answer.text == text[: text.index(stop)]
            assert answer.finished.reason is Finish.STOP
            assert answer.finished.stop == stop
        assert engine.ask(PROMPTS[2], stop=["no such text"]).finished.stop is None

    def test_no_text_goes_out_that_may_still_become_a_stop(
        self, smollm2_model: Model, new_engine: NewEngine, alone: dict[str, str]
    ) -> None:
        text = alone[PROMPTS[2]]
        stop = text[4:20]
        sent = ""
        for delta in new_engine(smollm2_model).ask(PROMPTS[2], stop=[stop]).deltas:
            sent += delta.text
            assert sent == text[: len(sent)]
            assert len(sent) <= 4

    @pytest.mark.parametrize("wanted", ["🐍🔥🎉", "日本語の文章"])
    def test_characters_of_several_tokens_come_out_whole(
        self, smollm2_model: Model, new_engine: NewEngine, wanted: str
    ) -> None:
        assert len(smollm2_model.vocab.tokenize(wanted)) > len(wanted), "the model writes these in pieces"
        schema = {"type": "json_schema", "json_schema": {"schema": {"const": wanted}}}
        answer = new_engine(smollm2_model).ask(GRAVITY, max_tokens=60, response_format=schema)
        assert json.loads(answer.text) == wanted
        assert len(answer.deltas) < answer.finished.completion_tokens
        assert all("\ufffd" not in delta.text for delta in answer.deltas)

    def test_json_object_is_json(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        few_shots = 'Name and age as JSON:\n{"name": "Ann", "age": 3}\n{"name": "Bob", "age": 4}\n'
        answer = new_engine(smollm2_model).ask(few_shots, max_tokens=60, response_format={"type": "json_object"})
        assert isinstance(json.loads(answer.text), dict)

    def test_a_schema_is_kept(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        schema = {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
            "required": ["name", "age"],
            "additionalProperties": False,
        }
        wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
        messages = [{"role": "user", "content": "Tell me about a person."}]
        for seed in range(3):
            answer = new_engine(smollm2_model).ask(
                messages, max_tokens=80, response_format=wanted, sampling=Sampling(temperature=0.6), seed=seed
            )
            person = json.loads(answer.text)
            assert set(person) == {"name", "age"}
            assert isinstance(person["age"], int)

    @pytest.mark.parametrize("wanted", ["<think>hello", "x</think>y", "<think>a</think>"])
    def test_thinking_tags_in_a_structured_answer_are_a_part_of_it(
        self, smollm2_model: Model, new_engine: NewEngine, wanted: str
    ) -> None:
        schema = {"type": "object", "properties": {"a": {"const": wanted}}, "required": ["a"]}
        schema["additionalProperties"] = False
        answer = new_engine(smollm2_model).ask(
            [{"role": "user", "content": "Hi"}],
            max_tokens=60,
            response_format={"type": "json_schema", "json_schema": {"schema": schema}},
        )
        assert json.loads(answer.text) == {"a": wanted}
        assert answer.finished.leaked_blocks == 0

    def test_logprobs_are_the_models_own(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        engine = new_engine(smollm2_model)
        request_id = engine.submit(PROMPTS[0], max_tokens=1, top_logprobs=5, sampling=DRAWN, seed=1)
        engine.run()
        (entry,) = engine.answer(request_id).logprobs
        logits = engine.context.logits(len(smollm2_model.vocab.tokenize(PROMPTS[0])) - 1).astype(np.float64)
        expected = logits - logits.max()
        expected -= np.log(np.exp(expected).sum())
        best = np.sort(expected)[::-1][:5]
        assert [value for *_, value in entry.top] == pytest.approx(best.tolist(), abs=tolerance(1e-4))
        token = next(
            t
            for t in range(smollm2_model.vocab.n_tokens)
            if smollm2_model.vocab.piece(t, special=True) == bytes(entry.bytes)
        )
        assert entry.logprob == pytest.approx(expected[token], abs=tolerance(1e-4))
        assert np.exp([value for *_, value in entry.top]).sum() <= 1 + 1e-9

    def test_there_is_one_logprob_a_token(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        answer = new_engine(smollm2_model).ask("Q: 1 + 1 = ? A: 2. Q: 2 + 2 = ? A:", max_tokens=60, top_logprobs=0)
        assert len(answer.logprobs) == answer.finished.completion_tokens
        assert b"".join(bytes(entry.bytes) for entry in answer.logprobs).decode() == answer.text

    def test_a_bias_bans_a_token_or_forces_it(self, smollm2_model: Model, new_engine: NewEngine) -> None:
        engine = new_engine(smollm2_model)
        (paris,) = smollm2_model.vocab.tokenize(" Paris")
        assert " Paris" in engine.ask(PROMPTS[0], max_tokens=3).text
        assert " Paris" not in engine.ask(PROMPTS[0], max_tokens=3, logit_bias={paris: -100.0}).text
        assert engine.ask(PROMPTS[1], max_tokens=3, logit_bias={paris: 100.0}).text == " Paris" * 3


class TestSlidingWindow:
    """A random Gemma 4 whose layers see 32 tokens: going back is sound only with what the cache still knows."""

    SEEDED = Sampling(temperature=1.0, top_k=20, repeat_penalty=1.0)
    LONG = 900  # tokens, more than the 768 cells that the layers with a window have

    def ask(
        self, engine: LocalEngine, text: str | list[dict[str, str]], tokens: int, seed: int = 5
    ) -> tuple[list[float], Finished]:
        """Log-probabilities of an answer's tokens, and its end."""
        bias = dict.fromkeys((1, 4), -100.0)  # the ends of a turn and of the text
        answer = engine.ask(text, sampling=self.SEEDED, seed=seed, max_tokens=tokens, top_logprobs=0, logit_bias=bias)
        return [entry.logprob for entry in answer.logprobs], answer.finished

    def test_the_next_turn_after_a_long_answer_is_that_of_a_fresh_cache(
        self, gemma4_model: Model, new_engine: NewEngine
    ) -> None:
        first = [{"role": "user", "content": "w1 w2 w3 w4 w5 w6 w7 w8 w9"}]
        # The answer as a client sends it back has not the closed thinking block: the shared part ends before it.
        then = [*first, {"role": "assistant", "content": "w5 w6"}, {"role": "user", "content": "w7"}]
        engine = new_engine(gemma4_model, context_tokens=1024)
        self.ask(engine, first, self.LONG)
        assert engine.context.first_position(0) > 100, "the window has moved on"
        reused, finished = self.ask(engine, then, 24)
        assert finished.cached_tokens > 40

        # A fresh cache that reads the prompt in the same pieces.
        fresh = new_engine(gemma4_model, context_tokens=1024)
        self.ask(fresh, first, 1)
        expected, fresh_finished = self.ask(fresh, then, 24)
        assert fresh_finished.cached_tokens >= finished.cached_tokens
        assert reused == pytest.approx(expected, abs=1e-2)
        cold, cold_finished = self.ask(new_engine(gemma4_model, context_tokens=1024), then, 24)
        assert cold_finished.cached_tokens == 0
        assert reused == pytest.approx(cold, abs=1e-2)

    def test_without_a_checkpoint_the_prompt_is_read_anew(self, gemma4_model: Model, new_engine: NewEngine) -> None:
        prompt = "w1 w2 w3 w4 w5 w6 w7 w8 w9 w10"
        engine = new_engine(gemma4_model, context_tokens=1024)
        self.ask(engine, prompt, self.LONG)
        other = prompt[:-3] + "w77 w78"
        logprobs, finished = self.ask(engine, other, 12)
        assert finished.cached_tokens == 0
        assert logprobs == pytest.approx(self.ask(new_engine(gemma4_model), other, 12)[0], abs=1e-2)

    def test_a_short_answer_needs_no_checkpoint(self, gemma4_model: Model, new_engine: NewEngine) -> None:
        engine = new_engine(gemma4_model, context_tokens=1024)
        self.ask(engine, "w1 w2 w3 w4 w5 w6 w7 w8 w9", 30)
        logprobs, finished = self.ask(engine, "w1 w2 w3 w4 w5 w6 w70 w71", 12)
        assert finished.cached_tokens > 10
        fresh, _ = self.ask(new_engine(gemma4_model), "w1 w2 w3 w4 w5 w6 w70 w71", 12)
        assert logprobs == pytest.approx(fresh, abs=1e-2)

    def test_shared_cells_that_fill_the_window_stop_no_request_for_good(
        self, gemma4_model: Model, new_engine: NewEngine
    ) -> None:
        # While two share a cell none may use it again, so the cells of the window run out before those of the cache.
        begin = "w1 w2 w3 w4 " * 36
        keep_going = {"max_tokens": 60, "logit_bias": dict.fromkeys((1, 4), -100.0)}
        engine = new_engine(gemma4_model, parallel=4, context_tokens=1024, cache_tokens=4096)
        ids = [engine.submit(begin, **keep_going)]
        engine.step(6)
        ids += [engine.submit(begin + f"w{n}", **keep_going) for n in range(3)]
        for _ in range(1000):
            if not engine.loop.step():
                break
        assert [engine.answer(i).finished.completion_tokens for i in ids] == [60] * 4


class TestThinking:
    ASKED = [{"role": "user", "content": "w1 w2"}]  # noqa: RUF012

    def test_a_think_off_prompt_ends_in_the_closed_block(self, gemma4_model: Model, new_engine: NewEngine) -> None:
        engine = new_engine(gemma4_model)
        engine.submit(self.ASKED, max_tokens=1)
        tokens = engine.loop._queue.unfinished[0].tokens
        closed = gemma4_model.vocab.tokenize("<|turn>model\n<|channel>thought\n<channel|>")
        assert tokens[-len(closed) :] == closed
        assert tokens.count(gemma4_model.vocab.bos) == 1

    @pytest.mark.parametrize("budget", [0, 1, 7])
    def test_a_budget_ends_the_block_after_so_many_tokens(
        self, gemma4_model: Model, new_engine: NewEngine, budget: int
    ) -> None:
        (closing,) = gemma4_model.vocab.tokenize("<channel|>")
        bias = dict.fromkeys((*range(265), closing), -100.0)  # words alone: no byte, no end
        answer = new_engine(gemma4_model).ask(
            self.ASKED,
            max_tokens=20,
            thinking=Thinking(ThinkingMode.BUDGET, budget),
            sampling=DRAWN,
            seed=3,
            logit_bias=bias,
        )
        assert answer.finished.reasoning_tokens == budget
        assert len(answer.reasoning.split()) == budget
        assert len(answer.text.split()) == answer.finished.completion_tokens - budget - 1

    @pytest.mark.parametrize("most", [1, 6])
    def test_a_bound_on_the_answer_leaves_its_thinking_alone(
        self, gemma4_model: Model, new_engine: NewEngine, most: int
    ) -> None:
        (closing,) = gemma4_model.vocab.tokenize("<channel|>")
        bias = dict.fromkeys((*range(265), closing), -100.0)  # words alone: no byte, no end
        asked = {"thinking": Thinking(ThinkingMode.BUDGET, 9), "sampling": DRAWN, "seed": 3, "logit_bias": bias}
        engine = new_engine(gemma4_model)
        finished = engine.ask(self.ASKED, max_tokens=None, max_answer_tokens=most, **asked).finished
        assert finished.reason is Finish.LENGTH
        assert finished.reasoning_tokens == 9
        assert finished.completion_tokens == 9 + most
        finished = engine.ask(self.ASKED, max_tokens=4, max_answer_tokens=most, **asked).finished
        assert finished.completion_tokens == 4

    def test_a_model_may_end_its_thinking_before_the_budget(self, gemma4_model: Model, new_engine: NewEngine) -> None:
        (closing,) = gemma4_model.vocab.tokenize("<channel|>")
        answer = new_engine(gemma4_model).ask(
            self.ASKED,
            max_tokens=4,
            thinking=Thinking(ThinkingMode.BUDGET, 100),
            logit_bias={closing: 100.0},
        )
        assert answer.reasoning == ""
        assert answer.finished.reasoning_tokens <= 1

    def test_a_block_that_leaks_is_stripped_and_counted(self, gemma4_model: Model, new_engine: NewEngine) -> None:
        (opening,) = gemma4_model.vocab.tokenize("<|channel>")
        ban = dict.fromkeys((1, 4), -100.0)
        leaked = new_engine(gemma4_model)
        request_id = leaked.submit(self.ASKED, max_tokens=30, sampling=DRAWN, seed=3, logit_bias=ban)
        leaked.step(3)
        # The model "writes" an opening tag: put it where the next tokens would be.
        sequence = leaked.loop._slots.busy[0].sequence
        sequence._forced.extend(gemma4_model.vocab.tokenize("<|channel>thought\nw9 w9<channel|>"))
        leaked.run()
        answer = leaked.answer(request_id)
        assert opening in sequence.tokens
        assert answer.finished.leaked_blocks == 1
        assert "channel" not in answer.text
        assert "w9 w9" not in answer.text
        assert answer.reasoning == "", "a think-off specialist shows no thoughts"
        assert answer.text
