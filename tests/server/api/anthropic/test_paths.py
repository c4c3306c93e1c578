"""Anthropic's paths in the application: envelopes of errors, ids, keys, and streams that wait."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from coe.server.api.keys import Keys
from fakes.asgi import Client
from fakes.college import SAID, FakeLease, ServedCollege, asking, post

KEYS = Keys(frozenset({"chat-key"}), frozenset({"admin-key"}))
BODY: dict[str, Any] = {"model": "auto", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}
VERSION = {"anthropic-version": "2023-06-01"}


async def asked(
    path: str,
    body: dict[str, Any] | None = None,
    *,
    method: str = "POST",
    headers: dict[str, str] | None = None,
    keys: Keys | None = None,
    fails: bool = False,
) -> tuple[int, dict[str, str], dict[str, Any]]:
    client = asking(BODY if body is None else body, headers)
    college = ServedCollege([FakeLease([SAID], "math")], fails=fails)
    await post(college, client, path, method=method, keys=keys or Keys())
    got = {name.decode(): value.decode() for name, value in client.got[0]["headers"]}
    return client.got[0]["status"], got, json.loads(client.body or b"{}")


def kind_of(body: dict[str, Any], headers: dict[str, str]) -> str:
    """The type of an error in Anthropic's envelope."""
    assert set(body) == {"type", "error", "request_id"}
    assert set(body["error"]) == {"type", "message"}
    assert body["request_id"] == headers["request-id"] == headers["x-request-id"]
    return str(body["error"]["type"])


async def test_a_message_is_answered() -> None:
    status, headers, body = await asked("/v1/messages")
    assert status == 200
    assert body["content"] == [{"type": "text", "text": "Hello"}]
    assert headers["x-coe-specialist"] == "math"
    assert headers["request-id"] == headers["x-request-id"]


@pytest.mark.parametrize(
    ("path", "method", "status", "kind"),
    [
        ("/v1/messages", "POST", 400, "invalid_request_error"),
        ("/v1/messages", "GET", 405, "invalid_request_error"),
        ("/v1/messages/count_tokens", "POST", 400, "invalid_request_error"),
        ("/v1/messages/batches", "GET", 404, "not_found_error"),
        ("/v1/messages/of/none", "POST", 404, "not_found_error"),
    ],
)
async def test_errors_at_its_paths_and_below_are_in_its_envelope(
    path: str, method: str, status: int, kind: str
) -> None:
    code, headers, body = await asked(path, {"messages": 3}, method=method)
    assert (code, kind_of(body, headers)) == (status, kind)


async def test_whoever_sends_its_version_is_told_so_anywhere() -> None:
    _, headers, body = await asked("/v1/nothing", method="GET", headers=VERSION)
    assert kind_of(body, headers) == "not_found_error"
    _, headers, body = await asked("/v1/models", method="GET", headers=VERSION, keys=KEYS)
    assert kind_of(body, headers) == "authentication_error"
    _, _, body = await asked("/v1/models", method="GET", keys=KEYS)
    assert "code" in body["error"]
    # A path is that of its dialect, whatever else is sent.
    _, _, body = await asked("/v1/chat/completions", {"messages": 3}, headers=VERSION)
    assert "code" in body["error"]


async def test_what_nobody_foresaw_has_its_id() -> None:
    with pytest.raises(KeyError):
        await asked("/v1/messages", fails=True)
    client = asking(BODY)
    with pytest.raises(KeyError):
        await post(ServedCollege([], fails=True), client, "/v1/messages")
    headers = {name.decode(): value.decode() for name, value in client.got[0]["headers"]}
    assert kind_of(json.loads(client.body), headers) == "api_error"
    assert b"secret" not in client.body


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_a_key_for_asking_asks(path: str) -> None:
    bad = {"messages": []}
    assert (await asked(path, bad, keys=KEYS))[0] == 401
    for headers in ({"x-api-key": "chat-key"}, {"authorization": "Bearer chat-key"}):
        assert (await asked(path, bad, keys=KEYS, headers=headers))[0] == 400


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_an_agent_learns_without_a_key_that_the_server_is_there(method: str) -> None:
    status, _, _ = await asked("/api/hello", method=method, keys=KEYS)
    assert status == 200


async def test_a_stream_that_waits_for_its_lease_pings() -> None:
    client: Client = asking({**BODY, "stream": True})
    lease = FakeLease([[]], "math")
    running = asyncio.create_task(post(ServedCollege([lease], first_byte_s=0.001), client, "/v1/messages"))  # type: ignore[arg-type]
    while not client.body:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert client.body == b'event: ping\ndata: {"type":"ping"}\n\n'
    client.gone.set()
    await running


async def test_an_error_within_a_stream_is_an_event() -> None:
    from coe.engine.request import Accepted, Delta

    client = asking({**BODY, "stream": True})
    broken = FakeLease([[Accepted("", 5), Delta("", "Hel"), RuntimeError("a bug")]], "math")
    await post(ServedCollege([broken]), client, "/v1/messages")
    *_, last = client.body.decode().removesuffix("\n\n").split("\n\n")
    name, data = last.split("\n")
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: "))["error"]["type"] == "api_error"
