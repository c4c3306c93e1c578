"""HTTP/1.1 on one connection: uvicorn's protocol, in phases that `connections.py` bounds, with our errors."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
from http import HTTPStatus
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..runtime.errors import Failure
from .connections import Connections, Phase
from .openai.replies import error_body

# uvicorn's lines about clients' mistakes come one a request; bugs of ours stay.
_errors_only = logging.getLogger("uvicorn.error.http")
_errors_only.setLevel(logging.ERROR)

_TLS_HANDSHAKE: Final = b"\x16\x03"
_SLICE_BYTES: Final = 4 * 1024  # of a read that are parsed before others have their turn
_MOST_HEAD_BYTES: Final = 64 * 1024
_MOST_HEADER_LINES: Final = 200
_END_OF_HEAD: Final = re.compile(rb"\n\r?\n")
# Where h11's words go on with the bytes that it could not read. They may be those of a key, or of a prompt.
_READ_BYTES: Final = re.compile(r":? (bytearray\()?b['\"].*", re.DOTALL)


class _BoundedParser(h11.Connection):
    """h11, stricter where a proxy before us could read a request otherwise (RFC 9112, 6.1), and bounded in lines."""

    def next_event(self) -> Any:
        """See h11.Connection. Raises RemoteProtocolError, as it does, for what is refused."""
        if self.their_state is h11.IDLE:
            # Before they are parsed: thousands of short lines fit into what h11 allows.
            head = _END_OF_HEAD.split(self.trailing_data[0].lstrip(b"\r\n"), maxsplit=1)[0]
            if head.count(b"\n") > _MOST_HEADER_LINES:
                raise h11.RemoteProtocolError("too many header lines", error_status_hint=431)
        event = super().next_event()
        if isinstance(event, h11.Request):
            _refuse_two_readings(event)
        return event

    def send_with_data_passthrough(self, event: h11.Event) -> list[bytes] | None:
        """See h11.Connection, whose `send` asks it.

        An answer that comes while its client waits for 100 (Continue) ends the connection.
        Whether the body follows all the same is not known then (RFC 9110, 10.1.1), so no next request can be found.
        """
        if isinstance(event, h11.Response) and self.they_are_waiting_for_100_continue:
            headers = [*event.headers, (b"connection", b"close")]
            event = h11.Response(status_code=event.status_code, headers=headers, reason=event.reason)
        return super().send_with_data_passthrough(event)


def _refuse_two_readings(request: h11.Request) -> None:
    names = [name for name, _ in request.headers]
    if b"transfer-encoding" not in names:
        return
    if b"content-length" in names:
        raise h11.RemoteProtocolError("Content-Length and Transfer-Encoding exclude each other")
    if request.http_version < b"1.1":
        raise h11.RemoteProtocolError("HTTP/1.0 has no Transfer-Encoding")


class BoundedProtocol(H11Protocol):
    """One connection. Its owner ends it when a phase takes too long; see `Connection`."""

    def __init__(self, owner: Connections, **server: Any) -> None:
        super().__init__(**server)
        self.conn = _BoundedParser(h11.SERVER, self.config.h11_max_incomplete_event_size or _MOST_HEAD_BYTES)
        self.logger = _errors_only
        self.phase = Phase.HEAD
        self.since_s = self.loop.time()
        self._owner = owner
        self._partial = False  # some bytes of a head have come, and not all
        self._first = b""
        self._unparsed = bytearray()
        self._parse_handle: asyncio.Handle | None = None

    # --- asyncio ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        self._owner.made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._owner.lost(self)
        if self._parse_handle is not None:
            self._parse_handle.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse a slice at a time: a read may hold tens of thousands of chunks, each an event to h11."""
        if self.phase is Phase.REFUSED:
            return
        if not self._first:
            self._first = data[:2]
        self._unparsed += data
        if self._parse_handle is None:
            self._parse_slice()
        if self._unparsed and not self.transport.is_closing():
            self.transport.pause_reading()

    def _parse_slice(self) -> None:
        self._parse_handle = None
        if self.transport.is_closing():
            return
        data = bytes(self._unparsed[:_SLICE_BYTES])
        del self._unparsed[:_SLICE_BYTES]
        super().data_received(data)
        self._partial = self.phase is not Phase.SERVING
        self._look()
        if self._unparsed:
            self._parse_handle = self.loop.call_soon(self._parse_slice)
        elif not self.flow.read_paused:  # else uvicorn goes on when the body so far was taken
            self.transport.resume_reading()

    # --- uvicorn ------------------------------------------------------------------------------------------------

    def handle_events(self) -> None:
        """See H11Protocol."""
        super().handle_events()
        self._look()

    def on_response_complete(self) -> None:
        """See H11Protocol."""
        self._partial = False
        super().on_response_complete()
        self._look()

    def _unsupported_upgrade_warning(self) -> None:
        """An upgrade that is not made needs no word: RFC 9110, 7.8 lets a server ignore the wish."""

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is refused in our envelope, with the status that h11 has for it."""
        error = sys.exc_info()[1]
        status = getattr(error, "error_status_hint", 400)
        if self._first == _TLS_HANDSHAKE:
            what = (
                "This server speaks plain HTTP: write http:// in place of https://, or put a proxy with TLS before it."
            )
        elif status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
            what = (
                f"The request's line and headers are too large or more than {_MOST_HEADER_LINES} lines. "
                "Send fewer or shorter headers."
            )
        else:
            said = _READ_BYTES.sub("", str(error or msg))
            what = f"This is not HTTP/1.1 as the server reads it: {said}."
        self._end_with(Failure(status, what, "invalid_request_error", "invalid_http"))

    # --- Connection ---------------------------------------------------------------------------------------------

    @property
    def unsent_bytes(self) -> int:
        """See Connection."""
        return self.transport.get_write_buffer_size()

    def time_out(self) -> None:
        """See Connection. Half a head is answered with 408, so that its sender learns why."""
        if self.transport.is_closing():
            return
        if self.phase is Phase.HEAD and self._partial:
            what = f"The request's headers did not come within {self._owner.limits.head_s:.0f} s. Send it again."
            self._end_with(Failure(408, what, "invalid_request_error", "request_timeout"))
        else:
            self.transport.close()

    def abort(self) -> None:
        """See Connection."""
        self.transport.abort()

    def refuse(self) -> None:
        """See Connection."""
        self._enter(Phase.REFUSED)
        what = "The server holds as many connections as it may, all with running requests. Try again in a moment."
        failure = Failure(503, what, "server_error", "too_many_connections", headers={"retry-after": "5"})
        self._write(failure)
        # Only this half is closed: what the client has sent unread would make its system drop the answer.
        self.transport.write_eof()

    # ------------------------------------------------------------------------------------------------------------

    def _end_with(self, failure: Failure) -> None:
        self._owner.note(f"{self._peer}: a connection ended with {failure.status}: {failure.message}")
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._write(failure)
            self.transport.close()
        else:
            self.transport.abort()  # an answer is under way: its end must not look whole

    def _write(self, failure: Failure) -> None:
        body = json.dumps(error_body(failure)).encode()
        length = str(len(body))
        headers = {"content-type": "application/json", "content-length": length, "connection": "close"}
        lines = [f"HTTP/1.1 {failure.status} {HTTPStatus(failure.status).phrase}"]
        lines += [f"{name}: {value}" for name, value in {**headers, **failure.headers}.items()]
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)

    def _look(self) -> None:
        """Enter the phase that the connection is in now."""
        if self.phase is Phase.REFUSED:
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._enter(Phase.SERVING)
        elif self.cycle is not None and self.conn.their_state is h11.SEND_BODY:
            self._enter(Phase.DRAINING)
        elif self.cycle is not None and not self._partial:
            self._enter(Phase.IDLE)
        else:
            self._enter(Phase.HEAD)

    def _enter(self, phase: Phase) -> None:
        if phase is not self.phase:
            self.phase = phase
            self.since_s = self.loop.time()

    @property
    def _peer(self) -> str:
        return f"{self.client[0]}:{self.client[1]}" if self.client else "a client"
