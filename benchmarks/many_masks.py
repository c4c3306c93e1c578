"""A server with many masks of one parent: its start, its memory, and a change between every two of them.

    python benchmarks/many_masks.py [--quick] [--masks 20]

Each mask keeps half of the experts, drawn at random. The server is started with one mask, then with all: how much
longer that takes until it is ready, how much more memory server and worker hold. Then every ordered pair: a request to
one specialist, and one to the other; by the answer's header the resident changed in place, and how long that took.

Target: every pair changes in place, and one more mask adds less than 1 MiB to the server.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import _bench
import httpx
import numpy as np
from memory import resident_bytes

from coe.engine.pool.memory import predict
from coe.engine.spec import LoadSpec
from coe.surgery.mask import Mask
from coe.surgery.parent import Parent

_MIB: Final = 2**20


@dataclass(frozen=True)
class Held:
    """Seconds until a server was ready, and bytes of all its processes after as many answers as there are masks."""

    start_s: float
    memory_bytes: int


def random_masks(parent: Parent, count: int) -> list[Mask]:
    """Rankings drawn at random, of which half is kept."""
    identity = parent.identity()
    found = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        order = np.stack([rng.permutation(identity.n_expert) for _ in identity.layers])
        kept = np.zeros(order.shape, np.bool_)
        np.put_along_axis(kept, order[:, : identity.n_expert // 2], True, axis=1)
        found.append(Mask.from_matrix(identity, kept, order=order))
    return found


def roster_of(parent: Path, masks: Sequence[Path], threads: int) -> dict[str, Any]:
    """A roster of masks that share one resident."""
    load = {"context_tokens": 1024, "parallel": 1, "threads": threads, "loop_guard": False, "domains": ["general"]}
    room = asyncio.run(predict(LoadSpec(parent, context_tokens=1024, parallel=1))).footprint.total_bytes * 3 // 2
    return {
        "fallback": masks[0].stem,
        "models_dir": str(parent.parent / "models"),
        "parent": {"model": "random", "file": str(parent)},
        "pool": {"vram_budget": room, "ram_budget": 0, "most_shared": 1},
        "router": {"encoder": "none"},
        "specialists": [{"name": path.stem, "mask": str(path), **load} for path in masks],
    }


def ask(client: httpx.Client, name: str) -> httpx.Response:
    """One token of a specialist."""
    body = {"model": name, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    return client.post("/v1/chat/completions", json=body).raise_for_status()


def measure(
    folder: Path, parent: Path, masks: Sequence[Path], threads: int, requests: int
) -> tuple[Held, list[float], list[str]]:
    """A server with these masks: what it holds after so many requests, seconds of each change, and pairs that did not
    change in place."""
    folder.mkdir()
    roster = roster_of(parent, masks, threads)
    began = time.perf_counter()
    with _bench.our_server(roster, folder) as (port, process):
        started = time.perf_counter() - began
        names = [path.stem for path in masks]
        changes, wrong = [], []
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
            for name in names * (requests // len(names)):
                ask(client, name)
            held = Held(started, resident_bytes(process.pid))
            for one in names:
                for other in names:
                    if one == other:
                        continue
                    ask(client, one)
                    began = time.perf_counter()
                    answer = ask(client, other)
                    changes.append(time.perf_counter() - began)
                    if answer.headers["x-coe-residency"] != "swapped":
                        wrong.append(f"{one} to {other}: {answer.headers['x-coe-residency']}")
        return held, changes, wrong


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small parent")
    parser.add_argument("--masks", type=int, default=20)
    parser.add_argument("--threads", type=int, default=0, help="threads of the engine; one a core when left out")
    arguments = parser.parse_args()
    threads = arguments.threads or _bench.threads_here()
    print(_bench.describe_machine(threads))
    with tempfile.TemporaryDirectory(prefix="coe-many-") as made:
        folder = Path(made)
        path = _bench.random_parent(folder, quick=arguments.quick)
        parent = Parent.open(path)
        size = path.stat().st_size
        masks = []
        for number, mask in enumerate(random_masks(parent, arguments.masks)):
            masks.append(folder / f"mask-{number:02}.json")
            mask.save(masks[-1])
        one, _, _ = measure(folder / "one", path, masks[:1], threads, len(masks))
        all_, changes, wrong = measure(folder / "all", path, masks, threads, len(masks))
    more = (all_.memory_bytes - one.memory_bytes) / (len(masks) - 1)
    print(
        f"\n{len(masks)} masks of {parent.experts.n_expert} experts in {len(parent.experts.layers)} layers, "
        f"{size / 1e9:.2f} GB: ready after {all_.start_s:.1f} s (with one mask {one.start_s:.1f} s), "
        f"{all_.memory_bytes / _MIB:,.0f} MiB in all processes ({one.memory_bytes / _MIB:,.0f} with one: "
        f"{more / 1024:.0f} KiB a mask)"
    )
    quartiles = statistics.quantiles(changes, n=20)
    print(
        f"{len(changes)} changes, each with one token: median {1e3 * statistics.median(changes):.0f} ms, "
        f"95 % within {1e3 * quartiles[-1]:.0f} ms"
    )
    if more > _MIB:
        wrong.append(f"a mask adds {more / _MIB:.2f} MiB")
    sys.exit(_bench.report(wrong))


if __name__ == "__main__":
    main()
