"""`coe bench`: against real servers, and against answers that no server of ours would give."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from rich.console import Console
from server_process import ServerProcess, write_roster

from coe.server.bench import BenchError, Server, bench, run
from coe.server.cli import demo_roster


def measured(
    roster: Path, *names: str, url: str | None, as_json: bool = False, rounds: int = 2
) -> tuple[int, str, str]:
    """Exit code, what was printed, and what was said beside it."""
    out, err = io.StringIO(), io.StringIO()
    code = bench(
        roster,
        names,
        Console(file=out, width=160),
        Console(file=err, width=160),
        url=url,
        key=None,
        rounds=rounds,
        n_tokens=16,
        as_json=as_json,
    )
    return code, out.getvalue(), err.getvalue()


def test_specialists_that_share_a_resident_are_changed_to(demo_college: ServerProcess) -> None:
    code, said, _ = measured(demo_roster(), "math", "physics", url=f"{demo_college.url}/v1", as_json=True)
    assert code == 0
    found = json.loads(said)
    assert list(found) == ["math", "physics"]
    for one in found.values():
        assert sum(one["times"].values()) == 4
        assert one["times"]["warm"] >= 2
        assert all(ms > 0 for ms in one["first_ms"].values())
    assert "swapped" in found["physics"]["times"]


def test_speeds_of_a_real_model(college: ServerProcess) -> None:
    with contextlib.closing(Server(college.url)) as server:
        figures = run(server, ["general"], rounds=1)["general"]
    assert set(figures.tokens_per_s) == {1, 4}
    assert figures.prompt_tokens_per_s is not None
    assert figures.prompt_tokens_per_s > max(figures.tokens_per_s.values())


def test_without_a_server_one_is_started(tmp_path: Path) -> None:
    code, said, _ = measured(write_roster(tmp_path, {"plain": {}}, fallback="plain"), url=None, rounds=1)
    assert code == 0
    (row,) = (line.split() for line in said.splitlines() if line.startswith("plain"))
    assert row[2] == "-", "nobody to change with"
    assert "-" not in (row[1], *row[3:])


def test_who_cannot_be_served_is_named_with_those_who_can(demo_college: ServerProcess) -> None:
    code, _, said = measured(demo_roster(), "astrology", url=demo_college.url)
    assert code == 1
    assert "astrology cannot be served there. Served are: math, chemistry" in said


def test_without_a_college_the_remedy_is_named() -> None:
    code, _, said = measured(demo_roster(), url="http://127.0.0.1:1")
    assert code == 1
    assert "No college is served at http://127.0.0.1:1" in said
    assert "coe serve" in said


def test_a_roster_that_cannot_be_served_says_why(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("specialists:\n  - name: law\n    file: a.gguf\n    colour: blue\n")
    code, _, said = measured(path, url=None)
    assert code == 1
    assert "colour" in said


Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture
def server() -> Iterator[Callable[[Handler], Server]]:
    made: list[Server] = []

    def make(handler: Handler) -> Server:
        made.append(Server("http://college", "secret", httpx.MockTransport(handler)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_the_key_is_sent_and_a_refusal_is_passed_on(server: Callable[[Handler], Server]) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer secret"
        return httpx.Response(401, json={"error": {"message": "This key is not known."}})

    with pytest.raises(BenchError, match="This key is not known"):
        server(refuse).served()
    with pytest.raises(BenchError, match="math: This key is not known"):
        server(refuse).ask("math", "Hello", 1)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'data: {"error": {"message": "The worker died."}}\n\n', "The worker died"),
        (b"data: {broken\n\n", "broke off"),
        (b'data: {"id": 1}\n\n', "broke off"),
    ],
)
def test_a_stream_that_goes_wrong_is_no_measurement(
    server: Callable[[Handler], Server], body: bytes, message: str
) -> None:
    with pytest.raises(BenchError, match=message):
        server(lambda request: httpx.Response(200, content=body)).ask("math", "Hello", 1)


def test_short_answers_have_no_speed(server: Callable[[Handler], Server]) -> None:
    frames = [
        {"choices": [{"delta": {"content": "Hi"}, "finish_reason": None}], "coe": {"residency": "warm"}},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1}},
    ]
    body = ": waiting\n\n" + "".join(f"data: {json.dumps(frame)}\n\n" for frame in frames) + "data: [DONE]\n\n"
    figures = run(server(lambda request: httpx.Response(200, text=body)), ["math"], rounds=1)["math"]
    assert figures.times == {"warm": 2}
    assert figures.tokens_per_s == {}
    assert figures.prompt_tokens_per_s is None
