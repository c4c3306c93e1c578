"""Rate limiting for log lines: a flood of one kind of event must not fill the disk."""

from __future__ import annotations

import time
from collections.abc import Callable

BURST = 20
PER_S = 1.0


class LineLimit:
    """A token bucket: a burst of lines, then so many a second; what was kept back is counted for the next line."""

    def __init__(self, burst: int = BURST, per_s: float = PER_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst, self._per_s, self._clock = burst, per_s, clock
        self._tokens, self._at = float(burst), clock()
        self._kept_back = 0

    def take(self) -> int | None:
        """None where the line is to be kept back; else how many were kept back since the last one."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s)
        self._at = now
        if self._tokens < 1:
            self._kept_back += 1
            return None
        self._tokens -= 1
        kept_back, self._kept_back = self._kept_back, 0
        return kept_back

    def line(self, text: str) -> str | None:
        """The line to write, which says how many were kept back before it; None where it is to be kept back."""
        kept_back = self.take()
        if not kept_back:
            return None if kept_back is None else text
        return f"{text} ({kept_back} such lines before it were left out)"
