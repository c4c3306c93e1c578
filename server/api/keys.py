"""API keys: where the roster says they are, and the middleware that asks every request for one."""

from __future__ import annotations

import os
from collections.abc import Callable
from hmac import compare_digest

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from coe.engine.files import read_bounded

from ..roster.models import Roster
from ..runtime.errors import NoKeyError, failure_of
from .dialect import Dialect

_MOST_KEYS_BYTES = 2**20

_OPEN_PATHS = ("/health", "/ready")


def read_keys(roster: Roster) -> frozenset[str]:
    """API keys from the places that the roster names. Raises ValueError when a place is empty."""
    keys: set[str] = set()
    settings = roster.server
    if settings.api_keys_env is not None:
        found = {key.strip() for key in os.environ.get(settings.api_keys_env, "").split(",") if key.strip()}
        if not found:
            raise ValueError(
                f"server.api_keys_env names {settings.api_keys_env}, which is empty or not set. "
                "Set it to keys with commas between them, or remove the line."
            )
        keys |= found
    if settings.api_keys_file is not None:
        path = roster.resolve(settings.api_keys_file)
        try:
            lines = read_bounded(path, _MOST_KEYS_BYTES).decode().splitlines()
        except OSError as error:
            raise ValueError(f"server.api_keys_file: {path} cannot be read: {error.strerror}.") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"server.api_keys_file: {path} is not UTF-8.") from error
        found = {line.strip() for line in lines if line.strip() and not line.startswith("#")}
        if not found:
            raise ValueError(f"server.api_keys_file: {path} holds no key. Write one a line, or remove the setting.")
        keys |= found
    return frozenset(keys)


class RequireKey:
    """Every path but the health checks wants `Authorization: Bearer KEY`; keys are compared in constant time."""

    def __init__(self, app: ASGIApp, keys: frozenset[str], dialect_at: Callable[[str], Dialect]) -> None:
        self._app = app
        self._dialect_at = dialect_at
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["path"] in _OPEN_PATHS or self._known(scope):
            await self._app(scope, receive, send)
            return
        failure = failure_of(NoKeyError("A valid API key is needed: send Authorization: Bearer KEY."))
        body = self._dialect_at(scope["path"]).error_body(failure)
        await JSONResponse(body, failure.status)(scope, receive, send)

    def _known(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        # Look at all of them: an early end would tell which one was nearly right.
        hits = [compare_digest(key.strip(), known) for known in self._keys]
        return scheme.lower() == b"bearer" and any(hits)
