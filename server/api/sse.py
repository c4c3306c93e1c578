"""Responses that own an answer until its last byte, or until the client leaves."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..runtime.errors import ClientGoneError, failure_of

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

KEEP_ALIVE_S = 5.0  # between comment frames while a stream has nothing to say
COMMENT = b": waiting\n\n"  # keeps proxies and clients from giving up


async def until_gone(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of work, which is cancelled when the client leaves first.

    The request's body must have been read. Raises ClientGoneError.
    """
    task = asyncio.create_task(work)
    watch = asyncio.create_task(_disconnected(request.receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return await task
    finally:
        watch.cancel()
        task.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def data_frame(message: Mapping[str, Any]) -> bytes:
    """A server-sent event with a JSON object."""
    return b"data: " + json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class EventStream(Response):
    """Server-sent events from a generator of frames.

    Whatever ends the stream (its end, an error, the client's leaving, the server's stop), `close` has run when
    __call__ returns; it may run twice. An error after the first byte becomes an error frame, and then the stream ends.
    """

    media_type = "text/event-stream"

    def __init__(
        self, frames: AsyncGenerator[bytes, None], close: Callable[[], Awaitable[None]], headers: Mapping[str, str]
    ) -> None:
        self.status_code = 200
        self.background = None
        self.body = b""
        self._frames = frames
        self._close = close
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", **headers})
        # A stream's length is not known.
        self.raw_headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sender = asyncio.create_task(self._send(send))
        watch = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({sender, watch}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sender.cancel()
            watch.cancel()
            results = await asyncio.gather(sender, watch, return_exceptions=True)
            await self._close()
        if isinstance(results[0], Exception):
            _log.debug("the client left a stream: %r", results[0])

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with aclosing(with_comments(self._frames)) as frames:
                async for frame in frames:
                    await send({"type": "http.response.body", "body": frame, "more_body": True})
        except OSError:
            raise
        except Exception as error:
            failure = failure_of(error)
            if failure.status == 500:
                _log.exception("a stream failed")
            await send({"type": "http.response.body", "body": data_frame(failure.body()), "more_body": True})
        # Before the client learns of the end: its next request is to find the lease given back.
        await self._close()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def with_comments(
    frames: AsyncGenerator[bytes, None], seconds: float = KEEP_ALIVE_S
) -> AsyncGenerator[bytes, None]:
    """The frames, and a comment whenever none comes for some seconds. Closing it closes `frames`."""
    try:
        while True:
            following = asyncio.ensure_future(anext(frames, None))
            try:
                while not (await asyncio.wait({following}, timeout=seconds))[0]:
                    yield COMMENT
            finally:
                if not following.done():  # it must end before `frames` can be closed
                    following.cancel()
                    await asyncio.gather(following, return_exceptions=True)
            if (frame := following.result()) is None:
                return
            yield frame
    finally:
        await frames.aclose()
