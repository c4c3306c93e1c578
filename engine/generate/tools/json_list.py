"""Families that write all calls of an answer as one JSON array between two tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from ...request import Tool
from . import json_call
from .family import Family
from .rules import SPACE, CallRules
from .source import Parser, Source


class JsonList(Family):
    """See Family. opening, closing: the tags."""

    opening: ClassVar[str]
    closing: ClassVar[str]

    def writes(self, template: str) -> bool:
        """See Family."""
        return f"{self.opening}[" in template and "arguments" in template

    def read(self, source: Source, tools: Mapping[str, Tool]) -> Parser[None]:
        """See Family."""
        yield from source.skip_space()
        yield from json_call.read_list(source)
        yield from source.skip_space()
        yield from source.closes(self.closing)

    def rule(self, rules: CallRules, tools: Sequence[Tool], opening: str) -> str:
        """See Family."""
        return f"{json_call.list_rule(rules, tools, 'name', 'arguments')} {SPACE} {rules.tag(self.closing)}"


class Apriel(JsonList):
    """Apriel 1.5: <tool_calls>[{"name": ..., "arguments": {...}}, ...]</tool_calls>."""

    opening, closing = "<tool_calls>", "</tool_calls>"

    name = "apriel"
    openings = (opening,)
    tags = (opening, closing)


class Nemotron(JsonList):
    """Nemotron Nano 2: <TOOLCALL>[{"name": ..., "arguments": {...}}, ...]</TOOLCALL>."""

    opening, closing = "<TOOLCALL>", "</TOOLCALL>"

    name = "nemotron"
    openings = (opening,)
    tags = (opening, closing)
