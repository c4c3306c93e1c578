"""Specialists of one resident run in time slices, and none reads cells that another wrote."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from coe.demo.curriculum import questions
from coe.demo.shipped import PARENT
from coe.engine.errors import SwapError
from coe.engine.llama.model import Model
from coe.engine.request import Accepted, Finish, Finished, Rejected
from coe.engine.spec import Sharing
from coe.engine.swap.quantum import next_slice, quantum_s, worst_wait_s
from coe.engine.worker.kv_offload import OffloadedSize, plan_offload
from fakes.sharing_models import College, SharedEngine, domain_masks
from fakes.weight import brings

DOMAINS = ("math", "chemistry", "law")
MIB = 2**20

NewEngine = Callable[..., SharedEngine]


class TestNextSlice:
    def test_the_current_specialist_keeps_its_slice_for_a_quantum(self) -> None:
        assert next_slice(0, {0: 5, 1: 1}, elapsed_s=0.9, quantum_s=1.0).specialist_id == 0
        assert next_slice(0, {0: 5, 1: 1}, elapsed_s=1.0, quantum_s=1.0).specialist_id == 1

    def test_alone_it_keeps_it_longer(self) -> None:
        assert next_slice(0, {0: 5}, elapsed_s=99.0, quantum_s=1.0).specialist_id == 0

    def test_a_specialist_with_nothing_to_run_gives_it_up_at_once(self) -> None:
        assert next_slice(0, {1: 3, 2: 2}, elapsed_s=0.0, quantum_s=1.0).specialist_id == 2

    def test_with_none_ready_nothing_changes(self) -> None:
        assert next_slice(2, {}, elapsed_s=9.0, quantum_s=1.0).specialist_id == 2

    @given(
        st.integers(2, 5),
        st.floats(0.01, 3.0),
        st.floats(0.02, 0.9),
        st.lists(st.floats(0.001, 0.5), min_size=30, max_size=60),
        st.one_of(st.none(), st.floats(0.1, 60.0)),
    )
    def test_none_waits_beyond_the_bound_and_changes_keep_to_their_share(
        self, n: int, change_s: float, share: float, steps: list[float], max_wait_s: float | None
    ) -> None:
        longest = max(steps)
        slice_s = quantum_s(change_s, share, n, longest, max_wait_s)
        bound = worst_wait_s(n, change_s, slice_s, longest)
        now, started, changing, current, count = 0.0, 0.0, 0.0, 0, 0
        waiting = dict.fromkeys(range(n), 0)
        since = dict.fromkeys(range(n), 0.0)
        for step in steps * 20:
            chosen = next_slice(current, waiting, now - started, slice_s).specialist_id
            if chosen != current:
                count += 1
                waiting[current], since[current] = count, now
                now, changing, current = now + change_s, changing + change_s, chosen
                assert now - since[chosen] <= bound * (1 + 1e-9)
                started = now
            now += step
        if max_wait_s is None:
            assert changing <= share * now + change_s
        elif max_wait_s > n * change_s + (n - 1) * longest:
            assert bound <= max_wait_s * (1 + 1e-9)

    def test_alone_there_is_nothing_to_wait_for(self) -> None:
        assert worst_wait_s(1, 1.0, 9.0, 0.5) == 0.0
        assert worst_wait_s(3, 1.0, 9.0, 0.5) == 22.0


class TestPlanOffload:
    def test_idle_caches_go_least_recently_used_first(self) -> None:
        offloaded = {7: OffloadedSize(40, 2, False), 8: OffloadedSize(40, 1, False), 9: OffloadedSize(10, 0, True)}
        assert plan_offload(10, offloaded, 100) == []
        assert plan_offload(50, offloaded, 100) == [8]
        assert plan_offload(90, offloaded, 100) == [8, 7]
        assert plan_offload(91, offloaded, 100) is None, "a request waits for the last one"

    @given(
        st.integers(0, 100),
        st.dictionaries(
            st.integers(0, 9), st.builds(OffloadedSize, st.integers(1, 50), st.integers(0, 9), st.booleans())
        ),
        st.integers(0, 200),
    )
    def test_the_budget_holds_and_nothing_goes_that_need_not(
        self, need: int, offloaded: dict[int, OffloadedSize], budget: int
    ) -> None:
        gone = plan_offload(need, offloaded, budget)
        busy = sum(cache.n_bytes for cache in offloaded.values() if cache.busy)
        if gone is None:
            assert busy + need > budget
            return
        left = sum(cache.n_bytes for number, cache in offloaded.items() if number not in gone)
        assert left + need <= budget
        assert not any(offloaded[number].busy for number in gone)
        if gone:
            assert left + offloaded[gone[-1]].n_bytes + need > budget


# --- on a trained parent ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
@brings("model")
def college(tmp_path_factory: pytest.TempPathFactory) -> College:
    """Three specialists of the tiny parent; the third is a mask."""
    folder = tmp_path_factory.mktemp("college")
    return College(folder, PARENT, domain_masks(PARENT, DOMAINS, 32), masks_only=("law",))


@pytest.fixture
def new_engine(college: College) -> Iterator[NewEngine]:
    """Makes engines whose resident is the mathematician at first."""
    made: list[SharedEngine] = []

    def make(first: str = "math", **fields: Any) -> SharedEngine:
        made.append(open_engine(college, first, **fields))
        return made[-1]

    yield make
    for engine in made:
        engine.close()
        engine.model.close()


def open_engine(
    college: College,
    first: str = "math",
    *,
    share: float = 0.1,
    max_wait_s: float | None = None,
    swap_s: float = 0.0,
    step_s: float = 0.0,
    **fields: Any,
) -> SharedEngine:
    sharing = Sharing(college.members, share, max_wait_s, check=True)
    settings = {"context_tokens": 512, "parallel": 2, "ram_budget_bytes": 64 * MIB, **fields}
    spec = college.spec(first, sharing=sharing, **settings)
    return SharedEngine(Model(spec), spec, swap_s=swap_s, step_s=step_s)


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


# Asked of every specialist: their answers differ, so a cache of another specialist's would show.
TALKS = [asked(question.text) for domain in DOMAINS for question in questions(domain)[3::130][:8]]
CLEAR = 1.0  # nats by which each token of an answer must lead: rounding does not change it


@pytest.fixture(scope="module")
def alone(college: College) -> dict[tuple[str, str], str]:
    """What each says to each talk with no other request about, where it is sure of every word."""
    texts = {}
    for name in DOMAINS:
        engine = open_engine(college, name, parallel=1)
        for talk in TALKS:
            answer = engine.ask_of(name, talk, max_tokens=24, top_logprobs=2)
            if min(first[2] - second[2] for first, second in (entry.top for entry in answer.logprobs)) > CLEAR:
                texts[name, talk[0]["content"]] = answer.text
        engine.close()
        engine.model.close()
    assert all(sum(name == asked for asked, _ in texts) >= 2 for name in DOMAINS)
    return texts


class TestTimeSlices:
    def test_specialists_that_stream_at_once_say_what_they_say_alone(
        self, new_engine: NewEngine, alone: Mapping[tuple[str, str], str]
    ) -> None:
        engine = new_engine(share=0.5, swap_s=1.0, step_s=0.5, parallel=4)
        ids = {(name, text): engine.submit_to(name, asked(text), max_tokens=24) for name, text in alone}
        engine.run()
        assert len(engine.slices) > 10, "slices ended within their answers"
        assert {key: engine.answer(request_id).text for key, request_id in ids.items()} == alone

    def test_a_short_question_does_not_wait_for_anothers_long_answer(self, new_engine: NewEngine) -> None:
        engine = new_engine(share=0.5, swap_s=1.0, step_s=0.5, parallel=1)
        long = engine.submit_to("math", TALKS[0], max_tokens=200, logit_bias=NO_END)
        engine.step(3)
        short = engine.submit_to("law", TALKS[-1], max_tokens=3)
        asked_at = engine.time_s
        while len(engine.of(short)) < 2:
            assert engine.loop.step()
        bound = worst_wait_s(2, 1.0, 1.0, 0.5)
        assert engine.time_s - asked_at <= bound + 0.5, "one slice, one change, and its first decode"
        engine.run()
        assert engine.answer(short).finished.completion_tokens == 3
        assert engine.answer(long).finished.completion_tokens == 200

    def test_an_answer_that_was_offloaded_goes_on_where_it_was(
        self, new_engine: NewEngine, alone: Mapping[tuple[str, str], str]
    ) -> None:
        name, text = max(alone, key=lambda key: len(alone[key]) * (key[0] == "math"))
        engine = new_engine(parallel=1, swap_s=1.0, step_s=0.5, share=0.7)
        request = engine.submit_to(name, asked(text), max_tokens=24)
        engine.step(3)
        others = [engine.submit_to("law", talk, max_tokens=10, logit_bias=NO_END) for talk in TALKS[:2]]
        engine.run()
        assert engine.answer(request).text == alone[name, text]
        assert all(engine.answer(other).finished.completion_tokens == 10 for other in others)
        assert engine.loop.status.swaps > 2
        # Nothing was evaluated twice: a prompt takes two decodes (the checkpoint), every further token one.
        tokens = [engine.answer(i).finished.completion_tokens for i in (request, *others)]
        assert engine.loop.status.steps == sum(tokens) + 3

    def test_requests_of_one_specialist_run_together(self, new_engine: NewEngine) -> None:
        engine = new_engine(parallel=4, swap_s=1.0, step_s=0.01)
        for talk in TALKS[:2]:
            for name in ("math", "law"):
                engine.submit_to(name, talk, max_tokens=10, logit_bias=NO_END)
        engine.run()
        # What a swap takes is not known before the first: the first slice is short.
        assert (engine.loop.status.steps, engine.loop.status.swaps) == (22, 2)

    def test_a_slice_is_as_long_as_keeps_swapping_to_its_share(self, new_engine: NewEngine) -> None:
        engine = new_engine(share=0.2, swap_s=1.0, step_s=0.5, parallel=2)
        for name in ("law", "math"):
            engine.submit_to(name, TALKS[0], max_tokens=120, logit_bias=NO_END)
        engine.run()
        spent = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(engine.slices[1:])]
        assert spent[:-2] == [5.0] * (len(spent) - 2), "four seconds of decoding for each second of change"

    def test_the_roster_bounds_the_wait(self, new_engine: NewEngine) -> None:
        engine = new_engine(share=0.01, max_wait_s=6.0, swap_s=1.0, step_s=0.5)
        for name in ("law", "math"):
            engine.submit_to(name, TALKS[0], max_tokens=60, logit_bias=NO_END)
        engine.step(2)
        assert engine.loop.status.worst_wait_s == 6.0
        engine.run()
        gaps = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(engine.slices)]
        assert max(gaps) <= 6.0

    def test_an_answer_says_how_long_it_waited_for_its_slice_and_the_change(self, new_engine: NewEngine) -> None:
        engine = new_engine(share=0.2, swap_s=1.0, step_s=0.5)
        engine.submit_to("law", TALKS[0], max_tokens=1)
        engine.run()
        first = engine.submit_to("math", TALKS[0], max_tokens=2)
        engine.run()
        again = engine.submit_to("math", TALKS[0], max_tokens=2)
        engine.run()
        told = [finished.queued_s for name in (first, again) if isinstance(finished := engine.of(name)[-1], Finished)]
        assert told == [1.0, 0.0]

    def test_what_found_no_cells_does_not_count_as_read(
        self, new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = new_engine(step_s=0.5)
        engine.submit_to("math", TALKS[0], max_tokens=24)
        engine.step(2)
        decode, full = engine.context.decode, iter([1])
        monkeypatch.setattr(engine.context, "decode", lambda entries: next(full, 0) or decode(entries))
        long = engine.submit_to("math", "What is 3 + 4? " * 30, max_tokens=2)
        engine.run()
        assert isinstance(ended := engine.of(long)[-1], Finished)
        assert engine.loop.status.prompt_tokens_per_s == ended.prompt_tokens / 0.5

    def test_the_first_request_learns_that_the_resident_has_to_change(self, new_engine: NewEngine) -> None:
        engine = new_engine()
        ids = [engine.submit_to(name, TALKS[0], max_tokens=1) for name in ("math", "law")]
        accepted = [engine.of(request_id)[0] for request_id in ids]
        assert [event.swap for event in accepted if isinstance(event, Accepted)] == [False, True]

    def test_a_name_the_resident_was_not_given_is_refused(self, new_engine: NewEngine) -> None:
        engine = new_engine()
        assert "no specialist called 'art'" in engine.rejection(engine.submit_to("art", TALKS[0])).message


NO_END = dict.fromkeys((1, 4), -100.0)  # the tiny parent's ends of text and turn


class TestCaches:
    def test_a_conversation_that_returns_goes_on_from_its_cache(self, new_engine: NewEngine) -> None:
        engine = new_engine(parallel=1)
        first = engine.ask_of("math", TALKS[0], max_tokens=8)
        for talk in TALKS[:3]:
            engine.ask_of("law", talk, max_tokens=4)
        assert engine.loop.status.offloaded_bytes > 0
        then = [*TALKS[0], {"role": "assistant", "content": first.text}, {"role": "user", "content": "And then?"}]
        again = engine.ask_of("math", then, max_tokens=4)
        fresh = new_engine(parallel=1)
        fresh.ask_of("math", TALKS[0], max_tokens=8)
        assert again.finished.cached_tokens == fresh.ask_of("math", then, max_tokens=4).finished.cached_tokens > 10

    def test_a_cache_is_never_used_by_another_specialist(self, new_engine: NewEngine) -> None:
        engine = new_engine(parallel=2)
        assert engine.ask_of("math", TALKS[0]).finished.cached_tokens == 0
        assert engine.ask_of("law", TALKS[0]).finished.cached_tokens == 0
        assert engine.ask_of("chemistry", TALKS[0]).finished.cached_tokens == 0
        assert engine.ask_of("math", TALKS[0]).finished.cached_tokens > 0

    def test_without_a_budget_what_fits_the_slots_stays_there(self, new_engine: NewEngine) -> None:
        engine = new_engine(parallel=2, ram_budget_bytes=0)
        engine.ask_of("math", TALKS[0])
        engine.ask_of("law", TALKS[0])
        assert engine.loop.status.offloaded_bytes == 0
        assert engine.ask_of("math", TALKS[0]).finished.cached_tokens > 0

    def test_cells_of_others_do_not_stay_where_every_step_passes_over_them(self, new_engine: NewEngine) -> None:
        engine = new_engine(parallel=4)
        for talk in TALKS[:3]:
            engine.ask_of("math", talk)
        used = engine.loop.status.cells
        answer = engine.ask_of("law", TALKS[0]).finished
        assert engine.loop.status.cells <= answer.prompt_tokens + answer.completion_tokens < used

    def test_the_least_recently_used_conversation_goes_when_the_budget_is_full(self, new_engine: NewEngine) -> None:
        probe = new_engine(parallel=1)
        probe.ask_of("math", TALKS[0])
        probe.ask_of("law", TALKS[0])
        room_for_two = int(2.5 * probe.loop.status.offloaded_bytes)
        engine = new_engine(parallel=1, ram_budget_bytes=room_for_two)
        for talk in TALKS[:3]:
            engine.ask_of("math", talk)
        engine.ask_of("law", TALKS[0])
        assert 0 < engine.loop.status.offloaded_bytes <= room_for_two
        assert engine.ask_of("math", TALKS[2]).finished.cached_tokens > 10
        first = engine.ask_of("math", TALKS[0]).finished
        assert first.cached_tokens < first.prompt_tokens - 1, "only what it shares with another conversation"

    def test_what_a_cancelled_request_had_offloaded_may_serve_again(self, new_engine: NewEngine) -> None:
        engine = new_engine(parallel=1, swap_s=1.0, step_s=0.5, share=0.9)
        leaving = engine.submit_to("math", TALKS[0], max_tokens=50, logit_bias=NO_END)
        engine.step(4)
        engine.submit_to("law", TALKS[0], max_tokens=50, logit_bias=NO_END)
        while engine.loop.specialist_id == engine.swapper.id_of("math"):
            engine.step()
        engine.loop.cancel(leaving)
        assert engine.answer(leaving).finished.reason is Finish.CANCELLED
        engine.run()
        again = engine.ask_of("math", TALKS[0]).finished
        assert again.cached_tokens == again.prompt_tokens - 1


class TestASlidingWindow:
    """A random model that forgets what is more than 32 tokens ago."""

    LONG = " ".join(f"word{number}" for number in range(20))

    @pytest.fixture
    @brings("model")
    def engine(self, tmp_path: Path) -> Iterator[SharedEngine]:
        college = College.random(tmp_path, architecture="gemma4")
        spec = college.spec("a", ram_budget_bytes=64 * MIB)
        engine = SharedEngine(Model(spec), spec)
        yield engine
        engine.close()
        engine.model.close()

    def test_what_was_offloaded_goes_on_at_its_end(self, engine: SharedEngine) -> None:
        first = engine.ask_of("a", self.LONG, max_tokens=1).finished
        engine.ask_of("b", self.LONG, max_tokens=1)
        again = engine.ask_of("a", self.LONG + " and more", max_tokens=1).finished
        assert again.cached_tokens == first.prompt_tokens > 64

    def test_and_is_not_used_from_where_its_window_is_gone(self, engine: SharedEngine) -> None:
        engine.ask_of("a", self.LONG, max_tokens=1)
        engine.ask_of("b", self.LONG, max_tokens=1)
        half = self.LONG[: len(self.LONG) // 2]
        changed = engine.ask_of("a", half + " other words", max_tokens=1, top_logprobs=1)
        assert changed.finished.cached_tokens == 0

    def test_its_checkpoint_comes_back_with_it(self, engine: SharedEngine) -> None:
        talk = [{"role": "user", "content": self.LONG}]
        first = engine.ask_of("a", talk, max_tokens=40, logit_bias={1: -100.0}).finished
        engine.ask_of("b", talk, max_tokens=1)
        then = [*talk, {"role": "assistant", "content": "another answer"}, {"role": "user", "content": "Why?"}]
        again = engine.ask_of("a", then, max_tokens=1).finished
        assert first.prompt_tokens - 24 < again.cached_tokens <= first.prompt_tokens


class TestARecurrentState:
    """A random model some of whose layers keep a state instead of cells: it is good at its end and nowhere else."""

    LONG = TestASlidingWindow.LONG

    @pytest.fixture
    @brings("model")
    def engine(self, tmp_path: Path) -> Iterator[SharedEngine]:
        college = College.random(tmp_path, architecture="qwen35moe")
        spec = college.spec("a", ram_budget_bytes=64 * MIB)
        engine = SharedEngine(Model(spec), spec)
        assert engine.model.recurrent
        yield engine
        engine.close()
        engine.model.close()

    def test_an_offloaded_conversation_is_not_spent_on_a_prompt_that_it_cannot_serve(
        self, engine: SharedEngine
    ) -> None:
        first = engine.ask_of("a", self.LONG, max_tokens=1).finished
        engine.ask_of("b", self.LONG, max_tokens=1)
        half = self.LONG[: len(self.LONG) // 2]
        assert engine.ask_of("a", half + " other words", max_tokens=1).finished.cached_tokens == 0
        again = engine.ask_of("a", self.LONG + " and more", max_tokens=1).finished
        assert again.cached_tokens == first.prompt_tokens


class TestWhatGoesWrong:
    def test_only_the_requests_of_a_specialist_whose_file_changed_are_refused(
        self, college: College, new_engine: NewEngine, tmp_path: Path
    ) -> None:
        engine = new_engine()
        path = college.folder / "chemistry.gguf"
        before = path.stat()
        try:
            staying = engine.submit_to("math", TALKS[0], max_tokens=6, logit_bias=NO_END)
            os.utime(path, ns=(1, 1))
            refused = engine.submit_to("chemistry", TALKS[0])
            other = engine.submit_to("law", TALKS[0], max_tokens=2)
            engine.run()
        finally:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        last = engine.of(refused)[-1]
        assert isinstance(last, Rejected)
        assert last.error == "SourceChangedError"
        assert engine.answer(staying).finished.completion_tokens == 6
        assert engine.answer(other).finished.completion_tokens == 2

    def test_a_swap_that_fails_half_way_ends_every_request_and_the_resident(
        self, new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        engine = new_engine(parallel=1)
        ids = [engine.submit_to("math", TALKS[0], max_tokens=2)]
        engine.run()
        ids += [engine.submit_to(name, TALKS[1]) for name in ("law", "math", "chemistry")]
        for way in ("_read_in_place", "_send"):  # the host's, and a device's
            monkeypatch.setattr(engine.swapper, way, lambda pieces, files: None)
        with pytest.raises(SwapError):
            engine.run()
        ends = [engine.of(request_id)[-1] for request_id in ids]
        assert [type(end) for end in ends] == [Finished, Rejected, Rejected, Rejected]
        engine.submit_to("law", TALKS[0])
        with pytest.raises(SwapError):
            engine.run()


class Serving(RuleBasedStateMachine):
    """Requests for three specialists come, are decoded and leave in any order; what must hold is held all the while."""

    college: College
    alone: Mapping[tuple[str, str], str]

    def __init__(self) -> None:
        super().__init__()
        self.engine: SharedEngine | None = None

    @initialize(
        parallel=st.integers(1, 3),
        ram=st.sampled_from([0, 300_000, 64 * MIB]),
        share=st.sampled_from([0.1, 0.5, 0.9]),
        cells=st.sampled_from([0, 160]),
    )
    def start(self, parallel: int, ram: int, share: float, cells: int) -> None:
        self.ram, self.share = ram, share
        self.engine = open_engine(
            self.college, share=share, swap_s=1.0, step_s=0.5, parallel=parallel, ram_budget_bytes=ram,
            context_tokens=128, cache_tokens=cells,
        )  # fmt: skip
        self.asked: dict[str, tuple[str, str]] = {}
        self.cancelled: set[str] = set()
        # No request is kept out by a lack of room: then the bound holds.
        self.roomy = ram == 64 * MIB
        self.since: dict[int, float] = {}

    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        assert self.engine is not None
        name, text = data.draw(st.sampled_from(sorted(self.alone)))
        request_id = self.engine.submit_to(name, asked(text), max_tokens=24)
        self.asked[request_id] = (name, text)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        assert self.engine is not None
        assume(self.asked)
        request_id = data.draw(st.sampled_from(sorted(self.asked)))
        self.engine.loop.cancel(request_id)
        self.cancelled.add(request_id)

    @rule(times=st.integers(1, 12))
    def step(self, times: int) -> None:
        assert self.engine is not None
        for _ in range(times):
            self._wait()
            self.engine.loop.step()
            self._wait()

    def _wait(self) -> None:
        """No specialist waits for its slice beyond the bound."""
        engine = self.engine
        assert engine is not None
        swapper = engine.swapper
        unfinished = {swapper.id_of(self.asked[i][0]) for i in self.asked if not self._ended(i)}
        for specialist_id in {0, 1, 2}:
            if specialist_id not in unfinished or specialist_id == engine.loop.specialist_id:
                self.since.pop(specialist_id, None)
            else:
                self.since.setdefault(specialist_id, engine.time_s)
                if self.roomy:
                    quantum = quantum_s(1.0, self.share, 3, 0.5)
                    assert engine.time_s - self.since[specialist_id] <= worst_wait_s(3, 1.0, quantum, 0.5) + 1e-9

    def _ended(self, request_id: str) -> bool:
        assert self.engine is not None
        return isinstance(self.engine.of(request_id)[-1], Finished | Rejected)

    @invariant()
    def no_specialist_reads_what_another_wrote(self) -> None:
        if self.engine is None:
            return
        loop = self.engine.loop
        assert loop.status.offloaded_bytes <= self.ram
        assert loop.specialist_id == self.engine.swapper.current
        for slot in loop._slots.busy:
            assert slot.cells.specialist_id == slot.sequence.specialist_id
            assert slot.cells.tokens == slot.sequence.tokens[: slot.sequence.evaluated]

    def teardown(self) -> None:
        if self.engine is None:
            return
        engine = self.engine
        for _ in range(3000):
            self._wait()
            if not engine.loop.step():
                break
        for request_id, key in self.asked.items():
            answer = engine.answer(request_id)
            if request_id in self.cancelled and answer.finished.reason is Finish.CANCELLED:
                assert self.alone[key].startswith(answer.text)
            else:
                assert answer.text == self.alone[key], key
        engine.close()
        engine.model.close()


def test_whatever_comes_in_whatever_order_every_request_gets_its_own_answer_in_time(
    college: College, alone: dict[tuple[str, str], str]
) -> None:
    machine = type("Machine", (Serving,), {"college": college, "alone": alone})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )
