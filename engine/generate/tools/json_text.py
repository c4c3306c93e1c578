"""JSON within a call, passed on as it comes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final

from .source import MalformedCallError, Parser, Source

Write = Callable[[str], None]
_MAX_DEPTH: Final = 64
_ATOM: Final = frozenset("+-.0123456789eEtrufalsn")


def value(source: Source, write: Write, depth: int = 0) -> Parser[None]:
    """One JSON value. Raises MalformedCallError where it is none."""
    if depth > _MAX_DEPTH:
        raise MalformedCallError("its arguments are nested too deeply")
    char = yield from source.peek()
    if char == '"':
        yield from text(source, write)
    elif char in ("{", "["):
        yield from _members(source, write, depth)
    else:
        atom = ""
        while (char := (yield from source.peek())) and char in _ATOM and len(atom) < 400:
            atom += yield from source.take()
        _require_json(atom)
        write(atom)


def object_(source: Source, write: Write) -> Parser[None]:
    """One JSON object. Raises MalformedCallError where it is none."""
    if (yield from source.peek()) != "{":
        raise MalformedCallError("its arguments are no object")
    yield from value(source, write)


def _members(source: Source, write: Write, depth: int) -> Parser[None]:
    """An object or an array, white space between its parts left out but for one blank after `:` and `,`."""
    opening = yield from source.take()
    closing = "}" if opening == "{" else "]"
    write(opening)
    yield from source.skip_space()
    if (yield from source.passes(closing)):
        write(closing)
        return
    while True:
        if opening == "{":
            if (yield from source.peek()) != '"':
                raise MalformedCallError("a key of its arguments is missing")
            yield from text(source, write)
            yield from source.skip_space()
            yield from source.expect(":")
            write(": ")
            yield from source.skip_space()
        yield from value(source, write, depth + 1)
        yield from source.skip_space()
        char = yield from source.take()
        if char == closing:
            write(closing)
            return
        if char != ",":
            raise MalformedCallError(f"its arguments are no JSON: {char!r} stands where a comma or {closing} belongs")
        write(", ")
        yield from source.skip_space()


def text(source: Source, write: Write) -> Parser[None]:
    """A string with its quotation marks. Line breaks within, which JSON wants escaped, are escaped."""
    yield from source.expect('"')
    write('"')
    while True:
        if part := (yield from source.run('"\\')):
            write(escaped(source.plain(part)) if _needs_escapes(part) else part)
            continue
        char = yield from source.take()
        if char == '"':
            write('"')
            return
        escape = yield from source.take()
        if escape == "u":
            for _ in range(4):
                escape += yield from source.take()
        _require_json(f'"\\{escape}"')
        write(f"\\{escape}")


def string(source: Source) -> Parser[str]:
    """A string's value."""
    parts: list[str] = []
    yield from text(source, parts.append)
    return str(json.loads("".join(parts)))


def escaped(part: str) -> str:
    """A text as it stands between a JSON string's quotation marks."""
    return json.dumps(part, ensure_ascii=False)[1:-1]


def _needs_escapes(part: str) -> bool:
    return any(char < " " for char in part) or not part.isprintable()


def _require_json(written: str) -> None:
    try:
        json.loads(written)
    except ValueError:
        raise MalformedCallError(f"its arguments are no JSON at {written[:40]!r}") from None
