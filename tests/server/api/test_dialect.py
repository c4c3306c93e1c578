"""A dialect of its own in some sixty lines: nothing in the runtime, and no other dialect, has to know of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest

from coe.engine.request import Accepted, Delta, Finish, Finished
from coe.server.api.dialect import Call, Described, StreamFormat
from coe.server.runtime.answer import Answer, Outcome, Step
from coe.server.runtime.errors import Failure, RequestError
from coe.server.runtime.request import Request
from fakes.asgi import Client
from fakes.college import SAID, FakeLease, ServedCollege, asking, post

STREAMED = [Accepted("", 5), Delta("", "Hel"), Delta("", "lo"), Finished("", Finish.STOP, 5, 0, 2)]


class ToyEnvelope:
    """{"said": ...}, or a line of JSON for each piece."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    def body(self, outcomes: Sequence[Outcome]) -> Mapping[str, Any]:
        return {"said": outcomes[0].text, "by": self._answer.answered_by.name}

    def opening(self) -> Iterable[bytes]:
        return ()

    def frames(self, step: Step) -> Iterable[bytes]:
        if isinstance(step.event, Delta):
            yield _line({"more": step.event.text})

    def closing(self) -> Iterable[bytes]:
        yield _line({"by": self._answer.answered_by.name})


class ToyDialect:
    """{"say": TEXT, "bit by bit": BOOL}."""

    stream_format = StreamFormat("application/x-ndjson", None)
    described = Described("Says", {"type": "object", "required": ["say"]}, {"type": "object"}, {"type": "object"})

    def parse(self, body: Mapping[str, Any]) -> Call:
        if not isinstance(body.get("say"), str):
            raise RequestError("say: give a text.", param="say")
        return Call(Request("auto", prompt=body["say"], stream=bool(body.get("bit by bit"))), ToyEnvelope)

    def error_body(self, failure: Failure) -> Mapping[str, Any]:
        return {"oh": failure.message, "at": failure.param}

    def error_frame(self, failure: Failure) -> bytes:
        return _line(self.error_body(failure))


def _line(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data).encode() + b"\n"


TOY = {"/toy": ToyDialect()}


async def answered(college: ServedCollege, path: str = "/toy", **body: Any) -> Client:
    client = asking(body)
    await post(college, client, path, dialects=TOY)
    return client


async def test_a_body_becomes_a_request_and_an_answer_a_body() -> None:
    lease = FakeLease([SAID], "math")
    client = await answered(ServedCollege([lease]), say="Hi")
    assert json.loads(client.body) == {"said": "Hello", "by": "math"}
    assert lease.requests[0].prompt == "Hi"
    assert lease.releases


async def test_a_stream_has_the_dialects_media_type_and_frames() -> None:
    client = await answered(ServedCollege([FakeLease([STREAMED], "math")]), say="Hi", **{"bit by bit": True})
    assert dict(client.got[0]["headers"])[b"content-type"].startswith(b"application/x-ndjson")
    assert [json.loads(line) for line in client.body.splitlines()] == [{"more": "Hel"}, {"more": "lo"}, {"by": "math"}]


@pytest.mark.parametrize("path", ["/toy", "/toy/of/none"])
async def test_errors_at_its_path_and_below_are_written_in_its_words(path: str) -> None:
    client = await answered(ServedCollege([]), path, say=3)
    assert set(json.loads(client.body)) == {"oh", "at"}
    assert client.got[0]["status"] == (400 if path == "/toy" else 404)


async def test_an_error_after_the_first_byte_is_its_own_frame() -> None:
    broken = FakeLease([[Accepted("", 5), Delta("", "Hel"), RuntimeError("a bug")]], "math")
    client = await answered(ServedCollege([broken]), say="Hi", **{"bit by bit": True})
    assert [set(json.loads(line)) for line in client.body.splitlines()] == [{"more"}, {"oh", "at"}]


async def test_a_client_without_keep_alive_frames_gets_none_while_the_lease_is_late() -> None:
    client = asking({"say": "Hi", "bit by bit": True})
    lease = FakeLease([[]], "math")
    running = asyncio.create_task(post(ServedCollege([lease], first_byte_s=0.001), client, "/toy", dialects=TOY))
    while not client.got:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert client.body == b""
    client.gone.set()
    await running
    assert lease.releases
