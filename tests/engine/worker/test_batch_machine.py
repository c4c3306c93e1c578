"""The batch loop under random sequences of requests: a state machine over a tiny random model, rules held each step.

A step evaluates few tokens, so that prompts are read beside one another over several.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from coe.engine.llama.model import Model
from coe.engine.request import Accepted, Finished, Rejected
from fakes.device import cards
from fakes.local_engine import LocalEngine

CELLS, PARALLEL, BATCH_TOKENS = 96, 3, 12
WORDS = st.lists(st.sampled_from(["one", "two", "three", "four"]), min_size=1, max_size=24).map(" ".join)


class BatchMachine(RuleBasedStateMachine):
    """Requests come and leave at any step; prompts share beginnings, and are too long at times."""

    engine: LocalEngine
    alone: Callable[[str, int], str]

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[str, tuple[str, int]] = {}
        self.open: list[str] = []
        self.left: set[str] = set()
        self.steps_at: dict[str, int] = {}
        self.steps = 0

    @rule(text=WORDS, max_tokens=st.integers(1, 12))
    def submit(self, text: str, max_tokens: int) -> None:
        name = self.engine.submit(text, max_tokens=max_tokens)
        self.open.append(name)
        self.asked[name] = (text, max_tokens)
        self.steps_at[name] = self.steps
        self.collect()

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.open))
        self.engine.loop.cancel(name)
        self.left.add(name)
        self.open.remove(name)

    @rule(times=st.integers(1, 6))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.engine.loop.step()
            self.steps += 1
        self.collect()

    def collect(self) -> None:
        self.open = [name for name in self.open if not self.ends(name)]

    def ends(self, name: str) -> list[Any]:
        return [event for event in self.engine.of(name) if isinstance(event, Finished | Rejected)]

    @invariant()
    def cells_are_conserved(self) -> None:
        assert 0 <= self.engine.loop.status.cells <= CELLS

    @invariant()
    def each_request_is_somewhere_once(self) -> None:
        assert self.engine.loop.active + self.engine.loop.waiting == len(self.open)
        assert self.engine.loop.active <= PARALLEL

    @invariant()
    def each_has_at_most_one_end(self) -> None:
        for name in self.steps_at:
            events = self.engine.of(name)
            assert len(self.ends(name)) <= 1
            assert sum(isinstance(event, Accepted) for event in events) <= 1
            if self.ends(name) and name not in self.left:
                assert events[-1] is self.ends(name)[0]

    @invariant()
    def nobody_starves(self) -> None:
        # A request takes at most some forty steps, and no more than all before it come first.
        assert all(self.steps - self.steps_at[name] <= 60 * (len(self.steps_at) + 1) for name in self.open)

    def teardown(self) -> None:
        """All that was asked comes to its end, says what it says alone, and no place stays taken."""
        self.engine.run()
        self.collect()
        assert not self.open
        assert (self.engine.loop.active, self.engine.loop.waiting) == (0, 0)
        for name in self.asked.keys() - self.left:
            # A device rounds batches of other sizes otherwise, and a near tie falls the other way.
            if isinstance(self.ends(name)[0], Finished) and not cards():
                assert self.engine.answer(name).text == self.alone(*self.asked[name])
        self.engine.events.clear()


@pytest.fixture
def machine(random_gemma4: Any, gemma4_model: Model, new_engine: Any) -> type[BatchMachine]:
    sizes = {"context_tokens": CELLS // PARALLEL, "batch_tokens": BATCH_TOKENS}

    @cache
    def alone(text: str, max_tokens: int) -> str:
        return str(new_engine(gemma4_model, **sizes).ask(text, max_tokens=max_tokens).text)

    class Bound(BatchMachine):
        engine = new_engine(gemma4_model, parallel=PARALLEL, cache_tokens=CELLS, **sizes)

    Bound.alone = staticmethod(alone)

    return Bound


def test_every_rule_holds_at_every_step(machine: type[BatchMachine]) -> None:
    found = settings()
    run_state_machine_as_test(machine, settings=settings(found, max_examples=max(found.max_examples // 4, 5)))
