"""A fault that one request's data brings out ends that request; the others of its batch go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from coe.engine.generate.sequence import ActiveSequence
from coe.engine.llama.model import Model
from coe.engine.request import Rejected
from fakes.local_engine import LocalEngine


class Panic(BaseException):
    """As a panic of a library that is written in Rust comes to Python."""


@pytest.mark.parametrize("fault", [AssertionError, RecursionError, KeyError, Panic])
@pytest.mark.parametrize("step", ["_filter", "_next_token", "_flush"])
def test_a_fault_in_the_middle_of_an_answer_is_that_answers(
    gemma4_model: Model,
    new_engine: Callable[..., LocalEngine],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step: str,
    fault: type[BaseException],
) -> None:
    engine = new_engine(gemma4_model, parallel=2)
    alone = engine.ask("w1 w2 w3", max_tokens=8)
    doomed = engine.submit("w9 w8 w7", max_tokens=4)
    healthy = engine.submit("w1 w2 w3", max_tokens=8)
    real = getattr(ActiveSequence, step)

    def failing(sequence: ActiveSequence, *given: Any, **named: Any) -> Any:
        if sequence.request.id == doomed:
            raise fault("what a user said")
        return real(sequence, *given, **named)

    monkeypatch.setattr(ActiveSequence, step, failing)
    engine.run()
    assert engine.answer(healthy).text == alone.text
    last = engine.of(doomed)[-1]
    assert isinstance(last, Rejected)
    assert last.error == "EngineError"
    assert fault.__name__ in last.message
    assert "what a user said" not in last.message
    assert any(record.exc_info for record in caplog.records), "an operator can report it"
    assert engine.ask("w1 w2 w3", max_tokens=8).text == alone.text, "its slot is free"
