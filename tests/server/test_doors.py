"""A server that other machines reach, and one that a browser's pages reach: keys of its own, names, forged requests."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fakes.server_process import GIVE_UP_S, ServerProcess, write_roster

pytestmark = pytest.mark.server

NO_KEYS = {"COE_API_KEYS": "", "COE_ADMIN_KEYS": ""}
UNLOAD = json.dumps({"model": "general"})


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server keeps its keys."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory, state: Path) -> Iterator[ServerProcess]:
    """A server on all interfaces, that was given no keys and one more name."""
    roster = write_roster(tmp_path_factory.mktemp("exposed"), {"general": {}})
    environment = {**NO_KEYS, "XDG_STATE_HOME": str(state), "COE_ALLOWED_HOSTS": "coe,other.example"}
    with ServerProcess(roster, "--host", "0.0.0.0", env=environment) as server:
        yield server


def with_key(server: ServerProcess, key: Path) -> httpx.Client:
    return httpx.Client(
        base_url=server.url, timeout=GIVE_UP_S, headers={"authorization": f"Bearer {key.read_text().strip()}"}
    )


def test_without_keys_on_all_interfaces_it_makes_its_own(exposed: ServerProcess, state: Path) -> None:
    chat, admin = state / "coe" / "api-key", state / "coe" / "admin-key"
    assert exposed.chat().status_code == 401
    assert exposed.http.get("/ready").status_code == 200
    with with_key(exposed, chat) as asking, with_key(exposed, admin) as administering:
        assert asking.get("/v1/models").status_code == 200
        assert asking.post("/v1/pool/unload", content=UNLOAD).status_code == 403
        assert administering.post("/v1/pool/unload", content=UNLOAD).status_code == 200
    for key in (chat, admin):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert str(key) in exposed.announcement
        assert key.read_text().strip() not in exposed.announcement + exposed.log(), "what is no terminal may be a log"


@pytest.mark.parametrize(
    ("host", "status"), [("coe:8000", 401), ("other.example", 401), ("192.168.1.5:8000", 401), ("evil.example", 421)]
)
def test_it_answers_to_its_names_and_to_addresses(exposed: ServerProcess, host: str, status: int) -> None:
    assert exposed.http.get("/v1/models", headers={"host": host}).status_code == status


def test_doing_without_keys_is_said_loudly(tmp_path: Path) -> None:
    roster = write_roster(tmp_path, {"general": {}})
    environment = {**NO_KEYS, "XDG_STATE_HOME": str(tmp_path / "state")}
    with ServerProcess(roster, "--host", "0.0.0.0", "--insecure", env=environment) as server:
        assert server.http.get("/v1/models").status_code == 200
        assert "NO KEYS" in server.log()
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain", "origin": "https://evil.example"}, 403),
        ({"content-type": "application/json", "origin": "https://evil.example"}, 403),
        ({"content-type": "application/json", "origin": "null"}, 403),
        ({"content-type": "application/json", "sec-fetch-site": "cross-site"}, 403),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "application/json", "host": "rebound.example:8000"}, 421),
    ],
)
@pytest.mark.parametrize("path", ["/v1/pool/unload", "/v1/chat/completions", "/v1/completions", "/v1/route"])
def test_a_page_can_neither_ask_nor_change_anything(
    college: ServerProcess, path: str, headers: dict[str, str], status: int
) -> None:
    assert college.chat().status_code == 200
    before = college.pool()["residents"]
    body = json.dumps(
        {"model": "general", "text": "Hi", "prompt": "Hi", "messages": [{"role": "user", "content": "Hi"}]}
    )
    assert college.http.post(path, content=body, headers=headers).status_code == status
    assert len(college.pool()["residents"]) == len(before) > 0
