"""Paths that answer: a body is parsed by its dialect, a specialist chosen, and its answer sent whole or as a stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import asdict
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from coe.engine.request import Delta

from ..runtime.answer import Answer
from ..runtime.choice import Choice
from ..runtime.college import College
from ..runtime.errors import RequestError
from ..runtime.metrics import Metrics
from ..runtime.request import Request as InternalRequest
from .body import parse_json, read_body
from .dialect import Dialect, Envelope
from .openai.described import DECISION, ERROR, ROUTE
from .openai.requests import parse_chat
from .openapi import gives, of_dialect, takes
from .sse import EventStream, until_gone

ROUTE_PATH: Final = "/v1/route"

# Headers by which clients name a conversation, ours first; then Open WebUI, LibreChat, opencode, Codex, Claude Code,
# Kilo Code, Amp.
_SESSION_HEADERS: Final = (
    "x-session-id",
    "x-openwebui-chat-id",
    "x-conversation-id",
    "x-session-affinity",
    "session-id",
    "x-claude-code-session-id",
    "x-kilocode-taskid",
    "x-amp-thread-id",
)


def add_answers(app: FastAPI, college: College, metrics: Metrics, dialects: Mapping[str, Dialect]) -> None:
    """Serve each dialect at its path, and decisions alone at ROUTE_PATH."""
    limit = college.roster.server.max_body_bytes

    async def choose(request: Request, wanted: InternalRequest, *, begin: bool = True) -> Choice:
        choice = await college.chooser.choose(wanted, _session(request), begin=begin)
        if choice.decision is not None:
            metrics.routed(choice.specialist.name, choice.decision.path, choice.decided_in_ms / 1000)
        return choice

    def serve(path: str, dialect: Dialect) -> None:
        @app.post(path, **of_dialect(dialect))
        async def answered(request: Request) -> Response:
            started_s = time.perf_counter()
            body = await read_body(request, limit)
            # Megabytes of JSON take a while to parse: not in the event loop.
            call = await asyncio.to_thread(lambda: dialect.parse(parse_json(body)))
            choice = await until_gone(request, choose(request, call.request))
            answer = Answer(college, call.request, choice, metrics)
            envelope = call.envelope(answer)
            if not call.request.stream:
                return await until_gone(request, _whole(answer, envelope))
            wait_s = college.roster.server.first_byte_s
            return await _stream(request, answer, envelope, dialect, metrics, started_s, wait_s)

    for path, dialect in dialects.items():
        serve(path, dialect)

    @app.post(ROUTE_PATH, openapi_extra=takes(ROUTE), responses=gives(DECISION, ERROR))
    async def route(request: Request) -> Response:
        """Which specialist would answer, and why; no model is asked."""
        body = await read_body(request, limit)
        data = await asyncio.to_thread(parse_json, body)
        if data.get("messages") is None:
            text = data.pop("text", None)
            if not isinstance(text, str):
                raise RequestError("Give `text`, or `messages` as a chat has them.", param="text")
            data["messages"] = [{"role": "user", "content": text}]
        return JSONResponse(_decision(await choose(request, parse_chat(data).request, begin=False)))


def _session(request: Request) -> str | None:
    return next((value for name in _SESSION_HEADERS if (value := request.headers.get(name))), None)


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


async def _whole(answer: Answer, envelope: Envelope) -> Response:
    try:
        await answer.open()
        outcomes = await answer.whole()
        return JSONResponse(envelope.body(outcomes), headers=answer.provenance.headers())
    finally:
        await answer.close()


async def _stream(
    request: Request,
    answer: Answer,
    envelope: Envelope,
    dialect: Dialect,
    metrics: Metrics,
    started_s: float,
    wait_s: float,
) -> Response:
    """Status and headers wait for the lease, but no longer than wait_s; then the stream begins without it."""
    opening = asyncio.create_task(answer.open())

    async def close() -> None:
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        await answer.close()

    try:
        await until_gone(request, _wait(opening, wait_s))
        if opening.done():
            opening.result()
    except BaseException:
        await close()
        raise
    keep_alive = dialect.stream_format.keep_alive if not opening.done() else None
    frames = _frames(answer, opening, envelope, keep_alive, metrics, started_s)
    return EventStream(frames, close, answer.provenance.headers(), dialect)


async def _wait(task: asyncio.Task[None], seconds: float) -> None:
    await asyncio.wait({task}, timeout=seconds)


async def _frames(
    answer: Answer,
    opening: asyncio.Task[None],
    envelope: Envelope,
    keep_alive: bytes | None,
    metrics: Metrics,
    started_s: float,
) -> AsyncGenerator[bytes, None]:
    if keep_alive is not None:
        yield keep_alive
    await opening
    if begin := b"".join(envelope.opening()):
        yield begin
    first = True
    # Closed here and now when the client leaves: `answer.close` comes next, and no task may be reading then.
    async with aclosing(answer.steps()) as steps:
        async for step in steps:
            if first and isinstance(step.event, Delta):
                first = False
                metrics.first_text(time.perf_counter() - started_s)
            if frames := b"".join(envelope.frames(step)):
                yield frames
    if end := b"".join(envelope.closing()):
        yield end
