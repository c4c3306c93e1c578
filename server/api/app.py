"""The HTTP server: routes, and what happens around them."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict
from hmac import compare_digest
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from coe.engine.errors import EngineError
from coe.engine.request import Accepted, Delta, Finished

from ..roster.models import Roster
from ..roster.values import AUTO
from ..runtime.answer import Answer
from ..runtime.availability import Unavailable
from ..runtime.college import Choice, College
from ..runtime.errors import (
    BodyTooLargeError,
    ClientGoneError,
    NoKeyError,
    RequestError,
    UnknownModelError,
    UnknownPathError,
    failure_of,
)
from ..runtime.metrics import Metrics
from .openai.replies import Shape
from .openai.requests import Ask, chat_ask, completion_ask, parse_json
from .sse import COMMENT, EventStream, data_frame, until_gone

_log = logging.getLogger(__name__)

# Headers by which clients name a conversation, ours first; then Open WebUI, LibreChat, opencode, Codex, Claude Code,
# Kilo Code, Amp.
_SESSION_HEADERS = (
    "x-session-id",
    "x-openwebui-chat-id",
    "x-conversation-id",
    "x-session-affinity",
    "session-id",
    "x-claude-code-session-id",
    "x-kilocode-taskid",
    "x-amp-thread-id",
)
_OUR_HEADERS = ("specialist", "confidence", "reason", "residency", "wait-ms", "note", "build")
_OPEN_PATHS = ("/health", "/ready")


def make_app(college: College, keys: frozenset[str] = frozenset()) -> FastAPI:
    """The application over an opened college; it is started with the server, and closed with it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await college.start()
        try:
            yield
        finally:
            await college.close()

    app = FastAPI(title="College of Experts", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    metrics = Metrics(college.pool.status, college.builds.cards)
    _add_answers(app, college, metrics)
    _add_status(app, college, metrics)
    _add_builds(app, college)
    _add_errors(app)
    if keys:
        app.add_middleware(RequireKey, keys=keys)
    if college.roster.server.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(college.roster.server.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=[f"x-coe-{name}" for name in _OUR_HEADERS],
        )
    # Last, so outermost: what the others refuse is counted, too.
    app.add_middleware(CountRequests, metrics=metrics)
    return app


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
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"server.api_keys_file: {path} cannot be read: {error}.") from error
        found = {line.strip() for line in lines if line.strip() and not line.startswith("#")}
        if not found:
            raise ValueError(f"server.api_keys_file: {path} holds no key. Write one a line, or remove the setting.")
        keys |= found
    return frozenset(keys)


class RequireKey:
    """Every path but the health checks wants `Authorization: Bearer KEY`; keys are compared in constant time."""

    def __init__(self, app: ASGIApp, keys: frozenset[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["path"] in _OPEN_PATHS or self._known(scope):
            await self._app(scope, receive, send)
            return
        failure = failure_of(NoKeyError("A valid API key is needed: send Authorization: Bearer KEY."))
        await JSONResponse(failure.body(), failure.status)(scope, receive, send)

    def _known(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        # Look at all of them: an early end would tell which one was nearly right.
        hits = [compare_digest(key.strip(), known) for known in self._keys]
        return scheme.lower() == b"bearer" and any(hits)


async def read_body(request: Request, limit: int) -> bytes:
    """The body, as long as it keeps to the limit. Raises BodyTooLargeError as soon as it does not."""
    message = f"The body is larger than {limit:,} bytes. Send less, or raise server.max_body_bytes in the roster."
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise BodyTooLargeError(message)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise BodyTooLargeError(message)
    return bytes(body)


def _session(request: Request) -> str | None:
    return next((value for name in _SESSION_HEADERS if (value := request.headers.get(name))), None)


# --- answers --------------------------------------------------------------------------------------------------


def _add_answers(app: FastAPI, college: College, metrics: Metrics) -> None:
    async def parsed(request: Request, parse: Callable[[dict[str, Any]], Ask]) -> Ask:
        body = await read_body(request, college.roster.server.max_body_bytes)
        # Megabytes of JSON take a while to parse: not in the event loop.
        return await asyncio.to_thread(lambda: parse(parse_json(body)))

    async def choose(request: Request, ask: Ask) -> Choice:
        return counted(await college.choose(ask, _session(request)))

    def counted(choice: Choice) -> Choice:
        if choice.decision is not None:
            metrics.routed(choice.specialist.name, choice.decision.path, choice.decided_in_ms / 1000)
        return choice

    async def answered(request: Request, parse: Callable[[dict[str, Any]], Ask], *, chat: bool) -> Response:
        started = time.perf_counter()
        ask = await parsed(request, parse)
        choice = await until_gone(request, choose(request, ask))
        answer = Answer(college, ask, choice, metrics)
        if ask.stream:
            return await _stream(request, answer, chat=chat, metrics=metrics, started=started)
        return await until_gone(request, _whole(answer, chat=chat))

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await answered(request, chat_ask, chat=True)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answered(request, completion_ask, chat=False)

    @app.post("/v1/route")
    async def route(request: Request) -> Response:
        body = await read_body(request, college.roster.server.max_body_bytes)
        data = await asyncio.to_thread(parse_json, body)
        if "messages" not in data:
            if not isinstance(data.get("text"), str):
                raise RequestError("Give `text`, or `messages` as a chat has them.", param="text")
            data = {**data, "messages": [{"role": "user", "content": data["text"]}]}
        ask = chat_ask(data)
        choice = counted(await college.choose(ask, _session(request), begin=False))
        return JSONResponse(_decision(choice))


def _decision(choice: Choice) -> dict[str, Any]:
    decision = choice.decision
    ranking = [asdict(ranked) for ranked in decision.ranking] if decision is not None else []
    return {
        "specialist": choice.specialist.name,
        "confidence": choice.confidence,
        "reason": choice.reason,
        "domain": decision.domain if decision is not None else None,
        "path": decision.path if decision is not None else "named",
        "ranking": ranking,
        "ms": round(choice.decided_in_ms, 2),
    }


async def _whole(answer: Answer, *, chat: bool) -> Response:
    try:
        await answer.open()
        outcomes = await answer.whole()
        return JSONResponse(Shape(answer, chat=chat).body(outcomes), headers=answer.headers())
    finally:
        await answer.close()


async def _stream(request: Request, answer: Answer, *, chat: bool, metrics: Metrics, started: float) -> Response:
    """Status and headers wait for the lease, but no longer than first_byte_s; then the stream begins without it."""
    opening = asyncio.create_task(answer.open())

    async def close() -> None:
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        await answer.close()

    try:
        await until_gone(request, _wait(opening, answer.college.roster.server.first_byte_s))
        if opening.done():
            opening.result()
    except BaseException:
        await close()
        raise
    frames = _frames(answer, opening, chat=chat, metrics=metrics, started=started)
    return EventStream(frames, close, answer.headers())


async def _wait(task: asyncio.Task[None], seconds: float) -> None:
    await asyncio.wait({task}, timeout=seconds)


async def _frames(
    answer: Answer, opening: asyncio.Task[None], *, chat: bool, metrics: Metrics, started: float
) -> AsyncGenerator[bytes, None]:
    if not opening.done():
        yield COMMENT
    await opening
    shape = Shape(answer, chat=chat)
    for index in range(answer.ask.n):
        if (chunk := shape.opening(index)) is not None:
            yield data_frame(chunk)
    ends: list[Finished] = []
    first = True
    # Closed here and now when the client leaves: `answer.close` comes next, and must find nobody reading.
    async with aclosing(answer.steps()) as steps:
        async for step in steps:
            if isinstance(step.event, Delta):
                if first:
                    metrics.first_text(time.perf_counter() - started)
                    first = False
                yield data_frame(shape.piece(step.index, step.event))
            elif isinstance(step.event, Finished):
                ends.append(step.event)
                last = len(ends) == answer.ask.n
                yield data_frame(shape.ending(step.index, step.event, answer.facts(ends) if last else None))
            else:
                assert isinstance(step.event, Accepted)
    if answer.ask.include_usage:
        yield data_frame(shape.usage_chunk(ends, answer.facts(ends)))
    yield b"data: [DONE]\n\n"


# --- status ---------------------------------------------------------------------------------------------------


def _add_status(app: FastAPI, college: College, metrics: Metrics) -> None:
    created = int(time.time())

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        cards = [_card(college, name, created) for name in [AUTO, *college.roster.names]]
        return {"object": "list", "data": cards}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        specialist = college.roster.find(name)
        if specialist is None and name != AUTO:
            known = ", ".join([AUTO, *college.roster.names])
            raise UnknownModelError(f"There is no model {name!r}. Known: {known}.", param="model")
        return _card(college, specialist.name if specialist else AUTO, created)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> Response:
        stalled = college.pool.status().stalled
        warnings = list(college.supervisor.warnings)
        body = {"ready": not stalled, "problems": list(stalled), "warnings": warnings}
        return JSONResponse(body, 503 if stalled else 200)

    @app.get("/metrics")
    async def scrape() -> Response:
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/pool")
    async def pool() -> dict[str, Any]:
        status = asdict(college.pool.status())
        del status["counted"]  # stands in /metrics
        return {**status, "budget": college.budget_note}

    @app.post("/v1/pool/unload")
    async def unload(request: Request) -> dict[str, Any]:
        body = await read_body(request, college.roster.server.max_body_bytes)
        name = parse_json(body).get("model")
        specialist = college.roster.find(name) if isinstance(name, str) else None
        if specialist is None:
            raise UnknownModelError(
                f"There is no model {name!r}. Known: {', '.join(college.roster.names)}.", param="model"
            )
        shared = college.pool.shared_with(specialist.name) if specialist.name in college.available else ()
        unloaded = bool(shared) and await college.pool.unload(specialist.name)
        return {"model": specialist.name, "unloaded": unloaded, "with": [n for n in shared if n != specialist.name]}


# --- builds ---------------------------------------------------------------------------------------------------


def _add_builds(app: FastAPI, college: College) -> None:
    def known(name: str) -> str:
        specialist = college.roster.find(name)
        if specialist is None or specialist.name not in college.builds:
            built = ", ".join(card["name"] for card in college.builds.cards()) or "none"
            raise UnknownModelError(f"There is no build {name!r}. Known: {built}.")
        return specialist.name

    @app.get("/v1/builds")
    async def builds() -> dict[str, Any]:
        return {"object": "list", "data": college.builds.cards()}

    @app.get("/v1/builds/{name}")
    async def build(name: str) -> dict[str, Any]:
        return await college.builds.details(known(name))

    @app.post("/v1/builds/{name}", status_code=202)
    async def begin(name: str) -> dict[str, Any]:
        name = known(name)
        college.builds.retry(name)
        return college.builds.card(name)


def _card(college: College, name: str, created: int) -> dict[str, Any]:
    """One model as clients list it: OpenAI's fields, and what is ours under `coe`."""
    card: dict[str, Any] = {"id": name, "object": "model", "created": created, "owned_by": "college-of-experts"}
    if name == AUTO:
        return {**card, "coe": {"description": "The supervisor chooses a specialist.", "available": True}}
    specialist = college.roster.find(name)
    assert specialist is not None
    item = college.judged[name]
    facts: dict[str, Any] = {
        "description": specialist.description,
        "domains": list(specialist.domains),
        "aliases": list(specialist.aliases),
        "context_tokens": specialist.context_tokens,
        "thinking": specialist.thinking.mode,
        "quant": specialist.quant,
        "beta": specialist.beta,
        "notice": college.roster.notice_of(specialist),
        "licence": specialist.licence,
        "available": not isinstance(item, Unavailable),
    }
    if isinstance(item, Unavailable):
        facts |= {"reason": item.reason, "remedy": item.remedy}
    else:
        facts["warm"] = college.pool.is_warm(name)
    if name in college.builds:
        facts["build"] = college.builds.progress(name).line()
    if item.footprint is not None:
        facts["vram_bytes"] = item.footprint.total_bytes
    return {**card, "coe": facts}


# --- errors ---------------------------------------------------------------------------------------------------


def _add_errors(app: FastAPI) -> None:
    async def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            what = f"Nothing is served at {request.method} {request.url.path}. See the README for the paths."
            error = UnknownPathError(what, error.status_code)
        failure = failure_of(error)
        if failure.status == 500:
            _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return JSONResponse(failure.body(), failure.status, dict(failure.headers))

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it; nginx's code for it

    for kind in (RequestError, EngineError, HTTPException, Exception):
        app.add_exception_handler(kind, refuse)
    app.add_exception_handler(ClientGoneError, gone)


class CountRequests:
    """Counts answers by path and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counting(message: Any) -> None:
            if message["type"] == "http.response.start":
                # Paths as they are written in the routes: those of clients would be labels without end.
                route = scope.get("route")
                self._metrics.requested(getattr(route, "path", "other"), message["status"])
            await send(message)

        await self._app(scope, receive, counting)
