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

from coe.server.commands._speeds import Placed, known_speeds
from coe.server.commands.bench import BenchError, Card, Server, bench, run
from coe.server.roster.builtin import demo_roster
from fakes.server_process import ServerProcess, write_roster


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
        (card,) = (card for card in server.cards() if card.name == "general")
        figures = run(server, [card], rounds=1)["general"]
    assert figures.trouble == ""
    assert set(figures.tokens_per_s) == {1, 4}
    assert figures.prompt_tokens_per_s is not None
    assert figures.prompt_tokens_per_s > max(figures.tokens_per_s.values())


@pytest.mark.server
def test_without_a_server_one_is_started_and_its_speeds_are_kept(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code, said, _ = measured(write_roster(tmp_path, {"plain": {}}, fallback="plain"), url=None, rounds=1)
    assert code == 0
    (row,) = (line.split() for line in said.splitlines() if line.startswith("plain"))
    assert row[2] == "-", "nobody to change with"
    assert "-" not in (row[1], *row[3:])
    [kept] = known_speeds()
    assert kept.placed == Placed(smollm2.name, smollm2.stat().st_size)
    assert f"{kept.tokens_per_s:,.0f}" in row


def test_who_cannot_be_served_is_named_with_those_who_can(demo_college: ServerProcess) -> None:
    code, _, said = measured(demo_roster(), "astrology", url=demo_college.url)
    assert code == 1
    assert "There is no specialist 'astrology' there. Served are: math, chemistry" in said


def test_who_is_left_out_is_named_with_the_reason_and_an_alias_is_understood(college: ServerProcess) -> None:
    code, _, said = measured(demo_roster(), "absent", url=college.url)
    assert code == 1
    assert "absent cannot be served there. There is no file" in said
    code, said, _ = measured(demo_roster(), "maths", "math", url=college.url, as_json=True, rounds=1)
    assert code == 0
    assert list(json.loads(said)) == ["math"]


def test_a_proxy_is_not_asked_for_this_machine(college: ServerProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with contextlib.closing(Server(college.url)) as server:
        assert server.cards()


@pytest.mark.server
def test_a_server_of_our_own_is_given_the_key_that_its_roster_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCH_KEYS", "secret")
    roster = write_roster(tmp_path, {"plain": {}}, fallback="plain", server={"api_keys_env": "BENCH_KEYS"})
    code, said, complaint = measured(roster, url=None, rounds=1)
    assert code == 0, complaint
    assert "plain" in said


def test_one_that_fails_keeps_the_figures_of_the_others(server: Callable[[Handler], Server]) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if json.loads(request.content)["model"] == "broken":
            return httpx.Response(503, json={"error": {"message": "It does not load."}})
        return httpx.Response(200, text=stream_of(20))

    found = run(server(answer), [CARD, Card("broken", (), 0, "")], rounds=2)
    assert found["broken"].trouble == "broken: It does not load."
    assert found["math"].times == {"warm": 4}
    assert found["math"].trouble == ""


def test_a_long_prompt_is_no_longer_than_the_context(server: Callable[[Handler], Server]) -> None:
    longest = []

    def answer(request: httpx.Request) -> httpx.Response:
        longest.append(len(json.loads(request.content)["messages"][0]["content"].split()))
        return httpx.Response(200, text=stream_of(1))

    run(server(answer), [Card("math", (), 256, "")], rounds=1)
    assert max(longest) == 65


def test_without_a_college_the_remedy_is_named() -> None:
    code, _, said = measured(demo_roster(), url="http://127.0.0.1:1")
    assert code == 1
    assert "No college is served at http://127.0.0.1:1" in said
    assert "coe serve" in said


@pytest.mark.server
def test_a_roster_that_cannot_be_served_says_why(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("specialists:\n  - name: law\n    file: a.gguf\n    colour: blue\n")
    code, _, said = measured(path, url=None)
    assert code == 1
    assert "colour" in said


def test_cached_tokens_are_not_read(server: Callable[[Handler], Server]) -> None:
    answer = server(lambda request: httpx.Response(200, text=stream_of(1, cached=2))).ask("math", "Hello", 1)
    assert answer.read_tokens == 1


@pytest.mark.parametrize("url", ["http://[::1", "http://a b", "::1:8000", "ftp://college"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    code, _, said = measured(demo_roster(), url=url)
    assert code == 1
    assert url in said


Handler = Callable[[httpx.Request], httpx.Response]
CARD = Card("math", (), 0, "")


def stream_of(n_tokens: int, cached: int = 0) -> str:
    """An answer as a server of ours streams it."""
    usage = {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": cached}, "completion_tokens": n_tokens}
    frames = [
        {"choices": [{"delta": {"content": "Hi"}, "finish_reason": None}], "coe": {"residency": "warm"}},
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": usage},
    ]
    return ": waiting\n\n" + "".join(f"data: {json.dumps(frame)}\n\n" for frame in frames) + "data: [DONE]\n\n"


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

    with pytest.raises(BenchError, match="give one with --key"):
        server(refuse).cards()
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
    figures = run(server(lambda request: httpx.Response(200, text=stream_of(1))), [CARD], rounds=1)["math"]
    assert figures.times == {"warm": 2}
    assert figures.tokens_per_s == {}
    assert figures.prompt_tokens_per_s is None
