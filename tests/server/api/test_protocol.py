"""HTTP on a real socket: phases, refusals in our envelope, and reads that are parsed bit by bit."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import pytest
import uvicorn
from uvicorn.server import ServerState

from coe.engine.request import Accepted
from coe.server.api.app import make_app
from coe.server.api.connections import ConnectionLimits, Connections, Phase
from coe.server.api.protocol import BoundedProtocol
from coe.server.runtime.college import College
from fakes.asgi import until
from fakes.college import SAID, FakeLease, ServedCollege

CHAT = json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode()
PATH = b"/v1/chat/completions"
TO = b"host: 127.0.0.1\r\ncontent-type: application/json\r\n"


@dataclass
class Served:
    """An application on a free port of this machine, in this process."""

    owner: Connections
    port: int
    protocols: list[BoundedProtocol]

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def said(self, sent: bytes) -> bytes:
        """What comes back until the server closes."""
        reader, writer = await self.connect()
        writer.write(sent)
        try:
            return await reader.read()
        finally:
            writer.close()


@asynccontextmanager
async def served(*leases: FakeLease, most: int = 100, college: ServedCollege | None = None) -> AsyncIterator[Served]:
    owner = Connections(ConnectionLimits(most=most))
    app = make_app(cast(College, college or ServedCollege(list(leases))))
    config = uvicorn.Config(app, log_config=None, ws="none", h11_max_incomplete_event_size=64 * 1024)
    config.load()
    state = ServerState()
    protocols: list[BoundedProtocol] = []

    def make() -> BoundedProtocol:
        protocols.append(BoundedProtocol(owner, config=config, server_state=state, app_state={}))
        return protocols[-1]

    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    try:
        yield Served(owner, server.sockets[0].getsockname()[1], protocols)
    finally:
        server.close()
        for protocol in protocols:
            protocol.abort()
        await until(lambda: owner.open == 0)


def post(body: bytes, *headers: bytes, path: bytes = PATH) -> bytes:
    length = b"content-length: %d" % len(body)
    return b"\r\n".join(
        [
            b"POST " + path + b" HTTP/1.1",
            b"host: 127.0.0.1",
            b"content-type: application/json",
            length,
            *headers,
            b"",
            body,
        ]
    )


def parsed(answer: bytes) -> tuple[int, dict[str, str], Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return int(first.split()[1]), headers, json.loads(body) if body else None


async def test_half_a_head_ends_with_408_and_an_idle_connection_without_a_word() -> None:
    async with served() as server:
        idle, slow = await server.connect(), await server.connect()
        slow[1].write(b"GET /health HT")
        await until(lambda: [one._partial for one in server.protocols] == [False, True])
        server.owner.sweep(server.protocols[0].since_s + 11)
        assert await idle[0].read() == b""
        status, headers, body = parsed(await slow[0].read())
    assert (status, headers["connection"], body["error"]["code"]) == (408, "close", "request_timeout")


async def test_a_kept_connection_is_idle_between_requests_and_closed_when_it_stays_so() -> None:
    async with served() as server:
        reader, writer = await server.connect()
        for _ in range(2):
            writer.write(b"GET /health HTTP/1.1\r\n" + TO + b"\r\n")
            assert b"200" in await reader.readline()
            await reader.readuntil(b'{"status":"ok"}')
            await until(lambda: server.protocols[0].phase is Phase.IDLE)
        server.owner.sweep(server.protocols[0].since_s + 76)
        assert await reader.read() == b""


async def test_the_next_head_on_a_kept_connection_has_its_deadline() -> None:
    async with served() as server:
        reader, writer = await server.connect()
        writer.write(b"GET /health HTTP/1.1\r\n" + TO + b"\r\n")
        await reader.readuntil(b'{"status":"ok"}')
        writer.write(b"GET /")
        await until(lambda: server.protocols[0].phase is Phase.HEAD)
        server.owner.sweep(server.protocols[0].since_s + 11)
        assert b" 408 " in await reader.read()


async def test_an_answer_that_comes_before_the_body_leaves_a_connection_that_drains_for_a_moment() -> None:
    async with served() as server:
        reader, writer = await server.connect()
        writer.write(b"POST " + PATH + b" HTTP/1.1\r\n" + TO + b"content-length: 99999999\r\n\r\nabc")
        assert b" 413 " in await reader.readline()
        await until(lambda: server.protocols[0].phase is Phase.DRAINING)
        server.owner.sweep(server.protocols[0].since_s + 4)
        assert server.owner.open == 1, "its answer is to be read"
        server.owner.sweep(server.protocols[0].since_s + 6)
        await reader.read()
        await until(lambda: server.owner.open == 0)


async def test_beyond_the_limit_a_client_is_told_so() -> None:
    lease = FakeLease([[Accepted("", 5)]], "math")
    async with served(lease, most=1) as server:
        _, writer = await server.connect()
        writer.write(post(CHAT))
        await until(lambda: lease.running == 1)
        reader, other = await server.connect()
        other.write(post(CHAT))
        status, headers, body = parsed(await reader.read())
    assert (status, body["error"]["code"]) == (503, "too_many_connections")
    assert int(headers["retry-after"]) > 0


@pytest.mark.parametrize(
    ("sent", "status", "words"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00", 400, "http:// in place of https://"),
        (b"hello\r\n\r\n", 400, "not HTTP/1.1"),
        (
            b"GET / HTTP/1.1\r\n" + TO + b"x: y\r\n" * 20_000,
            431,
            "headers are too large",
        ),
        (b"GET / HTTP/1.1\r\n" + TO + b"x: y\r\n" * 199 + b"\r\n", 431, "more than 200 lines"),
        (b"GET / HTTP/1.1\r\n" + TO + b"x: y\n" * 5_000, 431, "more than 200 lines"),
        (
            b"POST / HTTP/1.1\r\n" + TO + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "exclude each other",
        ),
        (b"POST / HTTP/1.1\r\n" + TO + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd", 400, "Content-Length"),
        (b"POST / HTTP/1.1\r\n" + TO + b"transfer-encoding: gzip, chunked\r\n\r\n", 501, "Transfer-Encoding"),
        (b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400, "HTTP/1.0"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "Host"),
        (
            b"POST / HTTP/1.1\r\n" + TO + b"content-length: many\r\n\r\n",
            400,
            "not HTTP/1.1",
        ),
    ],
)
async def test_what_is_no_http_is_refused_in_our_envelope(sent: bytes, status: int, words: str) -> None:
    async with served() as server:
        got, headers, body = parsed(await server.said(sent))
    assert (got, headers["content-type"]) == (status, "application/json")
    assert words in body["error"]["message"]


async def test_a_body_of_single_bytes_is_parsed_bit_by_bit_and_others_have_their_turn() -> None:
    chunks = b"".join(b"1\r\n" + CHAT[at : at + 1] + b"\r\n" for at in range(len(CHAT)))
    filler = b"1\r\n \r\n" * 20_000
    async with served(FakeLease([SAID], "math")) as server:
        reader, writer = await server.connect()
        writer.write(
            b"POST " + PATH + b" HTTP/1.1\r\n" + TO + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        writer.write(filler + chunks + b"0\r\n\r\n")
        assert b" 200 " in await server.said(b"GET /health HTTP/1.1\r\n" + TO + b"connection: close\r\n\r\n")
        assert b" 200 " in await reader.read()


async def test_requests_that_come_together_are_answered_one_after_the_other() -> None:
    one = b"GET /health HTTP/1.1\r\n" + TO + b"\r\n"
    async with served() as server:
        answers = await server.said(one * 3 + b"GET /health HTTP/1.1\r\n" + TO + b"connection: close\r\n\r\n")
    assert answers.count(b'{"status":"ok"}') == 4


async def test_an_upload_that_is_broken_off_is_no_error_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with served() as server:
        for body in (b"abc", b"x" * 100_000):
            _, writer = await server.connect()
            writer.write(b"POST " + PATH + b" HTTP/1.1\r\n" + TO + b"content-length: 200000\r\n\r\n" + body)
            await until(lambda: any(one.phase is Phase.SERVING for one in server.protocols))
            writer.close()
            await until(lambda: server.owner.open == 0)
        await until(lambda: caplog.text.count("the client left") == 2)
    assert [record for record in caplog.records if record.levelname in ("ERROR", "WARNING")] == []


async def test_an_upgrade_that_is_not_made_is_answered_and_leaves_no_line(caplog: pytest.LogCaptureFixture) -> None:
    async with served() as server:
        wish = b"connection: upgrade, close\r\nupgrade: h2c\r\n"
        assert b" 200 " in await server.said(b"GET /health HTTP/1.1\r\n" + TO + wish + b"\r\n")
    assert not caplog.records


async def test_http_1_0_is_answered_with_a_length_and_the_connection_ends() -> None:
    async with served(FakeLease([SAID], "math")) as server:
        status, headers, body = parsed(await server.said(post(CHAT).replace(b"HTTP/1.1", b"HTTP/1.0", 1)))
    assert (status, body["choices"][0]["message"]["content"]) == (200, "Hello")
    assert "transfer-encoding" not in headers


async def test_a_stream_over_http_1_0_has_no_chunks_and_ends_with_the_connection() -> None:
    body = json.dumps({**json.loads(CHAT), "stream": True}).encode()
    async with served(FakeLease([SAID], "math")) as server:
        answer = await server.said(post(body).replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    head, _, frames = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert frames.startswith((b"data: ", b": "))
    assert frames.endswith(b"data: [DONE]\n\n")


async def test_who_expects_100_continue_is_told_to_go_on_and_then_answered() -> None:
    head, _, body = post(CHAT, b"expect: 100-continue", b"connection: close").partition(b"\r\n\r\n")
    async with served(FakeLease([SAID], "math")) as server:
        reader, writer = await server.connect()
        writer.write(head + b"\r\n\r\n")
        assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
        writer.write(body)
        assert b" 200 " in await reader.readline()
        assert b"Hello" in await reader.read()


async def test_who_expects_100_continue_for_what_is_refused_sends_no_body() -> None:
    async with served() as server:
        reader, writer = await server.connect()
        expects = b"expect: 100-continue\r\ncontent-length: 99999999\r\n\r\n"
        writer.write(b"POST " + PATH + b" HTTP/1.1\r\n" + TO + expects)
        status, headers, _ = parsed(await reader.read())
    assert (status, headers["connection"]) == (413, "close")


async def test_a_bad_request_after_a_good_one_costs_the_good_one_nothing() -> None:
    good = b"GET /health HTTP/1.1\r\n" + TO + b"\r\n"
    bad = b"POST / HTTP/1.1\r\n" + TO + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n"
    async with served() as server:
        answers = await server.said(good + bad + good)
    assert answers.count(b'{"status":"ok"}') == 1, "what follows a refused request has no sure beginning"
    assert answers.count(b"HTTP/1.1 400 ") == 1


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n" + TO + b"authorization : Bearer sk-5ECRET\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + TO + b"authorization: Bearer sk-5ECRET\0\r\n\r\n",
        b"GET /?key=5ECRET x HTTP/1.1\r\n" + TO + b"\r\n",
        # The rest of a body whose length is wrong is read as the next request, or as the head of a chunk.
        post(b"{}") + CHAT.replace(b"Hi", b"'5ECRET'"),
        b"POST / HTTP/1.1\r\n" + TO + b'transfer-encoding: chunked\r\n\r\n"5ECRET"\r\n',
        b"POST / HTTP/1.1\r\n" + TO + b"transfer-encoding: chunked\r\n\r\n2\r\n{}5ECRET\r\n",
    ],
)
async def test_what_cannot_be_read_is_not_repeated(sent: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with served() as server:
        said = await server.said(sent + b"\r\n\r\n")
    assert b"invalid_http" in said
    assert b"5ECRET" not in said
    [line] = [record.message for record in caplog.records if "a connection ended with 400" in record.message]
    assert "5ECRET" not in line
    assert line.endswith(("line.", "header.", "footer."))


async def test_a_flood_of_what_is_no_http_is_no_flood_of_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with served() as server:
        for _ in range(40):
            await server.said(b"?\r\n\r\n")
    assert 20 <= sum("a connection ended" in record.message for record in caplog.records) < 40
