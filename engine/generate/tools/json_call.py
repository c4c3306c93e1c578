"""A call as a JSON object of a name and arguments, which several families write in frames of their own."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Final

from ...request import Tool
from . import json_text
from .rules import SPACE, CallRules
from .source import MAX_CALLS, MalformedCallError, Parser, Source

# The keys under which models write the two, whatever their template says.
NAMES: Final = frozenset(("name",))
ARGUMENTS: Final = frozenset(("arguments", "parameters"))


def read(source: Source, names: Collection[str] = NAMES, *, begun: bool = False) -> Parser[None]:
    """Read the object; the call stays open. The name may come after the arguments, and other keys are passed over.

    begun: its brace was the opening.
    """
    if not begun:
        yield from source.expect("{")
    yield from source.skip_space()
    held: list[str] = []
    named = argued = False

    def write(text: str) -> None:
        (source.write if named else held.append)(text)

    while not (yield from source.passes("}")):
        key = yield from json_text.string(source)
        yield from source.skip_space()
        yield from source.expect(":")
        yield from source.skip_space()
        if key in names and not named:
            source.call((yield from json_text.string(source)))
            named = True
            for part in held:
                source.write(part)
        elif key in ARGUMENTS and not argued:
            argued = True
            yield from arguments(source, write)
        else:
            yield from json_text.value(source, lambda _: None)
        yield from source.skip_space()
        if (yield from source.passes(",")):
            yield from source.skip_space()
        elif (yield from source.peek()) != "}":
            raise MalformedCallError("it is no JSON object")
    if not named:
        raise MalformedCallError("it names no tool")


def read_list(source: Source) -> Parser[None]:
    """Read an array of such objects, each of them a whole call."""
    yield from source.expect("[")
    yield from source.skip_space()
    while not (yield from source.passes("]")):
        yield from read(source)
        source.close()
        yield from source.skip_space()
        if (yield from source.passes(",")):
            yield from source.skip_space()
        elif (yield from source.peek()) != "]":
            yield from source.closes("]")
            return


def arguments(source: Source, write: json_text.Write) -> Parser[None]:
    """An object; some models write it as a text of JSON, or null for none."""
    char = yield from source.peek()
    if char == "{":
        yield from json_text.object_(source, write)
    elif char == '"':
        written = yield from json_text.string(source)
        try:
            value = json.loads(written or "{}")
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise MalformedCallError("its arguments are no object")
        write(json.dumps(value, ensure_ascii=False))
    else:
        yield from source.expect("null")
        write("{}")


def rule(
    rules: CallRules, tools: Sequence[Tool], name: str, arguments: str, *, begun: bool = False, end: str = ""
) -> str:
    """The name of a rule for such an object, keys in this order.

    begun: its brace was the opening. end: a part of a rule for what comes behind the arguments.
    """
    calls = []
    for tool in tools:
        head = f'{{"{name}": {json.dumps(tool.name, ensure_ascii=False)}, "{arguments}": '
        calls.append(f'{rules.text(head[begun:])} {rules.json(tool)} {SPACE} {end} "}}"')
    return rules.new(" | ".join(calls))


def list_rule(rules: CallRules, tools: Sequence[Tool], name: str, arguments: str, *, end: str = "") -> str:
    """The name of a rule for an array of such objects."""
    one = rule(rules, tools, name, arguments, end=end)
    several = f'("," {SPACE} {one}){{0,{MAX_CALLS - 1}}}' if rules.parallel else ""
    return rules.new(f'"[" {one} {several} {SPACE} "]"')
