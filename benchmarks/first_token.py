"""What the server adds to the time to the first token of a warm specialist, beside the engine asked directly.

    python benchmarks/first_token.py [--quick] [--model FILE.gguf]

The same conversations go in turns to a worker process (through the handle that the pool uses), to `coe serve` with the
specialist's name, and to `coe serve` with `auto`. Clocks run from the call, or from the opening of the connection, to
the first text. Every conversation is one that the cache knows, but for its last few words, as in a chat that goes on.
The added time is the median of the differences within a repetition.

Target: under 10 ms at the median for a named specialist. `auto` has the supervisor's decision on top.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import _bench

from coe.engine.pool.resident import WorkerResident
from coe.engine.request import Delta, GenerateRequest
from coe.engine.spec import LoadSpec, Sampling

TARGET_MS = 10.0
_HISTORY = (
    {"role": "user", "content": "I want to learn about rivers. Which one is the longest, and how is that measured?"},
    {
        "role": "assistant",
        "content": "The Nile and the Amazon are close. It depends on where one lets a river begin and end.",
    },
)

FirstText = Callable[[int], Coroutine[None, None, float]]  # seconds to the first text of conversation n


def conversation(number: int, asker: str) -> list[dict[str, str]]:
    """A chat whose last message was never sent before, so that it is in no cache."""
    return [*_HISTORY, {"role": "user", "content": f"And {asker} asks: what is number {number} on the list?"}]


def through_engine(resident: WorkerResident) -> FirstText:
    """Ask the worker."""

    async def first(number: int) -> float:
        request = GenerateRequest(
            id=f"first-{number}",
            specialist="bench",
            messages=conversation(number, "Ann"),
            sampling=Sampling(temperature=0),
            max_tokens=4,
            loop_guard=None,
        )
        started, spent = time.perf_counter(), 0.0
        async with aclosing(resident.generate(request)) as events:
            async for event in events:
                if isinstance(event, Delta) and not spent:
                    spent = time.perf_counter() - started
        return spent

    return first


def through_server(port: int, model: str, asker: str) -> FirstText:
    """Ask the server, a new connection each time."""

    async def first(number: int) -> float:
        body = {
            "model": model,
            "messages": conversation(number, asker),
            "temperature": 0,
            "max_tokens": 4,
            "stream": True,
        }
        started, spent = time.perf_counter(), 0.0
        async for event in _bench.post_stream(port, "/v1/chat/completions", body):
            if not spent and any(choice["delta"].get("content") for choice in event["choices"]):
                spent = time.perf_counter() - started
        return spent

    return first


async def measure(ways: dict[str, FirstText], repetitions: int) -> dict[str, list[float]]:
    """Milliseconds, a repetition after the other, the order turned round every time."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    warm_up = 5
    for number in range(-warm_up, repetitions):
        for name in list(ways) if number % 2 else reversed(ways):
            spent_ms = await ways[name](number + warm_up) * 1000
            if number >= 0:
                found[name].append(spent_ms)
    return found


async def run(model: Path, threads: int, repetitions: int) -> dict[str, list[float]]:
    """Start the contenders and measure."""
    spec = LoadSpec(model, context_tokens=4096, threads=threads)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        resident = await stack.enter_async_context(_bench.worker(spec))
        # A second specialist, so that there is something to decide; it shares the resident.
        roster = _bench.roster_of(spec)
        roster["specialists"].append({**_bench.specialist_of(spec, "maths"), "domains": ["math"]})
        port, _ = stack.enter_context(_bench.our_server(roster, folder))
        ways = {
            "engine": through_engine(resident),
            "coe serve, named": through_server(port, "bench", "Bob"),
            "coe serve, auto": through_server(port, "auto", "Tom"),
        }
        return await measure(ways, repetitions)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    parser.add_argument("--model", type=Path, help="a GGUF; SmolLM2-135M when left out")
    parser.add_argument("--threads", type=int, default=0, help="threads of the engine; one a core when left out")
    parser.add_argument("--repetitions", type=int)
    arguments = parser.parse_args()
    repetitions = arguments.repetitions or (10 if arguments.quick else 100)
    threads = arguments.threads or _bench.threads_here()
    model = arguments.model or _bench.smollm2()
    print(_bench.describe_machine(threads))
    print(f"{model.name}: {repetitions} repetitions")
    found = asyncio.run(run(model, threads, repetitions))
    rows, direct = [], found["engine"]
    for name, times in found.items():
        added = [a - b for a, b in zip(times, direct, strict=True)]
        ninth = statistics.quantiles(times, n=10)[-1]
        row = [name, f"{statistics.median(times):.1f}", f"{ninth:.1f}", "-", "-", "-"]
        if name != "engine":
            middle = statistics.median(added)
            row[3:] = [f"{middle:.1f}", f"{statistics.median(times) / statistics.median(direct):.2f}", "-"]
            if name == "coe serve, named":
                row[5] = _bench.verdict(middle < TARGET_MS)
        rows.append(row)
    head = ["first token, warm", "median ms", "p90 ms", "added ms", "ratio", f"< {TARGET_MS:.0f} ms"]
    print("\n" + _bench.table(head, rows))


if __name__ == "__main__":
    main()
