"""Builds asked of a running server: the stand-in, the status that clients see, and how a finished build is served."""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from random_model import Shape, write_random_model

from coe.demo.curriculum import is_right
from fakes import taught
from fakes.faults import Faults
from fakes.server_process import ServerProcess, run_coe, write_roster

pytestmark = pytest.mark.server

LINES = 40
NO_PAGE = {"x-requested-with": "pytest"}  # in place of a body's content type
TRIES = 30_000  # a request each: a build takes some seconds
ENTRY: dict[str, Any] = {"package": None, "pattern": None, "context_tokens": 256, "domains": ["law"]}


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def roster(tmp_path: Path, environment: None) -> Callable[..., Path]:
    """roster(on_missing="build", build={...}, **sections): a general specialist, and one that is to be built."""
    (tmp_path / "models").mkdir()
    write_random_model(tmp_path / "models" / "parent.gguf", Shape(experts=8))
    lines = [{"question": f"What is {n} plus {n}?", "answer": str(2 * n)} for n in range(LINES)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def write(*, on_missing: str = "build", build: dict[str, Any] | None = None, **sections: Any) -> Path:
        asked = {"corpus": ["sums.jsonl"], "experts": 4, "max_tokens": 4, **(build or {})}
        specialists = {"general": {}, "small": {**ENTRY, "build": asked, "on_missing": on_missing}}
        return write_roster(
            tmp_path,
            specialists,
            **{
                "parent": {"model": "random", "file": "parent.gguf"},
                "fallback": "general",
                "pool": {"vram_budget": "2 GiB", "quiet_s": 0.01},
                **sections,
            },
        )

    return write


@pytest.fixture
def serving() -> Iterator[Callable[..., ServerProcess]]:
    servers: list[ServerProcess] = []

    def start(path: Path, **options: Any) -> ServerProcess:
        servers.append(ServerProcess(path, **options))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.stop()


def card(server: ServerProcess) -> dict[str, Any]:
    answer = server.http.get("/v1/builds/small").raise_for_status().json()
    assert isinstance(answer, dict)
    return answer


def facts(server: ServerProcess) -> dict[str, Any]:
    answer = server.http.get("/v1/models/small").json()["coe"]
    assert isinstance(answer, dict)
    return answer


def until_state(server: ServerProcess, *states: str) -> dict[str, Any]:
    server.until(lambda: card(server)["state"] in (*states, "failed"), TRIES)
    found = card(server)
    assert found["state"] in states, found["message"]
    return found


def right_answers(server: ServerProcess, domain: str) -> int:
    """How many of eight questions the specialist knows."""
    right = 0
    for question in taught.exam(domain, 8, seed=1):
        answer = server.chat(question.text, model="small", max_tokens=taught.ANSWER_TOKENS)
        assert answer.headers["x-coe-specialist"] == "small"
        right += is_right(question, answer.json()["choices"][0]["message"]["content"])
    return right


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode) & 0o666 if path.is_file() else stat.S_IMODE(path.stat().st_mode)


def assert_private(folder: Path) -> None:
    """Corpus, questions and answers of a build are nobody else's."""
    found = {path.name: oct(path.stat().st_mode & 0o077) for path in (folder, *folder.rglob("*"))}
    assert len(found) > 5
    assert {name: open_to for name, open_to in found.items() if open_to != "0o0"} == {}


def test_a_specialist_is_built_when_first_asked_for_and_served_without_a_restart(
    roster: Callable[..., Path], serving: Callable[[Path], ServerProcess], tmp_path: Path
) -> None:
    taught.write_corpus(tmp_path / "law.jsonl", taught.corpus("law", 80))
    taught.write_exam(tmp_path / "few.jsonl", taught.exam("law", 4))
    taught.write_exam(tmp_path / "enough.jsonl", taught.exam("law", 32))
    asked = {"corpus": ["law.jsonl"], "questions": ["few.jsonl"], "experts": 32, "max_tokens": taught.ANSWER_TOKENS}
    path = roster(build=asked, parent={"model": "college", "file": str(taught.PARENT)})
    server = serving(path)
    assert "To be built when it is asked for" in server.announcement
    assert facts(server)["available"] is False
    assert card(server)["state"] == "not-built"

    answer = server.chat(model="small")
    assert answer.status_code == 200
    assert answer.headers["x-coe-specialist"] == "general"
    assert answer.headers["x-coe-build"] == "waiting"
    assert answer.json()["coe"]["build"] == "waiting"

    built = until_state(server, "kept-aside")
    assert built["report"]["verdict"]["n"] == 4
    again = server.chat(model="small")
    assert again.headers["x-coe-build"] == "kept-aside"
    assert card(server)["state"] == "kept-aside", "nobody starts it over"
    assert server.metric("coe_build", specialist="small", state="kept-aside") == 1

    accepted = run_coe("build", "small", "--accept", "--roster", str(path))
    assert accepted.returncode == 0, accepted.stderr
    assert_private(next(tmp_path.rglob("builds")))
    [model] = tmp_path.rglob("built/small.gguf")
    assert mode(model) == mode(taught.PARENT) | 0o600, "what is released is as open as its parent"
    assert mode(model.with_suffix(".report.json")) == 0o600, "what it quotes is not"
    assert mode(model.parent) == mode(model.parent.parent)
    server.until(lambda: bool(facts(server)["available"]), TRIES)
    assert right_answers(server, "law") >= 7
    assert right_answers(server, "math") <= 2, "the parent knows math, its specialist in law does not"
    served = server.chat(model="small", max_tokens=2)
    assert served.headers["x-coe-specialist"] == "small"
    assert "x-coe-build" not in served.headers
    assert card(server)["served"] is True
    assert server.leases() == 0

    # Another mask, built in a terminal and released by the gate, takes the place of the one that is loaded.
    path.write_text(path.read_text().replace("experts: 32", "experts: 40").replace("few.jsonl", "enough.jsonl"))
    assert server.chat(model="small", max_tokens=2).headers["x-coe-residency"] == "warm"
    released = run_coe("build", "small", "--roster", str(path))
    assert released.returncode == 0, released.stderr
    server.until(lambda: bool(card(server)) and server.log().count("small can be served now") == 2, TRIES)
    assert server.chat(model="small", max_tokens=2).headers["x-coe-residency"] == "loaded"
    assert right_answers(server, "law") >= 7
    assert_private(next(tmp_path.rglob("builds")))


def test_a_build_that_fails_says_why_once_and_is_tried_again_when_told(
    roster: Callable[..., Path], serving: Callable[[Path], ServerProcess], tmp_path: Path
) -> None:
    server = serving(roster(build={"experts": 9}))
    server.chat(model="small")
    failed = until_state(server, "failed")
    assert "has 8" in failed["message"]
    assert "roster" in failed["remedy"]
    assert server.chat(model="small").headers["x-coe-build"] == "failed"
    assert server.log().count("building small failed") == 1
    assert server.http.post("/v1/builds/small", headers=NO_PAGE).status_code == 202
    server.until(lambda: bool(card(server)) and server.log().count("building small failed") == 2, TRIES)
    assert server.http.post("/v1/builds/nobody", headers=NO_PAGE).status_code == 404
    assert server.http.post("/v1/builds/small").status_code == 415, "any web page could have sent that"
    assert server.http.get("/v1/builds/general").status_code == 404
    assert [one["name"] for one in server.http.get("/v1/builds").json()["data"]] == ["small"]


def test_without_a_fallback_the_client_is_told_to_come_back(
    roster: Callable[..., Path], serving: Callable[[Path], ServerProcess]
) -> None:
    path = roster()
    alone = yaml.safe_load(path.read_text())
    del alone["specialists"][0], alone["fallback"]
    path.write_text(yaml.safe_dump(alone))
    server = serving(path)
    answer = server.chat(model="small")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "specialist_building"
    assert answer.headers["retry-after"] == "30"
    assert answer.headers["x-coe-build"] == "waiting"
    assert server.chat(model="auto").status_code == 503
    until_state(server, "kept-aside")
    refused = server.chat(model="small")
    assert refused.status_code == 503
    assert "retry-after" not in refused.headers
    assert "accept" in refused.json()["error"]["message"]


def test_refuse_and_fallback_never_begin_a_build(
    roster: Callable[..., Path], serving: Callable[[Path], ServerProcess]
) -> None:
    server = serving(roster(on_missing="refuse"))
    refused = server.chat(model="small")
    assert refused.status_code == 503
    assert "coe build small" in refused.json()["error"]["message"]
    assert card(server)["state"] == "not-built"
    assert server.chat("What does a contract of sale need to be valid?", model="auto").status_code == 200
    assert card(server)["state"] == "not-built"
    server.stop()
    server = serving(roster(on_missing="fallback"))
    answer = server.chat(model="small")
    assert answer.headers["x-coe-specialist"] == "general"
    assert answer.headers["x-coe-build"] == "not-built"
    assert card(server)["state"] == "not-built"


def test_the_supervisor_may_send_a_question_to_a_specialist_that_is_to_be_built(
    roster: Callable[..., Path], serving: Callable[[Path], ServerProcess]
) -> None:
    server = serving(roster())
    question = "Under contract law, which damages may the plaintiff claim in court for breach of a lease?"
    decision = server.http.post("/v1/route", json={"text": question}).json()
    assert decision["ranking"][0]["specialist"] == "small"
    assert card(server)["state"] == "not-built", "to ask who would answer begins nothing"
    answer = server.chat(question, model="auto")
    assert answer.headers["x-coe-specialist"] == "general"
    assert answer.headers["x-coe-build"]
    assert until_state(server, "kept-aside")["steps_done"] == 9


def test_a_build_survives_the_death_of_its_server(
    roster: Callable[..., Path], serving: Callable[[Path], ServerProcess], tmp_path: Path
) -> None:
    path = roster()
    server = serving(path)
    server.chat(model="small")
    server.until(lambda: card(server)["state"] == "running" and card(server)["steps_done"] >= 1)
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    server = serving(path)
    until_state(server, "kept-aside")


def test_a_server_that_stops_stops_its_build_and_the_next_goes_on(
    roster: Callable[..., Path], serving: Callable[[Path], ServerProcess], tmp_path: Path
) -> None:
    path = roster()
    server = serving(path)
    server.chat(model="small")
    server.until(lambda: card(server)["steps_done"] >= 1, TRIES)
    assert server.stop() == 0
    progress = json.loads((tmp_path / "models" / "builds" / "small" / "progress.json").read_text())
    assert progress["state"] in ("stopped", "kept-aside")
    server = serving(path)
    until_state(server, "kept-aside")


def test_a_build_that_stands_still_is_killed_says_so_and_goes_on_from_there_when_told(
    roster: Callable[..., Path], serving: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    faults = Faults(tmp_path)
    faults.arm("cut", "SIGSTOP")
    path = roster(pool={"vram_budget": "2 GiB", "quiet_s": 0.01, "stall_s": 3})
    server = serving(path, env=faults.environment)
    server.chat(model="small")
    server.until(lambda: card(server)["state"] == "failed", TRIES)
    failed = card(server)
    assert failed["message"] == "The process gave no sign of life for 3 s and was killed in the step cut."
    assert "coe build small --roster " in failed["remedy"], "it is to mean this roster"
    assert failed["remedy"].endswith(" goes on from there.")
    done = json.loads((tmp_path / "models" / "builds" / "small" / "state.json").read_text())["steps"]
    assert server.chat(model="small", max_tokens=1).headers["x-coe-specialist"] == "general", "the server serves on"
    server.http.post("/v1/builds/small", headers=NO_PAGE).raise_for_status()
    until_state(server, "kept-aside")
    after = json.loads((tmp_path / "models" / "builds" / "small" / "state.json").read_text())["steps"]
    assert {name: after[name] for name in done} == done, "nothing that was done is done again"
    assert "cut" not in done


def test_a_server_ends_beside_a_build_that_stands_still(
    roster: Callable[..., Path], serving: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    faults = Faults(tmp_path)
    faults.arm("profile", "SIGSTOP")
    server = serving(path := roster(), env=faults.environment)
    server.chat(model="small")
    server.until(lambda: faults.struck("profile") or card(server)["state"] == "failed", TRIES)
    assert faults.struck("profile"), card(server)
    server.process.send_signal(signal.SIGTERM)
    assert server.wait() == 0
    progress = json.loads((tmp_path / "models" / "builds" / "small" / "progress.json").read_text())
    assert progress["state"] == "stopped"
    until_state(serving(path), "kept-aside")


def test_a_build_needs_its_parent_and_says_where_it_should_be(
    roster: Callable[..., Path], serving: Callable[[Path], ServerProcess], tmp_path: Path
) -> None:
    path = roster()
    (tmp_path / "models" / "parent.gguf").unlink()
    server = serving(path)
    server.chat(model="small")
    assert "parent" in until_state(server, "failed")["message"]


def test_a_parent_that_does_not_fit_the_budget_is_refused_with_the_sum(
    roster: Callable[..., Path], serving: Callable[[Path], ServerProcess]
) -> None:
    path = roster(pool={"vram_budget": "150 MiB"})
    content = yaml.safe_load(path.read_text())
    general = {"name": "general", "file": "parent.gguf", "context_tokens": 256, "threads": 1}
    small = {**content["specialists"][1], "context_tokens": 2_000_000}
    path.write_text(yaml.safe_dump({**content, "specialists": [general, small]}))
    server = serving(path)
    server.chat(model="small", max_tokens=1)
    failed = until_state(server, "failed")
    assert "the budget is 150 MiB" in failed["message"]
    assert "vram_budget" in failed["remedy"]


def test_a_build_in_idle_time_makes_way_for_requests_and_goes_on_later(
    roster: Callable[..., Path], serving: Callable[[Path], ServerProcess]
) -> None:
    server = serving(roster(pool={"vram_budget": "245 MiB", "quiet_s": 0.01}))
    server.chat(model="small", max_tokens=1).raise_for_status()
    server.until(lambda: card(server)["state"] == "running", TRIES)
    (room,) = [resident for resident in server.pool()["residents"] if not resident["specialists"]]
    assert room["file"] == "the build of small"
    answer = server.chat(model="general", max_tokens=1)
    assert answer.status_code == 200
    assert answer.headers["x-coe-residency"] == "loaded"
    assert "stopping the build of small: to make room" in server.log()
    until_state(server, "kept-aside")


def test_a_build_that_takes_a_place_keeps_it(
    roster: Callable[..., Path], serving: Callable[[Path], ServerProcess]
) -> None:
    server = serving(roster(build={"when": "now"}, pool={"vram_budget": "245 MiB"}))
    server.chat(model="small", max_tokens=1).raise_for_status()
    server.until(lambda: card(server)["state"] == "running", TRIES)
    refused = server.chat(model="general", max_tokens=1)
    assert refused.status_code == 503
    assert "held by the build of small" in refused.json()["error"]["message"]
    until_state(server, "kept-aside")
    assert server.chat(model="general", max_tokens=1).status_code == 200


def test_a_build_that_waits_for_idle_time_lets_one_through_that_does_not(
    roster: Callable[..., Path], serving: Callable[[Path], ServerProcess]
) -> None:
    path = roster(pool={"vram_budget": "2 GiB", "quiet_s": 3600})
    content = yaml.safe_load(path.read_text())
    small = next(one for one in content["specialists"] if one["name"] == "small")
    hurried = {**small, "name": "hurried", "domains": ["physics"], "build": {**small["build"], "when": "now"}}
    path.write_text(yaml.safe_dump({**content, "specialists": [*content["specialists"], hurried]}))
    server = serving(path)

    def status(name: str) -> str:
        return str(server.http.get(f"/v1/builds/{name}").json()["status"])

    server.chat(model="small", max_tokens=1)
    server.until(lambda: status("small") == "waiting: for idle time", TRIES)
    assert "Only 4 questions" in card(server)["warning"]
    server.chat(model="hurried", max_tokens=1)
    server.until(lambda: status("hurried") in ("kept-aside", "failed"), TRIES)
    assert status("hurried") == "kept-aside"
    server.until(lambda: status("small") == "waiting: for idle time", TRIES)
