"""Responses that own an answer until its last byte, or until the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..runtime.errors import ClientGoneError, Failure, failure_of
from .dialect import Dialect
from .journal import OUTCOME_KEY, about

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

KEEP_ALIVE_S = 5.0  # without a frame, until one that says nothing is sent


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


class EventStream(Response):
    """A streamed answer from a generator of frames, in the format of its dialect.

        head ── frames ──> ended ── close ──> last, empty body
         │        │ an error after the first byte: an error frame, then the same end
         └────────┴── the client leaves, or the server stops ──> close

    Whatever ends the stream, `close` has run when __call__ returns; it may run twice. While no frame comes for
    keep_alive_s, a frame that says nothing keeps proxies and clients from giving up.
    """

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        close: Callable[[], Awaitable[None]],
        headers: Mapping[str, str],
        dialect: Dialect,
        *,
        error_frame: Callable[[Failure], bytes] | None = None,
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        """error_frame: how an error after the first byte is told; the dialect's without."""
        self.status_code = 200
        self.background = None
        self.body = b""
        self.media_type = dialect.stream_format.media_type
        self._keep_alive_frame = dialect.stream_format.keep_alive
        self._error_frame = error_frame or dialect.error_frame
        self._frames = frames
        self._close = close
        self._keep_alive_s = keep_alive_s
        self._last_s = 0.0  # when the last frame went, 0 before the first
        self._sending = asyncio.Lock()
        self._ended = False
        self._failure: Failure | None = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", **headers})
        # A stream's length is not known.
        self.raw_headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sender = asyncio.create_task(self._send(send))
        watch = asyncio.create_task(_disconnected(receive))
        try:
            await self._keep_alive({sender, watch}, send)
        finally:
            sender.cancel()
            watch.cancel()
            results = await asyncio.gather(sender, watch, return_exceptions=True)
            await self._close()
        if self._failure is not None:
            scope[OUTCOME_KEY] = "failed"
            about(scope, end=self._failure.code or self._failure.type)
        elif not self._ended:
            scope[OUTCOME_KEY] = "left"
            about(scope, end="client_left")
        if isinstance(results[0], Exception):
            _log.debug("the client left a stream: %r", results[0])

    async def _keep_alive(self, ends: set[asyncio.Task[None]], send: Send) -> None:
        """Returns when one of the tasks has ended. Here and not in the sender, which then needs no task a frame."""
        keep_alive = self._keep_alive_frame
        clock = asyncio.get_running_loop().time
        silent_s = 0.0  # so far; of a stream whose client does not read, too, which is told nothing more
        while True:
            done, _ = await asyncio.wait(
                ends, timeout=self._keep_alive_s - silent_s, return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                return
            silent_s = clock() - self._last_s if self._last_s and not self._sending.locked() else 0.0
            if silent_s >= self._keep_alive_s:
                silent_s = 0.0
                if keep_alive is not None:
                    with contextlib.suppress(OSError):  # the client left: `watch` says so
                        await self._send_body(send, keep_alive)

    async def _send_body(self, send: Send, body: bytes) -> None:
        async with self._sending:
            await send({"type": "http.response.body", "body": body, "more_body": True})
        self._last_s = asyncio.get_running_loop().time()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._last_s = asyncio.get_running_loop().time()
        try:
            async with aclosing(self._frames) as frames:
                async for frame in frames:
                    await self._send_body(send, frame)
        except OSError:
            raise
        except Exception as error:
            self._failure = failure = failure_of(error)
            if failure.unforeseen:
                _log.exception("a stream failed")
            await self._send_body(send, self._error_frame(failure))
        self._ended = True
        # Before the client learns of the end: its next request is to find the lease given back.
        await self._close()
        async with self._sending:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
