"""How many tokens the prompt of a message is."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI, Request

from ...runtime.college import College
from ...runtime.request import Request as InternalRequest
from ..body import read_json
from ..openapi import gives, takes
from ..tokens import prompt_tokens, refuse_long_messages
from .described import COUNT, COUNTED, ERROR
from .requests import parse_messages

COUNT_PATH: Final = "/v1/messages/count_tokens"


def add_count(app: FastAPI, college: College) -> None:
    """Serve the path."""

    @app.post(COUNT_PATH, openapi_extra=takes(COUNT), responses=gives(COUNTED, ERROR))
    async def count(request: Request) -> dict[str, Any]:
        """The tokens of a message's prompt, which nobody answers."""
        wanted, manages = await read_json(request, college.roster.server, _parsed)
        n_tokens = await prompt_tokens(college, request, wanted)
        counted: dict[str, Any] = {"input_tokens": n_tokens}
        if manages:
            counted["context_management"] = {"original_input_tokens": n_tokens}
        return counted


def _parsed(body: dict[str, Any]) -> tuple[InternalRequest, bool]:
    wanted = parse_messages({name: value for name, value in body.items() if name not in ("max_tokens", "stream")})
    refuse_long_messages(wanted)
    return wanted, body.get("context_management") is not None
