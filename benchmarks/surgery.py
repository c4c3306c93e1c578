"""Profiling beside plain prompt evaluation, cutting beside `cp`, and the memory that cutting takes.

    python benchmarks/surgery.py [--quick] [--parent FILE.gguf] [--tokens 4096]

Without --parent a random gemma4 of 3.4 GB in Q8_0 (30 layers, 128 experts, 8 used) is written first, which takes some
minutes, and kept under .build. Each repetition evaluates the same batches three times: plainly, counting what the
routers choose, and with the norms of the experts' outputs as well. Then half of the experts are cut out, beside `cp` of
the result: once as the two are, and once with the copy brought to the disk (`cp` and `sync`), which cutting always does
before it gives the file its name. Cutting runs in a process of its own, whose largest resident memory is reported.

Targets: profiling at 85 % of plain evaluation (without norms), cutting at 80 % of `cp`, less than 300 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import _bench
import numpy as np

from coe.engine.spec import LoadSpec
from coe.surgery.mask import Mask
from coe.surgery.parent import Identity, Parent
from coe.surgery.profile.corpus import Corpus, read_corpus
from coe.surgery.profile.run import ProfileProgress, evaluate_corpus, profile_corpus

PROFILE_TARGET, CUT_TARGET, MEMORY_TARGET = 0.85, 0.80, 300 * 10**6

# What the cutting process is told to do; its answer is one JSON line.
CUT = """
import json, resource, sys, time
from pathlib import Path
from coe.surgery.cut.cut import cut
from coe.surgery.mask import Mask
from coe.surgery.parent import Parent
parent, mask, out = map(Path, sys.argv[1:])
opened, keep = Parent.open(parent), Mask.load(mask)
begun = time.perf_counter()
report = cut(opened, keep, out)
seconds = time.perf_counter() - begun
status = Path("/proc/self/status")  # getrusage still counts the process that this one was forked from
lines = dict(line.split(":", 1) for line in status.read_text().splitlines()) if status.exists() else {}
peak = int(lines["VmHWM"].split()[0]) * 1024 if lines else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": seconds, "peak_bytes": peak, "n_bytes": report.n_bytes}))
"""


def corpus_of(folder: Path, n_tokens: int) -> Corpus:
    """Made-up text of about so many tokens, in documents of some 400."""
    rng = np.random.default_rng(0)
    path = folder / "corpus.jsonl"
    with path.open("w") as file:
        for _ in range(max(1, n_tokens // 400)):
            words = " ".join(f"w{number}" for number in rng.integers(0, 4000, 130))
            file.write(json.dumps({"text": words}) + "\n")
    return read_corpus([path])


def speeds(parent: Path, corpus: Corpus, threads: int, repetitions: int, folder: Path) -> dict[str, list[float]]:
    """Tokens a second of each way to evaluate the corpus, in turns."""
    load = LoadSpec(parent, context_tokens=2048, threads=threads)

    def profiled(norms: bool) -> float:
        times: list[float] = []

        def progress(now: ProfileProgress) -> None:
            if now.stage == "profile":  # the first before any batch, the last after all
                times.append(time.perf_counter())

        out = folder / f"profile-{norms}-{time.monotonic_ns()}.npz"
        profile = profile_corpus(parent, corpus, out, norms=norms, load=load, progress=progress)
        return profile.n_tokens / (times[-1] - times[0])

    ways: dict[str, Callable[[], float]] = {
        "plain": lambda: evaluate_corpus(parent, corpus, load=load).tokens_per_s,
        "counts": lambda: profiled(False),
        "norms": lambda: profiled(True),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for repetition in range(repetitions):
        order = list(ways) if repetition % 2 == 0 else list(ways)[::-1]
        for name in order:
            found[name].append(ways[name]())
    return found


def half_mask(identity: Identity) -> Mask:
    """Every layer keeps a random half."""
    rng = np.random.default_rng(1)
    keep = {
        layer: tuple(sorted(rng.choice(identity.n_expert, identity.n_expert // 2, replace=False).tolist()))
        for layer in identity.layers
    }
    return Mask(identity, keep)


def seconds_of(command: list[str]) -> float:
    """How long a command takes."""
    begun = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - begun


def cuts(parent: Path, repetitions: int, folder: Path) -> tuple[dict[str, list[float]], int, int]:
    """Seconds of a cut, of `cp` and of `cp` with sync; the largest memory of a cut; the bytes written."""
    mask, out, copy = folder / "mask.json", folder / "specialist.gguf", folder / "copy.gguf"
    half_mask(Parent.open(parent).identity()).save(mask)
    found: dict[str, list[float]] = {"cut": [], "cp": [], "cp and sync": []}
    peak = n_bytes = 0
    for _ in range(repetitions + 1):
        out.unlink(missing_ok=True)
        os.sync()
        done = subprocess.run(
            [sys.executable, "-c", CUT, str(parent), str(mask), str(out)], check=True, capture_output=True, text=True
        )
        said = json.loads(done.stdout.splitlines()[-1])
        peak, n_bytes = max(peak, said["peak_bytes"]), said["n_bytes"]
        found["cut"].append(said["seconds"])
        for name, commands in {
            "cp": [["cp", str(out), str(copy)]],
            "cp and sync": [["cp", str(out), str(copy)], ["sync", str(copy)]],
        }.items():
            copy.unlink(missing_ok=True)
            os.sync()
            found[name].append(sum(seconds_of(command) for command in commands))
    copy.unlink(missing_ok=True)
    return {name: times[1:] for name, times in found.items()}, peak, n_bytes  # the first round warms the page cache


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small parent and few repetitions")
    parser.add_argument("--parent", type=Path, help="a mixture of experts of yours")
    parser.add_argument("--tokens", type=int, help="tokens of the corpus, about")
    parser.add_argument("--threads", type=int, default=_bench.threads_here(), help="one a core when left out")
    parser.add_argument("--repetitions", type=int)
    given = parser.parse_args()
    repetitions = given.repetitions or (2 if given.quick else 3)
    print(_bench.describe_machine(given.threads), flush=True)
    with tempfile.TemporaryDirectory(dir=_bench.ROOT / ".build", prefix="surgery-") as name:
        folder = Path(name)
        parent = given.parent or _bench.random_parent(folder, quick=given.quick)
        corpus = corpus_of(folder, given.tokens or (2_000 if given.quick else 4_000))
        print(f"{parent.name}: {parent.stat().st_size / 1e9:.2f} GB, {repetitions} repetitions\n", flush=True)
        found = speeds(parent, corpus, given.threads, repetitions, folder)
        rows = []
        for way, label in (("plain", "plain evaluation"), ("counts", "counts and weights"), ("norms", "and norms")):
            # Neighbours within a repetition, so that what else the machine does cancels.
            ratio = statistics.median(a / b for a, b in zip(found[way], found["plain"], strict=True))
            met = _bench.verdict(ratio >= PROFILE_TARGET) if way == "counts" else "-"
            rows.append([label, f"{statistics.median(found[way]):.0f}", f"{ratio:.2f}", met])
        print(_bench.table(["profiling", "tokens/s", "of plain", f">= {PROFILE_TARGET}"], rows), flush=True)
        times, peak, n_bytes = cuts(parent, repetitions, folder)
        rows = []
        for way in ("cut", "cp", "cp and sync"):
            taken = statistics.median(times[way])
            of_cp = statistics.median(b / a for a, b in zip(times["cut"], times[way], strict=True))
            met = _bench.verdict(of_cp >= CUT_TARGET) if way != "cut" else "-"
            rows.append([way, f"{taken:.2f}", f"{n_bytes / taken / 1e6:.0f}", f"{of_cp:.2f}", met])
        head = [f"{n_bytes / 1e9:.2f} GB written", "s", "MB/s", "speed of the cut beside it", f">= {CUT_TARGET}"]
        print(f"\n{_bench.table(head, rows)}")
        print(f"\nlargest memory while cutting: {peak / 1e6:.0f} MB, {_bench.verdict(peak < MEMORY_TARGET)} (< 300 MB)")


if __name__ == "__main__":
    main()
