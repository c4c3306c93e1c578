"""Paths and methods: HEAD wherever GET is served, what a path takes, and the right path beside a wrong one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.routing import Route, compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from coe.engine.text import printable

from ..runtime.errors import RequestError, UnknownPathError

_VERSION: Final = "v1"
_ALIKE: Final = 0.85  # of two paths, so that one is taken for a mistyped other
_SHOWN_CHARS: Final = 120  # of a path in a message


def shown(text: str) -> str:
    """A client's text as it may stand in a message or a log: shortened, and without line breaks or other controls."""
    return printable(text, _SHOWN_CHARS)


class AnswerHead:
    """HEAD is GET without the body (RFC 9110, 9.3.2): monitors ask so."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def without_body(message: Any) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._app({**scope, "method": "GET"}, receive, without_body)


@dataclass(frozen=True)
class _Path:
    """A path as it is written in its routes, and the methods that they take."""

    path: str
    written: str  # for people: `/v1/models/{name}`, without the framework's converters
    pattern: re.Pattern[str]
    methods: Sequence[str]

    @classmethod
    def of(cls, path: str, methods: Iterable[str]) -> _Path:
        """A path that routes are written with; it is compiled here, and not for every request that misses it."""
        pattern, written, _ = compile_path(path)
        return cls(path, written, pattern, sorted({*methods} - {"HEAD"}))

    def takes(self, asked: str) -> bool:
        """Whether a request's path is this one."""
        return self.pattern.match(asked) is not None

    @property
    def allow(self) -> str:
        """As the header Allow has it."""
        head = ["HEAD"] if "GET" in self.methods else []
        return ", ".join([*self.methods, *head, "OPTIONS"])


class Paths:
    """All paths of an application."""

    def __init__(self, app: FastAPI) -> None:
        methods: dict[str, list[str]] = {}
        for route in app.routes:
            if isinstance(route, Route):
                methods.setdefault(route.path, []).extend(route.methods or ())
        self._paths = [_Path.of(path, taken) for path, taken in methods.items()]

    def card(self) -> dict[str, Any]:
        """What is served where, for people and programs that ask for the root."""
        return {
            "name": "College of Experts",
            "about": "An OpenAI-compatible server. Clients want the address that ends in /v1, those of Ollama the one "
            "without; the model `auto` chooses a specialist.",
            "paths": {path.written: path.methods for path in self._paths},
        }

    def refusal(self, error: HTTPException, method: str, asked: str) -> RequestError:
        """A framework's error in our words: which method the path takes, or which path was meant."""
        headers = {name.lower(): value for name, value in (error.headers or {}).items()}
        if error.status_code == 405 and (path := self._at(asked)) is not None:
            what = f"{shown(asked)} takes {' or '.join(path.methods)}, not {shown(method)}."
            return UnknownPathError(what, 405, {**headers, "allow": path.allow})
        if error.status_code == 404:
            hint = "GET / lists the paths."
            if (meant := self._meant(asked)) is not None:
                hint = f"Did you mean {' or '.join(meant[1].methods)} {meant[0]}?"
            return UnknownPathError(f"Nothing is served at {shown(asked)}. {hint}", 404, headers)
        return UnknownPathError(str(error.detail), error.status_code, headers)

    def allow(self, asked: str) -> str | None:
        """The methods of a path, as the header Allow has them; None where nothing is served."""
        path = self._at(asked)
        return path.allow if path is not None else None

    def _at(self, asked: str) -> _Path | None:
        return next((path for path in self._paths if path.takes(asked)), None)

    def _meant(self, asked: str) -> tuple[str, _Path] | None:
        """The path that was probably meant, with the names that were asked for in it."""
        for wanted in _variants(asked):
            if (path := self._at(wanted)) is not None:
                return wanted, path
        plain = {path.path: path for path in self._paths if "{" not in path.path and path.path != "/"}
        alike = _most_alike(_variants(asked), plain)
        return (alike, plain[alike]) if alike is not None else None


def _variants(asked: str) -> Iterator[str]:
    """A path without what is too much in front of it and between its parts, with and without the version."""
    parts = [part for part in asked[:_SHOWN_CHARS].split("/") if part]
    for begin in range(len(parts)):
        for rest in (parts[begin:], [part.lower() for part in parts[begin:]]):
            if rest[0] != _VERSION:
                yield "/".join(["", _VERSION, *rest])
            yield "/".join(["", *rest])


def _most_alike(asked: Iterable[str], known: Iterable[str]) -> str | None:
    names = list(known)
    return next((near[0] for one in asked if (near := difflib.get_close_matches(one, names, 1, _ALIKE))), None)
