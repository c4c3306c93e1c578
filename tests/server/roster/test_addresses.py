"""Hosts and ports as people and URLs write them."""

from __future__ import annotations

import httpx
import pytest

from coe.server.roster.addresses import address_text, base_url, is_everywhere, is_loopback, reachable


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("localhost", "http://localhost:8000"),
        ("::1", "http://[::1]:8000"),
        ("[::1]", "http://[::1]:8000"),
        ("2001:db8::7", "http://[2001:db8::7]:8000"),
        ("fe80::1%eth0", "http://[fe80::1%25eth0]:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("0:0:0:0:0:0:0:0", "http://[::1]:8000"),
        ("::ffff:0.0.0.0", "http://127.0.0.1:8000"),
        ("::ffff:127.0.0.1", "http://[::ffff:127.0.0.1]:8000"),
        ("[::ffff:127.0.0.1]", "http://[::ffff:127.0.0.1]:8000"),
    ],
)
def test_a_url_brackets_ipv6_and_names_an_address_that_can_be_reached(host: str, url: str) -> None:
    assert base_url(host, 8000) == url
    if "%" not in host:
        assert httpx.URL(url).port == 8000


def test_for_people_the_interface_stands_as_they_write_it() -> None:
    assert address_text("fe80::1%eth0", 80) == "[fe80::1%eth0]:80"
    assert address_text("college.example", 80) == "college.example:80"


@pytest.mark.parametrize("host", ["::ffff:127.0.0.1", "[::ffff:127.3.2.1]"])
def test_an_ipv4_loopback_in_ipv6s_form_is_one(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "LOCALHOST.", "a.localhost"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)
    assert reachable(host) == host.strip("[]")


@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "::", "10.0.0.1", "2001:db8::7", "::ffff:10.0.0.1", "localhost.example", "college", "fe80::1%eth0"],
)
def test_what_other_machines_reach_is_not_loopback(host: str) -> None:
    assert not is_loopback(host)
    assert is_everywhere(host) is (host in ("0.0.0.0", "::"))
