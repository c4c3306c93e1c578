"""The application without a network: clients that leave at the worst moment, and bugs of our own."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from coe.engine.request import Accepted, Delta
from coe.server.api.app import make_app
from coe.server.api.openai.requests import Ask
from coe.server.roster.models import Roster
from coe.server.runtime.college import Choice, College
from fakes.asgi import Client, Message, until
from fakes.college import GENERAL, MATH, NOBODY, SAID, FakeCollege, FakeLease


@dataclass
class ServedCollege(FakeCollege):
    """A college that always chooses math."""

    pool: Any = field(default_factory=lambda: SimpleNamespace(status=lambda: NOBODY))
    builds: Any = field(default_factory=lambda: SimpleNamespace(cards=list))
    fails: bool = False

    async def choose(self, ask: Ask, session_id: str | None) -> Choice:
        if self.fails:
            raise KeyError("secret")
        return Choice(MATH, 0.75, "math 0.75")


class Asking(Client):
    """A client that posts one body."""

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self._body: bytes | None = json.dumps({"messages": [{"role": "user", "content": "Hi"}], **fields}).encode()

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        return await super().receive()


def served(*leases: FakeLease, fails: bool = False) -> ServedCollege:
    roster = Roster.model_validate({"specialists": [], "server": {"first_byte_s": 0.001}})
    return ServedCollege(list(leases), GENERAL, roster, fails=fails)


async def post(college: ServedCollege, client: Client) -> None:
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "query_string": b"",
        "headers": [],
    }
    await make_app(cast(College, college))(scope, client.receive, client.send)


async def test_a_client_that_leaves_while_text_is_being_sent_gives_the_lease_back() -> None:
    lease = FakeLease([[Accepted("", 5), Delta("", "He"), Delta("", "llo")]], "math")
    client = Asking(stream=True)
    running = asyncio.create_task(post(served(lease), client))
    await until(lambda: b'"role"' in client.body)
    client.reads.clear()
    await until(lambda: b'"He"' in client.body or b'"llo"' in client.body)
    assert lease.running == 1
    client.gone.set()
    await running
    assert (lease.running, bool(lease.releases)) == (0, True)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_before_the_prompt_is_accepted_gives_the_lease_back(stream: bool) -> None:
    lease = FakeLease([[]], "math")
    client = Asking(stream=stream)
    running = asyncio.create_task(post(served(lease), client))
    await until(lambda: lease.running == 1)
    client.gone.set()
    await running
    assert (lease.running, bool(lease.releases)) == (0, True)


async def test_a_stream_whose_lease_is_late_begins_with_a_comment() -> None:
    lease = FakeLease([[]], "math")
    client = Asking(stream=True)
    running = asyncio.create_task(post(served(lease), client))
    await until(lambda: client.body.startswith(b": "))
    assert client.got[0]["status"] == 200
    client.gone.set()
    await running
    assert lease.releases


async def test_a_bug_of_ours_is_a_500_in_openais_envelope() -> None:
    client = Asking()
    with pytest.raises(KeyError):  # handed on, so that the log has it
        await post(served(fails=True), client)
    assert client.got[0]["status"] == 500
    error = json.loads(client.body)["error"]
    assert error["code"] == "internal_error"
    assert "secret" not in client.body.decode()


async def test_the_lease_is_back_before_a_whole_answer_goes_out() -> None:
    lease = FakeLease([SAID], "math")
    client = Asking()
    client.reads.clear()
    running = asyncio.create_task(post(served(lease), client))
    await until(lambda: bool(client.got))
    assert lease.releases
    client.reads.set()
    await running
    assert json.loads(client.body)["choices"][0]["message"]["content"] == "Hello"
