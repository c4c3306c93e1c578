"""The paths: a body is parsed, its texts embedded in another thread or process, and the answer written in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from fastapi import FastAPI, Request
from fastapi.responses import Response

from coe.engine.errors import InputError
from coe.engine.logs import REQUEST_ID

from ...roster.values import AUTO
from ...runtime.college import College
from ...runtime.embedding import Result, Wanted
from ...runtime.errors import RequestError, failure_of
from ...runtime.metrics import Metrics
from ...runtime.provenance import header_text
from ..body import read_json
from ..journal import about
from ..openai.described import ERROR
from ..openapi import gives, takes
from ..sse import until_gone
from .described import EMBEDDING_BODY, EMBEDDINGS, RANKS, RERANK_BODY
from .replies import embeddings_body, rerank_body
from .requests import parse_embeddings, parse_rerank

EMBEDDINGS_PATH: Final = "/v1/embeddings"
RERANK_PATHS: Final = ("/v1/rerank", "/v2/rerank", "/rerank")  # the same: clients differ in what they put before it
EMBEDDING_PATHS: Final = (EMBEDDINGS_PATH, *RERANK_PATHS)


Embed = Callable[[Request, Wanted, Sequence[str]], Awaitable[Result]]
"""Embeds what a body wants. names: what each text is called in it, for errors."""


def embedding(college: College, metrics: Metrics) -> Embed:
    """What embeds for the paths of any API."""

    async def embedded(request: Request, wanted: Wanted, names: Sequence[str]) -> Result:
        found = college.roster.find(wanted.model)
        own = wanted.model == AUTO or college.embeddings.is_encoder(wanted.model)
        about(request.scope, model=found.name if found is not None else wanted.model if own else "unknown")
        try:
            result = await until_gone(request, college.embeddings.embed(wanted))
        except InputError as error:
            name = names[error.index]
            raise RequestError(f"{name}: {error}", param=name, code=failure_of(error).code) from None
        about(request.scope, specialist=result.model)
        metrics.embedded(result.model, sum(result.vectors.tokens))
        return result

    return embedded


def add_embeddings(app: FastAPI, college: College, embedded: Embed) -> None:
    """Serve embeddings, and ranks by them."""
    settings = college.roster.server

    @app.post(EMBEDDINGS_PATH, openapi_extra=takes(EMBEDDING_BODY), responses=gives(EMBEDDINGS, ERROR))
    async def embeddings(request: Request) -> Response:
        """Texts as vectors of unit length."""
        call = await read_json(request, settings, parse_embeddings)
        result = await embedded(request, call.wanted, call.names)
        body = await asyncio.to_thread(embeddings_body, result, as_base64=call.base64)
        return Response(body, media_type="application/json", headers=embedding_headers(result, call.names, call.notes))

    def serve_rerank(path: str) -> None:
        @app.post(path, openapi_extra=takes(RERANK_BODY), responses=gives(RANKS, ERROR))
        async def rerank(request: Request) -> Response:
            """Documents by how near their embeddings are to a query's: cosine similarity, below 0 as 0."""
            call = await read_json(request, settings, parse_rerank)
            result = await embedded(request, call.wanted, call.names)
            documents = call.wanted.texts[1:] if call.with_documents else None
            body = await asyncio.to_thread(rerank_body, result, documents, call.top_n, REQUEST_ID.get(), bare=call.bare)
            return Response(
                body, media_type="application/json", headers=embedding_headers(result, call.names, call.notes)
            )

    for path in RERANK_PATHS:
        serve_rerank(path)


def embedding_headers(result: Result, names: Sequence[str], notes: Sequence[str] = ()) -> dict[str, str]:
    """x-coe-specialist, and what a client should know."""
    cut = [names[index] for index in result.vectors.cut]
    if cut:
        more = f" and {len(cut) - 3} more" if len(cut) > 3 else ""
        notes = [*notes, f"the end was left out of {', '.join(cut[:3])}{more}"]
    note = {"x-coe-note": header_text("; ".join(notes))} if notes else {}
    return {"x-coe-specialist": header_text(result.model), **note}
