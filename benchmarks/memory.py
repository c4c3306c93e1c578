"""Predicted memory beside real memory: what a dry run says, and what a load and a full cache then take.

    python benchmarks/memory.py [--quick] [--model FILE.gguf] [--context 8192]

With a GPU, real is what its free memory lost, as a process of its own sees it; without, the resident memory of the
worker and of the process that renders its chat template.
The cache is filled by as many sequences at once as the resident decodes together, each drawing from its whole
vocabulary, and a prompt is scored, so that every cell and every buffer of outputs and candidates has been used.

Target: within 2 % of each other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import _bench
from random_model import Shape

from coe.engine.errors import EngineError
from coe.engine.pool.memory import free_memory, predict
from coe.engine.pool.places import Memory
from coe.engine.pool.resident import WorkerResident
from coe.engine.request import Accepted, Finished, GenerateRequest
from coe.engine.spec import Footprint, LoadSpec, Sampling

TARGET = 0.02
_MIB = 2**20
_ANSWER_TOKENS = 8
_OF_ALL = Sampling(temperature=1.0, top_k=0, top_p=0.99)
_WIDE = Shape(
    layers=6, width=512, heads=4, kv_heads=2, head=64, experts=32, experts_used=4, expert_ff=256, shared_ff=1024,
    vocabulary=262_144, window=1024, context=16384,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model and how it is loaded."""

    name: str
    spec: LoadSpec


@dataclass(frozen=True)
class Measured:
    """Bytes after the load and after the cache was filled, and how many cells that was."""

    loaded: int
    full: int
    cells: int


async def fill(resident: WorkerResident, spec: LoadSpec, specialist: str = "bench") -> int:
    """Fill the cells with `parallel` prompts at once; gives the tokens evaluated."""

    async def ask(number: int, words: int, *, is_scored: bool = False) -> tuple[int, int]:
        request = GenerateRequest(
            id=f"fill-{number}",
            specialist=specialist,
            prompt=f"{number}" + " w7" * words,
            sampling=_OF_ALL,
            max_tokens=_ANSWER_TOKENS,
            loop_guard=None,
            echo=is_scored,
            top_logprobs=1 if is_scored else None,
        )
        prompt_tokens = answer_tokens = 0
        async for event in resident.generate(request):
            if isinstance(event, Accepted):
                prompt_tokens = event.prompt_tokens
            elif isinstance(event, Finished):
                answer_tokens = event.completion_tokens
        return prompt_tokens, answer_tokens

    tried = 50
    small, _ = await ask(0, tried, is_scored=True)
    each = spec.cells // spec.parallel - _ANSWER_TOKENS - 8
    words = int(each / (small / tried))
    done = await asyncio.gather(*(ask(number, words) for number in range(1, spec.parallel + 1)))
    return sum(map(sum, done))


async def measure(spec: LoadSpec, *, on_gpu: bool, specialist: str = "bench") -> Measured:
    """Load, fill, and look at the memory after each."""
    before = (await free_memory() or Memory()).card_bytes
    async with _bench.worker(spec, specialist) as resident:

        async def taken() -> int:
            if on_gpu:
                return before - (await free_memory() or Memory()).card_bytes
            return resident_bytes(resident.pid)

        loaded = await taken()
        with contextlib.suppress(EngineError):  # a random model has no template
            await render(resident, specialist)
        cells = await fill(resident, spec, specialist)
        return Measured(loaded, await taken(), cells)


async def render(resident: WorkerResident, specialist: str) -> None:
    """Have it render a chat template, which a process of the worker's own does from then on."""
    chat = GenerateRequest(
        id="chat",
        specialist=specialist,
        messages=[{"role": "user", "content": "?"}],
        sampling=Sampling(),
        max_tokens=1,
        loop_guard=None,
    )
    async for _ in resident.generate(chat):
        pass


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and those that it started. Source: proc(5), statm and children."""
    mine = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    threads = Path(f"/proc/{pid}/task").iterdir()
    children = [child for thread in threads for child in (thread / "children").read_text().split()]
    return mine + sum(resident_bytes(int(child)) for child in children)


def cases(arguments: argparse.Namespace, folder: Path, threads: int) -> Iterator[Case]:
    """What to measure: contexts of different sizes, a sliding window, a wide vocabulary."""
    if arguments.model is not None:
        yield Case(arguments.model.name, LoadSpec(arguments.model, arguments.context, threads=threads))
        return
    for context_tokens in (2048,) if arguments.quick else (2048, 8192, 16384):
        spec = LoadSpec(_bench.smollm2(), context_tokens, threads=threads)
        yield Case(f"SmolLM2-135M, {context_tokens} tokens", spec)
    wide = _bench.random_model(folder, _WIDE)
    for context_tokens in (2048,) if arguments.quick else (2048, 16384):
        spec = LoadSpec(wide, context_tokens, threads=threads)
        yield Case(f"random gemma4, window 1024, {context_tokens} tokens", spec)


async def run(arguments: argparse.Namespace, threads: int) -> list[list[str]]:
    """The table's rows."""
    on_gpu = bool((await free_memory() or Memory()).cards)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(arguments, Path(folder), threads):
            footprint = (await predict(case.spec)).footprint
            real = await measure(case.spec, on_gpu=on_gpu)
            rows.append(_row(case, footprint, real))
            print(f"  {case.name}: {footprint.total_bytes / real.full:.3f}", flush=True)
    return rows


def _row(case: Case, footprint: Footprint, real: Measured) -> list[str]:
    parts = (footprint.weights_bytes, footprint.kv_bytes, footprint.compute_bytes, footprint.overhead_bytes)
    sizes = (*parts, footprint.total_bytes, real.loaded, real.full)
    met = abs(footprint.total_bytes / real.full - 1) <= TARGET
    filled = f"{real.cells / case.spec.cells:.0%}"
    ratio = f"{footprint.total_bytes / real.full:.3f}"
    return [case.name, *(f"{size / _MIB:.1f}" for size in sizes), filled, ratio, _bench.verdict(met)]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small contexts only")
    parser.add_argument("--model", type=Path, help="a GGUF of yours instead of the built-in cases")
    parser.add_argument("--context", type=int, default=16384, help="context in tokens, for --model")
    parser.add_argument("--threads", type=int, default=0, help="threads of the engine; one a core when left out")
    arguments = parser.parse_args()
    threads = arguments.threads or _bench.threads_here()
    print(_bench.describe_machine(threads))
    rows = asyncio.run(run(arguments, threads))
    head = ["MiB", "weights", "KV", "compute", "overhead", "predicted", "loaded", "full", "cells used", "ratio", "2 %"]
    print("\n" + _bench.table(head, rows))


if __name__ == "__main__":
    main()
