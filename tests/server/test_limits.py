"""Limits, keys and cross-origin requests of a running server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from fakes.server_process import ServerProcess, write_roster

pytestmark = pytest.mark.server

KEY = {"authorization": "Bearer from-file"}


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with keys, one origin, small bodies, short prompts, and room for one answer and one that waits."""
    folder = tmp_path_factory.mktemp("strict")
    (folder / "keys").write_text("# who may come in\nfrom-file\n")
    limits = {
        "api_keys_env": "COE_TEST_KEYS",
        "api_keys_file": "keys",
        "cors_origins": ["https://chat.example"],
        "max_body_bytes": 20_000,
        "max_prompt_tokens": 100,
        "max_queue": 1,
    }
    specialists = {"general": {"parallel": 1, "context_tokens": 8192, "loop_guard": False}}
    roster = write_roster(folder, specialists, server=limits)
    with ServerProcess(roster, env={"COE_TEST_KEYS": "from-env, other"}) as server:
        server.http.headers.update(KEY)
        yield server


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that lets nobody wait: a lease is there at once, or not at all."""
    specialists = {"general": {"parallel": 1, "context_tokens": 8192, "loop_guard": False}}
    with ServerProcess(
        write_roster(tmp_path_factory.mktemp("impatient"), specialists, server={"max_wait_s": 0.01})
    ) as server:
        yield server


def test_a_declared_body_above_the_limit_is_a_413(strict: ServerProcess) -> None:
    response = strict.chat("x" * 20_000)
    assert response.status_code == 413
    assert "20,000 bytes" in response.json()["error"]["message"]
    assert "max_body_bytes" in response.json()["error"]["message"]


def test_a_chunked_body_above_the_limit_is_a_413(strict: ServerProcess) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(30):
            yield b"x" * 1000

    response = strict.http.post("/v1/chat/completions", content=chunks())
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


def test_a_prompt_above_the_rosters_own_limit_is_a_400(strict: ServerProcess) -> None:
    response = strict.chat("hello " * 150)
    assert response.status_code == 400
    assert "100" in response.json()["error"]["message"]


def test_one_more_than_the_queue_holds_is_a_429_and_the_queue_goes_on(strict: ServerProcess) -> None:
    waiting: list[int] = []
    with strict.streaming():
        second = threading.Thread(target=lambda: waiting.append(strict.chat().status_code))
        second.start()
        strict.until(lambda: strict.pool()["waiting"] == ["general"])
        third = strict.chat()
    assert third.status_code == 429
    assert int(third.headers["retry-after"]) > 0
    assert third.json()["error"]["type"] == "rate_limit_error"
    second.join()
    assert waiting == [200]
    assert strict.leases() == 0


def test_a_stream_beyond_the_queue_is_a_429_too_not_an_error_frame(strict: ServerProcess) -> None:
    with strict.streaming():
        second = threading.Thread(target=strict.chat)
        second.start()
        strict.until(lambda: strict.pool()["waiting"] == ["general"])
        with pytest.raises(openai.RateLimitError):
            strict.openai(api_key="other").chat.completions.create(
                model="general", messages=[{"role": "user", "content": "Hi"}], stream=True
            )
    second.join()


def test_waiting_longer_than_max_wait_is_a_503(impatient: ServerProcess) -> None:
    assert impatient.chat().status_code == 503, "a load takes longer than that"
    impatient.until(lambda: impatient.chat().status_code == 200)
    with impatient.streaming():
        response = impatient.chat()
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "wait_timeout"
    assert int(response.headers["retry-after"]) > 0
    assert impatient.pool()["waiting"] == []


@pytest.mark.parametrize("key", ["from-env", "other", "from-file"])
def test_keys_come_from_the_environment_and_from_a_file(strict: ServerProcess, key: str) -> None:
    assert [model.id for model in strict.openai(api_key=key).models.list()] == ["auto", "general"]


def test_without_a_key_or_with_a_wrong_one_nothing_is_served(strict: ServerProcess) -> None:
    with pytest.raises(openai.AuthenticationError) as refusal:
        strict.openai(api_key="from-fil").models.list()
    assert refusal.value.code == "invalid_api_key"
    for header in ({"authorization": ""}, {"authorization": "Basic from-file"}, {"authorization": "Bearer"}):
        assert strict.http.get("/v1/pool", headers=header).status_code == 401
        assert strict.http.post("/v1/chat/completions", json={}, headers=header).status_code == 401
    assert strict.http.get("/v1/pool", headers={"authorization": "", "x-api-key": "from-fil"}).status_code == 401
    assert "from-file" not in strict.log()


def test_a_key_may_come_as_anthropics_clients_send_it(strict: ServerProcess) -> None:
    for stale in ("", "Bearer stale"):
        given = {"authorization": stale, "x-api-key": "from-file"}
        assert strict.http.get("/v1/pool", headers=given).status_code == 200


def test_the_health_checks_need_no_key(strict: ServerProcess) -> None:
    assert strict.http.get("/health", headers={"authorization": ""}).status_code == 200
    assert strict.http.get("/ready", headers={"authorization": ""}).status_code == 200


def test_refusals_for_want_of_a_key_are_counted(strict: ServerProcess) -> None:
    before = strict.metric("coe_requests_total", status="401")
    strict.http.get("/v1/models", headers={"authorization": ""})
    assert strict.metric("coe_requests_total", status="401") == before + 1


def test_a_page_of_an_allowed_origin_may_call_and_read_our_headers(strict: ServerProcess) -> None:
    asks = {"origin": "https://chat.example", "access-control-request-method": "POST", "authorization": ""}
    preflight = strict.http.options("/v1/chat/completions", headers=asks)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://chat.example"
    response = strict.http.get("/v1/models", headers={"origin": "https://chat.example"})
    assert response.headers["access-control-allow-origin"] == "https://chat.example"
    assert "x-coe-note" in response.headers["access-control-expose-headers"]


def test_other_origins_get_no_leave(strict: ServerProcess, college: ServerProcess) -> None:
    elsewhere = {"origin": "https://elsewhere.example"}
    assert "access-control-allow-origin" not in strict.http.get("/v1/models", headers=elsewhere).headers
    assert "access-control-allow-origin" not in college.http.get("/v1/models", headers=elsewhere).headers


def test_a_key_setting_that_names_nothing_stops_the_server(tmp_path: Path) -> None:
    roster = write_roster(tmp_path, {"general": {}}, server={"api_keys_env": "COE_TEST_UNSET"})
    with pytest.raises(RuntimeError, match="COE_TEST_UNSET"):
        ServerProcess(roster)
    (tmp_path / "keys").write_text("# nobody\n")
    roster = write_roster(tmp_path, {"general": {}}, server={"api_keys_file": "keys"})
    with pytest.raises(RuntimeError, match="holds no key"):
        ServerProcess(roster)
