"""What a college knows of its specialists, and how it ends."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from coe.engine.pool.resident import WorkerResident
from coe.engine.pool.spare import SpareWorker
from coe.engine.spec import LoadSpec
from coe.server.runtime.chooser import prompt_speeds
from coe.server.runtime.college import College


def test_who_has_read_nothing_is_taken_to_be_as_fast_as_the_others() -> None:
    assert prompt_speeds(["math", "law"], {"math": 40.0, "law": None}) == {"math": 40.0, "law": 40.0}
    assert prompt_speeds(["law"], {"math": 40.0, "law": 90.0, "code": None}) == {"law": 90.0}
    assert prompt_speeds(["law", "yet to be built"], {"law": None}) == {"law": 1000.0, "yet to be built": 1000.0}


async def test_a_load_that_is_ended_with_the_college_spawns_nobody() -> None:
    class Endless:
        async def load(self, *arguments: Any) -> None:
            await asyncio.Event().wait()

    spawned: list[Endless] = []

    async def spawn() -> WorkerResident:
        spawned.append(Endless())
        return cast(WorkerResident, spawned[-1])

    async def close() -> None:
        load.cancel()
        await asyncio.gather(load, return_exceptions=True)

    async def nothing() -> None:
        pass

    spare = SpareWorker(spawn)
    load = asyncio.create_task(spare.start(LoadSpec(Path("a.gguf")), {}, lambda fraction: None))
    await asyncio.sleep(0)
    college = College.__new__(College)
    college._preloading = None
    college._spare = spare
    college.builds = cast(Any, SimpleNamespace(close=nothing))
    college.catalog = cast(Any, SimpleNamespace(close=nothing))
    college.pool = cast(Any, SimpleNamespace(close=close))
    college.supervisor = college.embeddings = cast(Any, SimpleNamespace(close=lambda: None))
    await college.close()
    assert len(spawned) == 1
