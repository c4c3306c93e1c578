"""What a change of specialist adds to the time to the first token: here, and in llama-server's router mode.

    python benchmarks/switching.py [--quick] [--parent FILE.gguf] [--differ 10 25 50] [--plot FILE.png]

For each share of experts that differ, two specialists that keep half of a parent's experts are cut (1.8 GB each where
no parent is given; see swap.py). Then the same requests go in turns to `coe serve` with a budget for one model, once
with the specialists sharing a resident and once loaded apart, and to llama-server's router mode with --models-max 1:
a, a, b, b, a ... Clocks run from the opening of the connection to the first text. What a change adds is the median over
changes less the median over requests for what is there already. Every server has its files mapped (but for the shared
resident, which cannot), and the page cache is warm for all.

Target: 5 times less than llama-server adds on a CPU; on a GPU as many times less as a file has more bytes than a swap
moves.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import _bench
from build_llama_server import BINARY
from swap import masks_that_differ

from coe.engine.pool.memory import predict
from coe.engine.spec import LoadSpec
from coe.engine.swap.fingerprints import read_weights
from coe.engine.swap.plan import pairs
from coe.surgery.cut.cut import cut
from coe.surgery.parent import Parent

CPU_TARGET = 5.0
NAMES = ("a", "b")
_SHARED, _APART, _ROUTER = "here, sharing a resident", "here, loaded apart", "llama-server, router mode"


@dataclass(frozen=True)
class Times:
    """Milliseconds to the first text, medians. stays: of requests for what is there; changes: of all others."""

    stays: float
    changes: float

    @property
    def added(self) -> float:
        """What a change adds."""
        return self.changes - self.stays


async def first_text_s(port: int, model: str, prompt: str) -> float:
    """Seconds from the opening of the connection to the first text of a completion."""
    body = {"model": model, "prompt": prompt, "max_tokens": 2, "temperature": 0, "stream": True}
    started = time.perf_counter()
    async with aclosing(_bench.post_stream(port, "/v1/completions", body)) as events:  # type: ignore[type-var]
        async for event in events:
            if event.get("choices") and event["choices"][0].get("text"):
                return time.perf_counter() - started
    raise SystemExit(f"{model} wrote nothing.")


async def measure(port: int, rounds: int) -> Times:
    """Ask for a, a, b, b, a, a ... ; the first four requests warm everything up."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2 * rounds + 4):
        # Few tokens, so that their evaluation does not hide the change; unlike any before, so that no cache has them.
        taken = await first_text_s(port, NAMES[number // 2 % 2], f"{number} is")
        if number >= 4:
            found[number % 2 == 0].append(1e3 * taken)
    return Times(statistics.median(found[False]), statistics.median(found[True]))


@contextmanager
def ours(folder: Path, paths: dict[str, Path], spec: LoadSpec, *, share: bool) -> Iterator[int]:
    """The port of `coe serve` with room for one of the specialists."""
    entries = []
    for name, path in paths.items():
        entry = _bench.specialist_of(LoadSpec(path, context_tokens=spec.context_tokens, parallel=1), name)
        entries.append({**entry, "threads": spec.threads, "share": share})
    room = asyncio.run(predict(spec)).footprint.total_bytes * 3 // 2
    pool = {"vram_budget": room, "ram_budget": "64 MiB", "most_shared": 1}
    router = {"encoder": "none"}
    roster = {"version": 1, "fallback": NAMES[0], "pool": pool, "router": router, "specialists": entries}
    with _bench.our_server(roster, folder) as (port, _):
        yield port


@contextmanager
def router_mode(folder: Path, spec: LoadSpec) -> Iterator[int]:
    """The port of a llama-server that loads one of the folder's models at a time."""
    port = _bench.free_port()
    command = [
        *(str(BINARY), "--models-dir", str(folder), "--models-max", "1", "--host", "127.0.0.1", "--port", str(port)),
        *("--ctx-size", str(spec.cells), "--parallel", str(spec.parallel), "--kv-unified"),
        *("--threads", str(spec.threads), "--threads-batch", str(spec.threads), "--gpu-layers", "999", "--fit", "off"),
        *("--batch-size", "512", "--ubatch-size", "512", "--cache-ram", "0", "--no-ui", "--log-verbosity", "1"),
    ]
    with _bench.running(command, f"http://127.0.0.1:{port}/health"):
        yield port


def compare(folder: Path, parent: Parent, percent: int, rounds: int, threads: int) -> tuple[dict[str, Times], float]:
    """What each way takes, and how many times a swap's bytes go into a file."""
    models = folder / f"models-{percent}"
    models.mkdir()
    paths = {name: models / f"{name}.gguf" for name in NAMES}
    for path, mask in zip(paths.values(), masks_that_differ(parent.identity(), percent), strict=True):
        cut(parent, mask, path)
        _read(path)
    (pair,) = pairs({name: read_weights(path) for name, path in paths.items()})
    spec = LoadSpec(paths["a"], context_tokens=512, parallel=1, threads=threads)
    found = {}
    for way, server in {
        _SHARED: ours(folder, paths, spec, share=True),
        _APART: ours(folder, paths, spec, share=False),
        _ROUTER: router_mode(models, spec),
    }.items():
        with server as port:
            found[way] = asyncio.run(measure(port, rounds))
    ratio = paths["a"].stat().st_size / pair.changed_bytes
    for path in paths.values():
        path.unlink()
    return found, ratio


def _read(path: Path) -> None:
    """Bring a file into the page cache."""
    with path.open("rb", buffering=0) as file:
        while file.read(16 * 2**20):
            pass


def draw(results: dict[int, tuple[dict[str, Times], float]], where: str, out: Path) -> None:
    """Bars: what a change adds, each way, by how many experts differ."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 2.9), layout="constrained")
    ways = {_ROUTER: "#b0b0b0", _APART: "#7aa6d6", _SHARED: "#1f5fa8"}
    for place, (way, colour) in enumerate(ways.items()):
        at = [row + 0.26 * (place - 1) for row in range(len(results))]
        bars = axes.barh(at, [found[way].added for found, _ in results.values()], 0.24, color=colour, label=way)
        axes.bar_label(bars, fmt="%.0f ms", padding=3, fontsize=8)
    axes.set_yticks(range(len(results)), [f"{percent} % of experts differ" for percent in results])
    axes.set_xlabel("added to the time to the first token by a change of specialist, ms")
    axes.set_title(where, fontsize=8, loc="left", color="#555555")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.invert_yaxis()  # the smallest change on top
    figure.legend(frameon=False, fontsize=8, loc="outside upper center", ncols=len(ways))
    figure.savefig(out, dpi=160)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small parent and few rounds")
    parser.add_argument("--parent", type=Path, help="a mixture of experts of yours")
    parser.add_argument("--differ", type=int, nargs="+", default=[10, 25, 50], help="percent of experts that differ")
    parser.add_argument("--threads", type=int, default=_bench.threads_here(), help="one a core when left out")
    parser.add_argument("--rounds", type=int, help="changes measured each way")
    parser.add_argument("--plot", type=Path, help="where to draw what was found")
    given = parser.parse_args()
    if not BINARY.exists():
        raise SystemExit("There is no llama-server to compare with: python benchmarks/build_llama_server.py")
    machine = _bench.describe_machine(given.threads)
    print(machine, flush=True)
    on_gpu = any(device["kind"] == "gpu" for device in _bench.devices())
    results = {}
    with tempfile.TemporaryDirectory(dir=_bench.ROOT / ".build", prefix="switching-") as name:
        folder = Path(name)
        parent = Parent.open(given.parent or _bench.random_parent(folder, quick=given.quick))
        for percent in given.differ:
            results[percent] = compare(
                folder, parent, percent, given.rounds or (4 if given.quick else 10), given.threads
            )
    rows = []
    for percent, (found, ratio) in results.items():
        target = ratio if on_gpu else CPU_TARGET
        for way, times in found.items():
            less = found[_ROUTER].added / times.added
            rows.append(
                [
                    f"{percent} %, {way}", f"{times.stays:.0f}", f"{times.changes:.0f}", f"{times.added:.0f}",
                    f"{less:.1f}", _bench.verdict(less >= target) if way == _SHARED else "",
                ]
            )  # fmt: skip
    head = ["experts that differ", "stays, ms", "changes, ms", "added, ms", "times less than llama-server"]
    goal = "file / moved bytes" if on_gpu else f">= {CPU_TARGET:g}"
    print(_bench.table([*head, goal], rows), flush=True)
    if given.plot is not None:
        draw(results, machine.split(";")[0] + ("" if on_gpu else "; no GPU"), given.plot)
        print(f"drawn: {given.plot}")


if __name__ == "__main__":
    main()
