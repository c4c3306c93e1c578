"""The owner of a server's builds, on a disk that a test writes."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from coe.engine.pool.leases import Reservation
from coe.engine.pool.places import HOST, Memory
from coe.engine.pool.pool import Pool
from coe.server.runtime.builds import owner as owner_module
from coe.server.runtime.builds.owner import Builds
from coe.server.runtime.builds.process import Prepared
from coe.surgery.build.job import BuildProgress, BuildState, Job
from fakes.rosters import load

ROSTER = """
parent: {model: random, file: parent.gguf}
specialists:
  - {name: small, domains: [law], build: {corpus: [sums.jsonl], experts: 4}}
"""


def test_two_refreshes_at_the_same_time_adopt_a_new_file_once(tmp_path: Path) -> None:
    roster = load(tmp_path, ROSTER)
    out = roster.specialists[0].built_path(roster.models_path)
    out.parent.mkdir(parents=True)
    adopted = []

    async def adopt(name: str) -> bool:
        await asyncio.sleep(0)
        adopted.append(name)
        return True

    async def refresh() -> None:
        owner = Builds(roster, None, adopt)  # type: ignore[arg-type]
        await asyncio.gather(owner._refresh(), owner._refresh())
        out.write_text("built")
        await asyncio.gather(owner._refresh(), owner._refresh())
        assert not owner.is_missing("small")

    asyncio.run(refresh())
    assert adopted == ["small"]


def test_a_reason_that_a_full_disk_does_not_take_is_kept_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roster, full = load(tmp_path, ROSTER), True
    write = Job.write_progress

    def unless_full(job: Job, progress: BuildProgress) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(job, progress)

    monkeypatch.setattr(Job, "write_progress", unless_full)
    reason = BuildProgress(BuildState.FAILED, message="cut: no space left on the disk", remedy="Make room.")

    async def build() -> None:
        nonlocal full
        owner = Builds(roster, None, None)  # type: ignore[arg-type]
        await owner._record("small", reason)
        await owner._refresh()
        assert owner.card("small")["message"] == reason.message
        full = False
        Job.of(roster.models_path, "small").folder.mkdir(parents=True)
        await owner._refresh()
        await owner._refresh()
        assert owner.card("small")["message"] == reason.message
        assert Job.of(roster.models_path, "small").progress().message == reason.message

    asyncio.run(build())


def test_what_a_build_takes_of_each_place_is_reserved_before_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roster = load(tmp_path, ROSTER)
    for name in ("models/parent.gguf", "sums.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    room, needed = Memory({"CUDA0": 100, HOST: 50}), Memory({"CUDA0": 70, HOST: 20})
    happened: list[Any] = []

    async def prepare(job: Job, order: Any, machine: Any, budget: Memory, *, stall_s: float) -> Prepared:
        job.make_folder()
        happened.append(budget)
        return Prepared(needed, "")

    async def reserve(title: str, memory: Memory, **_: Any) -> Reservation:
        happened.append(memory)
        return Reservation(lambda: happened.append("released"))

    async def run(process: Any) -> BuildProgress:
        happened.append("built")
        return BuildProgress(BuildState.ASIDE)

    monkeypatch.setattr(owner_module, "prepare", prepare)
    monkeypatch.setattr(owner_module.BuildProcess, "run", run)
    pool = cast(Pool, SimpleNamespace(room=room, limits=SimpleNamespace(stall_s=1.0), reserve=reserve))

    async def build() -> None:
        builds = Builds(roster, pool, None)  # type: ignore[arg-type]
        builds.ask("small")
        task = builds._tracked["small"].task
        assert task is not None
        await task
        assert builds.progress("small").state is BuildState.ASIDE, builds.progress("small")

    asyncio.run(build())
    assert happened == [room, needed, "built", "released"]
