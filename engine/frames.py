"""Frames between the server and a worker: a length of four bytes, big-endian, then that much JSON in UTF-8."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Not loaded for it: it is a third of what the process takes to start that renders a template.
    import asyncio

MAX_FRAME_BYTES = 256 * 2**20  # more than any message of ours: a longer frame is no frame


def pack(message: Mapping[str, Any]) -> bytes:
    """One frame."""
    body = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return len(body).to_bytes(4, "big") + body


def unpack(body: bytes) -> dict[str, Any]:
    """A frame's message."""
    message: dict[str, Any] = json.loads(body.decode("utf-8", "surrogatepass"))
    return message


async def read(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """The next message, None when the other side is gone."""
    try:
        size = int.from_bytes(await reader.readexactly(4), "big")
        return unpack(await reader.readexactly(size)) if size <= MAX_FRAME_BYTES else None
    except (EOFError, ConnectionError):  # asyncio's IncompleteReadError is an EOFError
        return None


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """The next message, blocking; None when the other side is gone."""

    def exactly(count: int) -> bytes | None:
        data = bytearray()
        while len(data) < count:
            chunk = connection.recv(min(count - len(data), 1 << 20))
            if not chunk:
                return None
            data += chunk
        return bytes(data)

    try:
        head = exactly(4)
        size = int.from_bytes(head, "big") if head is not None else 0
        body = exactly(size) if head is not None and size <= MAX_FRAME_BYTES else None
    except ConnectionError:
        return None
    return unpack(body) if body is not None else None
