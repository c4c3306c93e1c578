"""Where nothing can listen: each cause with its own remedy."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from coe.server.commands import _listen
from coe.server.commands._listen import ListenError, listen


def refused(host: str, port: int) -> str:
    with pytest.raises(ListenError) as refusal:
        listen(host, port)
    said = str(refusal.value)
    assert ".." not in said
    return said


def test_a_free_port() -> None:
    with listen("127.0.0.1", 0) as listener:
        assert listener.getsockname()[1] > 0


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_address_with_or_without_brackets(host: str) -> None:
    if not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    with listen(host, 0) as listener:
        assert listener.getsockname()[0] == "::1"


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("port", [99999, 65536, -1])
def test_a_port_that_is_none(port: int) -> None:
    assert f"{port} is no port" in refused("127.0.0.1", port)


def test_a_port_that_is_taken() -> None:
    with listen("127.0.0.1", 0) as other:
        port = other.getsockname()[1]
        said = refused("127.0.0.1", port)
    assert said.startswith(f"Cannot listen on 127.0.0.1:{port}: Address already in use. Choose another port")


def test_a_second_port_that_is_taken_names_its_own_option_and_who_may_have_it() -> None:
    with listen("127.0.0.1", 0) as other, pytest.raises(ListenError) as refusal:
        listen("127.0.0.1", other.getsockname()[1], option="--ollama-port", taken="Ollama may be there. ")
    assert "Ollama may be there. Choose another port with --ollama-port" in str(refusal.value)
    with pytest.raises(ListenError, match="Give --ollama-port a number"):
        listen("127.0.0.1", 70000, option="--ollama-port")


@pytest.mark.parametrize("host", ["no-such-host.invalid", "http://127.0.0.1", "a" * 300, "/run/coe.sock", "a\0b"])
def test_a_host_that_does_not_exist_is_no_matter_of_ports(host: str) -> None:
    said = refused(host, 0)
    assert "--host" in said
    assert "--port" not in said


def test_an_empty_host_is_not_every_interface() -> None:
    assert "An empty host" in refused("", 0)


def test_an_address_of_another_machine() -> None:
    said = refused("192.0.2.1", 8000)  # reserved for documentation: RFC 5737
    assert said.startswith("Cannot listen on 192.0.2.1:8000: ")
    assert "No interface of this machine has this address. Correct --host" in said


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.EACCES, "choose a port from 1024 up"),
        (errno.EADDRINUSE, "ss -ltnp 'sport = :80'"),
        (errno.EAFNOSUPPORT, "This machine has no IPv6"),
        (errno.EINVAL, "needs its interface"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EIO, "Choose another --host or --port"),
    ],
)
def test_one_remedy_a_cause(monkeypatch: pytest.MonkeyPatch, code: int, remedy: str) -> None:
    def fail(family: int, address: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(_listen, "_bound", fail)
    said = refused("::1", 80)
    assert said.startswith(f"Cannot listen on [::1]:80: {os.strerror(code)}. ")
    assert remedy in said


def test_a_name_of_several_addresses_listens_on_the_first_that_this_machine_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with listen("college", 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
