"""The address of a server, as a person types it."""

from __future__ import annotations

import httpx
import pytest

from coe.server.commands._url import is_here, server_url, why_none


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000"),
        (" https://college.example/v1 ", "https://college.example"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
        ("https://proxy.example/college/v1", "https://proxy.example/college"),
    ],
)
def test_what_clients_enter_is_understood(given: str, url: str) -> None:
    assert server_url(given) == url


@pytest.mark.parametrize("given", ["", "http://", "http://[::1", "http://a b", "ftp://college", "http://a:port", "/v1"])
def test_what_is_no_address_is_refused_with_a_sample(given: str) -> None:
    with pytest.raises(ValueError, match=r"is no address of a server.*http://127\.0\.0\.1:8000"):
        server_url(given)


def test_ipv6_without_brackets_is_told_of_them() -> None:
    with pytest.raises(ValueError, match=r"in brackets: http://\[::1\]:8000"):
        server_url("::1:8000")


def test_no_proxy_is_asked_for_this_machine() -> None:
    for url in ("http://127.0.0.1:1", "http://127.0.0.2:1", "http://[::1]:1", "http://localhost:1", "http://0.0.0.0:1"):
        assert is_here(url)
    assert not is_here("http://college.example")


def test_who_does_not_answer_and_who_is_no_college_are_told_apart() -> None:
    assert "coe serve" in why_none("http://a", httpx.ConnectError("refused"))
    assert "does not answer" in why_none("http://a", httpx.ReadTimeout(""))
    assert "another server answers there" in why_none("http://a", KeyError("data"))
