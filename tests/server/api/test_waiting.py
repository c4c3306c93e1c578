"""A stream that waits says so: comment frames for every client, and in words where the roster wants it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from coe.engine.pool.admission import State
from coe.engine.pool.places import HOST, Memory
from coe.engine.pool.status import PoolStatus, ResidentStatus
from coe.engine.request import Accepted, Delta, Finish, Finished, Reading
from coe.server.api import answers
from coe.server.roster.models import Roster, Specialist
from coe.server.runtime.waiting import lease_wait, reading_wait
from fakes.asgi import Message, until
from fakes.college import NOBODY, SAID, Asking, FakeLease, ServedCollege, asking, post

READ = [
    Accepted("", 5),
    Reading("", 2, 5),
    Reading("", 4, 5),
    Delta("", "Hello"),
    Finished("", Finish.STOP, 5, 0, 1),
]


def loading(progress: float, state: State = State.LOADING) -> PoolStatus:
    one = ResidentStatus(("math",), "math", "m.gguf", state, Memory.at(HOST, 1), 0, 4, 0.0, progress, None, False, {})
    return replace(NOBODY, residents=(one,))


class SlowCollege(ServedCollege):
    """Its lease comes when the pool has been looked at as often as there are things to see."""

    def __init__(self, lease: FakeLease, seen: list[PoolStatus], *, show_waiting: bool) -> None:
        super().__init__([lease])
        server = {"first_byte_s": 0.001, "show_waiting": show_waiting}
        self.roster = Roster.model_validate({"specialists": [], "server": server})
        self.pool = SimpleNamespace(status=self.look)
        self._seen = seen
        self.loaded = asyncio.Event()

    def look(self) -> PoolStatus:
        if len(self._seen) == 1:
            self.loaded.set()
            return self._seen[0]
        return self._seen.pop(0)

    async def lease(self, specialist: Specialist, key: Any = None) -> FakeLease:
        await self.loaded.wait()
        return await super().lease(specialist, key)


def frames(body: bytes) -> list[Any]:
    lines = body.decode().split("\n\n")
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def told(body: bytes) -> list[tuple[str, str]]:
    """Each text of the first choice, with the field that it came in."""
    deltas = [choice["delta"] for frame in frames(body) for choice in frame["choices"]]
    return [(name, text) for delta in deltas for name, text in delta.items() if name != "role" and text]


async def ask(college: ServedCollege) -> bytes:
    client = asking({"messages": [{"role": "user", "content": "Hi"}], "stream": True})
    await asyncio.wait_for(post(college, client), 30)
    return client.body


async def test_what_a_stream_waits_for_comes_as_reasoning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_TELL_EVERY_S", 0.001)
    seen = [NOBODY, loading(0.0), loading(0.43), loading(0.43), loading(1.0, State.WARM)]
    body = await ask(SlowCollege(FakeLease([READ], "math"), seen, show_waiting=True))
    assert told(body) == [
        ("reasoning_content", "Waiting for room to load math\n"),
        ("reasoning_content", "Loading math: 0 %\n"),
        ("reasoning_content", "Loading math: 43 %\n"),
        ("reasoning_content", "Waiting for math\n"),
        ("reasoning_content", "Reading the prompt: 40 %\n"),
        ("reasoning_content", "Reading the prompt: 80 %\n"),
        ("content", "Hello"),
    ]
    assert [frame["choices"][0]["delta"].get("role") for frame in frames(body)].count("assistant") == 1


async def test_without_that_a_stream_that_waits_has_comments_alone() -> None:
    college = SlowCollege(FakeLease([SAID], "math"), [NOBODY], show_waiting=False)
    client = asking({"messages": [{"role": "user", "content": "Hi"}], "stream": True})
    running = asyncio.create_task(post(college, client))
    while not client.body:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert client.body == b": waiting\n\n"
    college.loaded.set()
    await running
    assert told(client.body) == [("content", "Hello")]


def test_waits_are_told_in_words() -> None:
    assert lease_wait(loading(0.5), "physics") == "Waiting for room to load physics"
    assert reading_wait(Reading("", 0, 0)) == "Reading the prompt: 0 %"


async def test_of_a_response_it_comes_as_a_summary_and_its_events_stay_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(answers, "_TELL_EVERY_S", 0.001)
    client = asking({"input": "Hi", "stream": True})
    college = SlowCollege(FakeLease([READ], "math"), [NOBODY, loading(1.0, State.WARM)], show_waiting=True)
    await asyncio.wait_for(post(college, client, "/v1/responses"), 30)
    told_of = [frame.partition("data: ")[2] for frame in client.body.decode().split("\n\n")]
    events = [json.loads(data) for data in told_of if data]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events].count("response.created") == 1
    waited, said = events[-1]["response"]["output"]
    assert waited["summary"][0]["text"].startswith("Waiting for room to load math\n")
    assert waited["content"] == []
    assert said["content"][0]["text"] == "Hello"


async def test_a_lease_that_comes_with_the_first_frames_begins_the_stream_once() -> None:
    college = SlowCollege(FakeLease([SAID], "math"), [NOBODY, NOBODY], show_waiting=True)

    class Watching(Asking):
        """Has the lease granted while it is sent the first frames."""

        async def send(self, message: Message) -> None:
            await super().send(message)
            if b"response.created" in message.get("body", b""):
                college.loaded.set()
                await until(lambda: bool(college.asked))
                for _ in range(20):  # until the answer has opened
                    await asyncio.sleep(0)

    body = json.dumps({"input": "Hi", "stream": True}).encode()
    client = Watching(body, {"content-type": "application/json"})
    await asyncio.wait_for(post(college, client, "/v1/responses"), 30)
    assert client.body.count(b"event: response.created\n") == 1
    assert client.body.count(b"event: response.completed\n") == 1
