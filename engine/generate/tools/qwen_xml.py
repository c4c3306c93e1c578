"""Qwen3-Coder, Qwen 3.5 and others: <function=NAME> with one <parameter=KEY> for each argument, in <tool_call> tags.

A value stands as it is where a text is wanted, as JSON else. Nothing in it is escaped: so a closing tag is one where
the next parameter or the end of the call follows.
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
from .qwen_xml_rule import arguments_rule
from .rules import CallRules
from .shapes import Shape
from .source import MalformedCallError, Parser, Source

_FUNCTION: Final = "<function="
_FUNCTION_END: Final = "</function>"
_PARAMETER: Final = "<parameter="
_PARAMETER_END: Final = "</parameter>"
_MAX_NAME_CHARS: Final = 256
_MAX_TRIES: Final = 64
_MAX_STEPS: Final = 2_000  # of a validation, for which the other answers wait
_PYTHONS: Final[Mapping[str, Any]] = {"True": True, "False": False, "None": None}


class QwenXml(Family):
    """See Family.

    opening, closing: around a call. line: what stands between a parameter's tags and its value.
    """

    opening: ClassVar[str] = "<tool_call>"
    closing: ClassVar[str] = "</tool_call>"
    line: ClassVar[str] = "\n"

    name = "qwen-xml"
    is_json = False
    openings = (opening, _FUNCTION)  # Qwen3-Coder leaves the first tag out at times
    tags = (opening, closing)

    def writes(self, template: str) -> bool:
        """See Family."""
        return all(tag in template for tag in (self.opening, _FUNCTION, _PARAMETER))

    def read(self, source: Source, tools: Mapping[str, Tool]) -> Parser[None]:
        """See Family."""
        if source.opening != _FUNCTION:
            yield from source.skip_space()
            yield from source.expect(_FUNCTION)
        name = yield from _name(source)
        source.call(name)
        yield from _Arguments(self, source, tools[name]).read()
        yield from source.skip_space()
        if source.opening != _FUNCTION or (yield from source.begins(source.spelt[self.closing])):
            yield from source.closes(self.closing)
        source.close()

    def rule(self, rules: CallRules, tools: Sequence[Tool], opening: str) -> str:
        """See Family."""
        head = "" if opening == _FUNCTION else rules.text(f"\n{_FUNCTION}")
        calls = [f"{rules.text(f'{tool.name}>' + chr(10))} {arguments_rule(rules, tool, self.line)}" for tool in tools]
        closing = f"{rules.text(chr(10))} {rules.tag(self.closing)}"
        return f"{head} {rules.new(' | '.join(calls))} {closing}"

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


class SeedOss(QwenXml):
    """Seed-OSS: the same within tags of its own, with values on the line of their tags."""

    opening = "<seed:tool_call>"
    closing = "</seed:tool_call>"
    line = ""

    name = "seed-oss"
    openings = (opening, _FUNCTION)
    tags = (opening, closing)


def _name(source: Source) -> Parser[str]:
    found = ""
    while (char := (yield from source.take())) != ">":
        found += char
        if char == "\n" or len(found) > _MAX_NAME_CHARS:
            raise MalformedCallError("a name has no end")
    return found.strip()


class _Arguments:
    """Reads the parameters of one call, and the end of its function."""

    def __init__(self, family: QwenXml, source: Source, tool: Tool) -> None:
        self._family = family
        self._source = source
        self._root = tool.parameters
        self._shape = Shape(tool.parameters)
        self._seen: list[str] = []
        self._ended = False  # the function's end was read along with a value's

    def read(self) -> Parser[None]:
        source = self._source
        source.write("{")
        while not self._ended:
            yield from source.skip_space()
            if not (yield from source.passes(_PARAMETER)):
                yield from source.closes(_FUNCTION_END)
                break
            key = source.plain((yield from _name(source)))
            source.write((", " if self._seen else "") + json.dumps(key, ensure_ascii=False) + ": ")
            self._seen.append(key)
            yield from self._value(self._shape.at(key))
        source.write("}")

    def _value(self, shape: Shape) -> Parser[None]:
        source = self._source
        if self._family.line and not (yield from source.passes("\n")):
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
        source, line = self._source, self._family.line
        held = ""

        def keep(part: str) -> None:
            nonlocal held
            text = held + part
            held = line if text.endswith(line) else ""
            if text := text.removesuffix(line):
                write(text)

        while True:
            yield from source.until(_PARAMETER_END, keep)
            ends, passed = yield from self._after()
            if ends and is_whole():
                return
            self._ended = False
            keep(_PARAMETER_END + passed)

    def _after(self) -> Parser[tuple[bool, str]]:
        """Whether a parameter's closing tag was one, and what was passed behind it to find that out."""
        source = self._source
        passed = yield from _space(source)
        if (yield from source.begins(_PARAMETER)):
            for key in self._seen:
                if (yield from source.begins(f"{_PARAMETER}{key}>")):
                    return False, passed  # twice the same: a text about calls
            return True, passed
        if (yield from source.passes(_FUNCTION_END)):
            passed += _FUNCTION_END
            if source.opening != _FUNCTION:
                passed += yield from _space(source)
                self._ended = yield from self._closes()
            else:
                self._ended = True
            return self._ended, passed
        return (yield from self._closes()), passed

    def _closes(self) -> Parser[bool]:
        if not (yield from self._source.peek()):
            return True
        return (yield from self._source.begins(self._source.spelt[self._family.closing]))

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
