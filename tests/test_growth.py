"""A corpus is enough when neither the mask nor the utility moves any more, and not before."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from random_model import Shape, write_random_model

from coe.engine.spec import LoadSpec
from coe.surgery import profiling
from coe.surgery.corpus import Corpus, Document
from coe.surgery.errors import MaskError, ProfileError
from coe.surgery.growth import Growth, GrowthStep, Rule, profile_until_stable, settled
from coe.surgery.parent import Identity
from coe.surgery.profile import Profile, read_extra
from coe.surgery.profiling import Progress

STILL = GrowthStep(1000, 1.0, 1.0, 0.9)
PARENT = Identity("p", "0" * 64, "gemma4", (0, 1), 8, 2)
RULE = Rule(first_tokens=100, growth=1.25)


@pytest.mark.parametrize(
    ("changed", "enough"),
    [
        ({}, True),
        ({"jaccard": 0.97}, False),
        ({"worst_jaccard": 0.93}, False),
        ({"entropy": 0.91}, False),
        ({"jaccard": None, "worst_jaccard": None}, False),
    ],
)
def test_two_steps_that_move_nothing_are_enough(changed: dict[str, float | None], enough: bool) -> None:
    first = GrowthStep(800, None, None, 0.9)
    assert settled([first, STILL, STILL], 64) is True
    assert settled([first, STILL, replace(STILL, **changed)], 64) is enough
    assert settled([first, replace(STILL, **changed), STILL], 64) is (enough and changed != {"entropy": 0.91})
    assert settled([STILL, STILL], 64) is False


def test_one_exchanged_expert_is_let_pass_in_masks_of_few() -> None:
    step = replace(STILL, jaccard=0.99, worst_jaccard=7 / 9)
    assert settled([step] * 3, 8)
    assert not settled([step] * 3, 64)


def grown(tokens: int, mass: list[float]) -> Profile:
    profile = Profile.empty(PARENT, ["all"])
    profile.weights[0, :, :, 0] = np.array(mass) * tokens
    profile.tokens[0] = tokens
    return profile


def test_a_growing_profile_is_looked_at_in_steps_that_grow_with_it() -> None:
    watcher = Growth(4, rule=RULE)
    for tokens in range(10, 300, 10):
        watcher.enough(grown(tokens, [8, 7, 6, 5, 4, 3, 2, 1]), last=False)
    assert [step.tokens for step in watcher.steps] == [100, 130, 170, 220, 280]
    assert watcher.settled


def test_the_end_of_the_corpus_is_looked_at_once() -> None:
    watcher = Growth(4, rule=RULE)
    for tokens, last in ((100, False), (110, True), (110, True)):
        watcher.enough(grown(tokens, [1] * 8), last=last)
    assert [step.tokens for step in watcher.steps] == [100, 110]


def test_a_mask_that_moves_has_not_settled() -> None:
    watcher = Growth(4, rule=RULE)
    for step in range(8):
        mass = np.roll([8, 7, 6, 5, 4, 3, 2, 1], step)
        assert not watcher.enough(grown(100 * 2**step, mass.tolist()), last=False)
    assert watcher.steps[-1].jaccard == pytest.approx(3 / 5)


def test_what_is_remembered_goes_on_and_that_of_another_question_does_not() -> None:
    watcher = Growth(4, rule=RULE)
    for tokens in (100, 200):
        watcher.enough(grown(tokens, [8, 7, 6, 5, 4, 3, 2, 1]), last=False)
    memory = json.loads(json.dumps(watcher.remember()))
    again, other = Growth(4, rule=RULE), Growth(5, rule=RULE)
    for new in (again, other):
        new.begin(grown(200, [1] * 8), memory)
    assert again.steps == watcher.steps
    assert other.steps == []
    again.enough(grown(400, [8, 7, 6, 5, 4, 3, 2, 1]), last=False)
    assert again.settled


def test_masks_that_cannot_be_are_refused_before_the_work() -> None:
    with pytest.raises(MaskError):
        Growth(1).begin(Profile.empty(PARENT, ["all"]), {})
    with pytest.raises(ProfileError, match="norms"):
        Growth(4, "reap").begin(Profile.empty(PARENT, ["all"]), {})


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(profiling, "_PACK_BATCHES", 1)
    return write_random_model(tmp_path / "p.gguf", Shape(experts=8, experts_used=2))


def test_a_run_ends_when_the_mask_has_settled_and_an_interrupted_one_ends_there_too(
    parent: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    text = [" ".join(f"w{n}" for n in rng.integers(0, 60, 80)) for _ in range(80)]
    corpus = Corpus(tuple(Document("all", part) for part in text))
    out, rule = tmp_path / "p.npz", Rule(first_tokens=600, growth=1.2)
    load = LoadSpec(parent, context_tokens=256, threads=1)
    profile, watcher = profile_until_stable(parent, corpus, out, 6, rule=rule, load=load)
    extra = read_extra(out)
    assert watcher.settled
    assert not extra["whole_corpus"]
    assert extra["growth"]["settled"]
    assert profile.n_tokens == watcher.steps[-1].tokens
    assert (tmp_path / "p.growth.png").read_bytes().startswith(b"\x89PNG")

    def interrupt(progress: Progress) -> None:
        if progress.stage == "profile" and progress.done > watcher.steps[1].tokens:
            raise KeyboardInterrupt

    other = tmp_path / "other.npz"
    with pytest.raises(KeyboardInterrupt):
        profile_until_stable(parent, corpus, other, 6, rule=rule, load=load, progress=interrupt)
    again, history = profile_until_stable(parent, corpus, other, 6, rule=rule, load=load)
    assert history.steps == watcher.steps
    np.testing.assert_array_equal(again.weights, profile.weights)
