"""A long test of changes of specialist under mixed load: is memory the same afterwards, and each text as when alone?

    python benchmarks/soak_changes.py [--minutes 30] [--changes 1000] [--seed 1] [--quick]

Serves the demo's college, whose specialists change places in one resident. First each question is asked alone,
greedily, and its text kept. Then, for so many minutes and changes at least: clients ask mixed questions, streamed and
not, leave in the middle, read slowly, send slowly; now and then 200 ask at once. Afterwards: every text was that of the
question asked alone; memory, descriptors and threads of the server and of its workers are as after the warm-up; no
lease is held. Exits with 1 when one of these fails, and says where the server's log is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _bench
import httpx
from _soak import Tally

from coe.demo.curriculum import questions
from coe.server.commands.demo import with_own_models
from coe.server.roster.builtin import demo_roster

DOMAINS = ("math", "physics", "chemistry", "python")
AT_ONCE = 200
CLIENTS = 6
KINDS = {"whole": 5, "stream": 5, "slow reader": 1, "slow sender": 1, "left": 2}
MAX_TOKENS = 24
ANSWER_S = 240.0
Body = dict[str, Any]


class QueueFull(Exception):
    """A 429: while many ask at once, others find the queue full."""


def accept(status: int, body: str) -> None:
    """Raises QueueFull for a 429, ValueError for anything else but a 200."""
    if status == 429 and '"queue_full"' in body:
        raise QueueFull
    if status != 200:
        raise ValueError(f"{status}: {body[:200]}")


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
        if reply.status_code != 200:
            accept(reply.status_code, (await reply.aread()).decode())
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
                tally.wrong(kind, error)


def compare(asked: Asked, text: str, kind: str, tally: Tally) -> None:
    """A text must be the one that the question got alone."""
    if text != asked.answer:
        tally.wrong(kind, f"{asked.specialist}: {asked.text!r} got {text!r} in place of {asked.answer!r}")


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
                tally.wrong("at once", f"{reply.status_code}: {reply.text[:200]}")

        for result in await asyncio.gather(*map(one, range(AT_ONCE)), return_exceptions=True):
            if isinstance(result, BaseException):
                tally.wrong("at once", result)


async def changes(client: httpx.AsyncClient) -> int:
    """Changes of specialist so far, by the server's own count."""
    lines = (await client.get("/metrics")).text.splitlines()
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith("coe_resident_swaps_total")))


async def load(base: str, known: list[Asked], until: float, at_least: int, seed: int, tally: Tally) -> tuple[int, int]:
    """The mixed load until a time, and until so many changes were made. Gives those, and how often all asked at once.

    A server that changes too seldom is given as long again, and a minute at least.
    """
    last = until + max(until - time.monotonic(), 60.0)
    stop, floods = asyncio.Event(), 0
    async with httpx.AsyncClient(base_url=base, timeout=ANSWER_S) as client:
        begun = await changes(client)
        clients = [asyncio.create_task(be_client(base, seed + n, known, stop, tally)) for n in range(CLIENTS)]
        while (now := time.monotonic()) < until or (now < last and await changes(client) - begun < at_least):
            await asyncio.sleep(min(20.0, max(until - now, 1.0)))
            await all_at_once(base, known, tally)
            floods += 1
        stop.set()
        await asyncio.gather(*clients)
        return await changes(client) - begun, floods


async def at_rest(base: str, tally: Tally) -> None:
    """With no client left no lease is held; the last are given back within seconds."""
    async with httpx.AsyncClient(base_url=base, timeout=ANSWER_S) as client:
        for _ in range(20):
            pool = (await client.get("/v1/pool")).json()
            held = sum(resident["leases"] for resident in pool["residents"]) + len(pool["waiting"])
            if not held:
                break
            await asyncio.sleep(0.5)
        else:
            tally.wrong("at rest", f"{held} leases are held or waited for")
        for resident in pool["residents"]:
            print(f"offloaded by {resident['file']}: {resident['activity']['offloaded_bytes'] / 2**20:.2f} MiB")


async def run(minutes: float, at_least: int, seed: int, per_domain: int, log: Path) -> list[str]:
    """Everything that went wrong, after a summary on stdout."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        body = json.loads(json.dumps(_roster(Path(folder))))
        with _bench.our_server(body, Path(folder), log) as (port, process):
            base = f"http://127.0.0.1:{port}"
            async with httpx.AsyncClient(base_url=base, timeout=ANSWER_S) as client:
                known = [Asked(a.specialist, a.text, await whole(client, a)) for a in some_questions(per_domain)]
            await all_at_once(base, known, tally)  # a part of the warm-up: buffers grow to their largest
            stop = asyncio.Event()
            watching = asyncio.create_task(tally.watch(process.pid, stop))
            made, floods = await load(base, known, time.monotonic() + 60 * minutes, at_least, seed, tally)
            await at_rest(base, tally)
            stop.set()
            await watching
            tally.read_all(process.pid)
        if process.returncode == -signal.SIGKILL:
            tally.wrong("the end", "the server did not stop when it was told to")
    if made < at_least:
        tally.wrong("the end", f"only {made} changes of specialist of {at_least}")
    print(_bench.table(["requests", "count"], [[what, str(count)] for what, count in tally.outcomes.most_common()]))
    print(f"\n{made} changes of specialist, {floods} times {AT_ONCE} clients at once\n")
    tally.check_processes(process.pid)
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
    log = Path(tempfile.mkdtemp(prefix="coe-soak-")) / "server.log"
    problems = asyncio.run(run(minutes, at_least, arguments.seed, per_domain=5, log=log))
    sys.exit(_bench.report_beside(log, problems))


if __name__ == "__main__":
    main()
