"""Connections whose clients have stopped reading (a send timeout): decided by what waits in their write buffers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

READ_S: Final = 60.0  # as nginx's send_timeout


class Writing(Protocol):
    """What is looked at of a connection's transport; asyncio's and uvloop's have it."""

    def get_write_buffer_size(self) -> int:
        """Bytes that the kernel has not taken yet."""
        ...

    def abort(self) -> None:
        """Close the connection, whatever waits."""
        ...


class StuckReaders:
    """Remembers how much waited for each client, and since when it has been exactly so much.

    A client that reads, however slowly, changes that figure: the kernel takes more from the buffer.
    """

    def __init__(self, read_s: float = READ_S) -> None:
        self._read_s = read_s
        self._seen: dict[Writing, tuple[int, float]] = {}  # transport -> bytes, since when

    def look(self, transports: Iterable[Writing], now: float) -> list[Writing]:
        """The connections from which nothing was read for read_s while something waited. now: monotonic seconds."""
        seen: dict[Writing, tuple[int, float]] = {}
        for transport in transports:
            if size := transport.get_write_buffer_size():
                before = self._seen.get(transport)
                seen[transport] = before if before is not None and before[0] == size else (size, now)
        self._seen = seen
        return [transport for transport, (_, since) in seen.items() if now - since >= self._read_s]
