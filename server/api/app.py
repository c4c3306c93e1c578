"""The HTTP application: dialects at their paths, status, errors in each dialect's words, and what lies around them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Final

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Scope

from coe.engine.errors import EngineError
from coe.engine.logs import REQUEST_ID, for_request

from ..runtime.college import College
from ..runtime.errors import ClientGoneError, RequestError, failure_of
from ..runtime.line_limit import LineLimit
from ..runtime.metrics import Metrics
from . import openapi
from .answers import ROUTE_PATH, add_answers
from .anthropic.count import COUNT_PATH, add_count
from .anthropic.dialect import MESSAGES, VERSION_HEADER
from .anthropic.hello import add_hello
from .dialect import Dialect, error_response
from .embeddings.paths import EMBEDDING_PATHS, add_embeddings, embedding
from .journal import REQUEST_ID_KEY, Journal
from .keys import Keys, RequireKey
from .llama_server.dialect import INFILL
from .middleware import REQUEST_ID_HEADERS, NameRequests
from .models import add_models
from .ollama.dialects import CHAT as OLLAMA_CHAT
from .ollama.dialects import GENERATE as OLLAMA_GENERATE
from .ollama.embed import EMBED_PATHS, add_embed
from .ollama.listings import LISTING_PATHS, add_listings
from .openai.described import ERROR
from .openai.dialects import CHAT, COMPLETIONS
from .openapi import gives
from .origin import Doors, GuardDoors
from .paths import AnswerHead, Paths, shown
from .responses.dialect import ResponsesDialect
from .responses.paths import PATH as RESPONSES_PATH
from .responses.paths import add_responses
from .responses.store import ResponseStore
from .status import add_builds, add_status
from .tokens import TOKEN_PATHS, add_tokens
from .uploads import BoundUploads, Uploads

_log = logging.getLogger(__name__)

_OUR_HEADERS = ("specialist", "confidence", "reason", "residency", "wait-ms", "note", "build")

# FastAPI traces requests, bodies and errors for whatever the environment or a library has set up for that.
_NO_TELEMETRY: Final[TelemetryConfig] = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
NO_KEYS: Final = Keys()

# Where each dialect is served.
DIALECTS: Final[Mapping[str, Dialect]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/messages": MESSAGES,
    "/infill": INFILL,
    "/api/chat": OLLAMA_CHAT,
    "/api/generate": OLLAMA_GENERATE,
}
# Who writes the errors of other paths; those of no family are written as the first dialect writes them. Below /api/v1
# other servers have OpenAI's API, whose clients ask there by mistake.
FAMILIES: Final[Mapping[str, Dialect]] = {"/api/v1": CHAT, "/api": OLLAMA_CHAT}
_OLLAMA_IS_THERE: Final = "Ollama is running"  # by which its clients know it
# Of paths that are nobody's, too, where a header tells what the client speaks.
_BY_HEADER: Final[Mapping[bytes, Dialect]] = {VERSION_HEADER: MESSAGES}


def make_app(
    college: College,
    keys: Keys = NO_KEYS,
    *,
    hosts: Collection[str] = (),
    dialects: Mapping[str, Dialect] = DIALECTS,
    ollama_port: int | None = None,
) -> FastAPI:
    """The application over an opened college; it is started with the server, and closed with it.

    hosts: names that it answers to beside those of `origin.Doors`. ollama_port: where `/` answers as Ollama's does.
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
    app.router.redirect_slashes = False  # to an address made of the client's Host; the refusal names the path
    metrics = Metrics(college.pool.status, college.builds.cards)
    app.state.metrics = metrics
    default = next(iter(dialects.values()))
    store = ResponseStore(college.roster.server.max_stored_bytes)
    written: Mapping[str, Dialect] = {**dialects, RESPONSES_PATH: ResponsesDialect(store)}

    def at_ollamas_port(scope: Scope) -> bool:
        return ollama_port is not None and (scope.get("server") or (None, None))[1] == ollama_port

    def dialect_at(scope: Scope) -> Dialect:
        """The dialect whose path it is, or lies below, or belongs to the family of; else of its headers or port."""
        path = scope["path"]
        known = (*written.items(), *FAMILIES.items())
        found = next((d for at, d in known if path == at or path.startswith(f"{at}/")), None)
        found = found or next((_BY_HEADER[name] for name, _ in scope["headers"] if name in _BY_HEADER), None)
        return found or (OLLAMA_CHAT if at_ollamas_port(scope) else default)

    answer = add_answers(app, college, metrics, dialects)
    add_responses(app, college, store, answer, by_key=bool(keys))
    add_models(app, college)
    add_status(app, college, metrics)
    add_builds(app, college)
    add_tokens(app, college)
    add_count(app, college)
    add_hello(app)
    embed = embedding(college, metrics)
    add_embeddings(app, college, embed)
    add_listings(app, college)
    add_embed(app, college, embed)
    openapi.add_openapi(app, needs_key=bool(keys))

    @app.get("/", responses=gives({"type": "object"}, ERROR, stream="text/plain"))
    async def root(request: Request) -> Response:
        """What is served where; at the port of Ollama the line that its clients look for."""
        if at_ollamas_port(request.scope):
            return PlainTextResponse(_OLLAMA_IS_THERE)
        return JSONResponse(paths.card())

    paths = Paths(app)
    _add_errors(app, dialect_at, metrics, paths)
    if keys:
        app.add_middleware(
            RequireKey,
            keys=keys,
            answering=(
                *(*dialects, RESPONSES_PATH, f"{RESPONSES_PATH}/", ROUTE_PATH),
                *(*TOKEN_PATHS, COUNT_PATH, *EMBEDDING_PATHS, *LISTING_PATHS, *EMBED_PATHS),
            ),
            dialect_at=dialect_at,
        )
    doors = Doors(hosts, college.roster.server.cors_origins)
    app.add_middleware(GuardDoors, doors=doors, served=app.router, dialect_at=dialect_at)
    if college.roster.server.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(college.roster.server.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=[*REQUEST_ID_HEADERS, *(f"x-coe-{name}" for name in _OUR_HEADERS)],
        )
    settings = college.roster.server
    # A body that may come at all may come alone.
    app.add_middleware(BoundUploads, uploads=Uploads(max(settings.max_uploads_bytes, settings.max_body_bytes)))
    # Last, so outermost: what the others refuse is counted, too, and has an id.
    app.add_middleware(Journal, metrics=metrics, slow_s=settings.slow_request_s)
    app.add_middleware(NameRequests)
    app.add_middleware(AnswerHead)
    return app


def _add_errors(app: FastAPI, dialect_at: Callable[[Scope], Dialect], metrics: Metrics, paths: Paths) -> None:
    async def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            asked = request.scope["path"]
            allow = paths.allow(asked)
            if request.method == "OPTIONS" and allow is not None:
                return Response(status_code=204, headers={"allow": allow})
            error = paths.refusal(error, request.method, asked)
        failure = failure_of(error)
        REQUEST_ID.set(request.scope.get(REQUEST_ID_KEY, ""))  # forgotten where the error has left all middleware
        response = error_response(dialect_at(request.scope), failure, request.scope)
        if failure.unforeseen:
            name = request.scope.get(REQUEST_ID_KEY, "")
            _log.error(
                "%s %s failed", request.method, shown(request.scope["path"]), exc_info=error, extra=for_request(name)
            )
            if not isinstance(error, EngineError):  # it has left all middleware behind, which would name and count it
                for header in REQUEST_ID_HEADERS:
                    response.headers[header] = name
                metrics.requested(getattr(request.scope.get("route"), "path", "other"), 500)
        else:
            # What was wrong with a request, or with its answer, is told to its client alone: the message may quote it.
            reason = failure.message if failure.status == 503 else failure.code or failure.param or failure.type
            _log.debug(
                "%s %s refused with %d: %s", request.method, shown(request.scope["path"]), failure.status, reason
            )
        return response

    left = LineLimit()

    async def gone(request: Request, error: Exception) -> Response:
        line = f"{request.method} {shown(request.scope['path'])}: the client left before it had its answer"
        if (shown_line := left.line(line)) is not None:
            _log.info("%s", shown_line)
        return Response(status_code=499)  # nginx's code for a client that closed the connection

    for kind in (RequestError, EngineError, HTTPException, Exception):
        app.add_exception_handler(kind, refuse)
    app.add_exception_handler(ClientGoneError, gone)
