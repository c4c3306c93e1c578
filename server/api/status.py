"""Paths that tell of the server: residents, builds, health, metrics."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from coe.engine.pool.status import PoolStatus

from ..runtime.college import College
from ..runtime.errors import UnknownModelError
from ..runtime.metrics import Metrics
from .body import read_json
from .journal import about
from .openai.described import ERROR
from .openapi import gives, takes

_OBJECT = {"type": "object"}
_LIST = {
    "type": "object",
    "required": ["object", "data"],
    "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": _OBJECT}},
}
_UNLOAD = {"type": "object", "required": ["model"], "properties": {"model": {"type": "string"}}}
_UNLOADED = {
    "type": "object",
    "required": ["model", "unloaded", "with"],
    "properties": {
        "model": {"type": "string"},
        "unloaded": {"type": "boolean"},
        "with": {"type": "array", "items": {"type": "string"}},
    },
}


def pool_json(status: PoolStatus) -> dict[str, Any]:
    """What /v1/pool tells. budget_bytes, booked_bytes, vram_bytes: what pool.vram_budget counts; places: of each card,
    and of the host."""
    shown = asdict(status)
    del shown["counted"], shown["deaths"]  # stand in /metrics
    budget, booked = status.budget, status.booked
    shown |= {
        "budget_bytes": status.budget_bytes,
        "booked_bytes": status.booked_bytes,
        "places": {place: {"budget_bytes": budget[place], "booked_bytes": booked[place]} for place in budget.places},
        "residents": [
            {
                **asdict(resident),
                "vram_bytes": status.vram_bytes(resident.memory),
                "places": dict(resident.memory.bytes_by_place),
            }
            for resident in status.residents
        ],
    }
    for part in (shown, *shown["residents"]):
        for own in ("budget", "booked", "memory"):
            part.pop(own, None)
    return shown


def add_status(app: FastAPI, college: College, metrics: Metrics) -> None:
    """Residents, health and metrics."""

    @app.get("/health", responses=gives(_OBJECT, ERROR))
    async def health() -> dict[str, str]:
        """The process is alive."""
        return {"status": "ok"}

    @app.get("/ready", responses=gives(_OBJECT, _OBJECT))
    async def ready() -> Response:
        """Requests can be answered: 503 with the problems where they cannot."""
        stalled = college.pool.status().stalled
        warnings = [*college.supervisor.warnings, *college.catalog.doubts]
        body = {"ready": not stalled, "problems": list(stalled), "warnings": warnings}
        return JSONResponse(body, 503 if stalled else 200)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def scrape() -> Response:
        """For Prometheus."""
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/pool", responses=gives(_OBJECT, ERROR))
    async def pool() -> dict[str, Any]:
        """Residents, bytes, leases and the queue."""
        return {**pool_json(college.pool.status()), "budget": college.budget_note}

    @app.post("/v1/pool/unload", openapi_extra=takes(_UNLOAD), responses=gives(_UNLOADED, ERROR))
    async def unload(request: Request) -> dict[str, Any]:
        """Give a specialist's memory back now, unless a request holds it."""
        name = await read_json(request, college.roster.server, lambda body: body.get("model"))
        specialist = college.roster.find(name) if isinstance(name, str) else None
        if specialist is None:
            raise UnknownModelError(
                f"There is no model {name!r}. Known: {', '.join(college.roster.names)}.", param="model"
            )
        about(request.scope, model=specialist.name)
        unloaded, others = await college.unload(specialist)
        return {"model": specialist.name, "unloaded": unloaded, "with": others}


def add_builds(app: FastAPI, college: College) -> None:
    """Builds: their states, and beginning one."""

    def known(name: str) -> str:
        specialist = college.roster.find(name)
        if specialist is None or specialist.name not in college.builds:
            built = ", ".join(card["name"] for card in college.builds.cards()) or "none"
            raise UnknownModelError(f"There is no build {name!r}. Known: {built}.")
        return specialist.name

    @app.get("/v1/builds", responses=gives(_LIST, ERROR))
    async def builds() -> dict[str, Any]:
        """Specialists to be built, each with its state."""
        return {"object": "list", "data": college.builds.cards()}

    @app.get("/v1/builds/{name}", responses=gives(_OBJECT, ERROR))
    async def build(name: str) -> dict[str, Any]:
        """One build: state, step, progress, report."""
        return await college.builds.details(known(name))

    @app.post("/v1/builds/{name}", status_code=202, responses=gives(_OBJECT, ERROR, status=202))
    async def begin(name: str) -> dict[str, Any]:
        """Begin a build, or try it again."""
        name = known(name)
        college.builds.retry(name)
        return college.builds.card(name)
