"""Bytes of request bodies over all requests: counted as they come, given back when the request is over."""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from ..runtime.errors import UploadsFullError

_KEY: Final = "coe.upload"  # of the ASGI scope
FREE_BYTES: Final = 64 * 1024  # of each body that are not counted: who asks a short question is never turned away


class Uploads:
    """The total of all bodies that are being sent or answered."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0


class Upload:
    """The part of one request."""

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads
        self._counted = 0

    def hold(self, n_bytes: int) -> None:
        """Hold so many bytes from now on. Raises UploadsFullError where all requests together have too many then."""
        counted = max(0, n_bytes - FREE_BYTES)
        total = self._uploads.held_bytes + counted - self._counted
        if counted > self._counted and total > self._uploads.limit_bytes:
            raise UploadsFullError(
                f"The bodies of all requests together are larger than {self._uploads.limit_bytes:,} bytes. "
                "Send it again in a moment, or raise server.max_uploads_bytes in the roster."
            )
        self._uploads.held_bytes = total
        self._counted = counted

    @classmethod
    def of(cls, scope: Scope) -> Upload:
        """That of a request that came through BoundUploads."""
        upload = scope[_KEY]
        assert isinstance(upload, cls)
        return upload


class BoundUploads:
    """Gives each request its part of the total, and takes it back when the request is over."""

    def __init__(self, app: ASGIApp, uploads: Uploads) -> None:
        self._app = app
        self._uploads = uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        upload = scope[_KEY] = Upload(self._uploads)
        try:
            await self._app(scope, receive, send)
        finally:
            upload.hold(0)
