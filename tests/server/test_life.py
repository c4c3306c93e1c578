"""Clients that leave, workers that die, and how the server ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from coe.server.commands.serve import listen
from fakes.server_process import ENDLESS, GIVE_UP_S, ServerProcess, ended, run_coe, write_roster

pytestmark = pytest.mark.server

LONG = {"context_tokens": 8192, "loop_guard": False}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server of this test's own, whose answers need not end."""
    with ServerProcess(write_roster(tmp_path, {"general": LONG})) as server:
        yield server


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose answers need not end."""
    with ServerProcess(write_roster(tmp_path_factory.mktemp("endless"), {"general": LONG})) as server:
        yield server


def test_a_client_that_leaves_a_stream_ends_the_generation(endless: ServerProcess) -> None:
    before = endless.metric("coe_answers_total", reason="cancelled")
    with endless.streaming():
        assert endless.leases() == 1
    endless.until(lambda: endless.leases() == 0)
    endless.until(lambda: endless.metric("coe_answers_total", reason="cancelled") == before + 1)


def test_a_client_that_leaves_a_whole_answer_ends_the_generation(endless: ServerProcess) -> None:
    before = endless.metric("coe_answers_total", reason="cancelled")
    body = {"model": "general", "messages": [{"role": "user", "content": "Go on"}], **ENDLESS}
    request = httpx.Request("POST", f"{endless.url}/v1/chat/completions", json=body)
    head = f"POST {request.url.path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in request.headers.items())
    with socket.create_connection((request.url.host, request.url.port or 80)) as connection:
        leases = endless.metric("coe_wait_seconds_count")
        connection.sendall(head.encode() + b"\r\n" + request.content)
        endless.until(lambda: endless.metric("coe_wait_seconds_count") > leases)
    endless.until(lambda: endless.metric("coe_answers_total", reason="cancelled") == before + 1)
    assert endless.leases() == 0


def test_a_client_that_leaves_the_queue_gives_its_place_back(endless: ServerProcess) -> None:
    with endless.streaming(), endless.streaming():
        pass
    body = {"model": "general", "messages": [{"role": "user", "content": "Go on"}], "max_tokens": 1}

    async def leave_while_waiting() -> None:
        async with httpx.AsyncClient(base_url=endless.url, timeout=GIVE_UP_S) as client:
            asked = asyncio.create_task(client.post("/v1/chat/completions", json=body))
            while (await client.get("/v1/pool")).json()["waiting"] != ["general"]:
                pass
            asked.cancel()
            while (await client.get("/v1/pool")).json()["waiting"]:
                pass

    endless.until(lambda: endless.leases() == 0)
    with endless.streaming(), endless.streaming():
        asyncio.run(asyncio.wait_for(leave_while_waiting(), GIVE_UP_S))
        assert endless.leases() == 2


def test_a_worker_killed_in_mid_stream_is_an_error_frame_and_the_next_request_is_served(server: ServerProcess) -> None:
    with server.streaming() as frames:
        (worker,) = server.workers()
        os.kill(worker, signal.SIGKILL)
        *_, last = b"".join(frames).decode().strip().split("\n\n")
    assert '"code":"worker_died"' in last
    assert "Send the request again" in last
    response = server.chat()
    assert response.status_code == 200
    assert response.headers["x-coe-residency"] == "loaded"
    assert server.workers() != [worker]
    assert server.metric("coe_answers_total", reason="failed") == 1
    assert server.metric("coe_request_seconds_count", outcome="failed") == 1
    assert "failed: POST /v1/chat/completions ended with worker_died after " in server.log()
    assert server.leases() == 0


def test_a_worker_killed_under_whole_answers_is_a_503_for_each(server: ServerProcess) -> None:
    body = {"model": "general", "messages": [{"role": "user", "content": "Go on"}], **ENDLESS}

    async def kill_under_three() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=GIVE_UP_S) as client:
            asked = [asyncio.create_task(client.post("/v1/chat/completions", json=body)) for _ in range(2)]
            while sum(r["leases"] for r in (await client.get("/v1/pool")).json()["residents"]) < 2:
                pass
            os.kill(server.workers()[0], signal.SIGKILL)
            return await asyncio.gather(*asked)

    answers = asyncio.run(asyncio.wait_for(kill_under_three(), GIVE_UP_S))
    assert [answer.status_code for answer in answers] == [503, 503]
    assert all(answer.json()["error"]["code"] == "worker_died" for answer in answers)
    assert all("retry-after" in answer.headers for answer in answers)
    assert server.chat().status_code == 200


def test_no_worker_outlives_a_server_that_is_killed(tmp_path: Path) -> None:
    server = ServerProcess(write_roster(tmp_path, {"general": LONG}))
    server.chat().raise_for_status()
    (worker,) = server.workers()
    watched = os.pidfd_open(worker)
    try:
        server.process.kill()
        assert ended(watched)
    finally:
        os.close(watched)
        server.http.close()
        server.wait()


def test_ctrl_c_lets_running_streams_end_and_then_exits_with_0(tmp_path: Path) -> None:
    server = ServerProcess(write_roster(tmp_path, {"general": LONG}))
    with server.streaming(max_tokens=40) as frames:
        watched = [os.pidfd_open(worker) for worker in server.workers()]
        server.process.send_signal(signal.SIGINT)
        rest = b"".join(frames).decode()
    assert rest.rstrip().endswith("data: [DONE]")
    assert '"finish_reason":"length"' in rest
    server.http.close()
    assert server.wait() == 0
    assert all(ended(worker) for worker in watched)
    for descriptor in watched:
        os.close(descriptor)


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    server = ServerProcess(write_roster(tmp_path, {"general": LONG}))
    with pytest.raises(httpx.HTTPError), server.streaming() as frames:  # noqa: PT012
        (worker,) = server.workers()
        watched = os.pidfd_open(worker)
        server.process.send_signal(signal.SIGINT)
        # The first one has arrived when nobody is let in any more.
        while _listens(server):
            pass
        server.process.send_signal(signal.SIGINT)
        for _ in frames:
            pass
    server.http.close()
    assert server.wait() == 130, "as shells have it"
    assert ended(watched)
    os.close(watched)


async def test_frames_leave_at_once_on_connections_that_are_kept() -> None:
    """The second frame of a kept connection would wait for an acknowledgement: 40 ms."""
    at_once: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        at_once.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    listener = listen("127.0.0.1", 0)
    async with await asyncio.start_server(accepted, sock=listener):
        _, writer = await asyncio.open_connection(*listener.getsockname()[:2])
        assert await at_once
        writer.close()


def _listens(server: ServerProcess) -> bool:
    host, port = server.url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port))).close()
    except ConnectionRefusedError:
        return False
    except ConnectionResetError:  # it closed while we were at the door: the next look tells
        return True
    return True


def test_a_taken_port_is_said_at_once_with_the_remedy(endless: ServerProcess, tmp_path: Path) -> None:
    port = endless.url.rsplit(":", 1)[1]
    result = run_coe("serve", "--roster", str(write_roster(tmp_path, {"general": {}})), "--port", port)
    assert result.returncode == 1
    assert f"Cannot listen on 127.0.0.1:{port}" in result.stderr
    assert "--port" in result.stderr


def test_200_clients_at_once_get_well_formed_answers_and_the_server_serves_on(college: ServerProcess) -> None:
    bodies = [
        {
            "model": "general",
            "messages": [{"role": "user", "content": f"Say {i}"}],
            "max_tokens": 1,
            "stream": i % 2 == 0,
        }
        for i in range(200)
    ]

    async def all_at_once() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=college.url, timeout=GIVE_UP_S, limits=limits) as client:
            return await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for body in bodies))

    answers = asyncio.run(all_at_once())
    served = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(served) >= 150, "the queue holds so many"
    for answer, body in zip(answers, bodies, strict=True):
        if answer.status_code == 200 and body["stream"]:
            assert answer.text.endswith("data: [DONE]\n\n")
        elif answer.status_code == 200:
            assert answer.json()["usage"]["completion_tokens"] == 1
    assert {answer.status_code for answer in refused} <= {429}
    assert all(answer.json()["error"]["code"] == "queue_full" for answer in refused)
    assert college.chat().status_code == 200
    assert college.leases() == 0
    assert college.pool()["waiting"] == []


def test_an_idle_worker_that_is_killed_is_counted_and_the_state_is_told_on_a_signal(tmp_path: Path) -> None:
    with ServerProcess(write_roster(tmp_path, {"general": {}})) as server:
        assert server.chat("my secret words").status_code == 200
        (worker,) = [pid for pid in children(server.process.pid) if is_resident(pid)]
        os.kill(worker, signal.SIGKILL)
        counted = 'coe_worker_deaths_total{cause="SIGKILL"} 1.0'
        while counted not in server.http.get("/metrics").text:
            assert server.process.poll() is None
        assert server.chat().status_code == 200
        server.process.send_signal(signal.SIGUSR1)
        while "requests in flight" not in server.log():
            assert server.http.get("/health").status_code == 200
        told = server.log()
        assert "resident " in told
        assert "deaths {'SIGKILL': 1}" in told
        assert "secret" not in told


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_resident(pid: int) -> bool:
    name = Path(f"/proc/{pid}/comm").read_text().strip()
    return name.startswith("coe ") and name != "coe spare"
