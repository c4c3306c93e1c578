"""How fast prompts are read."""

from __future__ import annotations

from coe.engine.worker.prompt_speed import PromptSpeed


def test_a_prompt_in_several_steps_counts_when_the_last_has_ended() -> None:
    speed = PromptSpeed()
    speed.add(512, 0.01, ended=False)
    assert speed.tokens_per_s == 0.0, "a GPU has only been told what to do"
    speed.add(488, 0.99, ended=True)
    assert speed.tokens_per_s == 1000.0


def test_what_is_written_and_short_prompts_say_nothing() -> None:
    speed = PromptSpeed()
    speed.add(0, 5.0, ended=True)
    speed.add(20, 1.0, ended=True)
    speed.add(0, 5.0, ended=True)
    assert speed.tokens_per_s == 0.0
    speed.add(500, 0.25, ended=True)
    assert speed.tokens_per_s == 2000.0


def test_the_last_prompts_count() -> None:
    speed = PromptSpeed()
    for _ in range(20):
        speed.add(100, 1.0, ended=True)
    for _ in range(8):
        speed.add(100, 0.1, ended=True)
    assert round(speed.tokens_per_s) == 1000


def test_what_was_given_up_before_a_pause_is_not_added_to_the_next_prompt() -> None:
    speed = PromptSpeed()
    speed.add(512, 0.01, ended=False)
    speed.forget_unended()
    speed.add(100, 0.1, ended=True)
    assert round(speed.tokens_per_s) == 1000
