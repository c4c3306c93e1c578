"""The HTTP application: dialects at their paths, status, errors in each dialect's words, and what lies around them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Final

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from coe.engine.errors import EngineError
from coe.engine.logs import for_request

from ..runtime.college import College
from ..runtime.errors import ClientGoneError, RequestError, UnknownPathError, failure_of
from ..runtime.metrics import Metrics
from . import openapi
from .answers import ROUTE_PATH, add_answers
from .dialect import Dialect
from .keys import Keys, RequireKey
from .middleware import REQUEST_ID_HEADER, REQUEST_ID_KEY, CountRequests, NameRequests
from .openai.dialects import CHAT, COMPLETIONS
from .origin import Doors, GuardDoors
from .status import add_builds, add_status

_log = logging.getLogger(__name__)

_OUR_HEADERS = ("specialist", "confidence", "reason", "residency", "wait-ms", "note", "build")

# FastAPI traces requests, bodies and errors for whatever the environment or a library has set up for that.
_NO_TELEMETRY: Final[TelemetryConfig] = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
NO_KEYS: Final = Keys()

# Where each dialect is served. Errors outside these paths are written as the first dialect writes them.
DIALECTS: Final[Mapping[str, Dialect]] = {"/v1/chat/completions": CHAT, "/v1/completions": COMPLETIONS}


def make_app(
    college: College,
    keys: Keys = NO_KEYS,
    *,
    hosts: Collection[str] = (),
    dialects: Mapping[str, Dialect] = DIALECTS,
) -> FastAPI:
    """The application over an opened college; it is started with the server, and closed with it.

    hosts: names that it answers to beside those of `origin.Doors`.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await college.start()
        try:
            yield
        finally:
            await college.close()

    app = FastAPI(
        title="College of Experts",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=openapi.PATH,
        telemetry=_NO_TELEMETRY,
    )
    metrics = Metrics(college.pool.status, college.builds.cards)
    default = next(iter(dialects.values()))

    def dialect_at(path: str) -> Dialect:
        """The dialect whose path this is, or lies below."""
        return next((d for at, d in dialects.items() if path == at or path.startswith(f"{at}/")), default)

    add_answers(app, college, metrics, dialects)
    add_status(app, college, metrics)
    add_builds(app, college)
    openapi.add_openapi(app, needs_key=bool(keys))
    _add_errors(app, dialect_at, metrics)
    if keys:
        app.add_middleware(RequireKey, keys=keys, answering=(*dialects, ROUTE_PATH), dialect_at=dialect_at)
    doors = Doors(hosts, college.roster.server.cors_origins)
    app.add_middleware(GuardDoors, doors=doors, served=app.router, dialect_at=dialect_at)
    if college.roster.server.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(college.roster.server.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=[REQUEST_ID_HEADER, *(f"x-coe-{name}" for name in _OUR_HEADERS)],
        )
    # Last, so outermost: what the others refuse is counted, too, and has an id.
    app.add_middleware(CountRequests, metrics=metrics)
    app.add_middleware(NameRequests)
    return app


def _add_errors(app: FastAPI, dialect_at: Callable[[str], Dialect], metrics: Metrics) -> None:
    async def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            what = f"Nothing is served at {request.method} {request.url.path}. See docs/api.md for the paths."
            error = UnknownPathError(what, error.status_code)
        failure = failure_of(error)
        headers = dict(failure.headers)
        if failure.status == 500:
            name = request.scope.get(REQUEST_ID_KEY, "")
            _log.error("%s %s failed", request.method, request.url.path, exc_info=error, extra=for_request(name))
            if not isinstance(error, EngineError):  # it has left all middleware behind, which would name and count it
                headers[REQUEST_ID_HEADER] = name
                metrics.requested(getattr(request.scope.get("route"), "path", "other"), 500)
        else:
            # What was wrong with a request is told to its client alone: the message may quote it.
            reason = failure.message if failure.status >= 500 else failure.code or failure.param or failure.type
            _log.debug("%s %s refused with %d: %s", request.method, request.url.path, failure.status, reason)
        body = dialect_at(request.url.path).error_body(failure)
        return JSONResponse(body, failure.status, headers)

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nginx's code for a client that closed the connection

    for kind in (RequestError, EngineError, HTTPException, Exception):
        app.add_exception_handler(kind, refuse)
    app.add_exception_handler(ClientGoneError, gone)
