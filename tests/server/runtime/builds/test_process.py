"""The child process of a build: what becomes of the build when it is stopped, or when it dies."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from coe.engine.errors import ChildTimeoutError
from coe.engine.pool.places import Memory
from coe.engine.vitals import SHORTEST_S
from coe.server.runtime.builds import process
from coe.surgery.build.job import BuildOrder, BuildProgress, BuildState, Job, Machine
from fakes.child_modules import write_module

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("before", [BuildState.FAILED, BuildState.RELEASED, BuildState.WAITING])
def test_a_build_that_is_stopped_before_its_child_has_begun_is_recorded_as_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: BuildState
) -> None:
    monkeypatch.setattr(process, "_MODULE", write_module(tmp_path, monkeypatch, "signal.pause()"))
    job = Job.of(tmp_path, "small")
    job.write_progress(BuildProgress(before, message="of an earlier run"))

    async def stopped() -> BuildProgress:
        build = process.BuildProcess(job)
        running = asyncio.create_task(build.run())
        await asyncio.sleep(0)  # it has begun to begin
        await build.stop()
        return await running

    ended = asyncio.run(stopped())
    assert (ended.state, ended.message) == (BuildState.STOPPED, "")
    assert job.progress().state is BuildState.STOPPED


@pytest.mark.parametrize("before", [BuildState.RELEASED, BuildState.ASIDE, BuildState.RUNNING])
def test_a_process_that_dies_has_failed_whatever_an_earlier_run_came_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: BuildState
) -> None:
    monkeypatch.setattr(process, "_MODULE", write_module(tmp_path, monkeypatch, "sys.exit('no such library')"))
    job = Job.of(tmp_path, "small")
    job.write_progress(BuildProgress(before))
    ended = asyncio.run(process.BuildProcess(job).run())
    assert ended.state is BuildState.FAILED
    assert "no such library" in ended.message


def test_a_process_that_stands_still_is_killed_and_its_build_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = """
        from coe.surgery.build.job import BuildProgress, BuildState, Job
        Job(Path(job["folder"])).write_progress(BuildProgress(BuildState.RUNNING, "profile"))
        os.kill(os.getpid(), signal.SIGSTOP)
    """
    monkeypatch.setattr(process, "_MODULE", write_module(tmp_path, monkeypatch, main))
    job = Job.of(tmp_path, "small")
    ended = asyncio.run(process.BuildProcess(job, stall_s=SHORTEST_S).run())
    assert replace(ended, updated=None) == replace(job.progress(), updated=None)
    assert (ended.state, ended.step) == (BuildState.FAILED, "profile")
    assert ended.message == "The process gave no sign of life for 3 s and was killed in the step profile."


def test_a_check_that_stands_still_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = write_module(tmp_path, monkeypatch, "os.kill(os.getpid(), signal.SIGSTOP)")
    monkeypatch.setattr(process, "_MODULE", name)
    order = BuildOrder("small", tmp_path / "parent.gguf", corpus=(), experts=4, out=tmp_path / "small.gguf")
    with pytest.raises(ChildTimeoutError, match="The check of the build of small gave no sign of life"):
        asyncio.run(process.prepare(Job.of(tmp_path, "small"), order, Machine(), Memory(), stall_s=SHORTEST_S))


def test_a_check_that_does_not_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_MODULE", write_module(tmp_path, monkeypatch, "signal.pause()"))
    monkeypatch.setattr(process, "_CHECK_S", 0.01)
    order = BuildOrder("small", tmp_path / "parent.gguf", corpus=(), experts=4, out=tmp_path / "small.gguf")
    with pytest.raises(ChildTimeoutError, match="The check of the build of small did not end"):
        asyncio.run(process.prepare(Job.of(tmp_path, "small"), order, Machine(), Memory()))


def test_a_build_that_finished_before_it_heard_of_its_stop_has_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = """
        from coe.surgery.build.job import BuildProgress, BuildState, Job
        folder = Path(job["folder"])
        Job(folder).write_progress(BuildProgress(BuildState.RELEASED))
        (folder / "gate").write_text("recorded")
        signal.pause()
    """
    monkeypatch.setattr(process, "_MODULE", write_module(tmp_path, monkeypatch, main))
    job = Job.of(tmp_path, "small")
    job.folder.mkdir(parents=True)
    os.mkfifo(job.folder / "gate")

    async def stopped() -> BuildProgress:
        build = process.BuildProcess(job)
        running = asyncio.create_task(build.run())
        await asyncio.to_thread((job.folder / "gate").read_text)
        await build.stop()
        return await running

    assert asyncio.run(stopped()).state is BuildState.RELEASED
