"""The events of one request that its reader has not taken yet: a bounded buffer, so that no generation waits for its
reader (flow control). A reader that is far behind finds deltas joined to larger ones."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from ..errors import EngineError, SlowReaderError
from ..request import Delta, Embedded, Event, Finished, Rejected, Told

ENDS: Final = (Finished, Rejected, Told, Embedded)  # events after which a request has no other

_BEHIND: Final = 16  # events that wait, from which on deltas are joined: a reader that keeps pace gets them one by one
_JOINED_BYTES: Final = 1024  # of text, that one delta is joined up to
_LOGPROB_BYTES: Final = 64  # about what a token's log-probability takes in an answer, and each of its rivals'


class Unread:
    """Bounds text that waits for readers: of one request, and of all requests that share this.

    A request whose reader has taken all there was may always go on, however much the others' have left.
    """

    def __init__(self, each_bytes: int, total_bytes: int) -> None:
        """each_bytes: of one request. total_bytes: of all together."""
        self.each_bytes = each_bytes
        self.total_bytes = total_bytes
        self._waiting_bytes = [0]  # shared by those of `with_each`

    def with_each(self, each_bytes: int) -> Unread:
        """For requests of which each may leave so much unread; what all leave together counts here as there."""
        other = Unread(each_bytes, self.total_bytes)
        other._waiting_bytes = self._waiting_bytes
        return other

    @property
    def waiting_bytes(self) -> int:
        """Of all requests together."""
        return self._waiting_bytes[0]

    @waiting_bytes.setter
    def waiting_bytes(self, waiting_bytes: int) -> None:
        self._waiting_bytes[0] = waiting_bytes

    def fault(self, waiting_bytes: int, more_bytes: int) -> SlowReaderError | None:
        """Why a request, so much of which waits already, may not have more of it wait; None when it may."""
        if waiting_bytes + more_bytes > self.each_bytes:
            return SlowReaderError(self.each_bytes)
        if self.waiting_bytes + more_bytes > self.total_bytes:
            return SlowReaderError(self.total_bytes, of_all=True)
        return None


class Inbox:
    """Holds what a worker said of a request until it is taken.

        open ── Finished, Rejected ──> ended: what is there can still be taken
          ├──── fail ────────────────> ended: then the error is raised
          └──── more than may wait ──> ended, then SlowReaderError

    `on_end` is called once, when the request has ended, whether or not anything was taken: from then on the resident
    does nothing for it any more. `close` it when its reader has gone.
    """

    def __init__(self, on_end: Callable[[], None] | None = None, unread: Unread | None = None) -> None:
        """unread: what may wait for the reader; None for no limit."""
        self._on_end = on_end
        self._unread = unread
        self._events: deque[Event] = deque()
        self._waiting_bytes = 0
        self._arrived = asyncio.Event()
        self._error: EngineError | None = None
        self.ended = False

    def __len__(self) -> int:
        """Events that can be taken at once."""
        return len(self._events)

    def put(self, event: Event) -> None:
        """Keep an event for the reader; what comes after the end is dropped."""
        if self.ended:
            return
        size = _size(event)
        waits = self._waiting_bytes
        if self._unread is not None and waits and (fault := self._unread.fault(waits, size)):
            self.fail(fault)
            return
        self._wait(size)
        last = self._events[-1] if len(self._events) >= _BEHIND else None
        if isinstance(event, Delta) and isinstance(last, Delta) and _joinable(last, event):
            self._events[-1] = _joined(last, event)
        else:
            self._events.append(event)
        self._arrived.set()
        if isinstance(event, ENDS):
            self._end()

    def fail(self, error: EngineError) -> None:
        """End the request with an error, which is raised when all that came before it has been taken."""
        if not self.ended:
            self._error = error
            self._arrived.set()
            self._end()

    def _end(self) -> None:
        self.ended = True
        if self._on_end is not None:
            self._on_end()

    async def take(self) -> Event:
        """The next event; waits for it. Raises the error that `fail` was given. Not to be called after the last."""
        while not self._events:
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        event = self._events.popleft()
        self._wait(-_size(event))
        return event

    def close(self) -> None:
        """Drop what was not taken, and leave its room to others; nothing may be put or taken afterwards."""
        self._events.clear()
        self._wait(-self._waiting_bytes)

    def _wait(self, more_bytes: int) -> None:
        self._waiting_bytes += more_bytes
        if self._unread is not None:
            self._unread.waiting_bytes += more_bytes


def _size(event: Event) -> int:
    """About the bytes that an event adds to an answer; the same for two deltas as for what they are joined to."""
    if not isinstance(event, Delta):
        return 0
    texts = [event.text, event.reasoning]
    for piece in event.calls:
        texts += [piece.name or "", piece.arguments]
    rivals = sum(1 + len(entry.top) for entry in event.logprobs)
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) + _LOGPROB_BYTES * rivals


def _joinable(first: Delta, second: Delta) -> bool:
    """Reasoning comes before text, and both before calls: one delta cannot say that they came after."""
    turns_back = (second.reasoning and (first.text or first.calls)) or (second.text and first.calls)
    return not turns_back and _size(first) + _size(second) <= _JOINED_BYTES


def _joined(first: Delta, second: Delta) -> Delta:
    return Delta(
        first.id,
        first.text + second.text,
        first.reasoning + second.reasoning,
        (*first.logprobs, *second.logprobs),
        (*first.calls, *second.calls),
    )
