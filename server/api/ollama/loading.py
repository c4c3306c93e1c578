"""Bodies without a message or a prompt: clients load a model so before they ask it, or unload it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Scope

from ...roster.values import AUTO
from ...runtime.college import College
from ...runtime.errors import Part, RequestError, UnknownModelError
from ...runtime.provenance import header_text
from ...runtime.request import Request
from ..dialect import Errand
from ..keys import require_admin
from .replies import done
from .requests import Parsed

_Run = Callable[[College, Scope], Coroutine[Any, Any, Response]]


def errand(parsed: Parsed, said: Mapping[str, Any]) -> Errand:
    """What such a body asks for. said: what stands in the answer in the place of a text."""
    run = _unload if parsed.instead == "unload" else _load
    return Errand(parsed.request.model, run(parsed.request, lambda reason: done(reason, parsed.name, **said)))


def _load(request: Request, done: Callable[[str], dict[str, Any]]) -> _Run:
    async def run(college: College, scope: Scope) -> Response:
        """A resident that serves it is there when this returns; for `auto` the fallback's, to which anything may go."""
        choice = await college.chooser.unasked(request)
        lease = await college.lease(choice.specialist)
        lease.release()
        headers = {"x-coe-specialist": choice.specialist.name, "x-coe-residency": lease.residency}
        if request.notes:
            headers["x-coe-note"] = header_text("; ".join(request.notes))
        return JSONResponse(done("load"), headers=headers)

    return run


def _unload(request: Request, done: Callable[[str], dict[str, Any]]) -> _Run:
    async def run(college: College, scope: Scope) -> Response:
        """Its memory is given back, unless a request holds it: then a note says so."""
        require_admin(scope)
        specialist = college.roster.find(request.model)
        if college.roster.called(request.model) == AUTO:
            raise RequestError(
                "model: auto is no model of its own. Name the specialist to unload; /api/ps lists them.", param="model"
            )
        if college.embeddings.is_encoder(request.model):
            raise RequestError(
                f"model: {request.model} is the server's own sentence encoder, which stays.", param="model"
            )
        if specialist is None:
            known = ", ".join(college.roster.names)
            raise UnknownModelError(f"There is no model {request.model!r}. Known: {known}.", param=Part.MODEL)
        unloaded, _ = await college.unload(specialist)
        headers = {"x-coe-specialist": specialist.name}
        if not unloaded and college.pool.is_resident(specialist.name):
            headers["x-coe-note"] = f"{specialist.name} answers requests now, and stays"
        return JSONResponse(done("unload"), headers=headers)

    return run
