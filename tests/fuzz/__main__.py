"""python -m fuzz: cases for a while, or one again; exit code 1 where one failed."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from .cases import COMMANDS, Case, write_sound
from .running import KEPT_ASIDE, Ended, prepare, run


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="how long to go on (20)")
    parser.add_argument("--seed", type=int, default=None, help="what the cases follow from; drawn when left out")
    parser.add_argument("--only", type=int, default=None, help="run this case alone")
    parser.add_argument("--sound", action="store_true", help="run every command once, with nothing mutated")
    parser.add_argument("--verbose", action="store_true", help="print every case")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="where failing cases are kept")
    asked = parser.parse_args()
    seed = int(time.time()) if asked.seed is None else asked.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="coe-fuzz-") as scratch:
        seeds = Path(scratch) / "seeds"
        subprocess.run([sys.executable, "-m", "fuzz.seeds", str(seeds)], check=True)
        prepare()
        if asked.sound:
            return sound(seeds, Path(scratch) / "case")
        return fuzz(seeds, Path(scratch) / "case", seed, asked.minutes * 60, asked.keep, asked.only, asked.verbose)


def sound(seeds: Path, folder: Path) -> int:
    """Run every command on sound files. Gives 1 where one does not take them: its cases would prove nothing."""
    failed = 0
    for line in dict.fromkeys(line for lines in COMMANDS.values() for line in lines):
        write_sound(seeds, folder)
        ended = run(line.split(), folder)
        if ended.fault or ended.code not in (0, KEPT_ASIDE):
            failed += 1
            print(f"coe {line} {ended.fault or f'ended with {ended.code}'}\n{ended.output[-2000:]}", flush=True)
    print(f"{failed} commands do not take sound files")
    return int(failed > 0)


def fuzz(
    seeds: Path,
    folder: Path,
    seed: int,
    for_s: float,
    keep: Path,
    only: int | None = None,
    verbose: bool = False,
) -> int:
    """Run cases until the time is up. Prints each that fails, and a summary; gives 1 where one did."""
    begun, number, failed = time.monotonic(), only or 0, 0
    codes: Counter[str] = Counter()
    peak, slowest = 0, 0.0
    while only == number if only is not None else time.monotonic() - begun < for_s:
        case = Case(seed, number)
        case.write(seeds, folder)
        started = time.monotonic()
        ended = run(case.command, folder)
        slowest = max(slowest, time.monotonic() - started)
        peak = max(peak, ended.peak_bytes)
        codes[str(ended.code)] += 1
        if verbose:
            took = time.monotonic() - started
            print(f"case {number}: coe {' '.join(case.command)}: {ended.code} in {took:.1f} s", flush=True)
        if ended.fault:
            failed += 1
            print(f"case {number}: coe {' '.join(case.command)} {ended.fault}", flush=True)
            _keep(case, ended, folder, keep / f"{seed}-{number}")
        elif only is not None:
            print(ended.output)
        number += 1
    exits = ", ".join(f"{count} x {code}" for code, count in codes.most_common())
    total = sum(codes.values())
    print(f"{total} cases, {failed} failed; exits: {exits}; peak {peak / 2**20:.0f} MiB, slowest {slowest:.1f} s")
    return int(failed > 0)


def _keep(case: Case, ended: Ended, folder: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in {case.file, "head.json", "roster.yaml"}:
        shutil.copy(folder / name, target / name)
    (target / "output.txt").write_text(ended.output, errors="surrogateescape")
    facts = {"seed": case.seed, "case": case.number, "command": ["coe", *case.command], "fault": ended.fault}
    (target / "case.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(f"  kept in {target}; again: python -m fuzz --seed {case.seed} --only {case.number}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
