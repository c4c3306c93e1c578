"""Request bodies: read within bounds of size, time and number, and understood outside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from starlette.requests import ClientDisconnect, Request

from ..roster.models import ServerSection
from ..runtime.errors import BodyTimeoutError, BodyTooLargeError, ClientGoneError
from .encodings import check_charset, decoded, encodings_of
from .json_body import parse_json
from .uploads import Upload

_T = TypeVar("_T")

_AT_ONCE_BYTES: Final = 16 * 1024  # a body of so many is parsed in a millisecond: a thread would take longer
# One thread for all large bodies: each that parses wants the interpreter's lock, and so does the event loop.
_reader: Final = ThreadPoolExecutor(1, "coe-bodies")


async def read_json(request: Request, settings: ServerSection, then: Callable[[dict[str, Any]], _T]) -> _T:
    """What `then` makes of a request's JSON object. A large body is parsed outside the event loop, and `then` with it.

    Raises RequestError for what is too large, too late, encoded in a way that is not taken or no JSON object, and what
    `then` raises; ClientGoneError when the client leaves before it has sent all.
    """
    encodings = encodings_of(request.headers)
    check_charset(request.headers)
    limit = settings.max_body_bytes
    upload = Upload.of(request.scope)
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            body = await _read(request, upload, limit)
    except TimeoutError:
        raise BodyTimeoutError(
            f"The body did not come within {settings.body_timeout_s:.0f} s. Send it faster, or raise "
            "server.body_timeout_s in the roster."
        ) from None
    if len(body) <= _AT_ONCE_BYTES and not encodings:
        return then(parse_json(body))
    loop = asyncio.get_running_loop()
    if encodings:
        body = await loop.run_in_executor(_reader, decoded, body, encodings, limit)
        upload.hold(len(body))
    return await loop.run_in_executor(_reader, lambda: then(parse_json(body)))


async def _read(request: Request, upload: Upload, limit: int) -> bytes:
    message = f"The body is larger than {limit:,} bytes. Send less, or raise server.max_body_bytes in the roster."
    declared = request.headers.get("content-length", "")
    if (declared.isdigit() and len(declared) > 20) or (declared.isdigit() and int(declared) > limit):
        raise BodyTooLargeError(message)
    body = bytearray()
    try:
        async for chunk in request.stream():
            if len(body) + len(chunk) > limit:
                raise BodyTooLargeError(message)
            upload.hold(len(body) + len(chunk))
            body += chunk
    except ClientDisconnect:
        raise ClientGoneError from None
    return bytes(body)
