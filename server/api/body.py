"""Request bodies: bounded reading, and JSON without what no model can be given."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from starlette.requests import ClientDisconnect, Request

from ..runtime.errors import BodyTooLargeError, ClientGoneError, RequestError

_MAX_DEPTH = 100  # levels of lists and objects in a body


async def read_body(request: Request, limit: int) -> bytes:
    """The body, as long as it keeps to the limit. Raises BodyTooLargeError as soon as it does not.

    Raises ClientGoneError when the client leaves before it has sent all.
    """
    message = f"The body is larger than {limit:,} bytes. Send less, or raise server.max_body_bytes in the roster."
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise BodyTooLargeError(message)
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise BodyTooLargeError(message)
    except ClientDisconnect:
        raise ClientGoneError from None
    return bytes(body)


def parse_json(body: bytes) -> dict[str, Any]:
    """A request's JSON object. Raises RequestError for anything else, lone surrogates and NUL included."""
    try:
        value = json.loads(body)
    except UnicodeDecodeError as error:
        raise RequestError("The body is not UTF-8. Send JSON in UTF-8.") from error
    except RecursionError as error:
        raise RequestError(f"The body is nested more than {_MAX_DEPTH} levels deep.") from error
    except json.JSONDecodeError as error:
        raise RequestError(
            f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from error
    except ValueError as error:  # an integer of more digits than Python takes
        raise RequestError(f"The body is not JSON that can be read: {error}.") from error
    if not isinstance(value, dict):
        raise RequestError("The body must be a JSON object.")
    _refuse_unwritable(value)
    return value


def _refuse_unwritable(body: dict[str, Any]) -> None:
    """Look at every text for what cannot be passed on. The path of a text is only put together when it is needed."""
    todo: list[tuple[Any, _Place | None, int]] = [(body, None, 1)]
    while todo:
        value, place, depth = todo.pop()
        if depth > _MAX_DEPTH:
            raise RequestError(f"The body is nested more than {_MAX_DEPTH} levels deep.")
        members: Iterable[tuple[str | int, Any]] = value.items() if isinstance(value, dict) else enumerate(value)
        for key, member in members:
            if isinstance(key, str) and (flaw := _flaw(key)):
                raise RequestError(f"A key in {_path(place) or 'the body'} {flaw}", param=_path(place) or None)
            if isinstance(member, str):
                if flaw := _flaw(member):
                    path = _path(_Place(place, key))
                    raise RequestError(f"{path} {flaw}", param=path)
            elif isinstance(member, (dict, list)):
                todo.append((member, _Place(place, key), depth + 1))


class _Place(NamedTuple):
    """Where a value stands: in what, and under which key or index."""

    above: _Place | None
    key: str | int


def _path(place: _Place | None) -> str:
    keys: list[str] = []
    while place is not None:
        keys.append(f"[{place.key}]" if isinstance(place.key, int) else f".{place.key[:60]}")
        place = place.above
    return "".join(reversed(keys)).lstrip(".")


def _flaw(text: str) -> str:
    if "\0" in text:
        return "contains a NUL character. Remove it."
    try:
        text.encode()
    except UnicodeEncodeError:
        return "contains a lone surrogate, which is no character. Send whole characters."
    return ""
