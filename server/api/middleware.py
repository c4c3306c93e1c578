"""What happens around every request: its id."""

from __future__ import annotations

import re
import uuid
from typing import Any, Final

from starlette.types import ASGIApp, Receive, Scope, Send

from coe.engine.logs import REQUEST_ID

from .journal import REQUEST_ID_KEY

REQUEST_ID_HEADER: Final = "x-request-id"
# OpenAI's clients look for the first, Anthropic's for the second.
REQUEST_ID_HEADERS: Final = (REQUEST_ID_HEADER, "request-id")
_ACCEPTED = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


class NameRequests:
    """Gives each request an id: the client's x-request-id where it is of use, else one of ours.

    It comes back in the header of the same name and in request-id, and stands in every log line of the request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"").decode("latin-1")
        name = given if _ACCEPTED.fullmatch(given) else f"req-{uuid.uuid4().hex[:16]}"

        async def naming(message: Any) -> None:
            if message["type"] == "http.response.start":
                ids = [(header.encode(), name.encode()) for header in REQUEST_ID_HEADERS]
                message["headers"] = [*message["headers"], *ids]
            await send(message)

        # For the handler of unforeseen errors, which runs outside of all middleware.
        scope[REQUEST_ID_KEY] = name
        token = REQUEST_ID.set(name)
        try:
            await self._app(scope, receive, naming)
        finally:
            REQUEST_ID.reset(token)
