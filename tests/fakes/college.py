"""A college that grants what it was told to, and leases that play a script."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

from coe.engine.errors import EngineError
from coe.engine.pool.inbox import Unread
from coe.engine.pool.places import Memory
from coe.engine.pool.status import PoolStatus
from coe.engine.request import Accepted, Delta, Event, Finish, Finished, GenerateRequest
from coe.router.conversation import ConversationKey
from coe.server.api.app import DIALECTS, NO_KEYS, make_app
from coe.server.api.dialect import Dialect
from coe.server.api.keys import Keys
from coe.server.roster.models import Roster, Specialist
from coe.server.runtime.choice import Choice
from coe.server.runtime.college import College
from coe.server.runtime.metrics import Metrics
from coe.server.runtime.request import Request
from fakes.asgi import Client, Message

Script = Sequence[Event | Exception]
NOBODY = PoolStatus(Memory(), Memory(), (), (), 0.0, 0, 0, 0, ())


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

    async def generate(
        self, request: GenerateRequest, *, on_end: Callable[[], None] | None = None, unread: Unread | None = None
    ) -> AsyncGenerator[Event, None]:
        assert not self.releases, "a released lease is nobody's"
        self.requests.append(request)
        self.running += 1
        try:
            for event in self.scripts.pop(0):
                if isinstance(event, Exception):
                    raise event
                if isinstance(event, Finished) and on_end is not None:
                    on_end()
                yield event
                if isinstance(event, Finished):
                    return
            await asyncio.Event().wait()
        finally:
            self.running -= 1

    def release(self) -> None:
        """As often as it likes; the first time counts."""
        self.releases = 1


@dataclass
class FakeCollege:
    """Grants the leases it was given, in order; an error among them is raised."""

    leases: list[FakeLease | EngineError]
    fallback: Specialist | None = None
    roster: Roster = field(default_factory=lambda: Roster.model_validate({"specialists": []}))
    asked: list[str] = field(default_factory=list)
    counted: list[tuple[str, int]] = field(default_factory=list)
    roomy: list[Specialist] = field(default_factory=list)  # to be passed on to
    unread: Unread = field(default_factory=lambda: Unread(2**16, 2**26))

    async def lease(self, specialist: Specialist, key: ConversationKey | None = None) -> FakeLease:
        self.asked.append(specialist.name)
        lease = self.leases.pop(0)
        if isinstance(lease, EngineError):
            raise lease
        return lease

    @property
    def chooser(self) -> Any:
        return self

    def fallback_for(self, name: str, request: Request) -> Specialist | None:
        return self.fallback

    def measured(self, name: str, request: Request, prompt_tokens: int) -> None:
        self.counted.append((name, prompt_tokens))

    def passing_over(
        self, request: Request, choice: Choice, written: str, tokens: int, tried: Sequence[str]
    ) -> Choice | None:
        others = [one for one in self.roomy if one.name not in tried and one.context_tokens > tokens]
        return replace(choice, specialist=others[0], reason=f"{choice.reason}; {written}") if others else None

    def largest_context(self, request: Request) -> int:
        return max((one.context_tokens for one in self.roomy), default=0)


def specialist(name: str, **about: Any) -> Specialist:
    return Specialist.model_validate({"name": name, "file": "x.gguf", **about})


MATH, GENERAL = specialist("math"), specialist("general", system_prompt="Be kind.")


class ServedCollege(FakeCollege):
    """A college under an application, that always chooses math."""

    def __init__(
        self,
        leases: list[FakeLease | EngineError],
        *,
        fallback: Specialist | None = None,
        first_byte_s: float = 10.0,
        fails: bool = False,
    ) -> None:
        roster = Roster.model_validate({"specialists": [], "server": {"first_byte_s": first_byte_s}})
        super().__init__(leases, fallback, roster)
        self.pool = SimpleNamespace(status=lambda: NOBODY)
        self.builds = SimpleNamespace(cards=list)
        self.fails = fails

    async def choose(self, request: Request, session_id: str | None, *, begin: bool = True) -> Choice:
        if self.fails:
            raise KeyError("secret")
        return Choice(MATH, 0.75, "math 0.75")


class Asking(Client):
    """A client that posts one body."""

    def __init__(self, body: bytes, headers: Mapping[str, str]) -> None:
        super().__init__()
        self._body: bytes | None = body
        self.headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        return await super().receive()


def asking(body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Asking:
    return Asking(json.dumps(body).encode(), {"content-type": "application/json", **(headers or {})})


async def post(
    college: ServedCollege,
    client: Asking,
    path: str = "/v1/chat/completions",
    *,
    dialects: Mapping[str, Dialect] = DIALECTS,
    keys: Keys = NO_KEYS,
    method: str = "POST",
) -> Metrics:
    """Serve one request; gives the application's metrics."""
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": client.headers,
    }
    app = make_app(cast(College, college), keys, dialects=dialects)
    await app(scope, client.receive, client.send)
    metrics: Metrics = app.state.metrics
    return metrics
