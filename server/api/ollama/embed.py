"""Ollama's two paths for embeddings: /api/embed, and the older /api/embeddings for one prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Annotated, Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BeforeValidator, Field

from ...runtime.college import College
from ...runtime.embedding import Wanted
from ...runtime.errors import RequestError
from ..body import read_json
from ..common.fields import MAX_INT, Body, ModelName, validated, whole
from ..embeddings.paths import Embed, embedding_headers
from ..embeddings.requests import MAX_TEXTS
from ..openapi import body_schema, gives, takes
from .described import ERROR
from .durations import keep_alive_s

EMBED_PATHS: Final = ("/api/embed", "/api/embeddings")
_MOST: Final = {"input": MAX_TEXTS}
_VECTOR: Final = {"type": "array", "items": {"type": "number"}}
_EMBEDDED: Final = {
    "type": "object",
    "required": ["model", "embeddings"],
    "properties": {"model": {"type": "string"}, "embeddings": {"type": "array", "items": _VECTOR}},
}
_EMBEDDED_ONE: Final = {"type": "object", "required": ["embedding"], "properties": {"embedding": _VECTOR}}


class EmbedBody(Body):
    model: ModelName = "auto"
    input: str | list[str] = ""
    truncate: bool = True
    dimensions: Annotated[Annotated[int, Field(ge=0, le=MAX_INT)], BeforeValidator(whole)] = 0
    keep_alive: Any = None


class PromptBody(Body):
    model: ModelName = "auto"
    prompt: str = ""
    keep_alive: Any = None


def add_embed(app: FastAPI, college: College, embed: Embed) -> None:
    """Serve the paths."""
    settings = college.roster.server

    @app.post("/api/embed", openapi_extra=takes(_described(EmbedBody)), responses=gives(_EMBEDDED, ERROR))
    async def embeddings(request: Request) -> JSONResponse:
        """Texts as vectors of unit length."""
        began_s = perf_counter()
        name, body = await read_json(request, settings, lambda wire: _parsed(EmbedBody, wire))
        texts = [body.input] if isinstance(body.input, str) else body.input
        names = ["input"] if isinstance(body.input, str) else [f"input[{index}]" for index in range(len(texts))]
        if texts in ([], [""]):  # clients load a model so
            college.embeddings.require(body.model)
            return JSONResponse({"model": name, "embeddings": []})
        _refuse_empty(texts, names)
        wanted = Wanted(body.model, tuple(texts), body.dimensions or None, MAX_INT if body.truncate else None)
        found = await embed(request, wanted, names)
        answer = {
            "model": name,
            "embeddings": await asyncio.to_thread(found.vectors.rows.tolist),
            "total_duration": round((perf_counter() - began_s) * 1e9),
            "load_duration": 0,
            "prompt_eval_count": sum(found.vectors.tokens),
        }
        return JSONResponse(answer, headers=embedding_headers(found, names))

    @app.post("/api/embeddings", openapi_extra=takes(_described(PromptBody)), responses=gives(_EMBEDDED_ONE, ERROR))
    async def embedding(request: Request) -> JSONResponse:
        """One text as a vector, as older clients ask for it."""
        _, body = await read_json(request, settings, lambda wire: _parsed(PromptBody, wire))
        if not body.prompt:
            college.embeddings.require(body.model)
            return JSONResponse({"embedding": []})
        found = await embed(request, Wanted(body.model, (body.prompt,), None, MAX_INT), ["prompt"])
        return JSONResponse({"embedding": found.vectors.rows[0].tolist()}, headers=embedding_headers(found, ["prompt"]))


def _described(model: type[Body]) -> dict[str, Any]:
    body = body_schema(model)
    body["properties"]["keep_alive"] = {"type": ["number", "null"]}
    return body


def _parsed(kind: Any, wire: Mapping[str, Any]) -> tuple[str, Any]:
    """The model as the client wrote it, and the body."""
    given = wire.get("input")
    if any(type(item) is int for item in (given if isinstance(given, list) else ())):
        raise RequestError(
            "input: token ids are not taken, since they are of one vocabulary alone: send texts.", param="input"
        )
    body = validated(kind, wire, _MOST)
    keep_alive_s(body.keep_alive)
    name = wire.get("model")
    return (name if isinstance(name, str) else body.model), body


def _refuse_empty(texts: Sequence[str], names: Sequence[str]) -> None:
    for text, name in zip(texts, names, strict=True):
        if not text:
            raise RequestError(f"{name}: the text is empty.", param=name)
