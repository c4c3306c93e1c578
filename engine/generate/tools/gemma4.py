"""Gemma 4: <|tool_call>call:NAME{key:value,...}<tool_call|>, with bare keys and strings between <|"|> marks.

Source: the model's own chat template, which writes the arguments of earlier calls so, keys sorted regardless of case.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ...request import Tool
from . import json_text
from .family import Family, Message, openai_message
from .gemma4_rule import MARK, arguments_rule
from .rules import CallRules
from .shapes import Shape
from .shown import simple
from .source import MalformedCallError, Parser, Source

_OPENING: Final = "<|tool_call>"
_CLOSING: Final = "<tool_call|>"
_RESPONSE: Final = "<|tool_response>"
_MAX_DEPTH: Final = 64
_MAX_KEY_CHARS: Final = 1000
_MAX_ATOM_CHARS: Final = 400
# As Python writes them, and so the template where a client's arguments hold them.
_PYTHONS: Final[Mapping[str, str]] = {"True": "true", "False": "false", "None": "null"}


class Gemma4(Family):
    """See Family."""

    name = "gemma4"
    is_json = False
    openings = (_OPENING,)
    tags = (_OPENING, _CLOSING, MARK)
    ends = (_RESPONSE,)

    def writes(self, template: str) -> bool:
        """See Family."""
        return f"{_OPENING}call:" in template

    def read(self, source: Source, tools: Mapping[str, Tool]) -> Parser[None]:
        """See Family."""
        yield from source.skip_space()
        yield from source.expect("call:")
        name = (yield from _until(source, "{", 256)).strip()
        source.call(name)
        yield from _object(source, Shape(tools[name].parameters), 0)
        yield from source.skip_space()
        yield from source.closes(_CLOSING)
        source.close()

    def rule(self, rules: CallRules, tools: Sequence[Tool], opening: str) -> str:
        """See Family."""
        calls = [f"{rules.text(f'call:{tool.name}')} {arguments_rule(rules, tool)}" for tool in tools]
        return f"{rules.new(' | '.join(calls))} {rules.tag(_CLOSING)}"

    def messages(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[list[Message], list[Any] | None]:
        """See Family."""
        return [openai_message(message) for message in messages], [simple(tool) for tool in tools] or None


def _until(source: Source, stop: str, most: int) -> Parser[str]:
    """What is there before a character, of up to so many characters."""
    found = ""
    while (yield from source.peek()) != stop:
        if len(found) >= most:
            raise MalformedCallError(f"{stop!r} is missing")
        found += yield from source.take()
    return found


def _value(source: Source, shape: Shape, depth: int) -> Parser[None]:
    if depth > _MAX_DEPTH:
        raise MalformedCallError("its arguments are nested too deeply")
    mark = source.spelt[MARK]
    if (yield from source.passes(mark)):
        source.write('"')
        yield from source.until(mark, lambda part: source.write(json_text.escaped(source.plain(part))))
        source.write('"')
        return
    char = yield from source.peek()
    if char == "{":
        yield from _object(source, shape, depth)
    elif char == "[":
        yield from _array(source, shape.items(), depth)
    elif char == '"':  # as JSON has it: models that read much of it slip
        yield from json_text.text(source, source.write)
    else:
        yield from _atom(source)


def _atom(source: Source) -> Parser[None]:
    atom = ""
    while (char := (yield from source.peek())) and (char.isalnum() or char in "+-."):
        atom += yield from source.take()
        if len(atom) > _MAX_ATOM_CHARS:
            break
    written = _PYTHONS.get(atom, atom)
    try:
        json.loads(written, parse_constant=_refuse)
    except ValueError:
        raise MalformedCallError(f"{atom[:40]!r} is no value") from None
    source.write(written)


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _array(source: Source, shape: Shape, depth: int) -> Parser[None]:
    yield from source.expect("[")
    source.write("[")
    yield from source.skip_space()
    if (yield from source.passes("]")):
        source.write("]")
        return
    while True:
        yield from _value(source, shape, depth + 1)
        if not (yield from _goes_on(source, "]")):
            return


def _object(source: Source, shape: Shape, depth: int) -> Parser[None]:
    keys = sorted(shape.keys, key=len, reverse=True)
    yield from source.expect("{")
    source.write("{")
    yield from source.skip_space()
    if (yield from source.passes("}")):
        source.write("}")
        return
    while True:
        key = yield from _key(source, keys)
        source.write(json.dumps(key, ensure_ascii=False) + ": ")
        yield from source.expect(":")
        yield from source.skip_space()
        yield from _value(source, shape.at(key), depth + 1)
        if not (yield from _goes_on(source, "}")):
            return


def _goes_on(source: Source, closing: str) -> Parser[bool]:
    """Whether a comma comes, and not the closing character."""
    yield from source.skip_space()
    char = yield from source.take()
    if char not in (closing, ","):
        raise MalformedCallError(f"{char!r} stands where a comma or {closing} belongs")
    source.write(closing if char == closing else ", ")
    yield from source.skip_space()
    return char == ","


def _key(source: Source, declared: Sequence[str]) -> Parser[str]:
    """A key. A bare one ends with the first colon, but for the declared ones, which may hold any character."""
    for key in declared:
        if (yield from source.begins(f"{key}:")):
            yield from source.passes(key)
            return key
    mark = source.spelt[MARK]
    if (yield from source.passes(mark)):
        key = source.plain((yield from source.until(mark)))
    elif (yield from source.begins('"')):
        key = yield from json_text.string(source)
    else:
        key = source.plain((yield from _until(source, ":", _MAX_KEY_CHARS))).rstrip()
    yield from source.skip_space()
    return key
