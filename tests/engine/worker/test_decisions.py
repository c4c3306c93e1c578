"""The batch loop's decisions as log lines: one each, with the request's id and the numbers that decided."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from coe.engine.generate.sequence import ActiveSequence
from coe.engine.llama.model import Model
from coe.engine.logs import WORKER_LOGGER
from coe.engine.swap.quantum import next_slice
from coe.engine.worker.kv_offload import Cells, Checkpoint, OffloadedCache, OffloadedCaches, covers
from coe.engine.worker.schedule import CacheView, Occupant, choose_slot, make_room
from fakes.local_engine import LocalEngine
from fakes.sharing_models import College, SharedEngine
from fakes.weight import brings

NewEngine = Callable[..., LocalEngine]
KEEP_GOING = {"max_tokens": 48, "logit_bias": {2: -100.0}}


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[str]]:
    """What was logged about a request."""
    caplog.set_level(logging.DEBUG, WORKER_LOGGER)

    def of(request_id: str) -> list[str]:
        return [r.getMessage() for r in caplog.records if getattr(r, "request_id", "") == request_id]

    return of


Lines = Callable[[str], list[str]]


class TestOneSpecialist:
    def test_a_request_is_accepted_starts_and_ends(
        self, smollm2_model: Model, new_engine: NewEngine, lines: Lines
    ) -> None:
        engine = new_engine(smollm2_model)
        request = engine.submit("The capital of France is", max_tokens=2)
        engine.run()
        accepted, starts, ends = lines(request)
        assert accepted == "accepted for specialist: 5 prompt tokens, 2 at most for the answer; 0 running, 0 waiting"
        assert starts.startswith("starts in slot 0: 0 of 5 tokens reused, the slot is empty; waited 0.")
        assert ends == "ends: length, 2 tokens, 0 of 5 prompt tokens from the cache"

    def test_a_start_says_what_was_reused_and_from_where(
        self, smollm2_model: Model, new_engine: NewEngine, lines: Lines
    ) -> None:
        engine = new_engine(smollm2_model, parallel=2)
        first = engine.submit("one two three four five six", max_tokens=8)
        engine.step(2)
        second = engine.submit("one two three four five nine", max_tokens=8)
        engine.run()
        assert "starts in slot 0: 0 of 6 tokens reused, the slot is empty" in lines(first)[1]
        assert "starts in slot 1: 5 of 6 tokens reused, its beginning is copied from slot 0" in lines(second)[1]

    def test_a_refusal_says_its_kind_and_quotes_no_client(
        self, smollm2_model: Model, new_engine: NewEngine, lines: Lines
    ) -> None:
        engine = new_engine(smollm2_model, context_tokens=64)
        request = engine.submit("word " * 100)
        (refused,) = lines(request)
        assert refused == "refused: PromptTooLongError"

    def test_a_request_that_waits_says_so_once(self, smollm2_model: Model, new_engine: NewEngine, lines: Lines) -> None:
        engine = new_engine(smollm2_model)
        engine.submit("one", max_tokens=8)
        waiting = engine.submit("two", max_tokens=1)
        engine.run()
        assert lines(waiting)[1] == "waits: all slots are busy"
        assert lines(waiting)[2].startswith("starts in slot 0")

    def test_a_preemption_says_what_is_lost(self, smollm2_model: Model, new_engine: NewEngine, lines: Lines) -> None:
        engine = new_engine(smollm2_model, parallel=2, context_tokens=128)
        texts = ("Write a long story about a ship. " * 4, "List the planets and their moons. " * 4)
        _, second = (engine.submit(text, **KEEP_GOING) for text in texts)
        engine.run()
        (preempted,) = [line for line in lines(second) if line.startswith("preempted")]
        assert preempted.startswith("preempted from slot 1, ")
        assert preempted.endswith(" tokens are to be evaluated again: 130 cells are wanted, there are 128")

    def test_no_line_is_written_unless_asked_for(
        self, smollm2_model: Model, new_engine: NewEngine, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        new_engine(smollm2_model).ask("one", max_tokens=1)
        assert not [record for record in caplog.records if record.name.startswith(WORKER_LOGGER)]


class TestTimeSlices:
    @pytest.fixture
    @brings("model")
    def engine(self, tmp_path: Path) -> Iterator[SharedEngine]:
        college = College.random(tmp_path, names="ab")
        spec = college.spec("a", ram_budget_bytes=2**26)
        engine = SharedEngine(Model(spec), spec, swap_s=1.0, step_s=0.5)
        yield engine
        engine.close()
        engine.model.close()

    def test_a_swap_names_both_specialists_the_quantum_and_what_waits(
        self, engine: SharedEngine, lines: Lines, caplog: pytest.LogCaptureFixture
    ) -> None:
        first = engine.submit_to("a", "hello", max_tokens=40, logit_bias={1: -100.0})
        engine.step(3)
        second = engine.submit_to("b", "hello", max_tokens=4, logit_bias={1: -100.0})
        engine.run()
        accepted, swap, starts, *_ = lines(second)
        assert "after a swap; 1 running, 0 waiting" in accepted
        assert swap.startswith("time slice of a ends, it ran for ")
        assert "(quantum 0.000 s), its quantum is over; swap to b: " in swap
        assert swap.endswith(" ms; a wait")
        assert starts.startswith("starts in slot 0: 0 of ")
        offloaded, _, restored = lines(first)[2:5]
        assert offloaded.startswith("request offloaded from slot 0: ")
        assert "time slice of b ends" in "".join(lines(first)[3:])
        assert "its own cells are restored from host memory" in restored
        (idle,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("conversation")]
        assert "conversation offloaded from slot 0: " in idle

    def test_a_younger_request_of_the_running_specialist_starts_before_older_ones(
        self, engine: SharedEngine, lines: Lines
    ) -> None:
        engine.submit_to("a", "hello", max_tokens=3, logit_bias={1: -100.0})
        engine.run()
        engine.loop._slices.add_step(1.0)
        engine.submit_to("b", "hello", max_tokens=1)
        younger = engine.submit_to("a", "hello", max_tokens=1)
        engine.loop._queue.start_waiting(engine.loop.specialist_id)
        assert lines(younger)[1].endswith("; before 1 older requests")


def _cache(tokens: list[int], *, specialist: int = 0, forgotten: int = 0, at: int = 0, used: int = 1) -> OffloadedCache:
    checkpoint = Checkpoint(at, np.zeros(1, np.uint8)) if at else None
    return OffloadedCache(Cells(specialist, tokens, checkpoint), np.zeros(10, np.uint8), forgotten, used)


@pytest.mark.parametrize(
    ("cache", "other", "covered"),
    [
        (_cache([1, 2, 3]), _cache([1, 2, 3]), True),
        (_cache([1, 2, 3]), _cache([1, 2]), True),
        (_cache([1, 2]), _cache([1, 2, 3]), False),
        (_cache([1, 2, 3]), _cache([1, 4]), False),
        (_cache([1, 4, 3]), _cache([1, 2, 3]), False),
        (_cache([1, 2, 3], specialist=1), _cache([1, 2, 3]), False),
        (_cache([1, 2, 3], forgotten=2), _cache([1, 2]), False),
        (_cache([1, 2, 3], forgotten=2), _cache([1, 2, 3], forgotten=2), True),
        (_cache([1, 2, 3], forgotten=2), _cache([1, 2, 3]), False),
        (_cache([1, 2, 3], forgotten=2), _cache([1, 2, 3], forgotten=2, at=1), False),
        (_cache([1, 2, 3], forgotten=2, at=1), _cache([1, 2, 3], forgotten=2, at=1), True),
    ],
)
def test_a_conversation_covers_what_goes_on_from_it_as_well(
    cache: OffloadedCache, other: OffloadedCache, covered: bool
) -> None:
    assert covers(cache, other) is covered


def test_the_same_question_asked_again_and_again_takes_host_memory_once() -> None:
    caches = OffloadedCaches(1000)
    for used in range(50):
        assert caches.add(_cache([1, 2, 3], used=used))
        assert caches.add(_cache([1, 2], used=used))
    assert caches.n_bytes == 10
    assert caches.add(_cache([1, 2, 3, 4], used=99))
    assert caches.n_bytes == 10
    assert [list(view.tokens) for view in caches.views(0, 0)] == [[1, 2, 3, 4]]


def test_a_conversation_that_finds_no_room_leaves_those_that_it_would_cover() -> None:
    caches = OffloadedCaches(25)
    busy = replace(_cache([7]), sequence=cast("ActiveSequence", object()))
    assert caches.add(busy)
    assert caches.add(_cache([1, 2]))
    large = replace(_cache([1, 2, 3]), state=np.zeros(20, np.uint8))
    assert not caches.add(large)
    assert [list(view.tokens) for view in caches.views(0, 0)] == [[1, 2]]


def test_an_offloaded_conversation_that_is_dropped_says_for_how_much(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, WORKER_LOGGER)
    caches = OffloadedCaches(100)
    for last_used, tokens in enumerate(([1, 2, 3], [4, 5])):
        assert caches.add(OffloadedCache(Cells(0, tokens), np.zeros(60, np.uint8), 0, last_used))
    assert caplog.messages == [
        "offloaded conversation of 3 tokens dropped, the least recently used: 60 bytes of host memory are wanted"
    ]


class TestReasons:
    def test_a_placement_says_why(self) -> None:
        empty, held = CacheView(0, (), False, 0), CacheView(1, [1, 2, 3, 4], False, 1)
        reasons = [
            placement.reason
            for placement in (
                choose_slot([1, 2, 3, 4, 5], [empty, held]),
                choose_slot([1, 9], [empty, held]),
                choose_slot([9], [empty, held]),
                choose_slot([9], [held]),
                choose_slot([7, 8, 9], [held], offloaded=[CacheView(4, [7, 8], False, 0)]),
            )
            if placement is not None
        ]
        assert reasons == [
            "its conversation goes on",
            "its beginning is copied from slot 1",
            "the slot is empty",
            "the least recently used conversation is replaced",
            "its conversation is restored from host memory",
        ]

    def test_room_says_what_is_missing(self) -> None:
        room = make_room(20, [Occupant(0, 50, False, 1), Occupant(1, 40, True, 2)], 100)
        assert room is not None
        assert room.reason == "110 cells are wanted, there are 100"

    def test_a_time_slice_says_why_it_ends_or_goes_on(self) -> None:
        assert next_slice(0, {0: 1, 1: 2}, elapsed_s=0.5, quantum_s=1.0).reason == "its quantum is not over"
        assert next_slice(0, {0: 1, 1: 2}, elapsed_s=1.0, quantum_s=1.0).reason == "its quantum is over"
        assert next_slice(0, {1: 2}, elapsed_s=0.5, quantum_s=1.0).reason == "it has nothing to run"
        assert next_slice(0, {0: 1}, elapsed_s=9.0, quantum_s=1.0).reason == "no other specialist is ready"
