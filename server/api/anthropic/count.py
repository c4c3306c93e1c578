"""How many tokens the prompt of a message is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from fastapi import FastAPI, Request

from coe.engine.request import ReadRequest

from ...roster.values import AUTO
from ...runtime.college import College
from ...runtime.request import Request as InternalRequest
from ..body import read_json
from ..journal import about
from ..openapi import gives, takes
from ..sse import until_gone
from ..tokens import prompt_of, refuse_long_messages, told_of
from .described import COUNT, COUNTED, ERROR
from .requests import parse_messages

COUNT_PATH: Final = "/v1/messages/count_tokens"


def add_count(app: FastAPI, college: College) -> None:
    """Serve the path."""

    @app.post(COUNT_PATH, openapi_extra=takes(COUNT), responses=gives(COUNTED, ERROR))
    async def count(request: Request) -> dict[str, Any]:
        """The tokens of a message's prompt, which nobody answers."""
        wanted, manages = await read_json(request, college.roster.server, _parsed)
        choice = await college.chooser.choose(_counting(college, wanted), None, begin=False)
        about(request.scope, model=choice.specialist.name, specialist=choice.specialist.name)

        def asked(name: str) -> ReadRequest:
            return ReadRequest(name, prompt_of(wanted, choice.specialist))

        told = await until_gone(request, told_of(college, choice, asked))
        n_tokens = len(told.tokens)
        counted: dict[str, Any] = {"input_tokens": n_tokens}
        if manages:
            counted["context_management"] = {"original_input_tokens": n_tokens}
        return counted


def _parsed(body: dict[str, Any]) -> tuple[InternalRequest, bool]:
    wanted = parse_messages({name: value for name, value in body.items() if name not in ("max_tokens", "stream")})
    refuse_long_messages(wanted)
    return wanted, body.get("context_management") is not None


def _counting(college: College, wanted: InternalRequest) -> InternalRequest:
    """The request, naming who counts.

    Of `auto` nothing is asked: the fallback does, which any question may go to. While that is not warm, one that is
    counts in its place: nobody gives way to a count.
    """
    if college.roster.called(wanted.model) != AUTO:
        return wanted
    there = college.catalog.answering(chats=True)
    fallback = college.roster.fallback
    order = [*([fallback] if fallback in there else []), *there]
    warm = college.catalog.warm
    name = next((one for one in order if one in warm), next(iter(order), AUTO))
    return replace(wanted, model=name)
