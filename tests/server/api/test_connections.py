"""How many clients at once, and which of them goes when its wait takes too long."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field

import pytest

from coe.server.api.connections import ConnectionLimits, Connections, Phase, room_for

LIMITS = ConnectionLimits(most=3, head_s=10, idle_s=75, drain_s=5, write_s=60, refused_s=2)


@dataclass(eq=False)
class Client:
    """A connection that notes what is done to it."""

    owner: Connections
    phase: Phase = Phase.HEAD
    since_s: float = 0.0
    unsent_bytes: int = 0
    ended: list[str] = field(default_factory=list)

    def time_out(self) -> None:
        self.ended.append("timed out")
        self.owner.lost(self)

    def abort(self) -> None:
        self.ended.append("aborted")
        self.owner.lost(self)

    def refuse(self) -> None:
        self.ended.append("refused")
        self.phase = Phase.REFUSED


@pytest.fixture
async def owner() -> Connections:
    return Connections(LIMITS)


def come(owner: Connections, phase: Phase = Phase.HEAD, since_s: float = 0.0) -> Client:
    client = Client(owner, since_s=since_s)
    owner.made(client)
    client.phase = phase if client.phase is not Phase.REFUSED else client.phase
    return client


@pytest.mark.parametrize(
    ("phase", "seconds"), [(Phase.HEAD, 10), (Phase.IDLE, 75), (Phase.DRAINING, 5), (Phase.REFUSED, 2)]
)
async def test_each_wait_for_a_client_has_a_deadline(owner: Connections, phase: Phase, seconds: float) -> None:
    client = come(owner, phase)
    owner.sweep(seconds - 0.1)
    assert not client.ended
    owner.sweep(seconds)
    assert client.ended == ["timed out"]
    assert owner.open == 0


async def test_an_answer_takes_as_long_as_it_takes(owner: Connections) -> None:
    client = come(owner, Phase.SERVING)
    owner.sweep(100_000)
    assert not client.ended


async def test_who_fetches_nothing_is_disconnected_and_who_is_slow_is_not(owner: Connections) -> None:
    deaf, slow = come(owner, Phase.SERVING), come(owner, Phase.SERVING)
    for minute in range(5):
        deaf.unsent_bytes, slow.unsent_bytes = 5000, 5000 - minute
        owner.sweep(minute * 59.0)
    assert deaf.ended == ["aborted"]
    assert not slow.ended


async def test_more_text_for_a_client_that_reads_nothing_is_no_progress(owner: Connections) -> None:
    deaf = come(owner, Phase.SERVING)
    for second in range(61):
        deaf.unsent_bytes = 100 + second
        owner.sweep(float(second))
    assert deaf.ended == ["aborted"]


async def test_beyond_the_limit_the_longest_without_a_request_goes(owner: Connections) -> None:
    busy, old, young = come(owner, Phase.SERVING), come(owner, Phase.IDLE, 1.0), come(owner, Phase.HEAD, 2.0)
    new = come(owner, since_s=3.0)
    assert (busy.ended, old.ended, young.ended, new.ended) == ([], ["timed out"], [], [])


async def test_those_that_come_together_each_take_the_place_of_another(owner: Connections) -> None:
    old = [come(owner, Phase.IDLE, float(second)) for second in range(3)]
    for client in old:
        client.time_out = lambda client=client: client.ended.append("closing")  # type: ignore[method-assign,misc]
    for _ in range(3):
        come(owner, Phase.SERVING, 9.0)
    assert [client.ended for client in old] == [["closing"]] * 3, "not the oldest three times"


async def test_where_all_are_at_work_the_new_one_is_refused(
    owner: Connections, caplog: pytest.LogCaptureFixture
) -> None:
    busy = [come(owner, Phase.SERVING) for _ in range(3)]
    refused = [come(owner) for _ in range(20)]
    assert not any(client.ended for client in busy)
    assert [client.ended for client in refused[:8]] == [["refused"]] * 8
    assert [client.ended for client in refused[8:]] == [["aborted"]] * 12, "held no longer than their 503 takes"
    assert len(caplog.records) == 1, "one line, not one a client"


async def test_descriptors_that_run_out_are_one_line_and_an_idle_client_goes(
    owner: Connections, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    idle = come(owner, Phase.IDLE)
    owner.watch_accepts(loop)
    for _ in range(1000):
        loop.call_exception_handler(
            {"message": "socket.accept() out of system resource", "exception": OSError(24, "Too many open files")}
        )
    assert idle.ended == ["timed out"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "Too many open files" in record.getMessage()
    assert "ulimit -n" in record.getMessage()


async def test_other_errors_of_the_loop_are_still_told(owner: Connections, caplog: pytest.LogCaptureFixture) -> None:
    owner.watch_accepts(asyncio.get_running_loop())
    asyncio.get_running_loop().call_exception_handler({"message": "something else"})
    assert "something else" in caplog.text


@pytest.mark.parametrize(
    ("descriptors", "in_use", "room"), [(65536, 30, 1000), (1024, 30, 738), (64, 20, 20), (64, 60, 1), (256, 40, 152)]
)
def test_connections_leave_descriptors_for_workers(descriptors: int, in_use: int, room: int) -> None:
    assert room_for(descriptors, in_use, 1000) == room
