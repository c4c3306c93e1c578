"""Methods and paths: HEAD, what a path takes, which path was meant, and headers that refusals carry."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from coe.server.api.app import make_app
from coe.server.api.keys import Keys
from coe.server.runtime.college import College
from fakes.asgi import Client
from fakes.college import ServedCollege

NO_KEYS = Keys()
PATHS = [
    ("/", "GET"),
    ("/health", "GET"),
    ("/metrics", "GET"),
    ("/v1/chat/completions", "POST"),
    ("/v1/completions", "POST"),
    ("/v1/route", "POST"),
    ("/v1/pool/unload", "POST"),
]


async def asked(
    method: str, path: str, *, keys: Keys = NO_KEYS, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    client = Client()
    given = {"content-type": "application/json", **(headers or {})}
    sent = [(name.encode(), value.encode()) for name, value in given.items()]
    scope = {"type": "http", "http_version": "1.1", "method": method, "path": path, "query_string": b""}
    app = make_app(cast(College, ServedCollege([])), keys)
    await app({**scope, "headers": sent}, client.receive, client.send)
    got = {name.decode(): value.decode() for name, value in client.got[0]["headers"]}
    return client.got[0]["status"], got, client.body


def error(body: bytes) -> dict[str, Any]:
    found = json.loads(body)["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return cast(dict[str, Any], found)


@pytest.mark.parametrize(("path", "method"), [one for one in PATHS if one[1] == "GET"])
async def test_head_is_get_without_the_body(path: str, method: str) -> None:
    status, headers, body = await asked("GET", path)
    head_status, head_headers, head_body = await asked("HEAD", path)
    assert (head_status, head_body) == (status, b"") == (200, b"")
    assert head_headers["content-type"] == headers["content-type"]
    if path != "/metrics":  # whose numbers move
        assert head_headers["content-length"] == headers["content-length"] == str(len(body))


@pytest.mark.parametrize(("path", "method"), PATHS)
@pytest.mark.parametrize("wrong", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "BREW"])
async def test_another_method_is_a_405_that_says_what_the_path_takes(path: str, method: str, wrong: str) -> None:
    if wrong == method or (wrong == "HEAD" and method == "GET"):
        return
    status, headers, body = await asked(wrong, path)
    assert status == 405
    assert headers["allow"] == ("GET, HEAD, OPTIONS" if method == "GET" else "POST, OPTIONS")
    if wrong != "HEAD":
        assert error(body)["code"] == "method_not_allowed"
        assert error(body)["message"] == f"{path} takes {method}, not {wrong}."


async def test_a_path_of_several_routes_allows_the_methods_of_all() -> None:
    status, headers, body = await asked("DELETE", "/v1/builds/law")
    assert (status, headers["allow"]) == (405, "GET, POST, HEAD, OPTIONS")
    assert "takes GET or POST" in error(body)["message"]


@pytest.mark.parametrize(("path", "method"), PATHS)
async def test_options_says_what_a_path_takes(path: str, method: str) -> None:
    status, headers, body = await asked("OPTIONS", path)
    assert (status, body) == (204, b"")
    assert method in headers["allow"].split(", ")


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("/v1/chat/completions/", "POST /v1/chat/completions?"),
        ("/v1//chat/completions", "POST /v1/chat/completions?"),
        ("//v1/chat/completions", "POST /v1/chat/completions?"),
        ("/chat/completions", "POST /v1/chat/completions?"),
        ("/v1/v1/chat/completions", "POST /v1/chat/completions?"),
        ("/api/v1/chat/completions", "POST /v1/chat/completions?"),
        ("/openai/deployments/auto/chat/completions", "POST /v1/chat/completions?"),
        ("/V1/Chat/Completions", "POST /v1/chat/completions?"),
        ("/v1/CHAT/completions", "POST /v1/chat/completions?"),
        ("/v1/chat/completion", "POST /v1/chat/completions?"),
        ("/v1/chat/completions/v1/chat/completions", "POST /v1/chat/completions?"),
        ("/completions", "POST /v1/completions?"),
        ("/v1/models/", "GET /v1/models?"),
        ("/v1/model", "GET /v1/models?"),
        ("/models", "GET /v1/models?"),
        ("/models/math", "GET /v1/models/math?"),
        ("/v1/health", "GET /health?"),
        ("/health/", "GET /health?"),
        ("/v1/pool/", "GET /v1/pool?"),
        ("/builds/law", "GET or POST /v1/builds/law?"),
    ],
)
async def test_a_wrong_path_names_the_one_that_was_meant(wrong: str, meant: str) -> None:
    for method in ("GET", "POST"):
        status, _, body = await asked(method, wrong)
        if status == 405:  # GET /v1/models/NAME has no POST; its empty name is no path
            continue
        assert (status, error(body)["code"]) == (404, "unknown_url")
        assert error(body)["message"] == f"Nothing is served at {wrong}. Did you mean {meant}"


@pytest.mark.parametrize("wrong", ["/favicon.ico", "/v1/audio/speech", "/v1/messages", "/admin", "/" + "x" * 100_000])
async def test_a_path_like_no_other_is_told_where_the_list_is(wrong: str) -> None:
    status, _, body = await asked("GET", wrong)
    assert status == 404
    assert error(body)["message"].endswith("GET / lists the paths.")
    assert len(body) < 1000


async def test_the_root_lists_the_paths() -> None:
    _, _, body = await asked("GET", "/")
    paths = json.loads(body)["paths"]
    assert paths["/v1/chat/completions"] == ["POST"]
    assert paths["/v1/builds/{name}"] == ["GET", "POST"]
    assert paths["/v1/models/{name}"] == ["GET"]


async def test_a_path_forges_no_line() -> None:
    _, _, body = await asked("GET", "/v1\n12:00:00 INFO all is well\x1b[2J")
    assert "\n" not in error(body)["message"]
    assert "\x1b" not in error(body)["message"]


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": "Basic abc"}])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_401_says_how_to_authenticate(method: str, headers: dict[str, str]) -> None:
    status, got, _ = await asked(method, "/v1/models", keys=Keys(chat=frozenset(["right"])), headers=headers)
    assert status == 401
    assert got["www-authenticate"].startswith("Bearer")
    assert got["content-type"] == "application/json"
