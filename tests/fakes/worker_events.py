"""Requests to workers, and what comes of them."""

from __future__ import annotations

import os
import select
from typing import Any

from coe.engine.pool.resident import WorkerResident
from coe.engine.request import Event, GenerateRequest
from fakes.local_engine import GREEDY

# How long a test waits for a process to end before it fails; a software device takes its time.
GONE_S = float(os.environ.get("COE_TEST_GIVE_UP_S", "30"))


def request(name: str = "r", **fields: Any) -> GenerateRequest:
    defaults: dict[str, Any] = {"prompt": "The capital of France is", "sampling": GREEDY, "max_tokens": 4}
    return GenerateRequest(name, "s", **{**defaults, "loop_guard": None, **fields})


async def events(resident: WorkerResident, wanted: GenerateRequest) -> list[Event]:
    return [event async for event in resident.generate(wanted)]


def gone(pid: int) -> bool:
    """Whether a process ends within GONE_S."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], GONE_S)[0])
    finally:
        os.close(descriptor)
