"""`coe bench`: time to first token and throughput of a roster's specialists, measured from a client's side.

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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

import httpx
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coe.engine.errors import EngineError
from coe.surgery.errors import SurgeryError
from coe.surgery.formats import experts_kept
from coe.surgery.parent import Parent

from ..api.keys import read_keys
from ..roster.load import load_roster
from ..roster.models import Roster
from ..roster.source import RosterError
from ._lines import print_line
from ._server import ServerStartError, own_server
from ._speeds import Placed, Speed, keep_speeds
from ._url import is_here, server_url, why_none

STREAMS: Final = (1, 4)
_FEWEST_TOKENS: Final = 8  # that a speed means something
_LEAST_S: Final = 0.005  # likewise
_LONG_PROMPT_WORDS: Final = 400
_ANSWER_S: Final = 900.0  # a first load from a slow disk, and a queue before it
_WORDS: Final = (
    *("river", "lamp", "seven", "garden", "quiet", "engine", "morning", "paper", "bridge", "winter", "copper"),
    *("window", "music", "valley", "button", "orange", "market", "silver", "doctor", "yellow", "table", "storm"),
)
_LEGEND: Final = (
    "\nwarm, swap, load: milliseconds to the first token (medians) of a specialist that was in memory, of one that a "
    "model in memory became in place, and of one that was read from its file first.",
    "prompt, streams: tokens a second that are read, and that one stream or several together write.",
    "-: there was no swap or load (give it others to change with), or too little was read or written to tell.",
)
_TASK: Final = "Write a long story about these words, with many details:"


class BenchError(Exception):
    """A measurement cannot be made; says why, and what to do."""


@dataclass(frozen=True)
class Timing:
    """What one streamed answer took, in seconds since it was asked for. read_tokens: of its prompt, uncached."""

    residency: str  # warm, swapped or loaded
    first_s: float
    last_s: float
    read_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Card:
    """What a server says of a specialist. trouble: why it cannot be served and what to do, "" where it can.

    cpu_expert_layers: as in LoadSpec.
    """

    name: str
    aliases: tuple[str, ...]
    context_tokens: int
    trouble: str
    cpu_expert_layers: int = 0


@dataclass(frozen=True)
class Figures:
    """One specialist. Milliseconds to the first token, medians, by what the resident was before; tokens a second.

    An entry is missing where it did not happen; a speed, where the answers were too short to tell. trouble: what ended
    its measurement early, "" for nothing.
    """

    first_ms: Mapping[str, float]  # by residency: warm, swapped, loaded
    times: Mapping[str, int]  # how often each was measured
    prompt_tokens_per_s: float | None = None
    tokens_per_s: Mapping[int, float] = field(default_factory=dict)  # of all streams together, by their number
    trouble: str = ""


class Server:
    """A server of ours, as a client sees it."""

    def __init__(self, url: str, key: str | None = None, transport: httpx.BaseTransport | None = None) -> None:
        """url: with or without /v1. key: where the server asks for one. Raises BenchError for what is none."""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        try:
            self.url = server_url(url)
        except ValueError as error:
            raise BenchError(str(error)) from error
        try:
            self._client = httpx.Client(
                base_url=self.url,
                timeout=_ANSWER_S,
                headers=headers,
                transport=transport,
                trust_env=not is_here(self.url),
            )
        except (ImportError, ValueError) as error:  # a key that no header can hold, a proxy that is none
            raise BenchError(f"{self.url} cannot be asked with this key or proxy: {error}") from error

    def close(self) -> None:
        """Let its connections go."""
        self._client.close()

    def cards(self) -> list[Card]:
        """Its specialists that answer, in the roster's order. Raises BenchError where no server of ours answers."""
        try:
            response = self._client.get("/v1/models")
            if response.status_code == httpx.codes.UNAUTHORIZED:
                raise BenchError(f"{self.url} wants a key: give one with --key, or in OPENAI_API_KEY.")
            models = response.raise_for_status().json()["data"]
            return [
                _card(model["id"], model["coe"])
                for model in models
                if model["id"] != "auto" and "root" not in model and "embedding" not in model["capabilities"]
            ]
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
            raise BenchError(why_none(self.url, error)) from error

    def ask(self, specialist: str, prompt: str, max_tokens: int) -> Timing:
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
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        read = usage.get("prompt_tokens", 0) - cached
        return Timing(residency, first_s, last_s, read, usage.get("completion_tokens", 0))


def _card(name: str, facts: Mapping[str, Any]) -> Card:
    why = "" if facts["available"] else f"{facts.get('reason') or ''} {facts.get('remedy') or ''}".strip()
    trouble = "" if facts["available"] else why or "It cannot be served now."
    names, layers = tuple(facts.get("aliases") or ()), facts.get("cpu_expert_layers") or 0
    return Card(name, names, facts.get("context_tokens") or 0, trouble, layers)


class _Prompts:
    """Prompts that no cache has seen: they differ from the first word on."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def __call__(self, n_words: int) -> str:
        return " ".join([str(self._random.randrange(10**9)), *self._random.choices(_WORDS, k=n_words)])


def run(
    server: Server,
    cards: Sequence[Card],
    *,
    rounds: int = 5,
    n_tokens: int = 64,
    told: Callable[[str], None] = lambda text: None,
) -> dict[str, Figures]:
    """Measure each specialist: changes first, which take the specialists in turns, then speeds one after the other.

    cards: asked in this order, twice each, so that the first of two changes the resident wherever specialists
    share one or the budget holds too few. rounds: how often. n_tokens: of each answer whose speed is measured.
    """
    prompts = _Prompts(time.time_ns())  # a server that runs on has the last run's in its caches
    seen: dict[str, dict[str, list[float]]] = {card.name: defaultdict(list) for card in cards}
    trouble: dict[str, str] = {}
    for turn in range(rounds):
        for card in (card for card in cards if card.name not in trouble):
            told(f"changes, round {turn + 1} of {rounds}: {card.name}")
            try:
                for _ in range(2):
                    answer = server.ask(card.name, prompts(4), 1)
                    seen[card.name][answer.residency].append(1e3 * answer.first_s)
            except BenchError as error:
                trouble[card.name] = str(error)
    found = {}
    for card in cards:
        times = seen[card.name]
        figures = Figures(
            {residency: median(ms) for residency, ms in times.items()},
            {residency: len(ms) for residency, ms in times.items()},
            trouble=trouble.get(card.name, ""),
        )
        if not figures.trouble:
            told(f"speeds of {card.name}")
            figures = _with_speeds(figures, server, card, prompts, n_tokens)
        found[card.name] = figures
    return found


def _with_speeds(figures: Figures, server: Server, card: Card, prompts: _Prompts, n_tokens: int) -> Figures:
    """Speeds are differences between a long and a short request: what both need besides, falls out."""
    words = min(_LONG_PROMPT_WORDS, card.context_tokens // 4 or _LONG_PROMPT_WORDS)  # a word may be two tokens
    try:
        short, long = (server.ask(card.name, prompts(n), 1) for n in (4, words))
        figures = replace(
            figures,
            prompt_tokens_per_s=_per_s(long.read_tokens - short.read_tokens, long.first_s - short.first_s),
        )
        for n in STREAMS:
            brief, whole = (_together(server, card.name, prompts, length, n) for length in (1, n_tokens))
            if (speed := _per_s(whole[0] - brief[0], whole[1] - brief[1])) is not None:
                figures = replace(figures, tokens_per_s={**figures.tokens_per_s, n: speed})
    except BenchError as error:
        return replace(figures, trouble=str(error))
    return figures


def _together(server: Server, name: str, prompts: _Prompts, n_tokens: int, n_streams: int) -> tuple[int, float]:
    """Tokens that so many streams at once wrote together, and the seconds until the last one ended."""
    with ThreadPoolExecutor(n_streams) as threads:
        asked = [threads.submit(server.ask, name, f"{_TASK} {prompts(8)}", n_tokens) for _ in range(n_streams)]
        answers = [one.result() for one in asked]
    return sum(answer.completion_tokens for answer in answers), max(answer.last_s for answer in answers)


def _per_s(n_tokens: int, seconds: float) -> float | None:
    """None where there are too few tokens or too little time to tell."""
    return n_tokens / seconds if n_tokens >= _FEWEST_TOKENS and seconds >= _LEAST_S else None


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

    names: of specialists, or their aliases; all that can be served when empty. Returns the exit code: 1 where anything
    could not be measured.
    """
    try:
        with _server(roster, url, key, err) as server:
            cards = _chosen(server.cards(), names, err)
            with err.status("") as status:
                found = run(server, cards, rounds=rounds, n_tokens=n_tokens, told=status.update)
    except (BenchError, ServerStartError) as error:
        print_line(err, str(error), "red")
        return 1
    if as_json:
        out.print_json(json.dumps({name: asdict(figures) for name, figures in found.items()}))
    else:
        show(found, out)
    if url is None:  # what another server's specialists are, is not known here
        _keep(roster, cards, found, err)
    for figures in found.values():
        if figures.trouble:
            print_line(err, figures.trouble, "red")
    return 1 if any(figures.trouble for figures in found.values()) else 0


def _keep(roster: Path, cards: Sequence[Card], found: Mapping[str, Figures], err: Console) -> None:
    """Keep the speeds for `coe fit`. That they are not kept ends nothing."""
    try:
        loaded = load_roster(roster)
        placed = {card.name: placement(loaded, card) for card in cards}
        keep_speeds(
            Speed(place, speed, figures.prompt_tokens_per_s)
            for name, figures in found.items()
            if (speed := figures.tokens_per_s.get(1)) is not None and (place := placed[name]) is not None
        )
    except (RosterError, EngineError, SurgeryError, OSError) as error:
        print_line(err, f"The speeds are not kept for coe fit: {error}", "yellow")


def placement(roster: Roster, card: Card) -> Placed | None:
    """Which file a specialist's weights are of, and where they lie; None for one that is not found. Reads headers."""
    entry = roster.find(card.name)
    if entry is None:
        return None
    n_keep = 0
    if entry.mask is None:
        location = roster.locate(entry)
    else:
        assert roster.parent is not None
        location = roster.parent.location(roster.models_path)
        if location.path is not None:
            n_keep = experts_kept(Path(entry.mask), Parent.open(location.path))
    if location.path is None:
        return None
    return Placed(location.path.name, location.size_bytes, n_keep, entry.gpu_layers, card.cpu_expert_layers)


def _chosen(cards: Sequence[Card], names: Sequence[str], err: Console) -> list[Card]:
    """The cards of these names, each once; without names, of all that can be served. Raises BenchError."""
    if not names:
        for one in cards:
            if one.trouble:
                print_line(err, f"{one.name} is left out. {one.trouble}", "yellow")
        return [one for one in cards if not one.trouble]
    chosen: dict[str, Card] = {}
    for name in names:
        card = next((one for one in cards if name in (one.name, *one.aliases)), None)
        if card is None:
            served = ", ".join(card.name for card in cards if not card.trouble)
            raise BenchError(f"There is no specialist {name!r} there. Served are: {served}.")
        if card.trouble:
            raise BenchError(f"{name} cannot be served there. {card.trouble}")
        chosen[card.name] = card
    return list(chosen.values())


@contextlib.contextmanager
def _server(roster: Path, url: str | None, key: str | None, err: Console) -> Iterator[Server]:
    """The server to ask: the one at `url`, or one of our own, whose key is known."""
    with contextlib.ExitStack() as stack:
        if url is None:
            key = _key_of(roster)
            with err.status("Starting a server ..."):
                url = stack.enter_context(own_server(roster))
        yield stack.enter_context(contextlib.closing(Server(url, key)))


def _key_of(roster: Path) -> str | None:
    """A key that a server for the roster takes; None where it wants none, or will say itself what is wrong."""
    try:
        keys = read_keys(load_roster(roster))
        return next(iter(sorted(keys.chat or keys.admin)), None)
    except (RosterError, ValueError, OSError):
        return None


def show(found: Mapping[str, Figures], out: Console) -> None:
    """A table, a line a specialist."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("specialist", no_wrap=True)
    for title in ("warm", "swap", "load", "prompt", *map(_streams, STREAMS)):
        table.add_column(title, justify="right", no_wrap=True)
    for name, one in found.items():
        table.add_row(
            escape(name),
            *(_number(one.first_ms.get(residency)) for residency in ("warm", "swapped", "loaded")),
            _number(one.prompt_tokens_per_s),
            *(_number(one.tokens_per_s.get(n)) for n in STREAMS),
        )
    out.print(table)
    for line in _LEGEND:
        out.print(line, markup=False)


def _streams(n: int) -> str:
    return f"{n} stream{'s' if n > 1 else ''}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
