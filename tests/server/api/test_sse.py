"""Event streams: whoever leaves, and whatever breaks, the answer is closed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable

import pytest
from starlette.requests import Request

from coe.engine.errors import WorkerDiedError
from coe.server.api.dialect import EVENT_STREAM
from coe.server.api.openai.dialects import CHAT
from coe.server.api.openai.replies import data_frame
from coe.server.api.sse import KEEP_ALIVE_S, EventStream, until_gone
from coe.server.runtime.errors import ClientGoneError
from fakes.asgi import Client, until


class Source:
    """Frames as they are told to come, and whether the stream was closed."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self.ended = False
        self.closed = 0

    async def generate(self) -> AsyncGenerator[bytes, None]:
        try:
            while (frame := await self.frames.get()) is not None:
                if isinstance(frame, Exception):
                    raise frame
                yield frame
        finally:
            self.ended = True

    async def close(self) -> None:
        assert self.ended, "nothing may be read any more when the answer is closed"
        self.closed += 1


async def run(source: Source, client: Client, keep_alive_s: float = KEEP_ALIVE_S) -> None:
    headers = {"x-coe-specialist": "math"}
    stream = EventStream(source.generate(), source.close, headers, CHAT, keep_alive_s=keep_alive_s)
    await stream({"type": "http"}, client.receive, client.send)


async def test_frames_go_out_as_they_come_and_the_answer_is_closed_before_the_end() -> None:
    source, client = Source(), Client()
    running = asyncio.create_task(run(source, client))
    source.frames.put_nowait(b"data: 1\n\n")
    await until(lambda: client.body == b"data: 1\n\n")
    assert not source.closed
    source.frames.put_nowait(None)
    await running
    assert client.got[0]["status"] == 200
    headers = dict(client.got[0]["headers"])
    assert headers[b"x-coe-specialist"] == b"math"
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert b"content-length" not in headers
    assert client.got[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert source.closed


async def test_a_client_that_leaves_while_nothing_comes_closes_the_answer() -> None:
    source, client = Source(), Client()
    running = asyncio.create_task(run(source, client))
    await until(lambda: bool(client.got))
    client.gone.set()
    await running
    assert source.closed


async def test_a_client_that_leaves_while_a_frame_is_being_sent_closes_the_answer() -> None:
    source, client = Source(), Client()
    running = asyncio.create_task(run(source, client))
    await until(lambda: bool(client.got))
    client.reads.clear()
    source.frames.put_nowait(b"data: 1\n\n")
    await until(lambda: bool(client.body))
    client.gone.set()
    await running
    assert source.closed


async def test_a_client_that_leaves_before_the_headers_are_out_closes_the_answer() -> None:
    source, client = Source(), Client()
    source.ended = True  # a generator that was never begun has nothing to end
    client.reads.clear()
    running = asyncio.create_task(run(source, client))
    await until(lambda: bool(client.got))
    client.gone.set()
    await running
    assert source.closed


async def test_a_stopped_server_closes_the_answer() -> None:
    source, client = Source(), Client()
    running = asyncio.create_task(run(source, client))
    await until(lambda: bool(client.got))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert source.closed


@pytest.mark.parametrize(
    ("error", "code"), [(WorkerDiedError("It died.", "Ask again."), "worker_died"), (KeyError("x"), "internal_error")]
)
async def test_an_error_becomes_the_last_frame(error: Exception, code: str) -> None:
    source, client = Source(), Client()
    source.frames.put_nowait(b"data: 1\n\n")
    source.frames.put_nowait(error)
    await run(source, client)
    _, last, rest = client.body.split(b"\n\n")
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == code
    assert rest == b""
    assert source.closed


async def test_comments_fill_the_silence() -> None:
    source, client, comment = Source(), Client(), EVENT_STREAM.keep_alive
    assert comment is not None
    running = asyncio.create_task(run(source, client, keep_alive_s=0))
    await until(lambda: client.body == 2 * comment)
    source.frames.put_nowait(b"data: 1\n\n")
    await until(lambda: b"data: 1" in client.body)
    await until(lambda: client.body.endswith(comment))
    source.frames.put_nowait(None)
    await running
    assert client.body.replace(comment, b"") == b"data: 1\n\n"
    assert source.closed


async def test_no_comment_comes_between_the_pieces_of_a_frame_that_is_being_sent() -> None:
    source, client = Source(), Client()
    running = asyncio.create_task(run(source, client, keep_alive_s=0))
    await until(lambda: bool(client.got))
    client.reads.clear()
    source.frames.put_nowait(b"data: 1\n\n")
    await until(lambda: b"data: 1" in client.body)
    sent = len(client.got)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(client.got) == sent
    client.reads.set()
    source.frames.put_nowait(None)
    await running


def test_a_frame_is_one_line_of_json_in_utf_8() -> None:
    frame = data_frame({"text": "a\nb é ☃"})
    assert frame == 'data: {"text":"a\\nb é ☃"}\n\n'.encode()


def _request(client: Client) -> Request:
    return Request({"type": "http"}, client.receive)


async def test_work_is_cancelled_when_the_client_leaves() -> None:
    client, started, ended = Client(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        try:
            started.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    waiting: Awaitable[None] = asyncio.create_task(until_gone(_request(client), work()))
    await started.wait()
    client.gone.set()
    with pytest.raises(ClientGoneError):
        await waiting
    assert ended.is_set()


async def test_the_result_or_the_error_of_work_comes_through() -> None:
    async def work(fails: bool) -> int:
        if fails:
            raise KeyError("x")
        return 7

    assert await until_gone(_request(Client()), work(False)) == 7
    with pytest.raises(KeyError):
        await until_gone(_request(Client()), work(True))
