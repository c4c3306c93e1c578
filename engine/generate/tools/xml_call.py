"""Calls as XML, with an element for each argument: the forms of several families, which differ in their tags.

A value stands as it is where a text is wanted, as JSON else. Nothing in it is escaped: so a closing tag is one where
the next argument or the end of the call follows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

from jsonschema import Draft202012Validator

from ...request import Tool
from ..validators import spending, validator_of
from . import json_text
from .family import Family, Message, openai_message, openai_tool
from .markup import Markup
from .rules import CallRules
from .shapes import Shape
from .source import MAX_CALLS, MalformedCallError, Parser, Source
from .xml_rule import LINE, arguments_rule

_MAX_NAME_CHARS: Final = 256
_MAX_TRIES: Final = 64
_MAX_STEPS: Final = 2_000  # of a validation, for which the other answers wait
_PYTHONS: Final[Mapping[str, Any]] = {"True": True, "False": False, "None": None}


class XmlCalls(Family):
    """See Family."""

    markup: ClassVar[Markup]
    is_json = False

    def writes(self, template: str) -> bool:
        """See Family."""
        markup = self.markup
        return all(tag in template for tag in (markup.opening, markup.head, markup.key, markup.value_end))

    def read(self, source: Source, tools: Mapping[str, Tool]) -> Parser[None]:
        """See Family."""
        markup = self.markup.spelt(source.spelt)
        bare = source.opening == self.markup.head  # the tag around it was left out
        while True:
            if not bare:
                yield from source.skip_space()
                yield from source.expect(markup.head)
            name = yield from _up_to(source, (markup.head_end,) if markup.head else ("\n", markup.key, markup.closing))
            yield from source.passes(markup.head_end)
            source.call(name)
            yield from _Arguments(markup, source, tools[name], bare=bare).read()
            yield from source.skip_space()
            if not (markup.grouped and (yield from source.begins(markup.head))):
                break
            source.close()
        if not bare or (yield from source.begins(markup.closing)):
            yield from source.closes(self.markup.closing)
        source.close()

    def rule(self, rules: CallRules, tools: Sequence[Tool], opening: str) -> str:
        """See Family."""
        markup = self.markup
        line = rules.text("\n")
        calls = []
        for tool in tools:
            after = LINE if markup.lines_are_free else line
            head = f"{rules.text(tool.name + markup.head_end)} {after}"
            calls.append(f"{head} {arguments_rule(rules, tool, markup)}")
        one = rules.new(" | ".join(calls))
        if not markup.end:
            return one  # its end is the closing tag
        head = "" if opening == markup.head else rules.text(f"\n{markup.head}")
        more = f"({rules.text(chr(10) + markup.head)} {one}){{0,{MAX_CALLS - 1}}}"
        several = more if markup.grouped and rules.parallel else ""
        return f"{head} {one} {several} {rules.tag(chr(10) + markup.closing)}"

    def messages(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[list[Message], list[Any] | None]:
        """See Family. The templates write true and null as Python does, some lists too: as texts they stand as JSON."""
        found = []
        for message in messages:
            made = openai_message(message)
            for call in made.get("tool_calls") or ():
                arguments = call["function"]["arguments"]
                call["function"]["arguments"] = {
                    key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                    for key, value in arguments.items()
                }
            found.append(made)
        return list(found), [openai_tool(tool) for tool in tools] or None


def _up_to(source: Source, marks: Sequence[str]) -> Parser[str]:
    """What is there before the first of some marks, or the end of the text."""
    found = ""
    while (yield from source.peek()):
        for mark in marks:
            if (yield from source.begins(mark)):
                return source.plain(found).strip()
        found += yield from source.take()
        if len(found) > _MAX_NAME_CHARS or ("\n" in found and found.strip()):
            raise MalformedCallError("a name has no end")
    return source.plain(found).strip()


class _Arguments:
    """Reads the parameters of one call, and the end of its function."""

    def __init__(self, markup: Markup, source: Source, tool: Tool, *, bare: bool) -> None:
        """markup: as it comes. bare: without the tags around a call."""
        self._markup = markup
        self._bare = bare
        self._source = source
        self._root = tool.parameters
        self._shape = Shape(tool.parameters)
        self._seen: list[str] = []
        self._ended = False  # the function's end was read along with a value's

    def read(self) -> Parser[None]:
        source, markup = self._source, self._markup
        source.write("{")
        while not self._ended:
            yield from source.skip_space()
            if not (yield from source.passes(markup.key)):
                if markup.end:
                    yield from source.closes(markup.end)
                break
            key = yield from _up_to(source, markup.key_end[:1])
            for part in markup.key_end:
                yield from source.skip_space()
                yield from source.expect(part)
            source.write((", " if self._seen else "") + json.dumps(key, ensure_ascii=False) + ": ")
            self._seen.append(key)
            yield from self._value(self._shape.at(key))
        source.write("}")

    def _value(self, shape: Shape) -> Parser[None]:
        source = self._source
        if self._markup.line and not (yield from source.passes("\n")):
            yield from source.passes("\r\n")
        if shape.types == {"string"}:
            source.write('"')
            yield from self._text(lambda part: source.write(json_text.escaped(source.plain(part))))
            source.write('"')
            return
        parts: list[str] = []
        tries = 0

        def is_whole() -> bool:
            """JSON may hold the closing tag in its strings."""
            nonlocal tries
            tries += 1
            if not shape.types or "string" in shape.types or tries > _MAX_TRIES:
                return True
            text = "".join(parts).strip()
            return text[:1] not in ("{", "[") or _parsed(text)[0]

        yield from self._text(parts.append, is_whole)
        source.write(json.dumps(self._meant(source.plain("".join(parts)), shape), ensure_ascii=False))

    def _text(self, write: Callable[[str], None], is_whole: Callable[[], bool] = lambda: True) -> Parser[None]:
        """All before a value's end. What stands between it and the closing tag is no part of it."""
        source, line, value_end = self._source, self._markup.line, self._markup.value_end
        held = ""

        def keep(part: str) -> None:
            nonlocal held
            text = held + part
            held = line if text.endswith(line) else ""
            if text := text.removesuffix(line):
                write(text)

        while True:
            yield from source.until(value_end, keep)
            ends, passed = yield from self._after()
            if ends and is_whole():
                return
            self._ended = False
            keep(value_end + passed)

    def _after(self) -> Parser[tuple[bool, str]]:
        """Whether a parameter's closing tag was one, and what was passed behind it to find that out."""
        source, markup = self._source, self._markup
        passed = yield from _space(source)
        if (yield from source.begins(markup.key)):
            for key in self._seen:
                if (yield from source.begins(f"{markup.key}{key}{markup.key_end[0]}")):
                    return False, passed  # twice the same: a text about calls
            return True, passed
        if markup.end and (yield from source.passes(markup.end)):
            passed += markup.end
            self._ended = self._bare
            if not self._bare:
                passed += yield from _space(source)
                self._ended = yield from self._closes()
                if markup.grouped and not self._ended:
                    self._ended = yield from source.begins(markup.head)
            return self._ended, passed
        return (yield from self._closes()), passed

    def _closes(self) -> Parser[bool]:
        if not (yield from self._source.peek()):
            return True
        return (yield from self._source.begins(self._markup.closing))

    def _meant(self, text: str, shape: Shape) -> Any:
        """The value that a text stands for, where not only a text may stand there."""
        is_json, value = _parsed(text.strip())
        kinds = shape.types
        if not is_json or ("string" in kinds and not self._fits(value, shape)):
            return text
        return value

    def _fits(self, value: Any, shape: Shape) -> bool:
        try:
            with spending(_MAX_STEPS):
                judge = validator_of(Draft202012Validator, dict(self._root))
                return bool(judge.evolve(schema={"allOf": shape.parts[:1]}).is_valid(value))
        except Exception:  # a client's schema may be none
            return False


def _parsed(text: str) -> tuple[bool, Any]:
    if text in _PYTHONS:
        return True, _PYTHONS[text]
    try:
        return True, json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False, None


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _space(source: Source) -> Parser[str]:
    found = ""
    while (char := (yield from source.peek())) and char in " \t\r\n":
        found += yield from source.take()
    return found
