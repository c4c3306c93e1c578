"""Connections of clients: how many, and a deadline for each of their waits (slowloris, readers that do not read).

        made ──> HEAD ── a whole head ──> SERVING ── answered ──> IDLE ── first byte ──> HEAD
                  │ head_s                    │                    │ idle_s
                  v                           v body still comes   v
               closed                     DRAINING ── all of it ──> IDLE, or closed after drain_s

While a request is served its body has a deadline of its own (`body.py`), and the answer takes what it takes; but bytes
that a client does not fetch for write_s end its connection in every phase. A client beyond `most` is given the place of
the one that has waited longest without a request, or else a 503.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any, Final, Protocol

from ..runtime.line_limit import LineLimit

_log = logging.getLogger(__name__)

SWEEP_S: Final = 1.0
_SAY_AGAIN_S: Final = 30.0  # that a line about too many clients is not repeated
_FREE: Final = 24  # descriptors: to start a worker takes a dozen, and a spare may start beside it
_MOST_REFUSED: Final = 8  # connections beyond `most` that are held for a moment, so that their 503 is read
_ACCEPT_FAILED: Final = "socket.accept() out of system resource"  # asyncio's words for it


class Phase(Enum):
    """What a connection waits for."""

    HEAD = auto()  # a request's line and headers
    SERVING = auto()  # its answer
    DRAINING = auto()  # the end of a body that nobody reads any more
    IDLE = auto()  # the next request
    REFUSED = auto()  # the client's having read that there is no place


@dataclass(frozen=True)
class ConnectionLimits:
    """most: connections at once. The others are seconds that a client may take in a phase."""

    most: int = 1000
    head_s: float = 10.0
    idle_s: float = 75.0
    drain_s: float = 5.0
    write_s: float = 60.0
    refused_s: float = 2.0

    def seconds(self, phase: Phase) -> float | None:
        """How long a connection may be in a phase; None for as long as it takes."""
        return {
            Phase.HEAD: self.head_s,
            Phase.IDLE: self.idle_s,
            Phase.DRAINING: self.drain_s,
            Phase.REFUSED: self.refused_s,
        }.get(phase)


class Connection(Protocol):
    """One client's connection, as its owner sees it."""

    phase: Phase
    since_s: float  # when the phase began, by the loop's clock

    @property
    def unsent_bytes(self) -> int:
        """What the client has not fetched."""
        ...

    def time_out(self) -> None:
        """End it: the phase took too long, or its place is needed."""
        ...

    def abort(self) -> None:
        """End it at once, whatever is unsent."""
        ...

    def refuse(self) -> None:
        """Tell it that there is no place; it is then in the phase REFUSED."""
        ...


def room_for(descriptors: int, in_use: int, most: int) -> int:
    """How many connections a process may hold: `most`, or what its file descriptors allow.

    descriptors: the limit of the process. in_use: of them, before the first client. A quarter stays free, at least what
    a worker takes to start, for files and for connections on their way out.
    """
    return max(1, min(most, descriptors - in_use - max(_FREE, descriptors // 4)))


class Connections:
    """The owner of all connections of one server: it counts them, and ends those that take too long."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._open: dict[Connection, None] = {}
        self._unsent: dict[Connection, tuple[int, float]] = {}  # bytes left, and since when they are so many
        self._said_s: dict[str, float] = {}
        self._lines = LineLimit()
        self._timer: asyncio.TimerHandle | None = None

    def fit(self, descriptors: int, in_use: int) -> None:
        """Take no more connections than the process has descriptors for; see room_for."""
        self.limits = replace(self.limits, most=room_for(descriptors, in_use, self.limits.most))

    @property
    def open(self) -> int:
        """Connections that are open now."""
        return len(self._open)

    def made(self, connection: Connection) -> None:
        """Count a new one in. Beyond the limit the longest without a request goes, or else the new one is refused."""
        self._open[connection] = None
        if self._timer is None:
            self._sweep_later()
        held = [other for other in self._open if other.phase is not Phase.REFUSED]
        if len(held) <= self.limits.most:
            return
        waiting = [other for other in held if other is not connection and other.phase in (Phase.HEAD, Phase.IDLE)]
        if waiting:
            self._evict(min(waiting, key=lambda other: other.since_s))
        elif len(self._open) - len(held) < _MOST_REFUSED:
            self._say(f"All {self.limits.most} connections are in use by running requests: a client was refused.")
            connection.refuse()
        else:
            connection.abort()

    def lost(self, connection: Connection) -> None:
        """Count one out."""
        self._open.pop(connection, None)
        self._unsent.pop(connection, None)
        if not self._open and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def sweep(self, now_s: float) -> None:
        """End what has taken too long at this time of the loop's clock."""
        for connection in tuple(self._open):
            left = connection.unsent_bytes
            before, since_s = self._unsent.get(connection, (0, now_s))
            if left == 0:
                self._unsent.pop(connection, None)
            elif before == 0 or left < before:
                self._unsent[connection] = (left, now_s)
            elif now_s - since_s >= self.limits.write_s:
                self.note(f"A client that read nothing for {now_s - since_s:.0f} s was disconnected.")
                connection.abort()
                continue
            else:  # more than before may wait while a slow one reads: a later look sees it become less
                self._unsent[connection] = (left, since_s)
            seconds = self.limits.seconds(connection.phase)
            if seconds is not None and now_s - connection.since_s >= seconds:
                connection.time_out()

    def _sweep_later(self) -> None:
        loop = asyncio.get_running_loop()

        def sweep() -> None:
            self._sweep_later()
            self.sweep(loop.time())

        self._timer = loop.call_later(SWEEP_S, sweep)

    # --- when descriptors run out ------------------------------------------------------------------------------

    def watch_accepts(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on a failing accept is a line now and then, not asyncio's traceback many times a second."""
        handed_on = loop.get_exception_handler()

        def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            if context.get("message") == _ACCEPT_FAILED:
                self._accept_failed(loop, context.get("exception"))
            elif handed_on is not None:
                handed_on(loop, context)
            else:
                loop.default_exception_handler(context)

        loop.set_exception_handler(handle)

    def _accept_failed(self, loop: asyncio.AbstractEventLoop, error: BaseException | None) -> None:
        self._say(f"New clients wait: {error}. Raise the limit before the server starts: ulimit -n 4096.")
        for connection in _longest_idle(self._open, 1):
            self._evict(connection)

    def _evict(self, connection: Connection) -> None:
        """End one for its place. It is counted out at once: what comes before its end is not to choose it again."""
        self.lost(connection)
        if connection.unsent_bytes:
            connection.abort()
        else:
            connection.time_out()

    def note(self, line: str) -> None:
        """Write how a connection ended, but not a flood of such lines."""
        if (shown := self._lines.line(line)) is not None:
            _log.info("%s", shown)

    def _say(self, line: str) -> None:
        """A warning, unless the same one was said a moment ago."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._said_s.get(line, -_SAY_AGAIN_S) >= _SAY_AGAIN_S:
            self._said_s = {**self._said_s, line: now_s} if len(self._said_s) < 100 else {line: now_s}
            _log.warning("%s", line)


def _longest_idle(connections: Iterable[Connection], n: int) -> list[Connection]:
    waiting = [one for one in connections if one.phase in (Phase.HEAD, Phase.IDLE)]
    return sorted(waiting, key=lambda one: one.since_s)[:n]
