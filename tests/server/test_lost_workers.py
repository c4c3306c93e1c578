"""Workers that are killed, or stop, in a load, a swap, a restore: it is said, nothing is lost, the server serves on."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import httpx
import pytest

from fakes.demo_college import college_roster
from fakes.faults import Act, Faults
from fakes.server_process import ServerProcess

pytestmark = pytest.mark.server

ACTS: tuple[Act, ...] = ("SIGKILL", "SIGSTOP")
SUM = "What is 27 + 35?"


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Faults:
    return Faults(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def server(faults: Faults, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of the demo's college that gives workers up soon."""
    roster = college_roster(tmp_path_factory.mktemp("lost"), pool={"stall_s": 3})
    with ServerProcess(roster, env=faults.environment) as server:
        yield server


def unload(server: ServerProcess) -> None:
    for resident in server.pool()["residents"]:
        server.http.post("/v1/pool/unload", json={"model": resident["specialists"][0]}).raise_for_status()
    server.until(lambda: not server.pool()["residents"])


def ask(server: ServerProcess, model: str, text: str = SUM) -> httpx.Response:
    return server.chat(text, model=model, max_tokens=40)


def says(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def lost(server: ServerProcess, model: str, act: Act) -> httpx.Response:
    """The answer to a request whose worker is lost. One that stands still makes the server unready until it is gone."""
    if act != "SIGSTOP":
        return ask(server, model)
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(ask(server, model)))
    asking.start()
    server.until(lambda: server.http.get("/ready").status_code == 503, tries=100_000)
    asking.join()
    server.until(lambda: server.http.get("/ready").status_code == 200, tries=100_000)
    return answers[0]


def require_said(server: ServerProcess, response: httpx.Response, act: Act) -> None:
    """The client is told what happened and to ask again; the log and the metrics know of it."""
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (503, "worker_died"), response.text
    how = "signal 9" if act == "SIGKILL" else "gave no sign of life for 3 s and was killed"
    assert how in error["message"]
    assert "Send the request again" in error["message"]
    assert "retry-after" in response.headers
    assert how in server.log()


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("first", [True, False], ids=["started for it", "a spare"])
def test_a_worker_that_is_lost_while_it_loads(server: ServerProcess, faults: Faults, act: Act, first: bool) -> None:
    unload(server)
    if not first:  # with a resident beside it a spare waits
        says(ask(server, "general"))
    faults.arm("load", act)
    response = lost(server, "math", act)
    assert faults.struck("load")
    require_said(server, response, act)
    answer = ask(server, "math")
    assert (says(answer).split()[-1], answer.headers["x-coe-residency"]) == ("62", "loaded")
    assert says(ask(server, "general"))
    assert server.leases() == 0


@pytest.mark.parametrize("act", ACTS)
def test_a_worker_that_is_lost_in_a_swap(server: ServerProcess, faults: Faults, act: Act) -> None:
    whole = says(ask(server, "math"))
    faults.arm("swap", act)
    response = lost(server, "chemistry", act)
    assert faults.struck("swap")
    require_said(server, response, act)
    answer = ask(server, "math")
    assert (says(answer), answer.headers["x-coe-residency"]) == (whole, "loaded"), "nothing of the other is in it"
    assert says(ask(server, "chemistry", "What is the chemical symbol of iron?"))
    assert server.leases() == 0


@pytest.mark.parametrize("act", ACTS)
def test_a_worker_that_is_lost_while_a_conversation_comes_back(server: ServerProcess, faults: Faults, act: Act) -> None:
    whole = says(ask(server, "math"))
    says(ask(server, "chemistry"))
    faults.arm("restore", act)
    response = lost(server, "math", act)
    assert faults.struck("restore")
    require_said(server, response, act)
    assert says(ask(server, "math")) == whole, "evaluated anew"
    assert server.leases() == 0


def test_a_worker_that_dies_of_a_fault_of_ours_says_where(server: ServerProcess, faults: Faults) -> None:
    says(ask(server, "math"))
    faults.arm("decode", "FAULT")
    response = lost(server, "math", "FAULT")
    assert faults.struck("decode")
    assert response.json()["error"]["code"] == "worker_died"
    log = server.log()
    assert "Traceback (most recent call last):" in log
    assert "in _evaluate" in log, "where it was in our own code"
    assert "what a user said" not in log, "an error's text may be a request's"
    assert says(ask(server, "math"))
