"""`coe demo`: a tour of the demo's college through a running server, with a specialist built on the way."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import httpx
import yaml
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from coe.demo.curriculum import DOMAINS, is_right, questions
from coe.surgery.build.job import BuildState

from ..roster.addresses import base_url
from ..roster.models import ServerSection
from ._server import ServerStartError, own_server
from ._url import is_here, server_url, why_none

# A question a domain, none of which the parent was trained on in these words; then one of no domain.
QUESTIONS: Final = (
    ("math", "What is 39 + 25?"),
    ("chemistry", "Which element has the atomic number 26?"),
    ("physics", "Calculate the voltage across 8 ohm at 6 A."),
    ("python", "What is sorted([9, 6, 4]) in Python?"),
    ("general", "What is the capital of Egypt?"),
    ("", "Write a haiku about rain."),
    ("math", "What is 48 - 11?"),
)
BUILT: Final = "law"
TO_BUILD: Final = ("law", "What does frustration mean in law?")

_ANSWER_S: Final = 120.0
_LOOK_S: Final = 2.0  # that a server may take to list its models
_LOOK_EVERY_S: Final = 0.2
_WIDEST_ANSWER: Final = 90  # characters


@dataclass(frozen=True)
class Reply:
    """What came of one question. right: None where nothing says what is."""

    question: str
    text: str
    specialist: str
    confidence: float
    residency: str
    milliseconds: float
    right: bool | None


class TourError(Exception):
    """The tour cannot go on; says why, and what to do."""


def tour(roster: Path, url: str | None, out: Console) -> int:
    """Show the demo's college at work, through the server at `url`.

    url: None for the one at the usual address or, where that serves no demo, one of the tour's own.
    Returns the exit code: 0, or 1 where no server can be asked or started, or the specialist was not built.
    """
    try:
        with (
            _server(roster, url, out) as base,
            httpx.Client(base_url=base, timeout=_ANSWER_S, trust_env=not is_here(base)) as client,
        ):
            replies = _ask_all(client, out)
            built = _build(client, out)
            if built is not None:
                replies.append(built)
            _say_goodbye(client, replies, out)
            return 0 if built is not None else 1
    except (TourError, ServerStartError, httpx.HTTPError) as error:
        out.print(str(error), style="red", markup=False, soft_wrap=True)
        return 1


# --- the server -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _server(roster: Path, url: str | None, out: Console) -> Iterator[str]:
    """The address of a server that serves the demo's roster; one that is started here ends with the block.

    Raises TourError where a server was named that serves another roster, or none.
    """
    names = {entry["name"] for entry in yaml.safe_load(roster.read_text())["specialists"]}
    found: str | None = None
    try:
        found = _serving(names, url or base_url(ServerSection().host, ServerSection().port))
    except TourError:
        if url is not None:
            raise
    if found is None:
        with _own_server(roster, out) as own:
            yield own
        return
    out.print(f"Asking the college at {found}.\n", markup=False)
    yield found


def _serving(names: Set[str], url: str) -> str:
    """The address of the server at `url`, which serves all of these. Raises TourError where it does not."""
    try:
        url = server_url(url)
    except ValueError as error:
        raise TourError(str(error)) from error
    if missing := names - _served_at(url):
        raise TourError(
            f"{url} serves another roster, without {', '.join(sorted(missing))}. "
            "Leave --url out: then the tour brings its own server."
        )
    return url


def _served_at(url: str) -> set[str]:
    """Names of the models that a server offers. Raises TourError where no server of ours answers."""
    try:
        response = httpx.get(f"{url}/v1/models", timeout=_LOOK_S, trust_env=not is_here(url))
        if response.status_code == httpx.codes.UNAUTHORIZED:
            raise TourError(f"{url} wants a key, and the tour has none. Leave --url out: it brings its own server.")
        return {str(model["id"]) for model in response.raise_for_status().json()["data"]}
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise TourError(why_none(url, error)) from error


@contextlib.contextmanager
def _own_server(roster: Path, out: Console) -> Iterator[str]:
    """A server for the tour. What it cuts and builds lies in a folder of its own, so that every tour begins anew."""
    with tempfile.TemporaryDirectory(prefix="coe-demo-") as folder, contextlib.ExitStack() as stack:
        with out.status("Cutting five specialists out of the tiny parent, and starting the server ..."):
            began = time.perf_counter()
            base = stack.enter_context(own_server(with_own_models(roster, Path(folder))))
        out.print(f"A college of my own is ready at {base} ({time.perf_counter() - began:.0f} s).\n", markup=False)
        yield base


def with_own_models(roster: Path, folder: Path) -> Path:
    """A copy of the roster in `folder`, whose models folder lies there too; what it reads stays where it is."""
    text: dict[str, Any] = yaml.safe_load(roster.read_text())
    text["models_dir"] = str(folder / "models")
    for entry in text["specialists"]:
        if "mask" in entry:
            entry["mask"] = str(roster.parent.resolve() / entry["mask"])
        for key in ("corpus", "questions"):
            if key in entry.get("build", {}):
                entry["build"][key] = [str(roster.parent.resolve() / path) for path in entry["build"][key]]
    path = folder / "specialists.yaml"
    path.write_text(yaml.safe_dump(text, allow_unicode=True))
    return path


# --- asking ---------------------------------------------------------------------------------------------------


def _ask(client: httpx.Client, domain: str, question: str) -> Reply:
    """Ask the supervisor's choice. Raises TourError with what the server says instead of an answer."""
    body = {"model": "auto", "messages": [{"role": "user", "content": question}]}
    began = time.perf_counter()
    response = client.post("/v1/chat/completions", json={**body, "max_tokens": 60})
    spent_ms = 1000 * (time.perf_counter() - began)
    answer = response.json()
    if response.is_error:
        raise TourError(f"{question} {answer['error']['message']}")
    facts = answer["coe"]
    text = answer["choices"][0]["message"]["content"].strip()
    return Reply(
        question,
        text,
        facts["specialist"],
        facts["confidence"],
        facts["residency"],
        spent_ms,
        judged(domain, question, text),
    )


def judged(domain: str, question: str, answer: str) -> bool | None:
    """Whether an answer is right; None for a question that the curriculum does not know."""
    if domain not in DOMAINS:
        return None
    known = next((one for one in questions(domain) if one.text == question), None)
    return None if known is None else is_right(known, answer)


def _ask_all(client: httpx.Client, out: Console) -> list[Reply]:
    replies: list[Reply] = []
    with Live(_table(replies), console=out, refresh_per_second=8) as live:
        for domain, question in QUESTIONS:
            replies.append(_ask(client, domain, question))
            live.update(_table(replies))
    return replies


def _table(replies: list[Reply]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("question", max_width=34)
    table.add_column("specialist", no_wrap=True)
    table.add_column("sure", justify="right", no_wrap=True)
    table.add_column("was", no_wrap=True)
    table.add_column("ms", justify="right", no_wrap=True)
    table.add_column("answer", ratio=1)
    table.add_column("", no_wrap=True)
    for reply in replies:
        mark = {True: "[green]right[/]", False: "[red]wrong[/]", None: ""}[reply.right]
        table.add_row(
            escape(reply.question),
            f"[cyan]{escape(reply.specialist)}[/]",
            f"{reply.confidence:.0%}",
            reply.residency,
            f"{reply.milliseconds:,.0f}",
            escape(_short(reply.text)),
            mark,
        )
    return table


def _short(text: str) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= _WIDEST_ANSWER else one_line[: _WIDEST_ANSWER - 1] + "…"


# --- building -------------------------------------------------------------------------------------------------


def _build(client: httpx.Client, out: Console) -> Reply | None:
    """Ask for what is not there, watch it being built, and ask again. None where it was not released."""
    card = _card(client)
    if card["served"]:
        out.print(f"\n{BUILT} was built on an earlier tour:\n", markup=False)
        reply = _ask(client, *TO_BUILD)
        out.print(_table([reply]))
        return reply
    out.print(f"\n{BUILT} does not exist yet. Another specialist answers, and the build begins:\n", markup=False)
    # The specialist that stands in cannot know: its answer is shown without a verdict, and not counted.
    out.print(_table([replace(_ask(client, *TO_BUILD), right=None)]))
    out.print()
    began = time.perf_counter()
    ended = _watch(client, out)
    told = f"{ended['message']} {ended['remedy']}".strip()
    if not ended["served"]:
        out.print(f"{BUILT} was not released. {told}", style="yellow", markup=False, soft_wrap=True)
        return None
    seconds = time.perf_counter() - began
    out.print(f"Watched, cut, proved and examined in {seconds:.0f} s: {told}\n", markup=False, soft_wrap=True)
    reply = _ask(client, *TO_BUILD)
    out.print(_table([reply]))
    return reply


def _watch(client: httpx.Client, out: Console) -> Mapping[str, Any]:
    """Show how far the build is until it has ended; gives its last card."""
    columns = (TextColumn("building {task.fields[name]}"), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeElapsedColumn(), console=out) as bars:
        task = bars.add_task("begins", total=1.0, name=BUILT)
        while True:
            card = _card(client)
            state = BuildState(card["state"])
            if card["served"] or not (state.unfinished or state is BuildState.RELEASED):
                bars.update(task, completed=1.0, description="done" if card["served"] else str(state))
                return card
            steps, done = card["steps"] or 1, card["steps_done"]
            part = card["fraction"] or 0.0 if state is BuildState.RUNNING else 0.0
            bars.update(
                task, completed=(done + part) / steps, description=card["step"] or card["message"] or str(state)
            )
            time.sleep(_LOOK_EVERY_S)


def _card(client: httpx.Client) -> dict[str, Any]:
    card: dict[str, Any] = client.get(f"/v1/builds/{BUILT}").raise_for_status().json()
    return card


def _say_goodbye(client: httpx.Client, replies: list[Reply], out: Console) -> None:
    judged_ones = [reply.right for reply in replies if reply.right is not None]
    residents = client.get("/v1/pool").raise_for_status().json()["residents"]
    out.print(
        f"\n{sum(judged_ones)} of {len(judged_ones)} right. {len(residents)} models are in memory now; each specialist "
        "of the tiny parent is half of it. What it learned, and how: demo/curriculum.py, demo/parent/train.py. To go "
        "on asking: coe serve",
        markup=False,
        soft_wrap=True,
    )
