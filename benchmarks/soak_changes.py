"""A long test of changes of specialist under mixed load: is memory the same afterwards, and each text as when alone?

    python benchmarks/soak_changes.py [--minutes 30] [--changes 1000] [--seed 1] [--quick]

Serves the demo's college, whose specialists change places in one resident. First each question is asked alone,
greedily, and its text kept. Then, for so many minutes and changes at least: clients ask mixed questions, streamed and
not, leave in the middle, read slowly, send slowly; now and then 200 ask at once. Afterwards: every text was that of the
question asked alone; memory, descriptors and threads of the server and its workers are as after the warm-up; no lease
is held. Exits with 1 when one of these fails.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import _bench
import httpx
from soak import resident_bytes, workers_of

from coe.demo.curriculum import questions
from coe.server.commands.demo import with_own_models
from coe.server.roster.builtin import demo_roster

DOMAINS = ("math", "physics", "chemistry", "python")
AT_ONCE = 200
CLIENTS = 6
KINDS = {"whole": 5, "stream": 5, "slow reader": 1, "slow sender": 1, "left": 2}
MAX_TOKENS = 24
ANSWER_S = 240.0
WARM_UP = 0.3  # of the run
DRIFT_BYTES = 12 * 2**20  # of a process, between the medians of two thirds of what follows the warm-up
SPARE_DESCRIPTORS = 4  # of the server with no client connected
SPARE_THREADS = 3

Body = dict[str, Any]


class QueueFull(Exception):
    """A 429: while many ask at once, others find the queue full."""


def accept(status: int, body: str) -> None:
    """Raises QueueFull for a 429, ValueError for anything else but a 200."""
    if status == 429 and '"queue_full"' in body:
        raise QueueFull
    if status != 200:
        raise ValueError(f"{status}: {body[:200]}")


@dataclass
class Tally:
    """What happened. samples: process -> (seconds, bytes) of its resident memory."""

    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    samples: dict[int, list[tuple[float, int]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """A question for a specialist, and the text that it gets alone."""

    specialist: str
    text: str
    answer: str = ""

    def body(self, **more: Any) -> Body:
        message = {"role": "user", "content": self.text}
        return {"model": self.specialist, "messages": [message], "max_tokens": MAX_TOKENS, "temperature": 0, **more}


def some_questions(per_domain: int) -> list[Asked]:
    """Questions of the demo's curriculum, evenly over its domains."""
    found = []
    for domain in DOMAINS:
        known = questions(domain)
        found += [Asked(domain, known[i * len(known) // per_domain].text) for i in range(per_domain)]
    return found


async def whole(client: httpx.AsyncClient, asked: Asked) -> str:
    """The text of an answer in one piece. Raises ValueError for anything but a 200."""
    reply = await client.post("/v1/chat/completions", json=asked.body())
    accept(reply.status_code, reply.text)
    return str(reply.json()["choices"][0]["message"]["content"])


async def streamed(client: httpx.AsyncClient, asked: Asked, pause_s: float = 0.0) -> str:
    """The text of a streamed answer; pause_s: how long the client rests between two lines."""
    text, done = "", False
    async with client.stream("POST", "/v1/chat/completions", json=asked.body(stream=True)) as reply:
        if reply.status_code != 200:
            accept(reply.status_code, (await reply.aread()).decode())
        async for line in reply.aiter_lines():
            if line == "data: [DONE]":
                done = True
            elif line.startswith("data: "):
                choices = json.loads(line[6:]).get("choices") or [{}]
                text += choices[0].get("delta", {}).get("content") or ""
            if pause_s:
                await asyncio.sleep(pause_s)
    if not done:
        raise ValueError("a stream without an end")
    return text


async def leave(client: httpx.AsyncClient, asked: Asked, rng: random.Random) -> None:
    """A client that leaves after some lines of its stream."""
    async with client.stream("POST", "/v1/chat/completions", json=asked.body(stream=True)) as reply:
        seen = 0
        async for _ in reply.aiter_lines():
            seen += 1
            if seen > rng.randrange(6):
                return


async def send_slowly(client: httpx.AsyncClient, asked: Asked) -> str:
    """A body that comes in pieces."""
    data = json.dumps(asked.body()).encode()

    async def pieces() -> Any:
        for start in range(0, len(data), 40):
            yield data[start : start + 40]
            await asyncio.sleep(0.05)

    headers = {"content-type": "application/json"}
    reply = await client.post("/v1/chat/completions", content=pieces(), headers=headers)
    accept(reply.status_code, reply.text)
    return str(reply.json()["choices"][0]["message"]["content"])


async def be_client(base: str, seed: int, known: list[Asked], stop: asyncio.Event, tally: Tally) -> None:
    """One request after the other; texts are compared with those asked alone."""
    rng = random.Random(seed)
    async with httpx.AsyncClient(base_url=base, timeout=ANSWER_S) as client:
        while not stop.is_set():
            asked, kind = rng.choice(known), rng.choices(list(KINDS), list(KINDS.values()))[0]
            try:
                if kind == "left":
                    await leave(client, asked, rng)
                elif kind == "whole":
                    compare(asked, await whole(client, asked), kind, tally)
                elif kind == "slow sender":
                    compare(asked, await send_slowly(client, asked), kind, tally)
                else:
                    pause_s = 0.05 if kind == "slow reader" else 0.0
                    compare(asked, await streamed(client, asked, pause_s), kind, tally)
                tally.outcomes[kind] += 1
            except QueueFull:
                tally.outcomes["refused, the queue is full"] += 1
            except (httpx.HTTPError, ValueError) as error:
                tally.problems.append(f"{kind}: {type(error).__name__}: {error}")


def compare(asked: Asked, text: str, kind: str, tally: Tally) -> None:
    """A text must be the one that the question got alone."""
    if text != asked.answer:
        tally.problems.append(f"{kind}: {asked.specialist}: {asked.text!r} got {text!r} in place of {asked.answer!r}")


async def all_at_once(base: str, known: list[Asked], tally: Tally) -> None:
    """Many clients in the same moment; those for whom the queue has no room are refused with a 429."""
    limits = httpx.Limits(max_connections=AT_ONCE)
    async with httpx.AsyncClient(base_url=base, timeout=ANSWER_S, limits=limits) as client:

        async def one(number: int) -> None:
            asked = known[number % len(known)]
            reply = await client.post("/v1/chat/completions", json=asked.body())
            if reply.status_code == 200:
                compare(asked, reply.json()["choices"][0]["message"]["content"], "at once", tally)
                tally.outcomes["at once: answered"] += 1
            elif reply.status_code == 429:
                tally.outcomes["at once: refused, the queue is full"] += 1
            else:
                tally.problems.append(f"at once: {reply.status_code}: {reply.text[:200]}")

        for result in await asyncio.gather(*map(one, range(AT_ONCE)), return_exceptions=True):
            if isinstance(result, BaseException):
                tally.problems.append(f"at once: {result!r}")


async def changes(client: httpx.AsyncClient) -> int:
    """Changes of specialist so far, by the server's own count."""
    lines = (await client.get("/metrics")).text.splitlines()
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith("coe_resident_swaps_total")))


def descriptors(pid: int) -> int:
    """Open file descriptors of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int) -> int:
    """Threads of a process."""
    return len(os.listdir(f"/proc/{pid}/task"))


def drift_bytes(samples: list[tuple[float, int]]) -> float:
    """How much more memory the last third of the run takes than the first after the warm-up, in the median."""
    kept = [size for _, size in samples[int(len(samples) * WARM_UP) :]]
    third = len(kept) // 3
    return statistics.median(kept[-third:]) - statistics.median(kept[:third]) if third > 2 else 0.0


async def watch(pid: int, stop: asyncio.Event, tally: Tally) -> None:
    """Sample the memory of the server and of its workers."""
    started = time.monotonic()
    while not stop.is_set():
        for process in (pid, *workers_of(pid)):
            with contextlib.suppress(OSError):
                tally.samples.setdefault(process, []).append((time.monotonic() - started, resident_bytes(process)))
        await asyncio.sleep(0.5)


async def run(minutes: float, at_least: int, seed: int, per_domain: int) -> list[str]:
    """Everything that went wrong, after a summary on stdout."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        body = json.loads(json.dumps(_roster(Path(folder))))
        with _bench.our_server(body, Path(folder)) as (port, process):
            base = f"http://127.0.0.1:{port}"
            async with httpx.AsyncClient(base_url=base, timeout=ANSWER_S) as client:
                known = [Asked(a.specialist, a.text, await whole(client, a)) for a in some_questions(per_domain)]
                await all_at_once(base, known, tally)  # a part of the warm-up: buffers grow to their largest
                await asyncio.sleep(1)
                before = (descriptors(process.pid), threads(process.pid))
                begun, stop = await changes(client), asyncio.Event()
                until = time.monotonic() + 60 * minutes
                tasks = [
                    asyncio.create_task(be_client(base, seed + number, known, stop, tally)) for number in range(CLIENTS)
                ]
                tasks.append(asyncio.create_task(watch(process.pid, stop, tally)))
                floods = 0
                while time.monotonic() < until or await changes(client) - begun < at_least:
                    await asyncio.sleep(min(20.0, max(until - time.monotonic(), 1.0)))
                    await all_at_once(base, known, tally)
                    floods += 1
                    if time.monotonic() > until + 60 * max(minutes, 5.0):
                        break
                stop.set()
                await asyncio.gather(*tasks)
                made = await changes(client) - begun
                if made < at_least:
                    tally.problems.append(f"only {made} changes of specialist of {at_least}")
                await asyncio.sleep(2)
                pool = (await client.get("/v1/pool")).json()
                if held := sum(resident["leases"] for resident in pool["residents"]) + len(pool["waiting"]):
                    tally.problems.append(f"{held} leases are held or waited for")
                after = (descriptors(process.pid), threads(process.pid))
        if process.returncode == -signal.SIGKILL:
            tally.problems.append("the server did not stop when it was told to")
    for (what, spare), first, last in zip(
        (("descriptors", SPARE_DESCRIPTORS), ("threads", SPARE_THREADS)), before, after, strict=True
    ):
        if last > first + spare:
            tally.problems.append(f"the server has {last} {what} in place of {first}")
    print(_bench.table(["requests", "count"], [[what, str(count)] for what, count in tally.outcomes.most_common()]))
    print(f"\n{made} changes of specialist, {floods} times {AT_ONCE} clients at once")
    print(f"descriptors and threads of the server: {before} before, {after} after")
    for pid, samples in tally.samples.items():
        drift, sizes = drift_bytes(samples), [size for _, size in samples]
        name = "server" if pid == process.pid else "worker"
        begin, end, grown = (size / 2**20 for size in (sizes[0], sizes[-1], drift))
        print(f"{name}: {begin:.1f} MiB at first, {end:.1f} at last, drift {grown:+.2f} MiB")
        if drift > DRIFT_BYTES:
            tally.problems.append(f"the {name}'s memory grew by {drift / 2**20:.1f} MiB")
    return tally.problems


def _roster(folder: Path) -> Body:
    import yaml

    roster: Body = yaml.safe_load(with_own_models(demo_roster(), folder).read_text())
    roster["router"] = {**(roster.get("router") or {}), "encoder": "none"}
    roster["pool"] |= {"preload": [DOMAINS[0]]}
    roster["specialists"] = [one for one in roster["specialists"] if one["name"] in (*DOMAINS, "general")]
    return roster


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="half a minute, 30 changes")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--changes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    minutes, at_least = (0.4, 30) if arguments.quick else (arguments.minutes, arguments.changes)
    print(_bench.describe_machine(1))
    problems = asyncio.run(run(minutes, at_least, arguments.seed, per_domain=5))
    sys.exit(_bench.report(problems))


if __name__ == "__main__":
    main()
