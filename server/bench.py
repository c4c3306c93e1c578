"""`coe bench`: what the specialists of a roster take on this machine, seen from a client's side.

`run` asks a server and gives figures; `show` prints them. Only the server's public API is used, so that a server on
another machine can be measured as well.
"""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import httpx
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .own_server import ServerStartError, own_server

STREAMS: Final = (1, 4)
_FEWEST_TOKENS: Final = 8  # that a speed means something
_LEAST_S: Final = 0.005  # likewise
_LONG_PROMPT_WORDS: Final = 400
_ANSWER_S: Final = 900.0  # a first load from a slow disk, and a queue before it
_WORDS: Final = (
    *("river", "lamp", "seven", "garden", "quiet", "engine", "morning", "paper", "bridge", "winter", "copper"),
    *("window", "music", "valley", "button", "orange", "market", "silver", "doctor", "yellow", "table", "storm"),
)
_TASK: Final = "Write a long story about these words, with many details:"


class BenchError(Exception):
    """A measurement cannot be made; says why, and what to do."""


@dataclass(frozen=True)
class Answer:
    """What one streamed answer took, in seconds since it was asked for."""

    residency: str  # warm, swapped or loaded
    first_s: float
    last_s: float
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Figures:
    """One specialist. Milliseconds to the first token, medians, by what the resident was before; tokens a second.

    An entry is missing where it did not happen; a speed, where the answers were too short to tell.
    """

    first_ms: Mapping[str, float]  # by residency: warm, swapped, loaded
    times: Mapping[str, int]  # how often each was measured
    prompt_tokens_per_s: float | None
    tokens_per_s: Mapping[int, float]  # of all streams together, by their number


class Server:
    """A server of ours, as a client sees it."""

    def __init__(self, url: str, key: str | None = None, transport: httpx.BaseTransport | None = None) -> None:
        """url: without /v1. key: where the server asks for one."""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self.url = url
        self._client = httpx.Client(base_url=url, timeout=_ANSWER_S, headers=headers, transport=transport)

    def close(self) -> None:
        """Let its connections go."""
        self._client.close()

    def served(self) -> list[str]:
        """Names of the specialists that it can serve now. Raises BenchError where no server of ours answers."""
        try:
            response = self._client.get("/v1/models")
            cards = response.json()
            if response.is_error:
                raise BenchError(f"{self.url}: {cards['error']['message']}")
            return [card["id"] for card in cards["data"] if card["id"] != "auto" and card["coe"]["available"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise BenchError(f"No college is served at {self.url} ({error!r}). Start one: coe serve") from error

    def ask(self, specialist: str, prompt: str, max_tokens: int) -> Answer:
        """One streamed answer. Raises BenchError with what the server says instead of one."""
        body = {
            "model": specialist,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        began = time.perf_counter()
        first_s = last_s = 0.0
        usage: Mapping[str, Any] = {}
        residency = ""
        try:
            with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.is_error:
                    response.read()
                    raise BenchError(f"{specialist}: {response.json()['error']['message']}")
                for line in response.iter_lines():
                    if not line.startswith("data: {"):
                        continue
                    frame = json.loads(line.removeprefix("data: "))
                    if "error" in frame:
                        raise BenchError(f"{specialist}: {frame['error']['message']}")
                    usage = frame.get("usage") or usage
                    residency = frame.get("coe", {}).get("residency", residency)
                    for choice in frame["choices"]:
                        if choice["delta"].get("content") or choice["finish_reason"]:
                            last_s = time.perf_counter() - began
                            first_s = first_s or last_s
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise BenchError(f"{specialist}: the server's answer broke off ({error!r}).") from error
        return Answer(residency, first_s, last_s, usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0))


class _Prompts:
    """Prompts that no cache has seen: they differ from the first word on."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def __call__(self, n_words: int) -> str:
        return " ".join([str(self._random.randrange(10**9)), *self._random.choices(_WORDS, k=n_words)])


def run(
    server: Server,
    names: Sequence[str],
    *,
    rounds: int = 5,
    n_tokens: int = 64,
    told: Callable[[str], None] = lambda text: None,
) -> dict[str, Figures]:
    """Measure each specialist: changes first, since they touch them all in turns, then speeds one after the other.

    names: in this order they are asked, twice each, so that the first of two changes the resident wherever specialists
    share one or the budget holds too few. rounds: how often. n_tokens: of each answer whose speed is measured.
    Raises BenchError.
    """
    prompts = _Prompts(time.time_ns())  # a server that runs on has the last run's in its caches
    seen: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in names}
    for turn in range(rounds):
        for name in names:
            told(f"changes, round {turn + 1} of {rounds}: {name}")
            for _ in range(2):
                answer = server.ask(name, prompts(4), 1)
                seen[name][answer.residency].append(1e3 * answer.first_s)
    found = {}
    for name in names:
        told(f"speeds of {name}")
        first_ms = {residency: median(times) for residency, times in seen[name].items()}
        # What any answer needs before its first token. Single frames tell no more: fast ones come several at once.
        begin_s = first_ms.get("warm", 0.0) / 1e3
        long = server.ask(name, prompts(_LONG_PROMPT_WORDS), 1)
        by_streams = {n: _per_s(*_decoded(server, name, prompts, n_tokens, n), begin_s) for n in STREAMS}
        found[name] = Figures(
            first_ms,
            {residency: len(times) for residency, times in seen[name].items()},
            _per_s(long.prompt_tokens, long.first_s, begin_s),
            {n: speed for n, speed in by_streams.items() if speed is not None},
        )
    return found


def _decoded(server: Server, name: str, prompts: _Prompts, n_tokens: int, n_streams: int) -> tuple[int, float]:
    """Tokens that so many streams at once wrote together, and the seconds until the last one ended."""
    with ThreadPoolExecutor(n_streams) as threads:
        asked = [threads.submit(server.ask, name, f"{_TASK} {prompts(8)}", n_tokens) for _ in range(n_streams)]
        answers = [one.result() for one in asked]
    return sum(answer.completion_tokens for answer in answers), max(answer.last_s for answer in answers)


def _per_s(n_tokens: int, seconds: float, begin_s: float) -> float | None:
    """None where there are too few tokens, or too little time beside what any answer needs."""
    spent = seconds - begin_s
    return n_tokens / spent if n_tokens >= _FEWEST_TOKENS and spent >= _LEAST_S else None


# --- the command ----------------------------------------------------------------------------------------------


def bench(
    roster: Path,
    names: Sequence[str],
    out: Console,
    err: Console,
    *,
    url: str | None,
    key: str | None,
    rounds: int,
    n_tokens: int,
    as_json: bool,
) -> int:
    """Measure the server at `url` or, without one, one of its own for the roster, and print what was found.

    names: of specialists; all that can be served when empty. Returns the exit code.
    """
    try:
        with _server(roster, url, err) as base, contextlib.closing(Server(base, key)) as server:
            served = server.served()
            if unknown := [name for name in names if name not in served]:
                raise BenchError(f"{', '.join(unknown)} cannot be served there. Served are: {', '.join(served)}.")
            with err.status("") as status:
                found = run(server, names or served, rounds=rounds, n_tokens=n_tokens, told=status.update)
    except (BenchError, ServerStartError) as error:
        err.print(str(error), style="red", markup=False, soft_wrap=True)
        return 1
    if as_json:
        out.print_json(json.dumps({name: asdict(figures) for name, figures in found.items()}))
    else:
        show(found, out)
    return 0


@contextlib.contextmanager
def _server(roster: Path, url: str | None, err: Console) -> Iterator[str]:
    if url is not None:
        yield url.rstrip("/").removesuffix("/v1")
        return
    with contextlib.ExitStack() as stack:
        with err.status("Starting a server ..."):
            base = stack.enter_context(own_server(roster))
        yield base


def show(found: Mapping[str, Figures], out: Console) -> None:
    """A table, a line a specialist."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("specialist", no_wrap=True)
    for title in ("warm, ms", "swapped, ms", "loaded, ms", "prompt, tokens/s", *map(_streams, STREAMS)):
        table.add_column(title, justify="right")
    for name, one in found.items():
        table.add_row(
            escape(name),
            *(_number(one.first_ms.get(residency)) for residency in ("warm", "swapped", "loaded")),
            _number(one.prompt_tokens_per_s),
            *(_number(one.tokens_per_s.get(n)) for n in STREAMS),
        )
    out.print(table)
    out.print(
        "\nms: to the first token, medians, for a resident that was the specialist already, for one that became it in "
        "place, and for one that was read from its file. tokens/s: of all streams together. -: it did not happen, or "
        "answers were too short to tell.",
        markup=False,
    )


def _streams(n: int) -> str:
    return f"{n} stream{'s' if n > 1 else ''}, tokens/s"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
