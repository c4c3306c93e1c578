"""Paths that answer: a body is parsed by its dialect, a specialist chosen, and its answer sent whole or as a stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import asdict
from functools import partial
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from coe.engine.request import Delta, Event, Finish, Finished, Reading

from ..roster.values import AUTO, asked_name
from ..runtime.answer import Answer
from ..runtime.choice import Choice
from ..runtime.college import College
from ..runtime.errors import Failure, RequestError
from ..runtime.many import ManyAnswers
from ..runtime.metrics import Metrics
from ..runtime.request import Request as InternalRequest
from ..runtime.waiting import reading_wait
from .body import read_json
from .dialect import Call, Dialect, Envelope, Errand, TellsFailure
from .journal import about
from .openai.described import DECISION, ERROR, ROUTE
from .openai.requests import parse_chat
from .openapi import gives, of_dialect, takes
from .sse import EventStream, until_gone

ROUTE_PATH: Final = "/v1/route"
_MANY_LOGPROBS: Final = 1000
_TELL_EVERY_S: Final = 2.0  # what a stream waits for
Answering = Callable[[Request, Dialect], Awaitable[Response]]

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


def add_answers(app: FastAPI, college: College, metrics: Metrics, dialects: Mapping[str, Dialect]) -> Answering:
    """Serve each dialect at its path, and decisions alone at ROUTE_PATH. Gives what answers a request in a dialect."""
    settings = college.roster.server

    async def choose(request: Request, wanted: InternalRequest, *, begin: bool = True) -> Choice:
        choice = await college.chooser.choose(wanted, _session(request) or wanted.session, begin=begin)
        if choice.decision is not None:
            metrics.routed(choice.specialist.name, choice.decision.path, choice.decided_in_ms / 1000)
        return choice

    def make(request: InternalRequest, choice: Choice) -> Answer:
        return Answer(college, request, choice, metrics)

    def known(model: str) -> str:
        """A client's word for a model as the roster has it: the journal and the metrics hold no other."""
        specialist = college.roster.find(model)
        return specialist.name if specialist is not None else AUTO if asked_name(model) == AUTO else "unknown"

    async def answered(request: Request, dialect: Dialect) -> Response:
        started_s = time.perf_counter()

        def parse(body: dict[str, Any]) -> Call | Errand:
            if isinstance(model := body.get("model", AUTO), str):
                about(request.scope, model=known(model))  # that of a body that is refused, too
            return dialect.parse(body)

        call = await read_json(request, settings, parse)
        if isinstance(call, Errand):
            return await until_gone(request, call.run(college, request.scope))
        choice = await until_gone(request, choose(request, call.request))
        about(request.scope, specialist=choice.specialist.name)
        first = Answer(college, call.request, choice, metrics)
        envelope = call.envelope(first)
        answer = ManyAnswers(first, call.others, make) if call.others else first
        if not call.request.stream:
            return await until_gone(request, _whole(request, answer, envelope))
        return await _stream(request, answer, envelope, dialect, metrics, started_s, settings.first_byte_s)

    def serve(path: str, dialect: Dialect) -> None:
        @app.post(path, **of_dialect(dialect))
        async def ask(request: Request) -> Response:
            return await answered(request, dialect)

    for path, dialect in dialects.items():
        serve(path, dialect)

    @app.post(ROUTE_PATH, openapi_extra=takes(ROUTE), responses=gives(DECISION, ERROR))
    async def route(request: Request) -> Response:
        """Which specialist would answer, and why; no model is asked."""
        wanted = await read_json(request, settings, _to_route)
        return JSONResponse(_decision(await choose(request, wanted, begin=False)))

    return answered


def _to_route(body: Mapping[str, Any]) -> InternalRequest:
    """What a decision is wanted for: `messages` as a chat has them, or one `text` of a user."""
    if body.get("messages") is None:
        body = dict(body)
        text = body.pop("text", None)
        if not isinstance(text, str):
            raise RequestError("Give `text`, or `messages` as a chat has them.", param="text")
        body["messages"] = [{"role": "user", "content": text}]
    return parse_chat(body).request


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


async def _whole(request: Request, answer: Answer | ManyAnswers, envelope: Envelope) -> Response:
    try:
        await answer.open()
        outcomes = await answer.whole()
        for outcome in outcomes:
            _note_loop(request, outcome.end)
        headers = answer.provenance.headers([outcome.end for outcome in outcomes])
        if sum(len(outcome.logprobs) for outcome in outcomes) < _MANY_LOGPROBS:
            return JSONResponse(envelope.body(outcomes), headers=headers)
        # Megabytes, which take a while to write: not in the event loop.
        return await asyncio.to_thread(lambda: JSONResponse(envelope.body(outcomes), headers=headers))
    finally:
        await answer.close()


async def _stream(
    request: Request,
    answer: Answer | ManyAnswers,
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
    frames = _frames(request, answer, opening, envelope, keep_alive, metrics, started_s)
    error_frame = partial(_told, envelope) if isinstance(envelope, TellsFailure) else None
    return EventStream(frames, close, answer.provenance.headers(), dialect, error_frame=error_frame)


def _told(envelope: TellsFailure, failure: Failure) -> bytes:
    return b"".join(envelope.failed(failure))


def _note_loop(request: Request, event: Event) -> None:
    """The loop guard's end is an answer to the client; the journal knows of it."""
    if isinstance(event, Finished) and event.reason is Finish.LOOP:
        about(request.scope, end="loop")


async def _wait(task: asyncio.Task[None], seconds: float) -> None:
    await asyncio.wait({task}, timeout=seconds)


async def _frames(
    request: Request,
    answer: Answer | ManyAnswers,
    opening: asyncio.Task[None],
    envelope: Envelope,
    keep_alive: bytes | None,
    metrics: Metrics,
    started_s: float,
) -> AsyncGenerator[bytes, None]:
    if keep_alive is not None:
        yield keep_alive
    told = ""
    begun = answer.tells_waiting and not opening.done()
    if begun:
        yield b"".join(envelope.opening())
        while not opening.done():
            if (waits_for := answer.waits_for) != told:
                told = waits_for
                yield b"".join(envelope.waiting(told))
            await asyncio.wait({opening}, timeout=_TELL_EVERY_S)
    await opening
    if not begun and (begin := b"".join(envelope.opening())):
        yield begin
    first = True
    # Closed here and now when the client leaves: `answer.close` comes next, and no task may be reading then.
    async with aclosing(answer.steps()) as steps:
        async for step in steps:
            if first and isinstance(step.event, Delta):
                first = False
                metrics.first_text(time.perf_counter() - started_s)
            _note_loop(request, step.event)
            if isinstance(step.event, Reading):
                # All choices have the same prompt, which is read once.
                if step.index == 0:
                    yield b"".join(envelope.waiting(reading_wait(step.event)))
            elif frames := b"".join(envelope.frames(step)):
                yield frames
    if end := b"".join(envelope.closing()):
        yield end
