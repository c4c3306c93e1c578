"""The application without a network: clients that leave at the worst moment, and bugs of our own."""

from __future__ import annotations

import asyncio
import json

import pytest

from coe.engine.request import Accepted, Delta
from fakes.asgi import Message, until
from fakes.college import GENERAL, SAID, FakeLease, ServedCollege, asking, post

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


def served(*leases: FakeLease, fails: bool = False) -> ServedCollege:
    return ServedCollege(list(leases), fallback=GENERAL, first_byte_s=0.001, fails=fails)


async def test_a_client_that_leaves_while_text_is_being_sent_gives_the_lease_back() -> None:
    lease = FakeLease([[Accepted("", 5), Delta("", "He"), Delta("", "llo")]], "math")
    client = asking({**CHAT, "stream": True})
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
    client = asking({**CHAT, "stream": stream})
    running = asyncio.create_task(post(served(lease), client))
    await until(lambda: lease.running == 1)
    client.gone.set()
    await running
    assert (lease.running, bool(lease.releases)) == (0, True)


async def test_a_stream_whose_lease_is_late_begins_with_a_comment() -> None:
    lease = FakeLease([[]], "math")
    client = asking({**CHAT, "stream": True})
    running = asyncio.create_task(post(served(lease), client))
    await until(lambda: client.body.startswith(b": "))
    assert client.got[0]["status"] == 200
    client.gone.set()
    await running
    assert lease.releases


async def test_a_bug_of_ours_is_a_500_in_openais_envelope(caplog: pytest.LogCaptureFixture) -> None:
    client = asking(CHAT, {"x-request-id": "bug-1"})
    with pytest.raises(KeyError):  # handed on, so that the log has it
        await post(served(fails=True), client)
    assert client.got[0]["status"] == 500
    assert dict(client.got[0]["headers"])[b"x-request-id"] == b"bug-1"
    assert [r.__dict__["request_id"] for r in caplog.records if r.levelname == "ERROR"] == ["bug-1"]
    error = json.loads(client.body)["error"]
    assert error["code"] == "internal_error"
    assert "secret" not in client.body.decode()


async def test_the_lease_is_back_before_a_whole_answer_goes_out() -> None:
    lease = FakeLease([SAID], "math")
    client = asking(CHAT)
    client.reads.clear()
    running = asyncio.create_task(post(served(lease), client))
    await until(lambda: bool(client.got))
    assert lease.releases
    client.reads.set()
    await running
    assert json.loads(client.body)["choices"][0]["message"]["content"] == "Hello"


@pytest.mark.parametrize("stream", [True, False])
async def test_the_clients_request_id_comes_back_and_reaches_the_worker(stream: bool) -> None:
    lease = FakeLease([SAID], "math")
    client = asking({**CHAT, "stream": stream}, {"x-request-id": "abc-1"})
    await post(served(lease), client)
    assert dict(client.got[0]["headers"])[b"x-request-id"] == b"abc-1"
    assert lease.requests[0].id.startswith("abc-1/")


@pytest.mark.parametrize("given", [{}, {"x-request-id": "two\nlines"}, {"x-request-id": "x" * 129}])
async def test_a_request_without_a_usable_id_gets_one_of_ours(given: dict[str, str]) -> None:
    names = []
    for _ in range(2):
        client = asking({**CHAT, "n": "many"}, given)  # refused, and named all the same
        await post(served(), client)
        assert client.got[0]["status"] == 400
        names.append(dict(client.got[0]["headers"])[b"x-request-id"])
    assert all(name.startswith(b"req-") for name in names)
    assert names[0] != names[1]


async def test_a_client_that_leaves_before_it_has_sent_its_body_is_no_error_of_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = asking(CHAT)

    async def leaves() -> Message:
        return {"type": "http.disconnect"}

    client.receive = leaves  # type: ignore[method-assign]
    await post(served(), client)
    assert client.got[0]["status"] == 499
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
