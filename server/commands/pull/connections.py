"""The connections of requests that run on threads, to end those that are waiting for an answer."""

from __future__ import annotations

import socket
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

_MADE: Final = (".connect_tcp.complete", ".start_tls.complete")


class Connections:
    """The connections of a client's requests that are sent with `extensions`.

    Closing a client does not wake a thread that reads from it: its socket has to be shut down. One that is still being
    connected has none; that ends by its own time limit.
    Source: httpx, "Request extensions": trace.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended = False
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    @property
    def extensions(self) -> Mapping[str, Any]:
        """What requests have to be sent with."""
        return {"trace": self._trace}

    def end(self) -> None:
        """End all connections, and those that are yet to be made: each request that waits fails at once."""
        with self._lock:
            self._ended = True
            sockets = list(self._sockets)
        for one in sockets:
            _shut_down(one)

    def _trace(self, event: str, about: Mapping[str, Any]) -> None:
        if not event.endswith(_MADE):
            return
        made = about["return_value"].get_extra_info("socket")
        with self._lock:
            self._sockets.add(made)
            ended = self._ended
        if ended:
            _shut_down(made)


def _shut_down(one: socket.socket) -> None:
    with suppress(OSError):  # it has ended by itself
        # Of a TLS socket too: its own `shutdown` takes away what the thread that reads is reading with.
        socket.socket.shutdown(one, socket.SHUT_RDWR)
