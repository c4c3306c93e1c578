"""A server whose descriptors are few, and one on an IPv6 address."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fakes.server_process import ServerProcess, write_roster

pytestmark = pytest.mark.server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(write_roster(tmp_path, {"general": {}})) as server:
        yield server


def test_the_limit_of_open_files_is_raised_as_far_as_the_system_allows(server: ServerProcess) -> None:
    soft, hard = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    assert soft == min(hard, 65536)


def test_idle_clients_that_use_up_the_descriptors_cost_a_line_and_make_room(server: ServerProcess) -> None:
    """The limit is lowered behind the server's back, so that accepting fails."""
    address = (httpx.URL(server.url).host, httpx.URL(server.url).port)
    # Once worker and spare are there, nothing but clients takes descriptors.
    server.chat().raise_for_status()
    server.until(lambda: bool(server.pool()) and len(server.workers()) == len(server.spares()) == 1, tries=100_000)
    server.pool()
    in_use = len(os.listdir(f"/proc/{server.process.pid}/fd"))
    hard = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (in_use + 8, hard))
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(socket.create_connection(address))
        with httpx.Client(base_url=server.url, timeout=180) as late:
            assert late.get("/health").status_code == 200, "the longest idle ones went"
    log = server.log()
    assert "Traceback" not in log
    assert 1 <= log.count("New clients wait") <= 5, "a line now and then, not one a failing accept"
    assert "ulimit -n" in log


@pytest.mark.parametrize("host", ["[::1]", "::"])
def test_an_ipv6_address_is_announced_as_clients_need_it(tmp_path: Path, host: str) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    with ServerProcess(write_roster(tmp_path, {"general": {}}), "--host", host) as server:
        assert server.url.startswith("http://[::1]:")
        assert server.http.get("/health").status_code == 200
        assert f"curl -s '{server.url}/v1/chat/completions'" in server.announcement
