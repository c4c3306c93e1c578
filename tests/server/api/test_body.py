"""Bodies: encoded ones within the limit, all of them together within a total, each within its time."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from typing import Any, cast

import pytest

from coe.server.api import body as body_module
from coe.server.api.app import make_app
from coe.server.api.json_body import MAX_VALUES, parse_json
from coe.server.api.uploads import FREE_BYTES, Upload, Uploads
from coe.server.roster.models import Roster
from coe.server.runtime.college import College
from coe.server.runtime.errors import RequestError, UploadsFullError
from fakes.asgi import Client, Message, until
from fakes.college import SAID, Asking, FakeLease, ServedCollege, post

JSON = [(b"content-type", b"application/json")]
CHAT = json.dumps({"messages": [{"role": "user", "content": "Hi " * 20_000}]}).encode()


async def sent(body: bytes, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, dict[str, str], Any]:
    """Status, headers and body of the answer to a body as it is."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    client = Asking(body, {"content-type": "application/json", **named})
    await post(ServedCollege([FakeLease([SAID], "math")]), client, path)
    got = {name.decode(): value.decode() for name, value in client.got[0]["headers"]}
    return client.got[0]["status"], got, json.loads(client.body)


def raw(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(CHAT)),
        ("GZIP", gzip.compress(CHAT)),
        ("x-gzip", gzip.compress(CHAT)),
        ("deflate", zlib.compress(CHAT)),
        ("deflate", raw(CHAT)),
        ("identity", CHAT),
        ("", CHAT),
        ("gzip, gzip", gzip.compress(gzip.compress(CHAT))),
        ("deflate, gzip", gzip.compress(zlib.compress(CHAT))),
        ("identity, gzip", gzip.compress(CHAT)),
        ("gzip", gzip.compress(CHAT[:1000]) + gzip.compress(CHAT[1000:]) + b"\0" * 7),
    ],
)
async def test_an_encoded_body_is_read(encoding: str, body: bytes) -> None:
    status, _, answer = await sent(body, content_encoding=encoding)
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "Hello")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/route", "/v1/pool/unload"])
@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, br", "gzip, gzip, gzip, gzip", "no such thing"])
async def test_an_encoding_that_is_not_taken_is_a_415_that_names_those_that_are(path: str, encoding: str) -> None:
    status, headers, answer = await sent(CHAT, path, content_encoding=encoding)
    assert (status, headers["accept-encoding"]) == (415, "gzip, deflate")
    assert answer["error"]["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", CHAT),
        ("gzip", b""),
        ("gzip", gzip.compress(CHAT)[:-9]),
        ("gzip", gzip.compress(CHAT)[:-1] + b"?"),
        ("gzip", gzip.compress(CHAT) + b"more"),
        ("deflate", CHAT),
        ("deflate", zlib.compress(CHAT)[:40]),
        ("deflate", zlib.compress(CHAT) + b"more"),
        ("gzip, gzip", gzip.compress(CHAT)),
    ],
)
async def test_a_body_that_is_not_encoded_as_it_says_is_told_so(encoding: str, body: bytes) -> None:
    status, _, answer = await sent(body, content_encoding=encoding)
    assert status == 400
    assert "though its Content-Encoding says so" in answer["error"]["message"]


@pytest.mark.parametrize("layers", [1, 2])
async def test_a_bomb_is_unpacked_to_the_limit_and_no_further(layers: int) -> None:
    bomb = b" " * 50_000_000
    for _ in range(layers):
        bomb = gzip.compress(bomb)
    status, _, answer = await sent(bomb, content_encoding=", ".join(["gzip"] * layers))
    assert status == 413
    assert "when it is unpacked" in answer["error"]["message"]


async def test_members_of_gzip_are_bounded() -> None:
    parts = [CHAT[at : at + 1] for at in range(len(CHAT))]
    some = b"".join(gzip.compress(part) for part in parts[:-1][:900]) + gzip.compress(CHAT[min(900, len(CHAT) - 1) :])
    assert (await sent(some, content_encoding="gzip"))[0] == 200
    status, _, answer = await sent(gzip.compress(b"") * 1001 + gzip.compress(CHAT), content_encoding="gzip")
    assert status == 400
    assert "gzip members" in answer["error"]["message"]


@pytest.mark.parametrize("charset", ["utf-8", "UTF8", '"utf-8"', "us-ascii"])
async def test_charsets_that_are_utf_8(charset: str) -> None:
    assert (await sent(CHAT, content_type=f"application/json; charset={charset}"))[0] == 200


@pytest.mark.parametrize("charset", ["iso-8859-1", "utf-16", "none-such"])
async def test_another_charset_is_a_415(charset: str) -> None:
    status, _, answer = await sent(CHAT, content_type=f"application/json; charset={charset}")
    assert status == 415
    assert charset in answer["error"]["message"]


def test_json_in_utf_16_is_told_that_utf_8_is_wanted() -> None:
    with pytest.raises(RequestError, match="not UTF-8"):
        parse_json('{"model": "auto"}'.encode("utf-16"))


# --- counts -------------------------------------------------------------------------------------------------------

HI = '"messages":[{"role":"user","content":"hi"}]'


@pytest.mark.parametrize(
    "body",
    [
        "{" + HI + ',"logit_bias":{' + ",".join(f'"{i}":1' for i in range(400_000)) + "}}",
        '{"messages":[' + ",".join(['{"role":"user","content":"a"}'] * 200_000) + "]}",
        "{" + HI + ',"metadata":{' + ",".join(f'"k{i}":"v"' for i in range(100_000)) + "}}",
        "[" * 8_000_000,
        '{"x":[' + ",".join(["[[[]]]"] * 50_000) + "]}",
        '{"x":[' + ",".join(['"\\"[,{"'] * 60_000) + "]}",
    ],
    ids=["logit_bias", "messages", "metadata", "brackets", "nested", "texts"],
)
def test_too_many_values_are_refused_before_they_are_parsed(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", lambda *_: pytest.fail("it was parsed"))
    with pytest.raises(RequestError, match=f"more than {MAX_VALUES:,} values"):
        parse_json(body.encode())


@pytest.mark.parametrize("text", ["[{," * 100_000, '\\"' * 300_000, "\\\\" * 300_000, '[,\\\\\\",' * 50_000])
def test_marks_within_a_text_are_no_values(text: str) -> None:
    body = {"messages": [{"role": "user", "content": text}]}
    assert parse_json(json.dumps(body).encode()) == body


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", [{"role": "user", "content": "a"}] * 10_001),
        ("messages", [1] * 10_001),
        ("logit_bias", {str(token): 1 for token in range(4097)}),
        ("stop", ["a"] * 17),
        ("modalities", ["text"] * 17),
    ],
)
async def test_a_list_that_is_too_long_is_named(field: str, value: Any) -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}], field: value}
    status, _, answer = await sent(json.dumps(chat).encode())
    assert (status, answer["error"]["param"]) == (400, field)
    assert len(answer["error"]["message"]) < 200


async def test_too_many_parts_of_a_message_are_named() -> None:
    parts = [{"type": "text", "text": "a"}] * 1001
    status, _, answer = await sent(json.dumps({"messages": [{"role": "user", "content": parts}]}).encode())
    assert (status, answer["error"]["param"]) == (400, "messages[0].content")


async def test_large_bodies_are_parsed_outside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(body: bytes) -> dict[str, Any]:
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        return parse_json(body)

    monkeypatch.setattr(body_module, "parse_json", parse)
    assert (await sent(CHAT))[0] == 200
    assert (await sent(gzip.compress(b'{"messages": 1}'), content_encoding="gzip"))[0] == 400


# --- all together --------------------------------------------------------------------------------------------------


def test_the_total_of_uploads_counts_what_is_beyond_the_free_part_and_is_given_back() -> None:
    uploads = Uploads(1000)
    one, other, short = Upload(uploads), Upload(uploads), Upload(uploads)
    one.hold(FREE_BYTES + 600)
    with pytest.raises(UploadsFullError, match=r"max_uploads_bytes"):
        other.hold(FREE_BYTES + 600)
    other.hold(FREE_BYTES + 400)
    short.hold(FREE_BYTES)
    assert uploads.held_bytes == 1000
    one.hold(0)
    other.hold(FREE_BYTES + 500)
    other.hold(0)
    assert uploads.held_bytes == 0


class Uploading(Client):
    """A client that has sent a part of its body, and the rest when it is told to."""

    def __init__(self, part: bytes, rest: bytes = b"") -> None:
        super().__init__()
        self.go_on = asyncio.Event()
        self.n_received = 0
        self._messages = [(part, True), (rest, False)]

    async def receive(self) -> Message:
        self.n_received += 1
        if self.n_received == 2:
            await asyncio.wait(
                {asyncio.create_task(self.go_on.wait()), asyncio.create_task(self.gone.wait())},
                return_when="FIRST_COMPLETED",
            )
        if self.n_received > 2 or self.gone.is_set():
            return await super().receive()
        body, more = self._messages[self.n_received - 1]
        return {"type": "http.request", "body": body, "more_body": more}


async def test_unfinished_uploads_have_a_total_and_short_requests_are_served_beside_them() -> None:
    roster = {"specialists": [], "server": {"max_uploads_bytes": 1_000_000, "max_body_bytes": 1_000_000}}
    college = ServedCollege([FakeLease([SAID], "math") for _ in range(3)])
    college.roster = Roster.model_validate(roster)
    app = make_app(cast(College, college))

    def ask(client: Client) -> asyncio.Task[None]:
        scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/v1/chat/completions"}
        return asyncio.create_task(app({**scope, "query_string": b"", "headers": JSON}, client.receive, client.send))

    uploads = [Uploading(b"x" * 400_000) for _ in range(100)]
    running = [ask(client) for client in uploads]
    await until(lambda: sum(task.done() for task in running) == 98)
    refused = [client for client in uploads if client.got]
    assert {client.got[0]["status"] for client in refused} == {503}
    assert all(b"retry-after" in dict(client.got[0]["headers"]) for client in refused)
    short = Asking(json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode(), {})
    await ask(short)
    assert short.got[0]["status"] == 200
    for client in uploads:
        client.gone.set()
    await asyncio.gather(*running)
    long = Asking(json.dumps({"messages": [{"role": "user", "content": "Hi " * 300_000}]}).encode(), {})
    await ask(long)
    assert long.got[0]["status"] == 200, "what the others held has come back"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/route", "/v1/pool/unload"])
async def test_a_body_that_does_not_come_is_a_408(path: str) -> None:
    college = ServedCollege([])
    college.roster = Roster.model_validate({"specialists": [], "server": {"body_timeout_s": 0.01}})
    client = Uploading(b"{")
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "headers": JSON,
    }
    await make_app(cast(College, college))({**scope, "headers": JSON}, client.receive, client.send)
    assert client.got[0]["status"] == 408
    assert "server.body_timeout_s" in json.loads(client.body)["error"]["message"]
