"""The paths of the Responses API: one that answers, and those of the answers that are kept."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import Response

from ...runtime.college import College
from ...runtime.errors import RequestError, UnknownPathError
from ...runtime.request import Request as InternalRequest
from ..body import read_json
from ..dialect import Dialect
from ..keys import given_key
from ..openapi import gives, of_dialect, takes
from ..tokens import prompt_tokens, refuse_long_messages
from .described import COUNTED, DELETED, DESCRIBED, ITEMS
from .dialect import ResponsesDialect
from .items import listed
from .store import Item, ResponseStore, Stored, UnknownResponseError

PATH: Final = "/v1/responses"
_PAGE: Final = 20
_OF_ANSWERS: Final = ("max_output_tokens", "stream", "store")  # of a body whose prompt alone is asked about
_MOST: Final = 100


def add_responses(
    app: FastAPI,
    college: College,
    store: ResponseStore,
    answer: Callable[[Request, Dialect], Awaitable[Response]],
    *,
    by_key: bool,
) -> None:
    """Serve them. answer: gives the response to a request in a dialect. by_key: whether each key has a store of its
    own; where the server has no keys, whoever reaches it shares one."""

    def owner(request: Request) -> bytes:
        return given_key(request.scope) if by_key else b""

    def stored(request: Request, name: str) -> Stored:
        found = store.get(owner(request), name)
        if found is None:
            raise _unknown(name)
        return found

    @app.post(PATH, **of_dialect(ResponsesDialect(store)))
    async def create(request: Request) -> Response:
        return await answer(request, ResponsesDialect(store, owner(request)))

    @app.post(f"{PATH}/input_tokens", openapi_extra=takes(DESCRIBED.body), responses=gives(COUNTED, DESCRIBED.error))
    async def input_tokens(request: Request) -> dict[str, Any]:
        """The tokens of a response's prompt, which nobody answers."""
        dialect = ResponsesDialect(store, owner(request))

        def parse(body: dict[str, Any]) -> InternalRequest:
            wanted = dialect.parse({name: value for name, value in body.items() if name not in _OF_ANSWERS}).request
            refuse_long_messages(wanted)
            return wanted

        wanted = await read_json(request, college.roster.server, parse)
        return {"object": "response.input_tokens", "input_tokens": await prompt_tokens(college, request, wanted)}

    @app.post(f"{PATH}/compact", responses=gives(DESCRIBED.answer, DESCRIBED.error))
    async def compact() -> None:
        """Refused: a compacted conversation is one that only its maker can read."""
        raise UnknownPathError(
            f"{PATH}/compact is not served. Ask for a summary of the conversation, and go on from that.", 404
        )

    @app.get(f"{PATH}/{{response_id}}", responses=gives(DESCRIBED.answer, DESCRIBED.error))
    async def retrieve(request: Request, response_id: str, stream: str = "false") -> Mapping[str, Any]:
        """A response that is kept."""
        if stream.lower() not in ("false", "0", ""):
            raise RequestError("stream: a stored response comes whole. Leave it out.", param="stream")
        return stored(request, response_id).response

    @app.delete(f"{PATH}/{{response_id}}", responses=gives(DELETED, DESCRIBED.error))
    async def delete(request: Request, response_id: str) -> Mapping[str, Any]:
        """Forget a response."""
        if not store.delete(owner(request), response_id):
            raise _unknown(response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    @app.get(f"{PATH}/{{response_id}}/input_items", responses=gives(ITEMS, DESCRIBED.error))
    async def input_items(
        request: Request, response_id: str, order: str = "desc", limit: str = str(_PAGE), after: str = ""
    ) -> Mapping[str, Any]:
        """The items that a response answered, the newest first unless order is asc. limit: 1 to 100."""
        return _page(listed(stored(request, response_id).items, response_id), order, limit, after)

    @app.post(f"{PATH}/{{response_id}}/cancel", responses=gives(DESCRIBED.answer, DESCRIBED.error))
    async def cancel(request: Request, response_id: str) -> None:
        """Refused: what is stored has ended, and closing the connection ends what has not."""
        stored(request, response_id)
        raise RequestError("Only responses in the background can be cancelled, and none is. Close the connection.")


def _unknown(name: str) -> UnknownResponseError:
    return UnknownResponseError(f"Response with id '{name[:80]}' not found.", param="response_id")


def _page(items: Sequence[Item], order: str, limit: str, after: str) -> dict[str, Any]:
    if order not in ("asc", "desc"):
        raise RequestError("order: give asc or desc.", param="order")
    if not (limit.isascii() and limit.isdigit() and len(limit) < 4 and 1 <= int(limit) <= _MOST):
        raise RequestError(f"limit: give a number from 1 to {_MOST}.", param="limit")
    ordered = list(items) if order == "asc" else list(reversed(items))
    if after:
        place = next((index for index, item in enumerate(ordered) if item["id"] == after), None)
        if place is None:
            raise RequestError("after: no item of this response has that id.", param="after")
        ordered = ordered[place + 1 :]
    page = ordered[: int(limit)]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(ordered) > len(page),
    }
