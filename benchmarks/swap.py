"""A resident that becomes another specialist in place: the swap alone, what it saves, and what it costs elsewhere.

    python benchmarks/swap.py [--quick] [--parent FILE.gguf] [--differ 10 25 50]

Without --parent a random gemma4 of 3.4 GB in Q8_0 (30 layers, 128 experts, 8 used) is written first, which takes some
minutes, and kept under .build. For each share of experts that differ, two specialists that keep half of the parent's
experts are cut (1.8 GB each) and one resident goes to and fro between them; beside each swap, in the same round, as
many bytes are copied from one buffer to another on all cores, and the other file is loaded. The page cache is warm for
all. Then: what a conversation takes to return from host memory, beside reading its prompt again; how fast weights that
keep the file's layout decode, beside mapped and repacked ones; and what N specialists take in memory.

Target: a swap at half the speed of the copy.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import _bench
import numpy as np
from numpy.typing import NDArray

from coe.engine.llama.context import Context
from coe.engine.llama.model import Model
from coe.engine.process import worker_environment
from coe.engine.request import GenerateRequest
from coe.engine.spec import LoadSpec, Member, Sharing
from coe.engine.swap.plan import pairs
from coe.engine.swap.swapper import Swapper
from coe.surgery.cut.cut import cut
from coe.surgery.cut.quantize import quantize_file
from coe.surgery.mask import Mask
from coe.surgery.parent import Identity, Parent

SPEED_TARGET = 0.5
CONVERSATION = 2048  # tokens of the conversation that leaves and returns


def masks_that_differ(identity: Identity, percent: int) -> tuple[Mask, Mask]:
    """Two masks that keep half of the experts each, `percent` of which the other does not keep."""
    rng = np.random.default_rng(percent)
    half = identity.n_expert // 2
    apart = round(half * percent / 100)
    one, other = {}, {}
    for layer in identity.layers:
        order = [int(expert) for expert in rng.permutation(identity.n_expert)]
        one[layer] = tuple(sorted(order[:half]))
        other[layer] = tuple(sorted(order[apart : half + apart]))
    return Mask(identity, one), Mask(identity, other)


def seconds(work: Callable[[], object]) -> float:
    """How long something takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


class Copy:
    """One contiguous copy of so many bytes on all cores, in memory that has been touched."""

    def __init__(self, n_bytes: int) -> None:
        self.source: NDArray[np.uint8] = np.ones(n_bytes, np.uint8)
        self.target: NDArray[np.uint8] = np.zeros(n_bytes, np.uint8)
        self.pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    def __call__(self) -> None:
        step = 4 * 2**20
        list(self.pool.map(self._piece, range(0, len(self.source), step), [step] * -(-len(self.source) // step)))

    def _piece(self, start: int, step: int) -> None:
        self.target[start : start + step] = self.source[start : start + step]


@contextmanager
def loaded(spec: LoadSpec) -> Iterator[Model]:
    model = Model(spec)
    try:
        yield model
    finally:
        model.close()


def load_seconds(spec: LoadSpec) -> float:
    """A load and a first decode, which touches what was only mapped."""

    def work() -> None:
        with loaded(spec) as model:
            context = Context(model, spec)
            context.decode([(2, 0, 0, True)])
            context.close()

    return seconds(work)


def swaps(folder: Path, parent: Parent, percent: int, repetitions: int, threads: int) -> list[str]:
    """A row of the table of swaps."""
    paths = [folder / f"{name}-{percent}.gguf" for name in "ab"]
    for path, mask in zip(paths, masks_that_differ(parent.identity(), percent), strict=True):
        cut(parent, mask, path)
    members = tuple(Member(path.name, path) for path in paths)
    spec = LoadSpec(paths[0], context_tokens=512, parallel=1, threads=threads, sharing=Sharing(members))
    plain = replace(spec, path=paths[1], sharing=None)
    found: dict[str, list[float]] = {"swap": [], "copy": [], "load": [], "plain load": []}
    with loaded(spec) as model:
        swapper = Swapper(model, spec)
        (pair,) = pairs({path.name: swapper.specialist(owner) for owner, path in enumerate(paths)})
        swapper.swap(1)
        copy = Copy(swapper.swap(0).moved_bytes)
        copy()
        for number in range(repetitions):
            found["swap"].append(seconds(lambda owner=(number + 1) % 2: swapper.swap(owner)))  # type: ignore[misc]
            found["copy"].append(seconds(copy))
            if number < 3:
                found["load"].append(load_seconds(replace(spec, path=paths[1])))
                found["plain load"].append(load_seconds(plain))
        swapper.close()
    size = paths[1].stat().st_size
    for path in paths:
        path.unlink()
    middle = {name: statistics.median(times) for name, times in found.items()}
    speed = statistics.median(b / a for a, b in zip(found["swap"], found["copy"], strict=True))
    return [
        f"{percent} %",
        f"{pair.changed_bytes / 1e6:.0f}",
        f"{middle['swap'] * 1e3:.0f}",
        f"{middle['copy'] * 1e3:.0f}",
        f"{speed:.2f}",
        _bench.verdict(speed >= SPEED_TARGET),
        f"{middle['plain load'] * 1e3:.0f}",
        f"{middle['load'] * 1e3:.0f}",
        f"{middle['plain load'] / middle['swap']:.1f}",
        f"{size / pair.changed_bytes:.1f}",
    ]


def returning(path: Path, threads: int, repetitions: int) -> list[list[str]]:
    """Rows: a conversation put away, brought back, and read again."""
    spec = LoadSpec(path, context_tokens=2 * CONVERSATION, parallel=2, threads=threads)
    found: dict[str, list[float]] = {"put away": [], "brought back": [], "read again": []}
    n_bytes = 0
    with loaded(spec) as model:
        context = Context(model, spec)
        tokens = [300 + number % 200 for number in range(CONVERSATION)]

        def read() -> None:
            context.forget(0)
            for start in range(0, CONVERSATION, context.n_batch):
                part = tokens[start : start + context.n_batch]
                last = start + len(part) - 1
                context.decode((token, start + at, 0, start + at == last) for at, token in enumerate(part))

        for _ in range(repetitions):
            found["read again"].append(seconds(read))
            begun = time.perf_counter()
            state = context.save(0, partial=False)
            context.forget(0)
            found["put away"].append(time.perf_counter() - begun)
            assert state is not None
            n_bytes = state.nbytes
            found["brought back"].append(seconds(lambda state=state: context.restore(0, state, partial=False)))  # type: ignore[misc]
        context.close()
    return [
        [
            f"a conversation of {CONVERSATION} tokens, {n_bytes / 1e6:.0f} MB, {what}",
            f"{1e3 * statistics.median(t):.1f}",
        ]
        for what, t in found.items()
    ]


def decoding(path: Path, kind: str, threads: int, n_tokens: int) -> list[list[str]]:
    """Rows: tokens a second as weights lie, in turns; the last says what part of the faster way is left."""
    plain = LoadSpec(path, context_tokens=1024, parallel=1, threads=threads)
    ways = {
        "mapped, and repacked where this processor gains": plain,
        "as in the file, in memory of our own": replace(plain, sharing=Sharing((Member("a", path),))),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for repetition in range(3):
        for name in list(ways) if repetition % 2 == 0 else list(ways)[::-1]:
            with loaded(ways[name]) as model:
                context = Context(model, ways[name])
                context.decode([(300, 0, 0, True)])
                taken = seconds(
                    lambda context=context: [  # type: ignore[misc]
                        (context.decode([(300 + at % 200, at, 0, True)]), context.logits(0))
                        for at in range(1, n_tokens)
                    ]
                )
                found[name].append((n_tokens - 1) / taken)
                context.close()
    middle = {name: statistics.median(speeds) for name, speeds in found.items()}
    mapped, own = middle.values()
    return [*([f"{kind}, {name}", f"{speed:.1f}"] for name, speed in middle.items()), ["", f"{own / mapped:.2f}"]]


def _rss_bytes(pid: int) -> int:
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) * 1024


def memory(paths: Sequence[Path], threads: int) -> list[list[str]]:
    """Rows: what one resident for all takes, once it has been each of them, and what one load takes as often."""
    members = tuple(Member(path.name, path) for path in paths)
    shared = LoadSpec(paths[0], context_tokens=2048, parallel=2, threads=threads, sharing=Sharing(members))

    async def measure(spec: LoadSpec) -> int:
        async with _bench.worker(spec) as resident:
            for path in paths if spec.sharing is not None else paths[:1]:
                wanted = GenerateRequest(path.name, path.name, prompt="one two three", max_tokens=8, loop_guard=None)
                async for _ in resident.generate(wanted):
                    pass
            return _rss_bytes(resident.pid)

    one_for_all, one = (asyncio.run(measure(spec)) for spec in (shared, replace(shared, sharing=None, mmap=False)))
    return [
        [f"{len(paths)} specialists in one resident", f"{one_for_all / 1e9:.2f}"],
        [f"{len(paths)} loads of {one / 1e9:.2f}", f"{len(paths) * one / 1e9:.2f}"],
    ]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small parent and few repetitions")
    parser.add_argument("--parent", type=Path, help="a mixture of experts of yours")
    parser.add_argument("--differ", type=int, nargs="+", default=[10, 25, 50], help="percent of experts that differ")
    parser.add_argument("--threads", type=int, default=_bench.threads_here(), help="one a core when left out")
    parser.add_argument("--repetitions", type=int)
    given = parser.parse_args()
    environment = worker_environment(os.environ)
    if environment != dict(os.environ):  # threads are to wait as they do in a worker
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    repetitions = given.repetitions or (5 if given.quick else 11)
    print(_bench.describe_machine(given.threads), flush=True)
    with tempfile.TemporaryDirectory(dir=_bench.ROOT / ".build", prefix="swap-") as name:
        folder = Path(name)
        path = given.parent or _bench.random_parent(folder, quick=given.quick)
        parent = Parent.open(path)
        print(f"{path.name}: {path.stat().st_size / 1e9:.2f} GB, half of it a specialist\n", flush=True)
        head = [
            "experts that differ", "MB moved", "swap, ms", "copy, ms", "speed of the copy's", f">= {SPEED_TARGET}",
            "load, ms", "load as shared, ms", "load / swap", "file / moved",
        ]  # fmt: skip
        rows = [swaps(folder, parent, percent, repetitions, given.threads) for percent in given.differ]
        print(_bench.table(head, rows), flush=True)
        half = folder / "half.gguf"
        cut(parent, masks_that_differ(parent.identity(), 50)[0], half)
        print("\n" + _bench.table(["", "ms"], returning(half, given.threads, 3)), flush=True)
        halves = [half, folder / "other.gguf", folder / "third.gguf"]
        for number, path in enumerate(halves[1:], start=1):
            cut(parent, masks_that_differ(parent.identity(), 50 - number)[1], path)
        print("\n" + _bench.table(["memory", "GB"], memory(halves, given.threads)), flush=True)
        rows = decoding(half, "Q8_0", given.threads, 48)
        smaller = folder / "smaller.gguf"
        quantize_file(half, smaller, "Q4_K_M")  # which processors with AVX2 gain by repacking
        rows += decoding(smaller, "Q4_K_M", given.threads, 48)
        print("\n" + _bench.table(["weights", "tokens/s"], rows), flush=True)


if __name__ == "__main__":
    main()
