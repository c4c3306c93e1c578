"""A college that grants what it was told to, and leases that play a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from coe.engine.errors import EngineError
from coe.engine.pool.status import PoolStatus
from coe.engine.request import Accepted, Delta, Event, Finish, Finished, GenerateRequest
from coe.server.roster.models import Roster, Specialist
from coe.server.runtime.affinity import Thread

Script = Sequence[Event | Exception]
NOBODY = PoolStatus(0, 0, (), (), 0.0, 0, 0, 0, ())


def script(text: str, reason: Finish, **facts: Any) -> Script:
    return [Accepted("", 5), Delta("", text), Finished("", reason, 5, 0, len(text), **facts)]


SAID = script("Hello", Finish.STOP)
LOOPED = script("la la", Finish.LOOP, loop="la")


@dataclass
class FakeLease:
    """Plays one script a request, then waits for ever."""

    scripts: list[Script]
    specialist: str
    residency: str = "warm"
    waited_s: float = 0.25
    requests: list[GenerateRequest] = field(default_factory=list)
    running: int = 0
    releases: int = 0

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Event]:
        assert not self.releases, "a released lease is nobody's"
        self.requests.append(request)
        self.running += 1
        try:
            for event in self.scripts.pop(0):
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, Finished):
                    return
            await asyncio.Event().wait()
        finally:
            self.running -= 1

    def release(self) -> None:
        self.releases += 1


@dataclass
class FakeCollege:
    """Grants the leases it was given, in order; an error among them is raised."""

    leases: list[FakeLease | EngineError]
    fallback: Specialist | None = None
    roster: Roster = field(default_factory=lambda: Roster.model_validate({"specialists": []}))
    asked: list[str] = field(default_factory=list)

    async def lease(self, specialist: Specialist, thread: Thread | None = None) -> FakeLease:
        self.asked.append(specialist.name)
        lease = self.leases.pop(0)
        if isinstance(lease, EngineError):
            raise lease
        return lease

    def fallback_for(self, name: str) -> Specialist | None:
        return self.fallback


def specialist(name: str, **about: Any) -> Specialist:
    return Specialist.model_validate({"name": name, "file": "x.gguf", **about})


MATH, GENERAL = specialist("math"), specialist("general", system_prompt="Be kind.")
