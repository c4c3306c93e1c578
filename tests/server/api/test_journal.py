"""Lines and figures for a person who looks into the log at three in the morning."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from coe.engine.errors import ShuttingDownError, SlowReaderError, UnavailableError, WorkerDiedError, WorkerHungError
from coe.engine.pool.admission import State
from coe.engine.pool.places import HOST, Memory
from coe.engine.pool.status import PoolStatus, ResidentStatus
from coe.engine.request import Accepted, Delta, Event, Finish, Finished
from coe.server.api.journal import RUNNING_KEY, Journal, about
from coe.server.api.status import pool_json
from coe.server.runtime.line_limit import LineLimit
from coe.server.runtime.metrics import Metrics, RunningRequest
from fakes.asgi import Client, until
from fakes.college import LOOPED, SAID, FakeLease, ServedCollege, asking, post

CHAT = {"model": "secret-model\nforged", "messages": [{"role": "user", "content": "my secret"}]}


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "coe.journal"]


async def test_a_refusal_has_a_line_with_model_reason_and_who_asked(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    client = asking(CHAT, {"authorization": "Bearer a-secret-key", "x-request-id": "req-7"})
    await post(ServedCollege([UnavailableError("It is gone.", "Wait.")]), client)
    (line,) = lines(caplog)
    assert "refused POST /v1/chat/completions with 503 specialist_unavailable" in line
    assert "model unknown" in line
    assert "with key " in line
    assert "secret" not in line
    assert "\n" not in line


async def test_what_is_refused_before_its_route_is_named_by_its_path(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    client = asking({"model": "math"}, {"origin": "http://evil.example"})
    await post(ServedCollege([]), client, "/v1/pool/unload\nforged")
    refused, audit = lines(caplog)
    assert refused.startswith("refused POST /v1/pool/unload\\nforged with 403 origin_not_allowed")
    assert audit.startswith("administration: POST /v1/pool/unload\\nforged of - from")
    assert "\n" not in refused + audit


async def test_a_path_cannot_say_the_rest_of_its_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    name = "law from 10.0.0.1 with key 1a2b3c4d: 200 answered\u3000"
    await post(ServedCollege([]), asking({}), f"/v1/builds/{name}")
    await post(ServedCollege([]), asking({}), f"/v1/{name}")
    said = lines(caplog)
    assert len(said) == 3
    for line in said:
        assert line.count(" from ") == 1
        assert "\u3000" not in line


async def test_a_flood_of_refusals_is_no_flood_of_audit_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    statuses = [403] * 40 + [202] * 40
    left = iter(statuses)

    async def app(scope: dict, receive: object, send: object) -> None:  # type: ignore[type-arg]
        await send({"type": "http.response.start", "status": next(left)})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": b"{}"})  # type: ignore[operator]

    scope = {"type": "http", "method": "DELETE", "path": "/v1/builds/law", "headers": [], "client": ("10.0.0.9", 1)}
    client, journal = Client(), Journal(app, Metrics(lambda: pool_status()), 60.0)  # type: ignore[arg-type]
    for _ in statuses:
        await journal(scope, client.receive, client.send)
    audit = [line for line in lines(caplog) if line.startswith("administration: DELETE")]
    assert 20 <= sum("403 refused" in line for line in audit) < 40
    assert sum("202 answered" in line for line in audit) == 40


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("10.0.0.1", " (which says for 10.0.0.1)"),
        ("10.9.9.9, 2001:db8::1", " (which says for 2001:db8::1)"),
        ("10.0.0.1 with key 1a2b3c4d: 200 answered", ""),
        ("fe80::1%x with key 1a2b3c4d", ""),
        ("unknown", ""),
        ("", ""),
    ],
)
async def test_an_address_that_is_only_said_stands_beside_the_real_one(
    said: str, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    client = asking({"model": "math"}, {"origin": "http://evil.example", "x-forwarded-for": said})
    await post(ServedCollege([]), client, "/v1/pool/unload")
    for line in lines(caplog):
        assert f"from -{shown}:" in line or line.endswith(f"from -{shown}")


async def test_what_hangs_is_named_by_its_route_before_it_is_answered() -> None:
    scope = {"type": "http", "route": SimpleNamespace(path="/v1/completions")}
    scope[RUNNING_KEY] = request = RunningRequest("req-1", "other", 0.0)  # type: ignore[assignment]
    about(scope, model="math")  # type: ignore[arg-type]
    assert (request.route, request.model) == ("/v1/completions", "math")


async def test_an_answer_has_none(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    client = asking(CHAT)
    await post(ServedCollege([FakeLease([SAID], "math")]), client)
    assert client.got[0]["status"] == 200
    assert not lines(caplog)


BEGUN = [Accepted("", 5), Delta("", "Hel")]


def counted(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """The samples of a name that are not 0, by their labels' values."""
    return {
        tuple(sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
        if sample.name == name and sample.value
    }


@pytest.mark.parametrize(
    ("event", "outcome", "end", "reason"),
    [
        (WorkerDiedError("It died."), "failed", "worker_died", "failed"),
        (WorkerHungError("It hung."), "failed", "worker_died", "failed"),
        (SlowReaderError(2**16), "failed", "client_too_slow", "failed"),
        (ShuttingDownError(), "failed", "shutting_down", "failed"),
        (KeyError("my secret"), "failed", "internal_error", "failed"),
        (Finished("", Finish.INVALID, 5, 0, 1, violation="a secret"), "failed", "schema_violated", "invalid"),
        (Finished("", Finish.LOOP, 5, 0, 1, loop="secret"), "answered", "loop", "loop"),
    ],
)
async def test_a_stream_that_ends_badly_after_its_200_has_a_line_and_is_counted(
    event: Event | Exception, outcome: str, end: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "coe.journal")
    client = asking({**CHAT, "stream": True})
    metrics = await post(ServedCollege([FakeLease([[*BEGUN, event]], "math")]), client)
    assert client.got[0]["status"] == 200
    (line,) = lines(caplog)
    assert line.startswith(f"{outcome}: POST /v1/chat/completions ended with {end} after ")
    assert "answered by math" in line
    assert "secret" not in line
    assert ("secret" in caplog.text) == (end == "internal_error"), "a stack is for bugs; what is told may quote"
    assert counted(metrics, "coe_request_seconds_count") == {tuple(sorted(("math", outcome))): 1}
    assert counted(metrics, "coe_answers_total") == {tuple(sorted(("math", reason))): 1}
    assert counted(metrics, "coe_requests_total") == {("/v1/chat/completions", "200"): 1}
    assert not metrics.running.requests


async def test_a_stream_whose_client_leaves_has_a_line_and_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "coe.journal")
    client = asking({**CHAT, "stream": True})
    lease = FakeLease([BEGUN], "math")
    posting = asyncio.create_task(post(ServedCollege([lease]), client))
    await until(lambda: b"Hel" in client.body)
    client.gone.set()
    metrics = await posting
    (line,) = lines(caplog)
    assert line.startswith("left: POST /v1/chat/completions ended with client_left after ")
    assert counted(metrics, "coe_request_seconds_count") == {("left", "math"): 1}
    assert counted(metrics, "coe_answers_total") == {("cancelled", "math"): 1}
    assert lease.running == 0


async def test_a_whole_answer_that_the_loop_guard_ended_has_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "coe.journal")
    client = asking(CHAT)
    metrics = await post(ServedCollege([FakeLease([LOOPED, LOOPED], "math")]), client)
    (line,) = lines(caplog)
    assert line.startswith("answered: POST /v1/chat/completions ended with loop after ")
    assert counted(metrics, "coe_answers_total") == {("loop", "math"): 2}


def test_a_flood_of_lines_is_kept_back_and_counted() -> None:
    now = [0.0]
    limit = LineLimit(3, 1.0, lambda: now[0])
    assert [limit.take() for _ in range(10)] == [0, 0, 0, *[None] * 7]
    now[0] = 1.0
    assert limit.take() == 7
    assert limit.take() is None


async def test_a_slow_request_and_an_administrators_have_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    metrics = Metrics(lambda: pool_status())
    in_flight: list[int] = []

    async def app(scope: dict, receive: object, send: object) -> None:  # type: ignore[type-arg]
        in_flight.append(len(metrics.running.requests))
        scope[RUNNING_KEY].model = "math"
        await send({"type": "http.response.start", "status": 200})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": b"{}"})  # type: ignore[operator]

    scope = {"type": "http", "method": "POST", "path": "/v1/pool/unload", "headers": [], "client": ("10.0.0.9", 1)}
    client = Client()
    await Journal(app, metrics, 1e-9)(scope, client.receive, client.send)  # type: ignore[arg-type]
    slow, audit = lines(caplog)
    assert slow.startswith("slow: POST")
    assert "10.0.0.9" in slow
    assert audit.startswith("administration: POST")
    assert "of math from 10.0.0.9: 200 answered" in audit
    assert in_flight == [1]
    assert not metrics.running.requests


def test_memory_is_told_of_each_place() -> None:
    held = Memory({"CUDA0": 5, HOST: 3})
    one = ResidentStatus(("math",), "math", "m.gguf", State.WARM, held, 1, 4, 0.0, 1.0, 2.0, False, {})
    beside = replace(one, memory=Memory.at(HOST, 4))
    status = replace(pool_status(), budget=Memory({"CUDA0": 9, HOST: 8}), booked=held, residents=(one, beside))
    metrics = Metrics(lambda: status)
    assert counted(metrics, "coe_budget_bytes") == {(): 9}
    assert counted(metrics, "coe_booked_bytes") == {(): 5}
    assert counted(metrics, "coe_place_budget_bytes") == {("CUDA0",): 9, ("host",): 8}
    assert counted(metrics, "coe_place_booked_bytes") == {("CUDA0",): 5, ("host",): 3}
    assert counted(metrics, "coe_resident_host_bytes") == {("m.gguf",): 7}
    shown = pool_json(status)
    assert (shown["budget_bytes"], shown["booked_bytes"]) == (9, 5)
    assert shown["places"]["host"] == {"budget_bytes": 8, "booked_bytes": 3}
    assert [(told["vram_bytes"], told["places"]) for told in shown["residents"]] == [
        (5, {"CUDA0": 5, "host": 3}), (0, {"host": 4}),
    ]  # fmt: skip
    assert not {"memory", "budget", "booked"} & {*shown, *shown["residents"][0]}


def test_without_a_card_host_memory_is_what_is_counted() -> None:
    metrics = Metrics(lambda: pool_status())
    assert counted(metrics, "coe_budget_bytes") == {(): 10}
    assert counted(metrics, "coe_place_booked_bytes") == {("host",): 5}


def pool_status(**more: object) -> PoolStatus:
    return PoolStatus(Memory.at(HOST, 10), Memory.at(HOST, 5), (), (), 0.0, 1, 0, 0, **{"stalled": (), **more})  # type: ignore[arg-type]


def test_the_scrape_is_valid_and_tells_of_deaths_and_of_what_is_going_on() -> None:
    metrics = Metrics(lambda: pool_status(stalled=("math shows no progress",), deaths={"SIGKILL": 2, "hung": 1}))
    metrics.running.requests[1] = RunningRequest("req-1", "/v1/chat/completions", 0.0)
    metrics.running.connections = lambda: 3
    metrics.ended('a "name"\n', "answered", 0.5)
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }
    assert samples["coe_worker_deaths_total", "SIGKILL"] == 2
    assert samples["coe_worker_deaths_total", "hung"] == 1
    assert samples["coe_ready",] == 0
    assert samples["coe_stalled_residents",] == 1
    assert samples["coe_requests_in_flight",] == 1
    assert samples["coe_connections",] == 3
    assert samples["coe_request_seconds_count", 'a "name"\n', "answered"] == 1
    assert any(name[0] == "coe_build_info" for name in samples)
