"""Which requests of web pages are served: Host, Origin, Sec-Fetch-Site, Content-Type, and refusals on the wire."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from coe.server.api.origin import Doors
from fakes.college import SAID, Asking, FakeLease, ServedCollege, post

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
JSON = {"content-type": "application/json"}
HERE = {"host": "127.0.0.1:8000"}
DOORS = Doors(("coe.example.org", ".lan.example", "*.wide.example", "box"), ("https://chat.example.org",))


def code(method: str, headers: Mapping[str, str], doors: Doors = DOORS) -> str | None:
    error = doors.refusal(method, [(name.encode(), value.encode("latin-1")) for name, value in headers.items()])
    return error.code if error is not None else None


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LOCALHOST:8000", "localhost.:8000", "app.localhost:8000",
        "127.0.0.1", "127.9.8.7:80", "[::1]:8000", "[::1]", "[::ffff:127.0.0.1]:8000",
        "192.168.1.5:8000", "10.0.0.1", "[fd00::5]:8000",  # an address cannot be made to point elsewhere
        "host.docker.internal:8000", "host.containers.internal",
        "box:8000", "Coe.Example.ORG", "a.lan.example", "b.a.lan.example:1", "x.wide.example",
    ],
)  # fmt: skip
def test_names_that_the_server_answers_to(host: str) -> None:
    assert code("GET", {"host": host}) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "evillocalhost",
        "coe.example.org.evil.example", "xcoe.example.org", "lan.example", "evil-lan.example", "wide.example.evil",
        "boxx", "box.evil.example", "", " ", "evil.example/@127.0.0.1", "127.0.0.1@evil.example", "user@127.0.0.1",
        "127.0.0.1#evil.example", "127.0.0.1\\@evil.example", "127.0.0.1:eight", "127.0.0.1:99999", "[::1", "::1",
        "[fe80::1%25eth0]", "0x7f.1", "2130706433", "127.0.0.1, evil.example", "evil.example\x00127.0.0.1", "é",
    ],
)  # fmt: skip
def test_other_names_may_be_a_strangers_that_points_here(host: str) -> None:
    assert code("GET", {"host": host}) == "host_not_allowed"
    assert code("POST", {"host": host, **JSON, "authorization": "Bearer key"}) == "host_not_allowed"


def test_two_host_headers_are_none() -> None:
    error = DOORS.refusal("GET", [(b"host", b"127.0.0.1"), (b"host", b"evil.example")])
    assert error is not None
    assert error.status == 421


def test_a_request_without_a_host_is_no_browsers() -> None:
    assert code("GET", {}) is None


def test_a_star_takes_any_name_but_no_nonsense() -> None:
    assert code("GET", {"host": "whatever.example"}, Doors(("*",))) is None
    assert code("GET", {"host": "user@whatever.example"}, Doors(("*",))) == "host_not_allowed"


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS", "DELETE"])
@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example", "null", "http://127.0.0.1", "http://127.0.0.1:8001", "http://localhost:8000",
        "https://127.0.0.1.evil.example:8000", "chrome-extension://abc", "file://", "https://chat.example.org.evil",
        "http://chat.example.org", "https://chat.example.org:444", "", "http://evil@127.0.0.1:8000x",
    ],
)  # fmt: skip
def test_pages_of_other_origins_may_do_nothing(method: str, origin: str) -> None:
    assert code(method, {**HERE, **JSON, "origin": origin}) == "origin_not_allowed"


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("localhost", "http://localhost"),
        ("coe.example.org", "https://coe.example.org"),  # behind a proxy that speaks TLS
        ("coe.example.org:443", "https://coe.example.org"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("127.0.0.1:8000", "https://chat.example.org"),
    ],
)
def test_pages_of_its_own_and_of_named_origins_may(host: str, origin: str) -> None:
    assert code("POST", {"host": host, **JSON, "origin": origin}) is None
    assert code("POST", {"host": host, "content-type": "text/plain", "origin": origin}) == "json_needed"


def test_a_second_origin_is_not_covered_by_the_first() -> None:
    pairs = [(b"host", b"127.0.0.1"), (b"origin", b"https://chat.example.org"), (b"origin", b"https://evil.example")]
    error = DOORS.refusal("GET", pairs)
    assert error is not None
    assert error.code == "origin_not_allowed"


def test_any_origin_may_where_the_roster_says_so() -> None:
    doors = Doors((), ("*",))
    fetched = {**HERE, **JSON, "origin": "null", "sec-fetch-site": "cross-site"}
    assert code("POST", fetched, doors) is None
    assert code("POST", {**fetched, "content-type": "text/plain"}, doors) == "json_needed"


@pytest.mark.parametrize("site", ["cross-site", "same-site", "CROSS-SITE", "same-origin,cross-site", "?"])
def test_what_the_browser_itself_calls_of_another_site_is_refused(site: str) -> None:
    assert code("POST", {**HERE, **JSON, "sec-fetch-site": site}) == "origin_not_allowed"
    assert code("GET", {**HERE, "sec-fetch-site": site, "sec-fetch-mode": "no-cors"}) == "origin_not_allowed"
    # A form that posts is a navigation, too.
    assert code("POST", {**HERE, **JSON, "sec-fetch-site": site, "sec-fetch-mode": "navigate"}) == "origin_not_allowed"


def test_a_link_that_a_person_follows_and_the_servers_own_pages_are_served() -> None:
    assert code("GET", {**HERE, "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}) is None
    for site in ("same-origin", "none"):
        assert code("POST", {**HERE, **JSON, "sec-fetch-site": site}) is None
    fetched = {**HERE, **JSON, "origin": "https://chat.example.org", "sec-fetch-site": "cross-site"}
    assert code("POST", fetched) is None


@pytest.mark.parametrize(
    "kind",
    [
        None, "", "text/plain", "text/plain;charset=UTF-8", "application/x-www-form-urlencoded", "text/html",
        "multipart/form-data; boundary=x", "text/plain; application/json", "application/jsonx",
        "text/plain, application/json",
    ],
)  # fmt: skip
def test_what_any_page_can_post_is_refused_without_an_origin_too(kind: str | None) -> None:
    headers = HERE if kind is None else {**HERE, "content-type": kind}
    assert code("POST", headers) == "json_needed"
    assert code("POST", {**headers, "authorization": "Basic dTpw"}) == "json_needed"  # browsers remember that one
    assert code("POST", {**headers, "user-agent": "Mozilla/5.0 curl/8.5.0"}) == "json_needed"
    assert code("GET", headers) is None


@pytest.mark.parametrize(
    "header",
    [
        {"content-type": "application/json"},
        {"content-type": "Application/JSON; charset=utf-8"},
        {"content-type": "application/problem+json"},
        {"authorization": "Bearer key"},
        {"x-requested-with": "curl"},
        {"user-agent": "curl/8.5.0", "content-type": "application/x-www-form-urlencoded"},
        {"user-agent": "Wget/1.21.4"},
    ],
)
def test_what_no_page_can_post_without_asking_first_is_served(header: Mapping[str, str]) -> None:
    assert code("POST", {**HERE, **header}) is None


@pytest.mark.parametrize(
    ("path", "headers", "status", "says"),
    [
        ("/v1/pool/unload", {**HERE, **JSON, "host": "evil.example"}, 421, "server.allowed_hosts"),
        ("/v1/chat/completions", {**HERE, **JSON, "origin": "https://evil.example"}, 403, "server.cors_origins"),
        ("/v1/pool/unload", {**HERE, "content-type": "text/plain"}, 415, "Content-Type: application/json"),
        ("/v1/builds/math", HERE, 415, "X-Requested-With"),
        ("/v1/chat/completions", {**HERE, "content-type": "text/plain"}, 415, "Content-Type: application/json"),
        ("/v1/route", {**HERE, "content-type": "text/plain"}, 415, "Content-Type: application/json"),
        ("/v1/nothing", {**HERE, "content-type": "text/plain"}, 404, "/v1/nothing"),
    ],
)
async def test_a_refusal_is_named_counted_and_says_the_remedy(
    path: str, headers: Mapping[str, str], status: int, says: str
) -> None:
    client = Asking(json.dumps(CHAT).encode(), headers)
    await post(ServedCollege([FakeLease([SAID], "math")]), client, path)
    assert client.got[0]["status"] == status
    assert says in json.loads(client.body)["error"]["message"]
    assert dict(client.got[0]["headers"])[b"x-request-id"].startswith(b"req-")


async def test_a_refused_page_learns_nothing_and_its_words_cannot_forge_a_line() -> None:
    client = Asking(b"{}", {**HERE, **JSON, "origin": "x\x1b[2J\r\nforged"})
    await post(ServedCollege([]), client)
    assert client.got[0]["status"] == 403
    assert b"access-control-allow-origin" not in dict(client.got[0]["headers"])
    assert "\x1b" not in json.loads(client.body)["error"]["message"]
    assert "\n" not in json.loads(client.body)["error"]["message"]
