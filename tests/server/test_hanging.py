"""Workers that hang, clients that do not read, and an end that waits for neither."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from random_model import CONTROL_TOKENS, write_random_model

from fakes.server_process import ENDLESS, GIVE_UP_S, ServerProcess, ended, write_roster

pytestmark = pytest.mark.server

LONG = {"context_tokens": 8192, "loop_guard": False}
CHAT = "/v1/chat/completions"
# A random model is quick, and never ends a turn where it may not.
TALKATIVE: dict[str, Any] = {
    "max_tokens": 1500,
    "n": 4,
    "logprobs": True,
    "top_logprobs": 20,
    "logit_bias": {str(CONTROL_TOKENS.index(name)): -100 for name in ("<eos>", "<turn|>")},
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that gives workers up soon, and waits for nothing long."""
    roster = write_roster(
        tmp_path, {"general": LONG}, server={"shutdown_s": 1}, pool={"vram_budget": "2 GiB", "stall_s": 3}
    )
    with ServerProcess(roster) as server:
        yield server


@pytest.fixture
def talker(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server of a small model that says much in little time."""
    write_random_model(tmp_path / "random.gguf")
    about = {**LONG, "package": None, "pattern": None, "file": "random.gguf", "parallel": 4}
    with ServerProcess(write_roster(tmp_path, {"general": about}, models_dir=".")) as server:
        yield server


def rest(connection: socket.socket) -> bytes:
    """What comes on a connection up to the end of a chunked body."""
    connection.settimeout(GIVE_UP_S)
    data = bytearray()
    while not data.endswith(b"\r\n0\r\n\r\n"):
        piece = connection.recv(2**16)
        assert piece, "cut off"
        data += piece
    return bytes(data)


def last_frame(frames: Iterator[bytes]) -> str:
    *_, last = b"".join(frames).decode().strip().split("\n\n")
    return last


def send_unread(server: ServerProcess, **fields: object) -> socket.socket:
    """A chat stream that is asked for on a connection with little room, and never read."""
    address = urlsplit(server.url)
    body = {"model": "general", "messages": [{"role": "user", "content": "Go on"}], "stream": True, **fields}
    data = json.dumps(body).encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.connect((address.hostname, address.port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {address.netloc}\r\ncontent-type: application/json\r\n"
    connection.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
    return connection


def test_a_stopped_worker_is_killed_its_requests_fail_and_the_next_is_served(server: ServerProcess) -> None:
    with server.streaming() as frames:
        (worker,) = server.workers()
        watched = os.pidfd_open(worker)
        os.kill(worker, signal.SIGSTOP)
        whole = server.chat()
        last = last_frame(frames)
    assert whole.status_code == 503
    assert whole.json()["error"]["code"] == "worker_died"
    assert "retry-after" in whole.headers
    assert "no sign of life" in last
    assert '"code":"worker_died"' in last
    assert ended(watched)
    os.close(watched)
    response = server.chat()
    assert (response.status_code, response.headers["x-coe-residency"]) == (200, "loaded")
    assert server.http.get("/ready").status_code == 200
    assert server.workers() != [worker]
    (line,) = [line for line in server.log().splitlines() if "requests that failed with it" in line]
    assert "gave no sign of life for 3 s and was killed" in line
    assert line.count("req-") == 2


def test_a_worker_that_is_stopped_without_work_is_replaced_and_the_server_says_that_it_is_not_ready(
    server: ServerProcess,
) -> None:
    server.chat().raise_for_status()
    (worker,) = server.workers()
    os.kill(worker, signal.SIGSTOP)
    server.until(lambda: server.http.get("/ready").status_code == 503, tries=100_000)
    server.until(lambda: server.http.get("/ready").status_code == 200, tries=100_000)
    assert server.workers() == []
    assert server.chat().headers["x-coe-residency"] == "loaded"


def test_a_stopped_worker_can_be_unloaded(server: ServerProcess) -> None:
    server.chat().raise_for_status()
    (worker,) = server.workers()
    os.kill(worker, signal.SIGSTOP)
    answer = server.http.post("/v1/pool/unload", json={"model": "general"})
    assert answer.status_code == 200
    server.until(lambda: not server.workers())
    assert server.chat().status_code == 200


def test_clients_that_read_nothing_hold_no_place_though_their_answers_are_more_than_the_sockets_take(
    talker: ServerProcess,
) -> None:
    """Some thousand tokens in four choices with twenty rivals each are some ten megabytes: no kernel keeps them."""
    talker.chat().raise_for_status()
    before = talker.metric("coe_requests_total", status="200", route=CHAT)
    with contextlib.ExitStack() as stack:
        unread = [stack.enter_context(send_unread(talker, **TALKATIVE)) for _ in range(2)]
        talker.until(lambda: talker.metric("coe_requests_total", status="200", route=CHAT) == before + 2)
        assert talker.chat().status_code == 200, "an honest client is served beside them"
        talker.until(lambda: talker.leases() == 0)
        for connection in unread:  # what had been sent is there, and why no more came
            assert b'"code":"client_too_slow"' in rest(connection)[-2000:]
    assert talker.metric("coe_answers_total", reason="failed") == 2 * TALKATIVE["n"]
    assert talker.metric("coe_request_seconds_count", outcome="failed") == 2
    assert talker.log().count("failed: POST /v1/chat/completions ended with client_too_slow after ") == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_is_told_to_stop_waits_for_running_answers_as_long_as_the_roster_says(
    number: signal.Signals, server: ServerProcess
) -> None:
    with server.streaming() as frames:
        watched = [os.pidfd_open(worker) for worker in server.workers()]
        server.process.send_signal(number)
        last = last_frame(frames)
    assert '"code":"shutting_down"' in last
    server.http.close()
    log = Path(server._errors.name)
    assert server.wait() == 0
    assert all(ended(worker) for worker in watched)
    for descriptor in watched:
        os.close(descriptor)
    said = log.read_text()
    assert f"{number.name}: waiting up to 1 s for 1 request under way" in said
    assert "once more ends at once" in said


def test_neither_a_stopped_worker_nor_a_client_that_does_not_read_delays_the_end(server: ServerProcess) -> None:
    with server.streaming() as frames, send_unread(server, **ENDLESS):
        server.until(lambda: server.leases() == 2)
        (worker,) = server.workers()
        watched = os.pidfd_open(worker)
        os.kill(worker, signal.SIGSTOP)
        server.process.send_signal(signal.SIGTERM)
        try:
            last = last_frame(frames)
        except httpx.HTTPError:  # it may be cut off before its last frame
            last = '"error"'
        assert '"error"' in last
        assert server.process.wait(60) == 0
    assert ended(watched)
    os.close(watched)
