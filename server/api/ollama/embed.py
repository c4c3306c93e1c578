"""Ollama's two paths for embeddings: /api/embed, and the older /api/embeddings for one prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Annotated, Any, Final, Protocol

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from pydantic import Field

from ...runtime.college import College
from ...runtime.errors import RequestError
from ...runtime.provenance import header_text
from ..body import read_json
from ..common.fields import MAX_INT, Body, ModelName, validated
from ..openapi import body_schema, gives, takes
from .described import ERROR
from .durations import keep_alive_s

EMBED_PATHS: Final = ("/api/embed", "/api/embeddings")
_MOST: Final = {"input": 2048}
_VECTOR: Final = {"type": "array", "items": {"type": "number"}}
_EMBEDDED: Final = {
    "type": "object",
    "required": ["model", "embeddings"],
    "properties": {"model": {"type": "string"}, "embeddings": {"type": "array", "items": _VECTOR}},
}
_EMBEDDED_ONE: Final = {"type": "object", "required": ["embedding"], "properties": {"embedding": _VECTOR}}


@dataclass(frozen=True)
class Embedded:
    """Vectors of unit length, one a text; tokens that were read of each; indexes of those that were cut."""

    by: str
    rows: NDArray[np.float32]
    tokens: Sequence[int]
    cut: Sequence[int] = ()


class Embed(Protocol):
    """What embeds texts; names: what a body calls each of them, for errors. cut: longer ones are, or are refused."""

    async def __call__(
        self,
        request: Request,
        model: str,
        texts: Sequence[str],
        names: Sequence[str],
        *,
        dimensions: int | None,
        cut: bool,
    ) -> Embedded:
        """Raises RequestError or EngineError."""
        ...


class EmbedBody(Body):
    model: ModelName = "auto"
    input: str | list[str] = ""
    truncate: bool = True
    dimensions: Annotated[int, Field(ge=0, le=MAX_INT)] = 0
    keep_alive: Any = None


class PromptBody(Body):
    model: ModelName = "auto"
    prompt: str = ""
    keep_alive: Any = None


async def nothing_embeds(
    request: Request,
    model: str,
    texts: Sequence[str],
    names: Sequence[str],
    *,
    dimensions: int | None,
    cut: bool,
) -> Embedded:
    """In the place of what embeds, where nothing does."""
    raise RequestError("Embeddings are not served here: models answer /api/chat and /api/generate.", param="model")


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
            return JSONResponse({"model": name, "embeddings": []})
        _refuse_empty(texts, names)
        found = await embed(request, body.model, texts, names, dimensions=body.dimensions or None, cut=body.truncate)
        answer = {
            "model": name,
            "embeddings": await asyncio.to_thread(found.rows.tolist),
            "total_duration": round((perf_counter() - began_s) * 1e9),
            "load_duration": 0,
            "prompt_eval_count": sum(found.tokens),
        }
        return JSONResponse(answer, headers=_headers(found, names))

    @app.post("/api/embeddings", openapi_extra=takes(_described(PromptBody)), responses=gives(_EMBEDDED_ONE, ERROR))
    async def embedding(request: Request) -> JSONResponse:
        """One text as a vector, as older clients ask for it."""
        _, body = await read_json(request, settings, lambda wire: _parsed(PromptBody, wire))
        if not body.prompt:
            return JSONResponse({"embedding": []})
        found = await embed(request, body.model, [body.prompt], ["prompt"], dimensions=None, cut=True)
        return JSONResponse({"embedding": found.rows[0].tolist()}, headers=_headers(found, ["prompt"]))


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


def _headers(found: Embedded, names: Sequence[str]) -> dict[str, str]:
    headers = {"x-coe-specialist": header_text(found.by)}
    if found.cut:
        listed = ", ".join(names[index] for index in found.cut[:3])
        more = f" and {len(found.cut) - 3} more" if len(found.cut) > 3 else ""
        headers["x-coe-note"] = f"the end was left out of {listed}{more}"
    return headers
