"""The experiment: what is drawn, what is kept, that it goes on where it stopped, and what is written of it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coe.demo.asking import Manner, ask, ask_cut, drawn_evenly
from coe.demo.curriculum import DOMAINS, questions
from coe.demo.experiment import pieces as measurements
from coe.demo.experiment import results as runs
from coe.demo.experiment import sample as samples
from coe.demo.experiment.claims import judge
from coe.demo.experiment.design import BASE, BUDGET_TOKENS, METHODS, QUICK, RANDOM, ExperimentPlan
from coe.demo.experiment.findings import Estimate, beside_base, units_of, visiting
from coe.demo.experiment.pieces import Pieces, policy
from coe.demo.experiment.report import table, write
from coe.demo.experiment.results import Results, run
from coe.demo.experiment.sample import Sample
from coe.demo.shipped import PARENT
from coe.engine.request import Finish
from coe.engine.spec import Sampling
from coe.surgery.mask import Mask
from coe.surgery.parent import Parent
from fakes.weight import brings

TINY = replace(QUICK, shares=(0.5,), corpora=(3, 30), exam=8, visits=4, loops=2, loop_tokens=300, thoughts=4, growth=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experiment")


@pytest.fixture(scope="module")
def patched_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hashes and answers of this module in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
@brings("model")
def results(folder: Path, patched_cache: None) -> Results:
    """The smallest experiment that there is, on the parent that ships."""
    return run(PARENT, TINY, folder)


def test_questions_are_drawn_from_all_skills_alike() -> None:
    taught = questions("python")
    drawn = drawn_evenly(taught, 60, random.Random(1))
    assert drawn == drawn_evenly(taught, 60, random.Random(1))
    assert len(set(drawn)) == 60
    counts = [sum(q.skill == skill for q in drawn) for skill in {q.skill for q in taught}]
    assert max(counts) - min(counts) <= 1
    assert len(drawn_evenly(taught[:5], 60, random.Random(1))) == 5


@pytest.mark.model
def test_a_mask_that_keeps_everything_answers_as_its_parent(patched_cache: None) -> None:
    parent = Parent.open(PARENT)
    asked = drawn_evenly([q for q in questions("law") if q.held_out], 20, random.Random(2))
    whole = ask_cut(parent, Mask.everything(parent.identity()), asked)
    assert [answer.text for answer in whole] == [answer.text for answer in ask(PARENT, asked)]
    assert sum(answer.right for answer in whole) > 10


@pytest.mark.model
def test_an_answer_that_is_cut_off_is_wrong(patched_cache: None) -> None:
    asked = [q for q in questions("law") if q.held_out][:4]
    answers = ask(PARENT, asked, Manner(max_tokens=2))
    assert {answer.reason for answer in answers} == {Finish.LENGTH}
    assert not any(answer.right for answer in answers)


@pytest.mark.model
def test_the_same_seed_draws_the_same_answers(patched_cache: None) -> None:
    asked = [q for q in questions("law") if q.held_out][:6]
    manner = Manner(sampling=Sampling(temperature=0.9))
    assert ask(PARENT, asked, manner, seed=3) == ask(PARENT, asked, manner, seed=3)


def test_corpora_are_held_apart_from_exams_and_samples_differ(results: Results) -> None:
    first, second = results.samples
    for domain in DOMAINS:
        assert not any(question.held_out for question in first.taught[domain])
        assert all(question.held_out for question in first.exam[domain])
        assert first.taught[domain] != second.taught[domain]


def test_a_smaller_corpus_is_the_beginning_of_the_larger(results: Results) -> None:
    sample = results.samples[0]
    small, whole = sample.profile(3).of_class("law"), sample.profile().of_class("law")
    assert int(small.documents.sum()) == 3
    assert int(whole.documents.sum()) == 30
    assert (small.selections <= whole.selections).all()


def test_every_method_makes_a_mask_of_the_size_asked_for(results: Results) -> None:
    profile = results.samples[0].profile()
    masks = {method.name: method.mask(profile, "law", 32, seed=1) for method in METHODS}
    assert {mask.n_keep for mask in masks.values()} == {32}
    assert len({tuple(map(tuple, mask.keep.values())) for mask in masks.values()}) > 5


def test_what_is_done_is_not_done_again(
    results: Results, folder: Path, monkeypatch: pytest.MonkeyPatch, patched_cache: None
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("this was done already")

    for name in ("at_home", "by_method", "by_corpus", "grown", "answered", "visits", "loops"):
        monkeypatch.setattr(runs, name, never)
    for module in (samples, measurements):
        monkeypatch.setattr(module, "profile_corpus", never)
    again = run(PARENT, TINY, folder)
    assert again.methods == results.methods
    assert again.loops == results.loops


def test_a_run_goes_on_with_the_piece_that_is_missing(tmp_path: Path) -> None:
    told: list[str] = []
    pieces = Pieces(tmp_path, told.append)
    assert pieces.get("one", lambda: {"a": 1}) == {"a": 1}
    with pytest.raises(KeyboardInterrupt):
        pieces.get("two", interrupted)
    assert pieces.get("one", lambda: {"a": 2}) == {"a": 1}
    assert pieces.get("two", lambda: {"b": 2}) == {"b": 2}
    assert [line.split()[0] for line in told] == ["one", "two"]


def interrupted() -> dict[str, int]:
    raise KeyboardInterrupt


def test_other_questions_make_other_pieces(folder: Path, results: Results) -> None:
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 1
    assert runs._digest(TINY) != runs._digest(replace(TINY, exam=9))


def test_chosen_experts_keep_more_than_random_ones(results: Results) -> None:
    """Of a parent that has learned something this must hold in any sample."""
    for unit in units_of([results]):
        assert unit.retained(BASE, 0.5) > unit.retained(RANDOM, 0.5) + 0.2
    difference = beside_base([results], RANDOM, 0.5)
    assert difference.mean < 0
    assert difference.clear()
    assert beside_base([results], BASE, 0.5) == Estimate(0.0, 0.0)


def test_visits_are_held_against_the_parent_on_the_same_questions(results: Results) -> None:
    found = visiting(units_of([results])[0], 0.5, TINY)
    assert found is not None
    assert len(found.found.visits) == 30
    y = found.matrix(lambda visit: visit.transfer)
    assert np.isnan(np.diagonal(y)).all()
    rights = results.visits[0.5][0]["law"]["math"]
    parent = results.home[0]["math"][: TINY.visits]
    row, column = DOMAINS.index("law"), DOMAINS.index("math")
    assert y[row, column] == pytest.approx(sum(rights) / sum(parent))


def test_loops_are_counted_once_and_their_retries_apart(results: Results) -> None:
    for pieces in results.loops.values():
        for piece in pieces.values():
            for ways in piece.values():
                assert list(ways) == ["off", "budget", "on"]
                for samplings in ways.values():
                    for counts in samplings.values():
                        assert counts["recovered_right"] <= counts["recovered"] <= counts["looped"] <= counts["n"]
                        assert counts["looped"] + counts["at_limit"] <= counts["n"]
                        assert bool(counts["guarded_tokens"]) == bool(counts["looped"])


def test_thinking_policies_are_the_rosters() -> None:
    assert policy("off").mode == "off"
    assert policy("on").mode == "on"
    assert policy("budget").budget_tokens == BUDGET_TOKENS


def test_the_report_is_written_from_the_pieces(results: Results, tmp_path: Path) -> None:
    path = write([results], TINY, tmp_path)
    text = path.read_text()
    assert "$" not in text
    assert "one parent" in text
    for picture in ("recipes", "corpus", "transfer", "overlap"):
        assert f"(experiments/{picture}.png)" in text
        content = (tmp_path / "experiments" / f"{picture}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) < 200_000
    for method in METHODS:
        assert f"| {method.name} |" in text
    assert len(text.splitlines()) > 100


def test_verdicts_follow_the_figures(results: Results) -> None:
    """The same claim is judged otherwise when what was measured is otherwise."""
    plan = TINY
    seen = {share: [visiting(unit, share, plan) for unit in units_of([results])] for share in plan.corpus_shares}
    claims = judge([results], plan, {share: [one for one in found if one] for share, found in seen.items()})
    assert claims[1].verdict == "holds"
    swapped = [
        {
            domain: {**methods, BASE: methods[RANDOM], RANDOM: methods[BASE]}
            for domain, methods in json.loads(json.dumps(sample)).items()
        }
        for sample in results.methods
    ]
    worse = judge([replace(results, methods=swapped)], plan, {})
    assert worse[0].verdict != "holds"
    assert worse[1].verdict == "does not hold"


def test_several_parents_are_more_units(results: Results, tmp_path: Path) -> None:
    assert len(units_of([results, results])) == 2 * TINY.samples
    assert "2 parents of different training seeds" in write([results, results], TINY, tmp_path).read_text()


def test_an_estimate_knows_when_it_is_clear() -> None:
    assert Estimate.of([1.0, 1.2, 0.8]).clear()
    assert not Estimate.of([1.0, -1.2, 0.8]).clear()
    assert not Estimate.of([1.0]).clear()
    assert Estimate.of([0.5, 0.5]).percent() == "50.0 ± 0.0"
    assert Estimate.of([0.5]).percent() == "50.0"


def test_tables_are_markdown() -> None:
    assert table(("a", "b"), [(1, "x")]) == "| a | b |\n|---|---:|\n| 1 | x |"


def test_a_sample_draws_the_same_wherever_it_runs(tmp_path: Path) -> None:
    parent = Parent.open(PARENT)
    one, other = (Sample(1, ExperimentPlan(), parent, tmp_path) for _ in range(2))
    assert one.exam == other.exam
    assert one.draw("a").random() != one.draw("b").random()
