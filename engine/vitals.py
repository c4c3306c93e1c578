"""Whether a worker or a child lives and gets on, judged by its heartbeat (a watchdog): values and a clock, no process.

Its heartbeat comes from a thread of its own, so it goes on through the longest decode, and ends only with the
process: stopped, or held fast by its interpreter's lock. With it come three figures: decodes done, seconds of
processor time, blocks read from disk. A process that has work and makes no decode is *slow* while one of the other two
grows (a long prompt on a slow processor, weights that are read from disk) and *stalled* when none does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

STALL_S: Final = 60.0
SHORTEST_S: Final = 3.0  # some heartbeats: a shorter stall_s would take their intervals for silence
START_S: Final = 60.0  # libraries may come from a slow disk: so much longer until the first heartbeat
SLOW: Final = 10.0  # so many times stall_s may a decode take that computes all the while

# Within a beat of a second: more than the heartbeat itself takes, less than any decode.
_WORKING_SHARE: Final = 0.03


@dataclass(frozen=True)
class Beat:
    """What a heartbeat says. steps: decodes, or reports of a child, so far. cpu_s: of all threads. reads: page faults
    and blocks from disk."""

    steps: int
    cpu_s: float
    reads: int

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Beat:
        """From the wire."""
        return cls(data["steps"], data["cpu_s"], data["reads"])


class Vitals:
    """The signs of one process's life. Times are seconds of a monotonic clock that stands still with the system."""

    def __init__(
        self, now: float, stall_s: float = STALL_S, *, idle_s: float | None = None, slow_s: float | None = None
    ) -> None:
        """For how long the process may be, before it is given up,

        stall_s: without a heartbeat; 3 at least.
        idle_s:  at work, and without progress or an effort; as long as stall_s, unless it is told.
        slow_s:  at work, and without progress, however hard it computes; SLOW times stall_s, unless it is told.
        """
        self.stall_s = max(stall_s, SHORTEST_S)
        self._idle_s = self.stall_s if idle_s is None else max(idle_s, SHORTEST_S)
        self._slow_s = SLOW * self.stall_s if slow_s is None else slow_s
        self._begun = self._alive = self._worked = self._progressed = now
        self._last: Beat | None = None
        self._has_work = False

    @property
    def has_started(self) -> bool:
        """Whether a heartbeat has come at all."""
        return self._last is not None

    def beat(self, now: float, beat: Beat) -> None:
        """A heartbeat came."""
        before, since_s = self._last, now - self._alive
        if before is None or beat.steps != before.steps:
            self._progressed = now
        if before is None or beat.reads != before.reads or beat.cpu_s - before.cpu_s > _WORKING_SHARE * since_s:
            self._worked = now
        self._last, self._alive = beat, now

    def progress(self, now: float) -> None:
        """Something came that only a worker says which gets on: a part of an answer, of a load."""
        self._progressed = now

    def work(self, now: float, has_work: bool) -> None:
        """Whether it has something to do now."""
        if has_work and not self._has_work:
            self._worked = self._progressed = now
        self._has_work = has_work

    def forgive(self, now: float) -> None:
        """Whoever judges was away itself: signs that came meanwhile lie unread."""
        self._begun = self._alive = self._worked = self._progressed = now

    def silent_s(self, now: float) -> float:
        """Seconds without a sign of life; with work, seconds without progress and without an effort. 0 when all is
        well: a decode's length is no silence."""
        if self._last is None:
            return max(0.0, now - self._begun - START_S)
        silent_s = now - self._alive
        if self._has_work:
            silent_s = max(silent_s, now - max(self._worked, self._progressed))
        return silent_s

    def slow_s(self, now: float) -> float:
        """Seconds without progress while there is work, however hard it computes; 0 without work."""
        return now - self._progressed if self._has_work and self._last is not None else 0.0

    def fault(self, now: float) -> str | None:
        """Why the process is to be given up, a phrase that goes with its title; None while it is not."""
        lifeless_s = now - self._alive if self._last is not None else self.silent_s(now)
        if lifeless_s > self.stall_s:
            return f"gave no sign of life for {self.stall_s:.0f} s"
        if self.silent_s(now) > self._idle_s:
            return f"made no progress for {self._idle_s:.0f} s"
        if self.slow_s(now) > self._slow_s:
            return f"computed for {self._slow_s:.0f} s without one step done"
        return None


class Lookout:
    """Tells a watchdog whether it was late itself: stopped, paused, or held up. every_s: between two looks."""

    def __init__(self, now: float, stall_s: float = STALL_S) -> None:
        stall_s = max(stall_s, SHORTEST_S)
        self.every_s = min(1.0, stall_s / 4)
        self._late_s = stall_s / 4
        self._last = now

    def was_away(self, now: float) -> bool:
        """Whether so much more time has passed since the last look that a worker's silence may be the watchdog's."""
        late_s, self._last = now - self._last - self.every_s, now
        return late_s > self._late_s
