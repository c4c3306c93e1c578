"""A long test under load: does the server stay whole when clients leave, workers die and models change all the time?

    python benchmarks/soak.py [--minutes 10] [--clients 6] [--seed 1]

Starts `coe serve` with two specialists that load in different ways and a budget with room for one of them, so that
they drive each other out. Clients send mixed requests, good and bad, streamed and not, and leave in the middle of some;
every now and then a worker is killed. Afterwards: every request ended as the protocol says, no process grew, no lease
is held, and no process is left over. Exits with 1 when one of these fails, and says where the server's log is.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import _bench
import httpx
from _soak import Tally, workers_of

from coe.engine.pool.memory import predict
from coe.engine.spec import LoadSpec

KILLED = "workers killed"
_KILL_EVERY_S = 25.0
_ANSWER_S = 240.0  # a request that is not answered by then hangs
_TOPICS = (
    "a river",
    "a sorting function in Python",
    "the derivative of x squared",
    "a loaf of bread",
    "Rust's borrows",
)

Body = dict[str, Any]


class BrokenAnswer(Exception):
    """An answer that the protocol does not allow."""


# --- what an answer may look like -----------------------------------------------------------------------------


def check_error(status: int, body: Any) -> str:
    """An error in OpenAI's envelope, with a status that such a load may bring about. Gives its code."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or not error.get("message"):
        raise BrokenAnswer(f"status {status} without an error envelope: {str(body)[:200]}")
    if status >= 500 and status != 503:
        raise BrokenAnswer(f"status {status}: {error['message'][:200]}")
    return f"{status} {error.get('code') or error.get('type')}"


def check_whole(body: Any, choices: int) -> None:
    """A complete answer."""
    found = body.get("choices") or []
    if len(found) != choices or any(choice.get("finish_reason") not in ("stop", "length") for choice in found):
        raise BrokenAnswer(f"choices are wrong: {str(found)[:200]}")
    if "usage" not in body or "coe" not in body:
        raise BrokenAnswer("usage or the coe object is missing")


def check_stream(frames: list[str], choices: int) -> str:
    """A stream ends with [DONE] after a finish_reason for every choice, or with an error frame. Gives the outcome."""
    if not frames:
        raise BrokenAnswer("a stream without a frame")
    if frames[-1] != "[DONE]":
        last = json.loads(frames[-1])
        return "stream: " + check_error(503, last)
    ended = [c for frame in frames[:-1] for c in json.loads(frame).get("choices", []) if c.get("finish_reason")]
    if len(ended) != choices:
        raise BrokenAnswer(f"{len(ended)} choices of {choices} ended before [DONE]")
    return "stream: whole"


# --- clients --------------------------------------------------------------------------------------------------


def chat_body(rng: random.Random) -> Body:
    """A chat request such as clients send."""
    turns = [{"role": "user", "content": f"Tell me about {rng.choice(_TOPICS)}."}]
    if rng.random() < 0.4:
        turns += [{"role": "assistant", "content": "Gladly."}, {"role": "user", "content": "Go on, then."}]
    body: Body = {"model": rng.choice(("one", "two", "auto")), "messages": turns, "max_tokens": rng.choice((4, 24, 64))}
    extra: Body = rng.choice(
        [
            {},
            {"temperature": 0},
            {"seed": 7, "n": 2},
            {"stop": [" the", "\n\n"]},
            {"logprobs": True, "top_logprobs": 3},
            {"response_format": {"type": "json_object"}},
        ]
    )
    return {**body, **extra}


_BAD: tuple[tuple[str, bytes], ...] = (
    ("not JSON", b"{"),
    ("no messages", b'{"model":"one","messages":[]}'),
    ("unknown model", b'{"model":"nobody","messages":[{"role":"user","content":"hi"}]}'),
    ("too long", json.dumps({"model": "one", "messages": [{"role": "user", "content": "word " * 9000}]}).encode()),
)


async def ask_whole(client: httpx.AsyncClient, rng: random.Random) -> str:
    """One answer in one piece."""
    body = chat_body(rng)
    reply = await client.post("/v1/chat/completions", json=body)
    if reply.status_code != 200:
        return check_error(reply.status_code, reply.json())
    check_whole(reply.json(), body.get("n", 1))
    return "whole"


async def ask_stream(client: httpx.AsyncClient, rng: random.Random) -> str:
    """One streamed answer, read to its end."""
    body = {**chat_body(rng), "stream": True}
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        if reply.status_code != 200:
            return check_error(reply.status_code, json.loads(await reply.aread()))
        frames = [line[6:] async for line in reply.aiter_lines() if line.startswith("data: ")]
    return check_stream(frames, body.get("n", 1))


async def leave_early(client: httpx.AsyncClient, rng: random.Random) -> str:
    """A stream that the client leaves: before anything came, or after some frames."""
    patience = rng.choice((0, 1, 3, 10))
    body = {**chat_body(rng), "stream": True, "max_tokens": 200}
    async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        if reply.status_code != 200:
            return check_error(reply.status_code, json.loads(await reply.aread()))
        seen = 0
        async for _ in reply.aiter_lines():
            seen += 1
            if seen > patience:
                break
    return "left early"


async def give_up(client: httpx.AsyncClient, rng: random.Random) -> str:
    """A client that does not wait for the whole answer."""
    body = {**chat_body(rng), "max_tokens": 200}
    with contextlib.suppress(httpx.ReadTimeout):
        await client.post("/v1/chat/completions", json=body, timeout=rng.choice((0.1, 0.5, 2)))
    return "gave up"


async def send_nonsense(client: httpx.AsyncClient, rng: random.Random) -> str:
    """A body that must be refused with a 4xx, unless there is no room even to read the prompt."""
    what, data = rng.choice(_BAD)
    reply = await client.post("/v1/chat/completions", content=data, headers={"content-type": "application/json"})
    code = check_error(reply.status_code, reply.json())
    if not (400 <= reply.status_code < 500 or (what == "too long" and reply.status_code == 503)):
        raise BrokenAnswer(f"{what} was answered with {reply.status_code}")
    return f"refused: {code}"


async def look(client: httpx.AsyncClient, rng: random.Random) -> str:
    """What monitoring asks."""
    path = rng.choice(("/health", "/ready", "/v1/models", "/v1/pool", "/metrics"))
    reply = await client.get(path)
    if reply.status_code not in (200, 503):
        raise BrokenAnswer(f"{path}: {reply.status_code}")
    return "status page"


_ACTIONS: dict[Callable[[httpx.AsyncClient, random.Random], Awaitable[str]], int] = {
    ask_whole: 5, ask_stream: 6, leave_early: 3, give_up: 2, send_nonsense: 2, look: 1,
}  # fmt: skip


async def be_client(base: str, seed: int, until: float, tally: Tally) -> None:
    """One request after the other until time is up."""
    rng = random.Random(seed)
    async with httpx.AsyncClient(base_url=base, timeout=_ANSWER_S) as client:
        while time.monotonic() < until:
            action = rng.choices(list(_ACTIONS), list(_ACTIONS.values()))[0]
            try:
                tally.outcomes[await action(client, rng)] += 1
            except (BrokenAnswer, httpx.HTTPError, ValueError) as error:
                tally.wrong(action.__name__, error)


# --- watching -------------------------------------------------------------------------------------------------


async def kill_workers(pid: int, seed: int, until: float, tally: Tally) -> None:
    """Every now and then a worker dies. Counts them."""
    rng = random.Random(seed)
    while (wait := min(_KILL_EVERY_S * rng.uniform(0.5, 1.5), until - time.monotonic())) > 0:
        await asyncio.sleep(wait)
        if victims := sorted(workers_of(pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(victims), signal.SIGKILL)
                tally.outcomes[KILLED] += 1


def alive(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except OSError:
        return False


# --- the run --------------------------------------------------------------------------------------------------


async def roster(threads: int) -> tuple[Body, int]:
    """Two specialists that cannot be resident together, and the budget."""
    specs = {
        "one": LoadSpec(_bench.smollm2(), 2048, parallel=4, threads=threads),
        "two": LoadSpec(_bench.smollm2(), 4096, parallel=2, threads=threads),
    }
    sizes = [(await predict(spec)).footprint.total_bytes for spec in specs.values()]
    budget = int(max(sizes) * 1.25)
    assert budget < sum(sizes)
    entries = [_bench.specialist_of(spec, name) for name, spec in specs.items()]
    entries[1]["domains"] = ["math", "coding"]
    return {
        "version": 1,
        "fallback": "one",
        "server": {"max_wait_s": 60, "first_byte_s": 2},
        "pool": {"vram_budget": budget, "max_bypass_s": 2, "load_backoff_s": 1},
        "specialists": entries,
    }, budget


async def run(minutes: float, clients: int, seed: int, threads: int, log: Path) -> list[str]:
    """Everything that went wrong, after a summary on stdout."""
    body, budget = await roster(threads)
    tally, stop = Tally(), asyncio.Event()
    with tempfile.TemporaryDirectory() as folder:
        with _bench.our_server(body, Path(folder), log) as (port, process):
            base = f"http://127.0.0.1:{port}"
            until = time.monotonic() + 60 * minutes
            watching = asyncio.create_task(tally.watch(process.pid, stop))
            await asyncio.gather(
                *(be_client(base, seed + index, until, tally) for index in range(clients)),
                kill_workers(process.pid, seed, until, tally),
            )
            await after_the_load(base, tally)
            stop.set()
            await watching
            tally.read_all(process.pid)
        if process.returncode == -signal.SIGKILL:
            tally.wrong("the end", "the server did not stop when it was told to")
    await asyncio.sleep(1)
    for pid in tally.readings:
        if alive(pid):
            tally.wrong("the end", f"process {pid} is left over")
    print(_bench.table(["requests", "count"], [[what, str(count)] for what, count in tally.outcomes.most_common()]))
    print(f"\n{len(tally.readings) - 1} workers seen; budget {budget / 2**20:.0f} MiB\n")
    tally.check_processes(process.pid)
    return tally.problems


async def after_the_load(base: str, tally: Tally) -> None:
    """The server still answers, and holds no lease."""
    async with httpx.AsyncClient(base_url=base, timeout=_ANSWER_S) as client:
        question = {"model": "one", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4}
        for _ in range(3):  # the last worker may have been killed a moment ago
            reply = await client.post("/v1/chat/completions", json=question)
            if reply.status_code == 200:
                break
        else:
            tally.wrong("after the load", f"no answer: {reply.text[:200]}")
        await asyncio.sleep(2)
        pool = (await client.get("/v1/pool")).json()
        if held := sum(resident["leases"] for resident in pool["residents"]):
            tally.wrong("after the load", f"{held} leases are still held")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="half a minute")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="threads of each worker; one a core when left out")
    arguments = parser.parse_args()
    minutes = 0.5 if arguments.quick else arguments.minutes
    threads = arguments.threads or _bench.threads_here()
    print(_bench.describe_machine(threads))
    print(f"{minutes:g} minutes, {arguments.clients} clients\n")
    log = Path(tempfile.mkdtemp(prefix="coe-soak-")) / "server.log"
    sys.exit(_bench.report_beside(log, asyncio.run(run(minutes, arguments.clients, arguments.seed, threads, log))))


if __name__ == "__main__":
    main()
