"""One debug line for each decision of the pool, under the id of the request that it is about."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from coe.engine.errors import LoadError, QueueFullError, UnavailableError
from coe.engine.logs import REQUEST_ID
from coe.engine.pool.leases import Lease
from coe.engine.pool.placement import Distances
from coe.engine.pool.pool import Pool
from coe.engine.pool.types import Entry, PoolLimits
from coe.engine.spec import LoadSpec, Member, Sharing, Thinking
from coe.engine.swap.plan import Pair
from fakes.pool_world import LONG_S, Clock, FakeLoader, FakeResident, host, turns

NewPool = Callable[..., Pool]
LAW_TO_MATH = Distances([Pair("law", "math", 0, 50)])


def plain(**sizes: int) -> dict[str, Entry]:
    return {name: Entry(LoadSpec(Path(name), parallel=2), host(size)) for name, size in sizes.items()}


def sharing() -> dict[str, Entry]:
    """law and math, which share residents of 4 bytes."""
    members = tuple(Member(name, Path(f"{name}.gguf")) for name in ("law", "math"))
    spec = LoadSpec(members[0].path, parallel=2, sharing=Sharing(members))
    return {member.name: Entry(spec, host(4), distances=LAW_TO_MATH) for member in members}


@pytest.fixture
async def new_pool(loader: FakeLoader, clock: Clock, caplog: pytest.LogCaptureFixture) -> AsyncIterator[NewPool]:
    caplog.set_level(logging.DEBUG, "coe.engine.pool")
    pools: list[Pool] = []

    def make(entries: Mapping[str, Entry], **limits: Any) -> Pool:
        pools.append(Pool(entries, PoolLimits(**{"budget": host(8), **limits}), loader, clock=clock))
        return pools[-1]

    yield make
    for pool in pools:
        await pool.close()


def asked_as(request_id: str, pool: Pool, name: str) -> asyncio.Task[Lease]:
    """A lease for a request with an id."""

    async def lease() -> Lease:
        REQUEST_ID.set(request_id)
        return await pool.lease(name, max_wait_s=LONG_S)

    return asyncio.create_task(lease())


def lines(caplog: pytest.LogCaptureFixture, *what: str) -> list[tuple[str, str]]:
    """(request id, text) of the debug lines that begin with one of the words."""
    return [
        (record.__dict__["request_id"], record.getMessage())
        for record in caplog.records
        if record.levelno == logging.DEBUG and record.getMessage().split()[0] in what
    ]


async def test_a_load_and_the_grant_after_it(
    new_pool: NewPool, clock: Clock, caplog: pytest.LogCaptureFixture, loader: FakeLoader
) -> None:
    pool = new_pool(plain(a=4))
    loader.hold("a")
    asked = asked_as("r1", pool, "a")
    await turns()
    clock.advance(3)
    loader.release("a")
    await asked
    assert lines(caplog, "load", "grant") == [
        ("r1", "load a: resident 1 (a), cold, 4 bytes needed, 8 bytes of 8 bytes free"),
        ("r1", "grant a: resident 1 (a), warm, after 3.0 s"),
    ]


async def test_a_swap_and_the_spread_that_follows_it(new_pool: NewPool, caplog: pytest.LogCaptureFixture) -> None:
    pool = new_pool(sharing())
    (await asked_as("r1", pool, "law")).release()
    (await asked_as("r2", pool, "math")).release()
    assert lines(caplog, "swap", "spread") == [
        ("r2", "swap math: resident 1 (law, math) was law, 50 bytes of its weights differ"),
        ("r2", "spread law: resident 3 (law, math), displaced, 4 bytes needed, 4 bytes of 8 bytes free"),
    ]
    assert ("r2", "grant math: resident 1 (law, math), swap, after 0.0 s") in lines(caplog, "grant")


async def test_an_eviction_is_for_the_request_that_needs_the_room(
    new_pool: NewPool, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    pool = new_pool(plain(a=8, b=8))
    (await asked_as("r1", pool, "a")).release()
    clock.advance(12)
    await asked_as("r2", pool, "b")
    assert lines(caplog, "evict") == [
        ("r2", "evict resident 1 (a): to make room, idle for 12.0 s, 8 bytes needed, 0 MiB of 8 bytes free, for b")
    ]


async def test_a_resident_that_expires_goes_for_no_request(
    new_pool: NewPool, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    pool = new_pool(plain(a=8), idle_ttl_s=60.0)
    (await asked_as("r1", pool, "a")).release()
    clock.advance(61)
    assert lines(caplog, "evict") == [("", "evict resident 1 (a): expired, idle for 61.0 s")]


async def test_a_bypass_tells_which_request_is_passed_and_for_how_long(
    new_pool: NewPool, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    pool = new_pool(plain(a=4, big=8), max_bypass_s=10.0)
    running = await asked_as("r1", pool, "a")
    waiting = asked_as("r2", pool, "big")
    await turns()
    clock.advance(2)
    (await asked_as("r3", pool, "a")).release()
    assert lines(caplog, "bypass") == [("r3", "bypass a: passes big, 1 older, for 2.0 s of 10.0 s")]
    running.release()
    await waiting


async def test_a_waiting_request_is_logged_once_for_each_reason(
    new_pool: NewPool, clock: Clock, caplog: pytest.LogCaptureFixture, loader: FakeLoader
) -> None:
    pool = new_pool(plain(a=4, b=8))
    held = await asked_as("r1", pool, "a")
    caplog.clear()
    waiting = asked_as("r2", pool, "b")
    await turns()
    clock.advance(2)
    for _ in range(3):  # each replans
        (await asked_as("r3", pool, "a")).release()
    loader.hold("b")
    held.release()
    await turns()
    loader.release("b")
    await waiting
    assert lines(caplog, "wait") == [
        ("r2", "wait b: room, after 0.0 s, 8 bytes needed, 4 bytes of 8 bytes free"),
        ("r2", "wait b: loading, after 2.0 s, 8 bytes needed, 0 MiB of 8 bytes free"),
    ]


async def test_what_can_never_fit_is_refused(new_pool: NewPool, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UnavailableError):
        await asked_as("r1", new_pool(plain(a=9)), "a")
    assert lines(caplog, "refuse") == [("r1", "refuse a: never fits, 9 bytes needed, 8 bytes of 8 bytes free")]


async def test_a_full_queue_refuses(new_pool: NewPool, caplog: pytest.LogCaptureFixture) -> None:
    pool = new_pool(plain(a=4, b=8), max_queue=1)
    held = await asked_as("r1", pool, "a")
    waiting = asked_as("r2", pool, "b")
    await turns()
    with pytest.raises(QueueFullError):
        await asked_as("r3", pool, "b")
    assert lines(caplog, "refuse") == [("r3", "refuse b: queue full, 1 wait")]
    held.release()
    await waiting


async def test_a_load_that_failed_a_moment_ago_is_refused(
    new_pool: NewPool, clock: Clock, caplog: pytest.LogCaptureFixture, loader: FakeLoader
) -> None:
    pool = new_pool(plain(a=4), load_backoff_s=5.0)
    loader.failures["a"] = LoadError("no memory.")
    with pytest.raises(LoadError):
        await asked_as("r1", pool, "a")
    clock.advance(1)
    with pytest.raises(LoadError):
        await asked_as("r2", pool, "a")
    assert lines(caplog, "refuse") == [("r2", "refuse a: back-off for 4.0 s")]


async def test_what_a_resident_logs_later_is_not_of_the_request_that_began_its_load(
    new_pool: NewPool, loader: FakeLoader
) -> None:
    seen: list[str] = []

    async def start(
        spec: LoadSpec, policies: Mapping[str, Thinking], on_progress: Callable[[float], None]
    ) -> FakeResident:
        seen.append(REQUEST_ID.get())
        return await loader(spec, policies, on_progress)

    pool = Pool(plain(a=4), PoolLimits(host(8)), start)
    (await asked_as("r1", pool, "a")).release()
    assert seen == [""]
    await pool.close()
