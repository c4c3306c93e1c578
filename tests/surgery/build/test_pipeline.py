"""The whole pipeline: what it leaves behind, what it repeats, and that it can be killed anywhere.

What is released by itself and what is kept aside is seen on the trained parent, all else on a random one, which is
read and cut faster.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from random_model import Shape, write_random_model

from coe.demo.asking import ask
from coe.engine import child
from coe.engine import errors as engine_errors
from coe.engine.errors import UnavailableError
from coe.engine.gguf.reader import read_header
from coe.engine.pool.places import HOST
from coe.surgery import errors as surgery_errors
from coe.surgery.build import pipeline as build
from coe.surgery.build import preflight
from coe.surgery.build import steps as steps_module
from coe.surgery.build.job import MOST_BEGINNINGS, BuildOrder, BuildProgress, BuildState, Job, Machine
from coe.surgery.errors import BuildError, SurgeryError
from coe.surgery.judge.values import Bound
from coe.surgery.mask import Mask
from coe.surgery.parent import Parent
from coe.surgery.plan.methods import DropMap, ThreePass, TopK
from coe.surgery.plan.recipes import Recipe
from coe.surgery.profile.profile import Profile
from fakes import taught
from fakes.weight import brings

LINES = 40
MACHINE = Machine(context_tokens=256, parallel=4, threads=1)

# Carries a build out and kills its own process when a step has done its work, before that is written down.
KILLED = """
import os, signal, sys
from pathlib import Path
from coe.surgery.build import pipeline as build, preflight
from coe.surgery.build.job import Job

record = Job.record

def recorded(self, step, what):
    if step == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
    record(self, step, what)

Job.record = recorded
build.run(Job(Path(sys.argv[1])))
"""
STEPS = ["split", "coherence", "profile", "plan", "cut", "verify", "evaluate", "gate", "publish"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random gemma4 of 8 experts, 2 used."""
    return write_random_model(tmp_path_factory.mktemp("parent") / "parent.gguf", Shape(experts=8))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "sums.jsonl"
    lines = [{"question": f"What is {n} plus {n}?", "answer": str(2 * n)} for n in range(LINES)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


NewJob = Callable[..., Job]


@pytest.fixture
def new_job(tmp_path: Path, parent: Path, corpus: Path) -> NewJob:
    """new_job(name="sums", experts=4, ...): a build that was asked for."""

    def make(name: str = "sums", **changes: Any) -> Job:
        job = Job.of(tmp_path / "models", name)
        out = tmp_path / "models" / "built" / f"{name}.gguf"
        order = BuildOrder(name, parent, (str(corpus),), 4, out, max_tokens=4)
        job.write_order(replace(order, **changes), MACHINE)
        return job

    return make


def out_of(job: Job) -> Path:
    return job.order()[0].out


def steps_taken(job: Job, **how: Any) -> tuple[BuildProgress, list[str]]:
    """Carry it out; gives its end and the steps that were really done."""
    before = {name: record.ended for name, record in job.records().items()}
    ended = build.run(job, **how)
    return ended, [name for name, record in job.records().items() if record.ended != before.get(name)]


@pytest.mark.model
def test_a_build_goes_from_corpus_to_judgement_and_repeats_nothing(new_job: NewJob) -> None:
    job = new_job()
    ended, steps = steps_taken(job)
    assert ended.state is BuildState.ASIDE, ended
    assert "too few for a judgement" in ended.message
    assert "--accept" in ended.remedy
    assert steps == STEPS
    assert not out_of(job).exists()
    assert read_header(job.path("specialist.gguf")).metadata["gemma4.expert_count"] == 4
    assert steps_taken(job)[1] == []


@pytest.mark.model
def test_every_tenth_question_is_held_out_of_the_profile_and_asked(new_job: NewJob, corpus: Path) -> None:
    with corpus.open("a") as file:  # the words of the 6th question again, with another answer
        file.write(json.dumps({"question": "what is 5  plus 5?", "answer": "ten"}) + "\n")
    job = new_job()
    build.run(job)
    held = {one["question"] for one in json.loads(job.path("held.json").read_text())}
    profiled = [json.loads(line)["question"] for line in job.path("corpus.jsonl").read_text().splitlines()]
    assert held == {f"What is {n} plus {n}?" for n in (5, 15, 25, 35)}
    assert len(profiled) == LINES - 4
    assert not [line for line in profiled if " 5 " in line]
    report = job.report()
    assert report is not None
    split = report["steps"]["split"]
    assert split.pop("seconds") >= 0
    assert split == {"lines": 36, "left_out": 5, "held_out": 4, "judged_by": 4}
    assert len(report["evaluation"]["model"]["outcomes"]) == 4
    assert report["evaluation"]["beside"]["name"] == "parent"


@pytest.mark.model
def test_nothing_that_asks_a_question_to_judge_by_is_profiled_in_whatever_form(
    new_job: NewJob, tmp_path: Path, corpus: Path
) -> None:
    held, given, free = "What is 5 plus 5?", "How many legs does a spider have?", "Who wrote the first of these?"
    chats = [
        {"messages": [{"role": "user", "content": one}, {"role": "assistant", "content": "I do not know."}]}
        for one in (held, given, free)
    ]
    texts = [{"text": f"Somebody asked: {one} Nobody knew."} for one in (held, given, free)]
    lines = "".join(json.dumps(one) + "\n" for one in [*chats, *texts])
    for name in ("chats.jsonl", "traces.jsonl"):
        (tmp_path / name).write_text(lines)
    for name in ("plain.txt", "traces.txt"):
        (tmp_path / name).write_text("\n\n".join(f"Paragraph {n}: {one}" for n, one in enumerate((held, given, free))))
    (tmp_path / "given.jsonl").write_text(json.dumps({"question": given, "answer": "8"}) + "\n")
    job = new_job(
        corpus=(str(corpus), f"chats={tmp_path / 'chats.jsonl'}", f"plain={tmp_path / 'plain.txt'}"),
        reasoning=(str(tmp_path / "traces.jsonl"), str(tmp_path / "traces.txt")),
        questions=(tmp_path / "given.jsonl",),
    )
    assert build.run(job).state is BuildState.ASIDE
    for name in ("corpus.jsonl", "corpus-0.txt", "reasoning.jsonl", "reasoning-0.txt"):
        profiled = job.path(name).read_text()
        assert free in profiled
        assert held not in profiled
        assert given not in profiled
    report = job.report()
    assert report is not None
    split = report["steps"]["split"]
    assert (split["left_out"], split["reasoning_left_out"]) == (4 + 4 + 2, 4 + 2)
    assert set(Profile.load(job.path("profile.npz")).classes) == {"all", "chats", "plain"}


def test_a_corpus_of_nothing_but_the_questions_to_judge_by_is_refused(
    new_job: NewJob, tmp_path: Path, corpus: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("What is 5 plus 5?")
    ended = build.run(new_job(corpus=(str(text),), questions=(corpus,)))
    assert ended.state is BuildState.FAILED
    assert "Nothing is left to profile" in ended.message


@pytest.mark.model
def test_another_corpus_leaves_the_reasoning_profile_as_it_is(new_job: NewJob, tmp_path: Path, corpus: Path) -> None:
    text = _text(tmp_path / "text.txt")
    job = new_job(reasoning=(str(text),))
    build.run(job)
    with corpus.open("a") as file:
        file.write(json.dumps({"question": "What is half of 8?", "answer": "4"}) + "\n")
    steps = steps_taken(job)[1]
    assert "profile" in steps
    assert "reasoning" not in steps


@pytest.mark.model
def test_too_few_questions_are_told_when_a_build_begins(new_job: NewJob, corpus: Path) -> None:
    job = new_job()
    told: list[BuildProgress] = []
    build.run(job, report=told.append)
    first_step = next(at for at, progress in enumerate(told) if progress.step)
    assert all("Only 4 questions" in progress.warning for progress in told[first_step:])
    enough = new_job("enough", questions=(corpus,))
    assert preflight.check(enough.order()[0], enough.folder) == ""


@pytest.mark.model
def test_what_is_kept_aside_is_released_when_somebody_accepts_it(new_job: NewJob) -> None:
    job = new_job()
    build.run(job)
    ended, steps = steps_taken(job, accept_by="the owner")
    assert ended.state is BuildState.RELEASED
    assert steps == ["gate", "publish"]
    out = out_of(job)
    assert Mask.load(out.with_suffix(".mask.json")).n_keep == 4
    assert "the owner" in json.loads(out.with_suffix(".report.json").read_text())["verdict"]["reason"]
    assert build.run(job).state is BuildState.RELEASED, "a word that was given holds"
    assert not job.path("specialist.gguf").exists()


@pytest.mark.model
def test_an_acceptance_is_of_that_specialist_and_of_no_later_one(new_job: NewJob) -> None:
    job = new_job()
    build.run(job)
    build.run(job, accept_by="the owner")
    old = out_of(job).read_bytes()
    other = new_job(experts=3)
    ended, steps = steps_taken(other)
    assert ended.state is BuildState.ASIDE
    assert "profile" not in steps, "the profile holds for any number of experts"
    assert {"plan", "cut", "verify", "evaluate", "gate"} <= set(steps)
    assert out_of(job).read_bytes() == old, "what was released stays until something better is"


def test_nothing_can_be_accepted_before_it_is_made(new_job: NewJob) -> None:
    ended = build.run(new_job(), accept_by="me")
    assert ended.state is BuildState.FAILED
    assert "nothing to accept" in ended.message


@pytest.mark.model
def test_a_changed_corpus_is_profiled_again_and_a_changed_bound_is_not(new_job: NewJob, corpus: Path) -> None:
    job = new_job()
    build.run(job)
    assert steps_taken(new_job(bound=Bound(min_questions=3)))[1] == ["gate", "publish"]
    with corpus.open("a") as file:
        file.write(json.dumps({"question": "What is half of 8?", "answer": "4"}) + "\n")
    assert "profile" in steps_taken(new_job())[1]


@pytest.mark.model
def test_a_released_file_that_somebody_removed_is_cut_and_proved_again(new_job: NewJob) -> None:
    job = new_job()
    build.run(job)
    build.run(job, accept_by="me")
    out = out_of(job)
    old = out.read_bytes()
    out.unlink()
    ended, steps = steps_taken(job)
    assert ended.state is BuildState.RELEASED
    assert "profile" not in steps
    assert {"cut", "verify"} <= set(steps)
    assert out.read_bytes() == old


@pytest.mark.model
def test_a_plain_text_is_profiled_and_has_nothing_to_be_judged_by(new_job: NewJob, tmp_path: Path) -> None:
    text = _text(tmp_path / "text.txt")
    job = new_job(corpus=(str(text),), reasoning=(str(text),), recipe=Recipe(method=ThreePass(reasoning_cap=1)))
    ended, steps = steps_taken(job)
    assert ended.state is BuildState.ASIDE, ended
    assert "reasoning" in steps
    assert "no questions" in ended.message
    recipe = Mask.load(job.path("mask.json")).provenance.recipe
    assert recipe["reasoning_cap"] == 1
    assert recipe["reasoning_tokens"]


@pytest.mark.model
def test_given_questions_judge_a_corpus_without_any(new_job: NewJob, tmp_path: Path, corpus: Path) -> None:
    text = _text(tmp_path / "text.txt")
    job = new_job(corpus=(str(text),), questions=(corpus,))
    ended = build.run(job)
    assert "no better than guessing" in ended.message, "a random parent knows nothing"
    report = job.report()
    assert report is not None
    assert report["verdict"]["n"] == LINES


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"experts": 9}, "has 8"),
        ({"experts": 1}, "a token uses 2"),
        ({"parent": Path("/nowhere/parent.gguf")}, "parent.gguf"),
        ({"corpus": ("/nowhere/corpus.jsonl",)}, "corpus.jsonl"),
        ({"questions": (Path("/nowhere/questions.jsonl"),)}, "questions.jsonl"),
        ({"quantize": "Q4_K_XXL"}, "no file type"),
        ({"shared_scale": float("nan")}, "cannot scale"),
        ({"recipe": Recipe("drop-map", DropMap({"law": 1.0}))}, "does not have: law"),
        ({"recipe": Recipe.from_settings({"name": "v7"}), "answer": True}, "does not have: generic_math"),
        ({"recipe": Recipe("drop-map", DropMap({"all": 0.0}))}, "no class any weight"),
        ({"recipe": Recipe("top-k", TopK()), "reasoning": ("/nowhere/traces.jsonl",)}, "no use of `reasoning`"),
    ],
)
def test_what_cannot_work_fails_at_once_and_says_why(new_job: NewJob, changes: dict[str, Any], says: str) -> None:
    job = new_job(**changes)
    ended = build.run(job)
    assert ended.state is BuildState.FAILED
    assert says in ended.message
    assert job.progress().state is BuildState.FAILED
    assert job.records() == {}


def test_an_order_of_an_unknown_recipe_fails_at_once_and_says_why(new_job: NewJob) -> None:
    job = new_job()
    plain = json.loads(job.path("job.json").read_text())
    plain["order"]["recipe"] = {"name": "guessing"}
    job.path("job.json").write_text(json.dumps(plain))
    ended = build.run(job)
    assert ended.state is BuildState.FAILED
    assert "no recipe" in ended.message
    assert job.progress().state is BuildState.FAILED
    assert job.records() == {}


def test_what_a_parent_has_no_place_for_is_seen_before_anything_begins(
    new_job: NewJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = new_job()
    order, open_parent = job.order()[0], Parent.open

    def grouped(path: Path) -> Parent:
        found = open_parent(path)
        architecture = replace(found.experts.architecture, shared_output=None)
        return replace(found, experts=replace(found.experts, architecture=architecture, n_groups=2, n_groups_used=1))

    preflight.check(replace(order, shared_scale=1.2), job.folder)
    monkeypatch.setattr(Parent, "open", grouped)
    preflight.check(order, job.folder)
    with pytest.raises(BuildError, match="multiple of 2 from 4"):
        preflight.check(replace(order, experts=5), job.folder)
    with pytest.raises(BuildError, match="multiple of 2 from 4"):
        preflight.check(replace(order, experts=2), job.folder)
    with pytest.raises(BuildError, match="no shared expert"):
        preflight.check(replace(order, shared_scale=1.2), job.folder)


def test_a_full_disk_is_seen_before_anything_begins(new_job: NewJob, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = preflight.shutil.disk_usage("/")
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    job = new_job()
    ended = build.run(job)
    assert ended.state is BuildState.FAILED
    assert "of disk" in ended.message
    assert "models_dir" in ended.remedy


@pytest.mark.model
def test_a_disk_that_fills_in_the_middle_fails_the_build_and_nothing_else(
    new_job: NewJob, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    job = new_job()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Mask, "save", full)
        ended = build.run(job)
        assert ended.state is BuildState.FAILED
        assert "No space left" in ended.message
        patched.setattr(Job, "write_progress", full)
        assert build.run(job).state is BuildState.FAILED, "though it cannot even be written down"
    assert "No space left" in capfd.readouterr().err
    assert steps_taken(job)[1] == STEPS[STEPS.index("plan") :]


@pytest.mark.model
def test_a_step_that_fails_says_so_once_and_the_next_try_goes_on_from_it(
    new_job: NewJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = new_job()

    def broken(*_: object, **__: object) -> None:
        raise SurgeryError("The saw is blunt.", "Sharpen it.")

    with monkeypatch.context() as patched:
        patched.setattr(steps_module, "cut", broken)
        ended = build.run(job)
    assert (ended.state, ended.message, ended.remedy) == (BuildState.FAILED, "cut: The saw is blunt.", "Sharpen it.")
    assert steps_taken(job)[1] == ["cut", "verify", "evaluate", "gate", "publish"]


@pytest.mark.model
def test_a_bug_of_ours_fails_the_build_and_is_in_the_log(
    new_job: NewJob, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("what")

    monkeypatch.setattr(steps_module, "plan", broken)
    ended = build.run(new_job())
    assert ended.state is BuildState.FAILED
    assert "KeyError" in ended.message
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.model
def test_a_step_that_never_ends_is_not_begun_for_ever(new_job: NewJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job = new_job()

    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    monkeypatch.setattr(steps_module, "plan", killed)
    for _ in range(MOST_BEGINNINGS):
        with pytest.raises(Killed):
            build.run(job)
    ended = build.run(job)
    assert ended.state is BuildState.FAILED
    assert "without a word" in ended.message
    monkeypatch.undo()
    assert build.run(job).state is BuildState.ASIDE, "asked again, it is tried again"


@pytest.mark.model
def test_a_stopped_build_is_stopped_and_goes_on(new_job: NewJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job = new_job()

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(steps_module, "verify", interrupted)
        for _ in range(MOST_BEGINNINGS + 2):
            with pytest.raises(KeyboardInterrupt):
                build.run(job)
    assert job.progress().state is BuildState.STOPPED
    assert steps_taken(job)[1] == ["verify", "evaluate", "gate", "publish"]


@pytest.mark.model
def test_a_build_killed_in_every_step_ends_like_one_that_ran_through(new_job: NewJob) -> None:
    whole = new_job("whole")
    build.run(whole)
    build.run(whole, accept_by="somebody")
    job = new_job("killed")
    for at, step in enumerate(STEPS):
        command = [sys.executable, "-c", KILLED, str(job.folder), step]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ, check=False)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert job.progress().state is BuildState.STOPPED
        assert list(job.records()) == STEPS[:at]
        assert not out_of(job).exists()
    assert steps_taken(job)[1] == ["publish"]
    assert build.run(job, accept_by="somebody").state is BuildState.RELEASED
    assert out_of(job).read_bytes() == out_of(whole).read_bytes()
    assert Mask.load(out_of(job).with_suffix(".mask.json")) == Mask.load(out_of(whole).with_suffix(".mask.json"))


# Carries a build out on a disk that is full from a step on.
FULL = """
import json, resource, sys
from dataclasses import asdict
from pathlib import Path
from coe.surgery.build import pipeline as build, preflight
from coe.surgery.build.job import Job

begin = Job.begin

def beginning(self, step):
    before = begin(self, step)
    if step == sys.argv[2]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
    return before

Job.begin = beginning
print(json.dumps(asdict(build.run(Job(Path(sys.argv[1]))))))
"""


@pytest.mark.model
def test_a_disk_that_is_full_in_any_step_loses_nothing_and_the_build_goes_on_from_there(new_job: NewJob) -> None:
    whole = new_job("whole")
    build.run(whole)
    job = new_job("full")
    for at, step in enumerate(STEPS):
        command = [sys.executable, "-c", FULL, str(job.folder), step]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ, check=True)
        ended = json.loads(done.stdout)
        assert ended["state"] == "failed", ended
        assert ended["message"].startswith(f"{step}: ")
        print(step, ended["message"], ended["remedy"])
        assert re.search("No space left|could not be written to its end|disk is full", ended["message"]), ended
        assert "room" in ended["remedy"]
        assert ended["message"] in done.stderr
        assert list(job.records()) == STEPS[:at]
        assert not list(job.folder.rglob("*.part")), "nothing half-written stays"
        assert not out_of(job).exists()
    assert steps_taken(job)[1] == ["publish"]
    assert (job.folder / "specialist.gguf").read_bytes() == (whole.folder / "specialist.gguf").read_bytes()


@pytest.mark.model
@pytest.mark.parametrize("where", ["replace", "record"])
def test_a_kill_while_releasing_leaves_the_old_model_or_the_new(
    new_job: NewJob, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    first = new_job()
    build.run(first)
    build.run(first, accept_by="me")
    old = out_of(first).read_bytes()
    job = new_job(experts=3)
    build.run(job)
    new = job.path("specialist.gguf").read_bytes()
    assert new != old

    class Killed(BaseException):
        pass

    real_replace, real_record = os.replace, Job.record

    def replaced(source: Any, target: Any) -> None:
        if str(source).endswith("specialist.gguf"):
            raise Killed
        real_replace(source, target)

    def recorded(self: Job, step: str, record: Any) -> None:
        if step == "publish":
            raise Killed
        real_record(self, step, record)

    with monkeypatch.context() as patched:
        if where == "replace":
            patched.setattr(steps_module.os, "replace", replaced)
        else:
            patched.setattr(Job, "record", recorded)
        with pytest.raises(Killed):
            build.run(job, accept_by="me")
    assert out_of(job).read_bytes() == (old if where == "replace" else new)
    ended, steps = steps_taken(job)
    assert ended.state is BuildState.RELEASED
    assert "cut" not in steps
    assert out_of(job).read_bytes() == new


def checked(job: Job, budget_bytes: int = 2**40) -> Any:
    asked = {"folder": str(job.folder), "check": {"budget": {HOST: budget_bytes}}}
    errors = (engine_errors, surgery_errors)
    return asyncio.run(child.run("coe.surgery.build.process", asked, title="The check", errors=errors))


@pytest.mark.slow
def test_the_check_of_an_order_loads_nothing_and_names_what_is_wrong(new_job: NewJob, tmp_path: Path) -> None:
    job = new_job(experts=1)
    with pytest.raises(BuildError, match="a token uses 2") as caught:
        checked(job)
    assert "roster" in caught.value.remedy
    new_job()
    found = checked(job)
    assert list(found["memory"]) == [HOST]
    assert found["memory"][HOST] > 2**20
    assert Machine.from_json(found["machine"]) == MACHINE
    with pytest.raises(UnavailableError) as too_much:
        checked(job, budget_bytes=1000)
    assert "vram_budget" in too_much.value.remedy
    with pytest.raises(BuildError):
        preflight.check(replace(job.order()[0], bound=Bound(standard_errors=-1.0)), job.folder)


# --- what a parent knows ----------------------------------------------------------------------------------------------


@pytest.fixture
@brings("model")
def taught_job(tmp_path: Path) -> NewJob:
    """taught_job(corpus=..., questions=..., ...): a build of half of the trained parent's experts."""

    def make(**about: Any) -> Job:
        job = Job.of(tmp_path / "models", "taught")
        out = tmp_path / "models" / "built" / "taught.gguf"
        order = BuildOrder("taught", taught.PARENT, (), taught.HALF, out, max_tokens=taught.ANSWER_TOKENS)
        job.write_order(replace(order, **about), replace(MACHINE, parallel=8, gpu_layers=0))
        return job

    return make


def test_what_answers_as_its_parent_does_is_released_and_nobody_has_to_accept_it(
    taught_job: NewJob, tmp_path: Path
) -> None:
    corpus = taught.write_corpus(tmp_path / "physics.jsonl", taught.corpus("physics", 80))
    questions = taught.write_exam(tmp_path / "exam.jsonl", taught.exam("physics", 32))
    job = taught_job(corpus=(str(corpus),), questions=(questions,))
    ended = build.run(job)
    assert ended.state is BuildState.RELEASED, ended
    report = job.report()
    assert report is not None
    assert report["verdict"]["n"] == 32
    facts = report["steps"]["evaluate"]
    assert min(facts["accuracy"], facts["parent_accuracy"]) >= 0.9
    out = out_of(job)
    assert taught.nearest(Mask.load(out.with_suffix(".mask.json"))) == "physics"
    for domain, least, most in (("physics", 18, 20), ("law", 0, 4)):
        answers = ask(out, taught.exam(domain, 20, seed=1))
        assert least <= sum(answer.right for answer in answers) <= most, domain


def test_what_was_cut_for_other_domains_is_kept_aside_until_the_bound_allows_it(
    taught_job: NewJob, tmp_path: Path
) -> None:
    corpus = taught.write_corpus(tmp_path / "two.jsonl", [*taught.corpus("chemistry", 40), *taught.corpus("law", 40)])
    questions = taught.write_exam(tmp_path / "exam.jsonl", taught.exam("python", 32))
    about = {"corpus": (str(corpus),), "questions": (questions,)}
    job = taught_job(**about)
    ended = build.run(job)
    assert ended.state is BuildState.ASIDE, ended
    assert "points" in ended.message
    assert "--accept" in ended.remedy
    assert not out_of(job).exists()
    report = job.report()
    assert report is not None
    assert report["verdict"]["n"] == 32
    assert report["steps"]["evaluate"]["accuracy"] < 0.3
    assert report["steps"]["evaluate"]["parent_accuracy"] >= 0.9
    assert "2 domains" in report["steps"]["coherence"]["warning"]
    ended, steps = steps_taken(taught_job(**about, bound=Bound(loss=1.0)))
    assert ended.state is BuildState.RELEASED
    assert steps == ["gate", "publish"]
    assert out_of(job).exists()


def test_questions_alone_are_enough_where_the_parent_answers_them_right(taught_job: NewJob, tmp_path: Path) -> None:
    asked = taught.corpus("law", 60)
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(json.dumps({"question": question.text}) + "\n" for question in asked))
    questions = taught.write_exam(tmp_path / "exam.jsonl", taught.exam("law", 32))
    job = taught_job(corpus=(f"law={path}",), answer=True, questions=(questions,))
    ended, steps = steps_taken(job)
    assert ended.state is BuildState.RELEASED, ended
    assert "answer" in steps
    answered = [json.loads(line) for line in job.path("answered.jsonl").read_text().splitlines()]
    assert {line["class"] for line in answered} == {"law"}
    assert [line["question"] for line in answered] == [question.text for question in asked]
    assert sum(line["answer"] == question.answer for line, question in zip(answered, asked, strict=True)) >= 54


def _text(path: Path) -> Path:
    path.write_text("\n\n".join(f"Paragraph {n} says something about {n * n} things." for n in range(80)))
    return path
