"""A worker that is kept ready."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coe.engine.errors import ModelFileError
from coe.engine.pool.resident import WorkerResident
from coe.engine.pool.spare import SpareWorker
from coe.engine.request import Finished
from coe.engine.spec import LoadSpec
from coe.engine.vitals import SHORTEST_S
from fakes.worker_events import GONE_S, events, gone, request


class Spawned:
    """Spawns real workers and keeps them in mind; a spare is there when `n` have been spawned."""

    def __init__(self) -> None:
        self.workers: list[WorkerResident] = []
        self.more = asyncio.Condition()

    async def __call__(self) -> WorkerResident:
        self.workers.append(await WorkerResident.spawn())
        async with self.more:
            self.more.notify_all()
        return self.workers[-1]

    async def until(self, n: int) -> None:
        async with asyncio.timeout(GONE_S), self.more:
            await self.more.wait_for(lambda: len(self.workers) == n)


@pytest.fixture
async def spawned() -> AsyncIterator[Spawned]:
    spawned = Spawned()
    yield spawned
    for worker in spawned.workers:
        worker.kill()
        await worker.wait_gone()


async def start(spare: SpareWorker, spec: LoadSpec) -> WorkerResident:
    resident = await spare.start(spec, {}, lambda fraction: None)
    assert isinstance(resident, WorkerResident)
    return resident


async def test_the_next_load_finds_a_worker_that_is_there(spawned: Spawned, smollm2_spec: LoadSpec) -> None:
    spare = SpareWorker(spawned)
    first = await start(spare, smollm2_spec)
    await spawned.until(2)
    waiting = spawned.workers[1]
    assert await start(spare, smollm2_spec) is waiting
    await spawned.until(3)
    for resident in (first, waiting):
        assert isinstance((await events(resident, request()))[-1], Finished)
    await spare.close()
    assert gone(spawned.workers[2].pid)
    assert not gone(first.pid), "what was started goes on"


async def test_a_spare_that_died_is_replaced(spawned: Spawned, smollm2_spec: LoadSpec) -> None:
    spare = SpareWorker(spawned)
    await start(spare, smollm2_spec)
    await spawned.until(2)
    os.kill(spawned.workers[1].pid, signal.SIGKILL)
    await spawned.workers[1].wait_gone()
    resident = await start(spare, smollm2_spec)
    assert resident not in spawned.workers[:2]
    assert isinstance((await events(resident, request()))[-1], Finished)
    await spare.close()


async def test_a_spare_that_dies_as_it_is_taken_costs_no_load(spawned: Spawned, smollm2_spec: LoadSpec) -> None:
    spare = SpareWorker(spawned)
    await start(spare, smollm2_spec)
    await spawned.until(2)
    os.kill(spawned.workers[1].pid, signal.SIGKILL)  # which the spare has not noticed yet
    resident = await start(spare, smollm2_spec)
    assert resident is spawned.workers[2]
    assert isinstance((await events(resident, request()))[-1], Finished)
    await spare.close()


async def test_a_stopped_spare_is_not_handed_out(
    spawned: Spawned, smollm2_spec: LoadSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare = SpareWorker(spawned)
    await start(spare, smollm2_spec)
    await spawned.until(2)
    os.kill(spawned.workers[1].pid, signal.SIGSTOP)
    monkeypatch.setattr(spawned.workers[1], "silent_s", lambda: 6.0)
    resident = await start(spare, smollm2_spec)
    assert resident is spawned.workers[2]
    assert gone(spawned.workers[1].pid)
    await spare.close()


async def test_a_spare_that_is_stopped_as_it_is_taken_costs_no_load_and_has_a_line(
    smollm2_spec: LoadSpec, caplog: pytest.LogCaptureFixture
) -> None:
    workers: list[WorkerResident] = []

    async def spawn() -> WorkerResident:
        workers.append(await WorkerResident.spawn(SHORTEST_S))
        return workers[-1]

    spare = SpareWorker(spawn)
    first = await start(spare, smollm2_spec)
    while len(workers) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    while not workers[1].has_started:  # noqa: ASYNC110
        await asyncio.sleep(0)
    os.kill(workers[1].pid, signal.SIGSTOP)
    resident = await start(spare, smollm2_spec)
    assert resident is workers[2]
    assert re.search("in place of the spare one: .* was killed", caplog.text)
    assert isinstance((await events(resident, request()))[-1], Finished)
    await spare.close()
    for worker in (first, resident):
        await worker.stop()


async def test_a_load_that_fails_leaves_a_spare_for_the_next(
    spawned: Spawned, smollm2_spec: LoadSpec, tmp_path: Path
) -> None:
    spare = SpareWorker(spawned)
    garbage = tmp_path / "garbage.gguf"
    garbage.write_bytes(b"GGUF" + bytes(200))
    with pytest.raises(ModelFileError):
        await start(spare, LoadSpec(garbage, context_tokens=256))
    assert gone(spawned.workers[0].pid)
    await spawned.until(2)
    assert await start(spare, smollm2_spec) is spawned.workers[1]
    await spare.close()


async def test_without_processes_to_spare_loads_still_work(smollm2_spec: LoadSpec) -> None:
    tried: list[bool] = []

    async def spawn() -> WorkerResident:
        tried.append(len(tried) % 2 == 0)
        if not tried[-1]:
            raise BlockingIOError("no more processes")
        return await WorkerResident.spawn()

    spare = SpareWorker(spawn)
    for _ in range(2):
        resident = await start(spare, smollm2_spec)
        await resident.stop()
    await spare.close()
    assert tried == [True, False, True, False]


async def test_a_worker_says_in_the_list_of_processes_what_it_is(spawned: Spawned, smollm2_spec: LoadSpec) -> None:
    resident = await spawned()
    await resident.load(smollm2_spec, {}, lambda fraction: None)
    assert name_of(resident.pid) == f"coe {smollm2_spec.title}"[:15]


async def test_a_file_name_that_is_no_text_hinders_no_load(
    spawned: Spawned, smollm2_spec: LoadSpec, tmp_path: Path
) -> None:
    odd = tmp_path / os.fsdecode(b"odd\xff.gguf")
    odd.symlink_to(smollm2_spec.path)
    resident = await spawned()
    await resident.load(LoadSpec(odd, context_tokens=256), {}, lambda fraction: None)
    assert name_of(resident.pid) == "coe odd?.gguf"


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


async def test_a_spare_that_is_unwanted_while_it_is_spawned_leaves_nothing_open(
    recwarn: pytest.WarningsRecorder,
) -> None:
    spawning = asyncio.create_task(WorkerResident.spawn())
    await asyncio.sleep(0)  # it has its sockets, and no process yet
    spawning.cancel()
    await asyncio.gather(spawning, return_exceptions=True)
    del spawning
    await asyncio.sleep(0)  # the event loop lets go of what it ran last
    gc.collect()
    assert not [warning for warning in recwarn if warning.category is ResourceWarning]
