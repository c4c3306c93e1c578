"""The child process of a build: what becomes of the build when it is stopped, or when it dies."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from coe.server.runtime.builds import process
from coe.surgery.build.job import BuildState, Job, Progress


@pytest.mark.parametrize("before", [BuildState.FAILED, BuildState.RELEASED, BuildState.WAITING])
def test_a_build_that_is_stopped_before_its_child_has_begun_is_recorded_as_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: BuildState
) -> None:
    monkeypatch.setattr(process, "_COMMAND", (sys.executable, "-c", "import signal; signal.pause()"))
    job = Job.of(tmp_path, "small")
    job.note(Progress(before, message="of an earlier run"))

    async def stopped() -> Progress:
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
    monkeypatch.setattr(process, "_COMMAND", (sys.executable, "-c", "raise SystemExit('no such library')"))
    job = Job.of(tmp_path, "small")
    job.note(Progress(before))
    ended = asyncio.run(process.BuildProcess(job).run())
    assert ended.state is BuildState.FAILED
    assert "no such library" in ended.message
