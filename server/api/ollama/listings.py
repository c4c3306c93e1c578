"""What Ollama's clients ask of models, and what they would have changed about them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from ...runtime.college import College
from ...runtime.errors import Part, RequestError, UnknownModelError
from ..body import read_json
from ..common.frames import line_frame
from ..journal import about
from ..openapi import gives, takes
from .cards import Card, card_of, cards, listed, on_disk, running, shown
from .described import ERROR
from .dialects import LINES

SPOKEN: Final = "0.33.0"
"""The release of Ollama whose API this is: clients ask for a least one, and read digits and dots alone."""

CHANGING_PATHS: Final = ("/api/create", "/api/copy", "/api/push", "/api/delete")
LISTING_PATHS: Final = ("/api/show", "/api/pull", *CHANGING_PATHS)
"""Paths that are posted to, and change nothing."""

_TEXT: Final = {"type": "string"}
_OBJECT: Final = {"type": "object"}
_NAMED: Final[Mapping[str, Any]] = {
    "type": "object",
    "anyOf": [{"required": ["model"]}, {"required": ["name"]}],
    "properties": {"model": {"type": "string", "minLength": 1}, "name": {"type": "string", "minLength": 1}},
}
_LIST: Final = {
    "type": "object",
    "required": ["models"],
    "properties": {"models": {"type": "array", "items": _OBJECT}},
}
_SHOWN: Final = {
    "type": "object",
    "required": ["details", "model_info", "capabilities", "parameters", "template"],
    "properties": {"capabilities": {"type": "array", "items": _TEXT}, "details": _OBJECT, "model_info": _OBJECT},
}
_VERSION: Final = {"type": "object", "required": ["version"], "properties": {"version": _TEXT}}
_PULLED: Final = {"type": "object", "required": ["status"], "properties": {"status": _TEXT}}
_PULL_BODY: Final = {
    **_NAMED,
    "properties": {**_NAMED["properties"], "stream": {"type": ["boolean", "null"]}},
}
_REFUSED: Final[dict[int | str, Any]] = {
    "default": {"description": "An error", "content": {"application/json": {"schema": dict(ERROR)}}}
}


def add_listings(app: FastAPI, college: College) -> None:
    """Serve what tells of models; what would change them is refused, with what to do instead."""
    settings = college.roster.server

    def disk(card: Card) -> tuple[int, datetime]:
        """Of one that has no file of its own the roster says when it last changed."""
        return on_disk(card.files or (college.roster.path,))

    @app.get("/api/tags", responses=gives(_LIST, ERROR))
    async def tags() -> dict[str, Any]:
        """`auto`, every specialist that can be served, and each alias, as Ollama lists models."""
        found = cards(college)
        told = await asyncio.to_thread(lambda: [disk(card) for card in found])
        return {"models": [listed(card, card.size(size), last) for card, (size, last) in zip(found, told, strict=True)]}

    @app.get("/api/ps", responses=gives(_LIST, ERROR))
    async def ps() -> dict[str, Any]:
        """What is in memory: which specialist each resident is now."""
        return {"models": running(college, datetime.now(UTC))}

    @app.get("/api/version", responses=gives(_VERSION, ERROR))
    async def version() -> dict[str, str]:
        """The release of Ollama whose API this is."""
        return {"version": SPOKEN}

    @app.post("/api/show", openapi_extra=takes(_NAMED), responses=gives(_SHOWN, ERROR))
    async def show(request: Request) -> dict[str, Any]:
        """One model: capabilities, context, template, what a request gets where it says nothing."""
        card = card_of(college, await read_json(request, settings, _named))
        specialist = card.specialist
        about(request.scope, model=specialist.name if specialist is not None else card.name)
        _, modified = await asyncio.to_thread(disk, card)
        return shown(card, modified, notice=college.roster.notice_of(specialist) if specialist is not None else None)

    @app.post("/api/pull", openapi_extra=takes(_PULL_BODY), responses=gives(_PULLED, ERROR, stream=LINES.media_type))
    async def pull(request: Request) -> Response:
        """Of a model that is there: that it is. Others are fetched by `coe pull`, and not for a client."""
        name, stream = await read_json(request, settings, lambda body: (_named(body), body.get("stream") is not False))
        try:
            card_of(college, name)
        except UnknownModelError as error:
            raise UnknownModelError(
                f"{error.message} Clients cannot fetch models: name it in the roster, and run "
                f"`coe pull{college.roster.option}`.",
                param=Part.MODEL,
            ) from None
        if not stream:
            return JSONResponse({"status": "success"})
        lines = (line_frame({"status": status}) for status in ("pulling manifest", "success"))
        return Response(b"".join(lines), media_type=LINES.media_type)

    def refuse(path: str, method: str, summary: str) -> None:
        @app.api_route(path, methods=[method], summary=summary, responses=_REFUSED, openapi_extra=takes(_OBJECT))
        async def refused() -> None:
            raise RequestError(
                f"{path} is not served: which models there are is said by the roster, {college.roster.path.name}. "
                f"Change it and start the server again; `coe pull{college.roster.option}` fetches what it names."
            )

    for path in CHANGING_PATHS:
        method = "DELETE" if path == "/api/delete" else "POST"
        refuse(path, method, "Refused: the roster says which models there are")


def _named(body: Mapping[str, Any]) -> str:
    """The model of a body; `name` is what it was called before."""
    name = body.get("model") or body.get("name")
    if not isinstance(name, str) or len(name) > 200:
        raise RequestError("model: give a name, a text.", param="model")
    return name
