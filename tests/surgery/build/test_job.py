"""A build's folder: what stands in it, and who may work on it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from coe.surgery.build.job import BuildOrder, BuildProgress, BuildState, Busy, Job, Machine, StepRecord, at_work
from coe.surgery.errors import BuildError, SurgeryError
from coe.surgery.judge.values import Bound
from coe.surgery.plan.methods import DropMap, ThreePass
from coe.surgery.plan.recipes import Recipe

HOLD = """
import sys
from pathlib import Path
from coe.surgery.build.job import Job
with Job(Path(sys.argv[1])).worked_on():
    print("held", flush=True)
    sys.stdin.read()
"""


def order(folder: Path, **changes: object) -> BuildOrder:
    asked = {
        "name": "law",
        "parent": folder / "parent.gguf",
        "corpus": (f"law={folder / 'law.jsonl'}", str(folder / "more.txt")),
        "experts": 64,
        "out": folder / "built" / "law.gguf",
        "questions": (folder / "questions.jsonl",),
        "recipe": Recipe("drop-map", DropMap({"law": 2.0})),
        "bound": Bound(loss=0.02),
    }
    return BuildOrder(**{**asked, **changes})  # type: ignore[arg-type]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job.of(tmp_path, "law")


def hold(job: Job) -> subprocess.Popen[str]:
    """Another process that works on the build until its stdin ends."""
    command = [sys.executable, "-c", HOLD, str(job.folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_an_order_comes_back_as_it_was_asked(job: Job, tmp_path: Path) -> None:
    asked, machine = order(tmp_path), Machine(cpu_expert_layers=-1, threads=3, devices=("CUDA1",))
    job.write_order(asked, machine)
    assert job.order() == (asked, machine)


def test_an_order_written_with_every_setting_is_the_same_order(job: Job, tmp_path: Path) -> None:
    """A file of an earlier version holds the settings as the roster gave them."""
    asked = order(tmp_path, recipe=Recipe(method=ThreePass(reasoning_cap=6), criterion="reap"))
    job.write_order(asked, Machine())
    plain = json.loads(job.path("job.json").read_text())
    plain["order"]["recipe"] = {"name": "three-pass", "cap": 6, "whitelist_rank": 2.0, "criterion": "reap"}
    plain["order"]["bound"] = {"loss": 0.02}
    job.path("job.json").write_text(json.dumps(plain))
    assert job.order() == (asked, Machine())


@pytest.mark.parametrize(
    "change",
    [{"recipe": {"name": "three-pass", "alpha": 1.0}}, {"bound": {"loss": -1.0}}, {"bound": {"colour": "red"}}],
)
def test_an_order_that_makes_no_sense_is_an_error_with_a_remedy(
    job: Job, tmp_path: Path, change: dict[str, object]
) -> None:
    job.write_order(order(tmp_path), Machine())
    plain = json.loads(job.path("job.json").read_text())
    job.path("job.json").write_text(json.dumps({**plain, "order": {**plain["order"], **change}}))
    with pytest.raises(SurgeryError) as caught:
        job.order()
    assert caught.value.remedy


def test_no_order_is_an_error_that_says_how_to_begin(job: Job) -> None:
    with pytest.raises(BuildError, match="coe build"):
        job.order()


def test_a_damaged_order_is_an_error_and_no_traceback(job: Job, tmp_path: Path) -> None:
    job.write_order(order(tmp_path), Machine())
    job.path("job.json").write_text('{"order": {"name": 3')
    with pytest.raises(BuildError, match="cannot be read"):
        job.order()


def test_a_build_that_nobody_asked_for_is_absent(job: Job) -> None:
    assert job.progress() == BuildProgress(BuildState.ABSENT)
    assert not job.progress().state.unfinished


def test_progress_comes_back(job: Job) -> None:
    job.write_progress(BuildProgress(BuildState.FAILED, "cut", message="The disk is full.", remedy="Make room."))
    found = job.progress()
    assert (found.state, found.step, found.message, found.remedy) == (
        BuildState.FAILED, "cut", "The disk is full.", "Make room.",
    )  # fmt: skip
    assert found.updated is not None


def test_a_running_build_says_its_step_and_share_in_one_phrase() -> None:
    assert BuildProgress(BuildState.RUNNING, "profile", 0.42).line() == "running: profile 42 %"
    assert BuildProgress(BuildState.RUNNING, "plan").line() == "running: plan"
    assert BuildProgress(BuildState.WAITING, message="for idle time").line() == "waiting: for idle time"
    assert BuildProgress(BuildState.ASIDE, "gate").line() == "kept-aside"


def test_a_running_build_whose_process_is_gone_was_stopped(job: Job) -> None:
    with job.worked_on():
        job.write_progress(BuildProgress(BuildState.RUNNING, "profile", 0.5))
        assert job.progress().state is BuildState.RUNNING
    assert job.progress().state is BuildState.STOPPED
    assert job.progress().state.unfinished


def test_a_killed_process_leaves_no_lock(job: Job, tmp_path: Path) -> None:
    process = hold(job)
    assert job.at_work()
    assert at_work(tmp_path) == "law"
    process.kill()
    process.wait()
    assert not job.at_work()
    assert at_work(tmp_path) is None


def test_there_is_one_build_at_a_time_and_the_other_is_named(job: Job, tmp_path: Path) -> None:
    process = hold(job)
    try:
        with pytest.raises(Busy, match="law"), Job.of(tmp_path, "math").worked_on():
            pass
    finally:
        process.communicate("")
    with Job.of(tmp_path, "math").worked_on():
        assert at_work(tmp_path) == "math"


def test_looking_disturbs_nobody_who_begins(job: Job) -> None:
    with job.worked_on():
        assert all(job.at_work() for _ in range(3))
    assert not any(job.at_work() for _ in range(3))
    with job.worked_on():
        pass


def test_finished_steps_are_remembered_and_beginnings_counted(job: Job) -> None:
    job.folder.mkdir(parents=True)
    assert job.begin("profile") == 0
    assert job.begin("profile") == 1
    job.record("profile", StepRecord("abc", {"tokens": 5}, 1.5, 2.0))
    assert job.records() == {"profile": StepRecord("abc", {"tokens": 5}, 1.5, 2.0)}
    assert job.begin("profile") == 0, "an end takes the count back"
    job.reset_attempts()
    assert job.begin("profile") == 0
    assert job.records().keys() == {"profile"}


def test_a_torn_state_file_is_as_good_as_none(job: Job) -> None:
    job.folder.mkdir(parents=True)
    job.path("state.json").write_text('{"steps": {"profile"')
    assert job.records() == {}
    job.path("progress.json").write_text("")
    assert job.progress().state is BuildState.ABSENT


def test_facts_are_kept_beside_the_steps(job: Job) -> None:
    job.folder.mkdir(parents=True)
    job.remember("accepted", {"by": "me"})
    job.record("cut", StepRecord("abc"))
    assert job.recall("accepted") == {"by": "me"}
    assert job.recall("nothing") is None
    assert json.loads(job.path("state.json").read_text())["steps"].keys() == {"cut"}


def test_nothing_is_left_beside_the_files(job: Job, tmp_path: Path) -> None:
    job.write_order(order(tmp_path), Machine())
    job.write_progress(BuildProgress(BuildState.WAITING))
    job.record("plan", StepRecord("abc"))
    assert {path.name for path in job.folder.iterdir()} == {"job.json", "progress.json", "state.json"}
