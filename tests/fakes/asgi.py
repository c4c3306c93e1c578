"""The other end of an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]


class Client:
    """The other end of an ASGI application."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.got: list[Message] = []
        self.reads = asyncio.Event()  # while it is clear, sending blocks
        self.reads.set()

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.got.append(message)
        await self.reads.wait()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.got)


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0)
