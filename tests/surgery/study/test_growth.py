"""A corpus is enough when neither the mask nor the utility moves any more, and not before."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coe.demo.curriculum import DOMAINS
from coe.surgery.errors import MaskError, ProfileError
from coe.surgery.parent import Identity
from coe.surgery.plan.methods import TopK
from coe.surgery.plan.planning import plan
from coe.surgery.profile import run as profiling
from coe.surgery.profile.corpus import Corpus
from coe.surgery.profile.profile import Profile, read_extra
from coe.surgery.profile.run import ProfileProgress
from coe.surgery.study.growth import Growth, GrowthStep, Rule, profile_until_stable, settled
from fakes import taught

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
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "_PACK_BATCHES", 1)


# Steps that are short beside a corpus of some hundred questions; at most one expert of 32 a layer may change in one.
LENIENT = Rule(jaccard=0.93, worst_jaccard=0.88, entropy=0.01, first_tokens=600, growth=1.5)


@pytest.mark.model
@pytest.mark.usefixtures("small_packs")
def test_a_run_ends_when_the_mask_has_settled_and_an_interrupted_one_ends_there_too(tmp_path: Path) -> None:
    corpus = Corpus(tuple(taught.conversation(question) for question in taught.corpus("math", 300, seed=1)))
    out = tmp_path / "p.npz"
    profile, watcher = profile_until_stable(taught.PARENT, corpus, out, taught.HALF, rule=LENIENT, load=taught.READING)
    extra = read_extra(out)
    assert watcher.settled
    assert not extra["whole_corpus"]
    assert extra["growth"]["settled"]
    assert profile.n_tokens == watcher.steps[-1].tokens
    assert (tmp_path / "p.growth.png").read_bytes().startswith(b"\x89PNG")
    mask = plan(profile.merged(), taught.HALF, TopK())
    assert taught.nearest(mask) == "math"
    assert taught.overlap(mask, "math") > 0.8, "what it settled on is the domain's mask"

    def interrupt(progress: ProfileProgress) -> None:
        if progress.stage == "profile" and progress.done > watcher.steps[1].tokens:
            raise KeyboardInterrupt

    other = tmp_path / "other.npz"
    with pytest.raises(KeyboardInterrupt):
        profile_until_stable(
            taught.PARENT, corpus, other, taught.HALF, rule=LENIENT, load=taught.READING, progress=interrupt
        )
    again, history = profile_until_stable(taught.PARENT, corpus, other, taught.HALF, rule=LENIENT, load=taught.READING)
    assert history.steps == watcher.steps
    np.testing.assert_array_equal(again.weights, profile.weights)


@pytest.mark.model
@pytest.mark.usefixtures("small_packs")
def test_a_corpus_of_all_domains_settles_no_mask_of_half_the_experts(tmp_path: Path) -> None:
    """Together they need all experts alike: which ones are best by a hair changes with every question."""
    asked = [question for domain in DOMAINS for question in taught.corpus(domain, 40)]
    corpus = Corpus(tuple(taught.conversation(question) for question in asked))
    out = tmp_path / "p.npz"
    profile, watcher = profile_until_stable(taught.PARENT, corpus, out, taught.HALF, rule=LENIENT, load=taught.READING)
    assert not watcher.settled
    assert read_extra(out)["whole_corpus"]
    assert int(profile.documents.sum()) == len(asked)
    assert len(watcher.steps) > 4
