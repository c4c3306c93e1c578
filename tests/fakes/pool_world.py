"""A pool's surroundings: loads that end when the test lets them, residents that do nothing, a clock a test turns."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any

from coe.engine.errors import EngineError
from coe.engine.pool.admission import State
from coe.engine.pool.inbox import Unread
from coe.engine.pool.leases import Lease
from coe.engine.pool.places import HOST, Memory
from coe.engine.pool.pool import Pool
from coe.engine.pool.resident import FreeReading, Loss
from coe.engine.request import Event, GenerateRequest
from coe.engine.spec import LoadSpec, Thinking

CARD = "CUDA0"
LONG_S = 3600.0  # no test waits so long: it ends by what it does


class FakeResident:
    def __init__(self, name: str, memory: Memory | None) -> None:
        self.name = name
        self.memory = memory
        self.activity: dict[str, float] = {}
        self.free: FreeReading | None = None
        self.gone = asyncio.Event()
        self.lost: asyncio.Future[Loss] = asyncio.get_running_loop().create_future()
        self.refused: list[EngineError] = []
        self.may_stop = asyncio.Event()
        self.may_stop.set()

    async def generate(
        self, request: GenerateRequest, *, on_end: Callable[[], None] | None = None, unread: Unread | None = None
    ) -> AsyncGenerator[Event, None]:
        raise NotImplementedError
        yield

    def refuse(self, error: EngineError) -> None:
        self.refused.append(error)

    def hang(self, how: str = "gave no sign of life for 60 s and was killed") -> None:
        """It is lost, and its process not gone yet."""
        self.lost.set_result(Loss(how, ("req-1",)))

    async def wait_lost(self) -> Loss:
        gone = asyncio.create_task(self.gone.wait())
        await asyncio.wait([gone, self.lost], return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        return self.lost.result() if self.lost.done() else Loss("died (signal 9)")

    async def stop(self) -> None:
        await self.may_stop.wait()
        self.gone.set()

    async def wait_gone(self) -> None:
        await self.gone.wait()

    def silent_s(self) -> float:
        return 0.0


class FakeLoader:
    """Starts residents as soon as their gate is open; records what was started, stopped and cancelled."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.specs: list[LoadSpec] = []
        self.cancelled: list[str] = []
        self.closed_gates: set[str] = set()
        self.gates: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.started: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.failures: dict[str, Exception] = {}
        self.first_failures: dict[str, Exception] = {}  # of the next load alone
        self.memory: dict[str, Memory] = {}
        self.residents: dict[str, FakeResident] = {}
        self.progress: dict[str, Callable[[float], None]] = {}

    async def __call__(
        self, spec: LoadSpec, policies: Mapping[str, Thinking], on_progress: Callable[[float], None]
    ) -> FakeResident:
        name = spec.path.name
        self.loads.append(name)
        self.specs.append(spec)
        self.progress[name] = on_progress
        self.started[name].set()
        try:
            if name in self.closed_gates:
                await self.gates[name].wait()
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        if name in self.first_failures:
            raise self.first_failures.pop(name)
        if name in self.failures:
            raise self.failures[name]
        self.residents[name] = FakeResident(name, self.memory.get(name))
        return self.residents[name]

    def hold(self, *names: str) -> None:
        """Loads of these do not end before `release`."""
        self.closed_gates.update(names)

    def release(self, name: str) -> None:
        self.closed_gates.discard(name)
        self.gates[name].set()


class Clock:
    """A clock that stands still, and the timers that hang on it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[tuple[float, Callable[..., object], tuple[Any, ...], asyncio.TimerHandle]] = []

    def __call__(self) -> float:
        return self.now

    def call_later(
        self, delay: float, callback: Callable[..., object], *arguments: Any, **_: Any
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(self.now + delay, callback, arguments, asyncio.get_running_loop())
        self.timers.append((self.now + delay, callback, arguments, handle))
        return handle

    def advance(self, seconds: float) -> None:
        self.now += seconds
        due = [timer for timer in self.timers if timer[0] <= self.now]
        self.timers = [timer for timer in self.timers if timer[0] > self.now]
        for _, callback, arguments, handle in due:
            if not handle.cancelled():
                callback(*arguments)


def host(n_bytes: int) -> Memory:
    """Of the host alone."""
    return Memory.at(HOST, n_bytes)


def both(card_bytes: int, host_bytes: int) -> Memory:
    """Of a machine with one card."""
    return Memory({CARD: card_bytes, HOST: host_bytes})


async def turns() -> None:
    """Let everything that can go on do so."""
    for _ in range(50):
        await asyncio.sleep(0)


def ask(pool: Pool, name: str, max_wait_s: float = LONG_S) -> asyncio.Task[Lease]:
    return asyncio.create_task(pool.lease(name, max_wait_s=max_wait_s))


def booked(pool: Pool) -> int:
    return pool.status().booked_bytes


def states(pool: Pool) -> dict[str, State]:
    return {resident.file: resident.state for resident in pool.status().residents}
