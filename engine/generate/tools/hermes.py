"""Hermes, Qwen 2.5 and 3, and many others: <tool_call>{"name": ..., "arguments": {...}}</tool_call>."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...request import Tool
from . import json_call
from .family import Family
from .rules import SPACE, CallRules
from .source import Parser, Source

_OPENING = "<tool_call>"
_CLOSING = "</tool_call>"


class Hermes(Family):
    """See Family."""

    name = "hermes"
    openings = (_OPENING,)
    tags = (_OPENING, _CLOSING)

    def writes(self, template: str) -> bool:
        """See Family."""
        elsewhere = any(tag in template for tag in ("<function=", "<arg_key>"))
        return _OPENING in template and '"arguments"' in template.replace('\\"', '"') and not elsewhere

    def read(self, source: Source, tools: Mapping[str, Tool]) -> Parser[None]:
        """See Family."""
        yield from source.skip_space()
        yield from json_call.read(source)
        yield from source.skip_space()
        yield from source.closes(_CLOSING)
        source.close()

    def rule(self, rules: CallRules, tools: Sequence[Tool], opening: str) -> str:
        """See Family."""
        calls = json_call.rule(rules, tools, "name", "arguments")
        return f"{SPACE} {calls} {SPACE} {rules.tag(_CLOSING)}"
