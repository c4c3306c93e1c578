"""What soaks share: readings of the processes of a server and its workers, whether they grow, what went wrong when."""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import _bench

WARM_UP = 0.4  # of a run: buffers and caches grow to their largest
DRIFT_BYTES = 2 * 2**20  # of a process's own memory: a heap's free space moves that much without any growth
SPARE_DESCRIPTORS = 4  # a connection that is just closing, a file that is just read
SPARE_THREADS = 3  # a pool of threads grows to its size in steps
_READ_EVERY_S = 0.5
_LOADED_S = 20.0  # a worker that lives no longer is still loading when it is judged, or was driven out


@dataclass(frozen=True)
class Reading:
    """A process at one time. own_bytes: anonymous memory, without the files that it has mapped."""

    at_s: float
    resident_bytes: int
    own_bytes: int
    descriptors: int
    threads: int


def read(pid: int, at_s: float) -> Reading:
    """A process as it is now. Raises OSError when it has gone. Source: proc(5), smaps_rollup and statm."""
    folder = Path(f"/proc/{pid}")
    resident = int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    lines = (folder / "smaps_rollup").read_text().splitlines()
    own = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))
    return Reading(at_s, resident, own, len(os.listdir(folder / "fd")), len(os.listdir(folder / "task")))


def workers_of(pid: int) -> set[int]:
    """The process's children that hold a model. Source: proc(5)."""
    found = set()
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                if b"coe.engine.worker.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.add(int(child))
    return found


@dataclass
class Tally:
    """What happened. readings: of each process that there was, in the order of time."""

    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    readings: dict[int, list[Reading]] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def wrong(self, what: str, error: BaseException | str) -> None:
        """Note a problem with the second in which it was found; an exception with its type, since some say nothing."""
        text = error if isinstance(error, str) else repr(error)
        self.problems.append(f"at {time.monotonic() - self.started:.1f} s: {what}: {text}")

    def read_all(self, pid: int) -> None:
        """Read the server and its workers once."""
        for process in (pid, *workers_of(pid)):
            with contextlib.suppress(OSError):  # it has gone meanwhile
                reading = read(process, time.monotonic() - self.started)
                self.readings.setdefault(process, []).append(reading)

    async def watch(self, pid: int, stop: asyncio.Event) -> None:
        """Read the server and its workers until told to stop."""
        while not stop.is_set():
            self.read_all(pid)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stop.wait(), _READ_EVERY_S)

    def check_processes(self, server: int) -> None:
        """Print how each process that lived long enough changed after the warm-up, and note those that grew."""
        rows = []
        for pid, readings in self.readings.items():
            if pid != server and readings[-1].at_s - readings[0].at_s < _LOADED_S:
                continue
            name = "server" if pid == server else f"worker {pid}"
            kept = after_warm_up(readings)
            drift = drift_bytes(kept)
            rows.append(
                [
                    name,
                    f"{readings[-1].at_s - readings[0].at_s:.0f}",
                    *(f"{one.resident_bytes / 2**20:.1f}" for one in (readings[0], readings[-1])),
                    *(f"{one.own_bytes / 2**20:.2f}" for one in (readings[0], kept[0], readings[-1])),
                    f"{drift / 2**20:+.2f}",
                    f"{readings[0].descriptors}, {readings[-1].descriptors}",
                    f"{readings[0].threads}, {readings[-1].threads}",
                ]
            )
            if drift > DRIFT_BYTES:
                self.wrong(name, f"its own memory grew by {drift / 2**20:.2f} MiB after the warm-up")
            for what, spare in (("descriptors", SPARE_DESCRIPTORS), ("threads", SPARE_THREADS)):
                first, last = getattr(kept[0], what), getattr(readings[-1], what)
                if last > first + spare:
                    self.wrong(name, f"{last} {what} at last, {first} after the warm-up")
        head = ["process", "s", "resident at first", "at last", "own at first", "warm", "at last", "drift (MiB)"]
        print(_bench.table([*head, "descriptors", "threads"], rows))


def after_warm_up(readings: list[Reading]) -> list[Reading]:
    """The readings of a process by which growth is judged."""
    return readings[int(len(readings) * WARM_UP) :]


def drift_bytes(readings: list[Reading]) -> float:
    """How much more own memory the last third of the readings shows than the first, in the median; 0.0 for a few."""
    own, third = [one.own_bytes for one in readings], len(readings) // 3
    return statistics.median(own[-third:]) - statistics.median(own[:third]) if third > 2 else 0.0
