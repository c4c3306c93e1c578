"""Llama 3: {"name": ..., "parameters": {...}} for the whole answer, several of them with semicolons between.

A plain answer may be a JSON object as well: a call is one that names a tool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ...request import Tool
from . import json_call
from .family import Family, Message, one_call_a_message
from .rules import SPACE, CallRules
from .source import MAX_CALLS, Parser, Source

_BRACE: Final = "{"
_TAG: Final = "<|python_tag|>"


class Llama3(Family):
    """See Family."""

    name = "llama3"
    openings = (_BRACE, _TAG)
    tags = (_TAG,)
    certain = False

    def writes(self, template: str) -> bool:
        """See Family."""
        return (
            '"parameters": ' in template and "<|start_header_id|>ipython" in template and "<function=" not in template
        )

    def read(self, source: Source, tools: Mapping[str, Tool]) -> Parser[None]:
        """See Family."""
        begun = source.opening == _BRACE
        while True:
            yield from source.skip_space()
            yield from json_call.read(source, begun=begun)
            source.close()
            begun = False
            yield from source.skip_space()
            if not (yield from source.passes(";")):
                return
            yield from source.skip_space()
            if not (yield from source.peek()):
                return

    def rule(self, rules: CallRules, tools: Sequence[Tool], opening: str) -> str:
        """See Family."""
        first = json_call.rule(rules, tools, "name", "parameters", begun=opening == _BRACE)
        if not rules.parallel:
            return first
        one = json_call.rule(rules, tools, "name", "parameters")
        return f'{first} (";" {SPACE} {one}){{0,{MAX_CALLS - 1}}}'

    def messages(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[list[Message], list[Any] | None]:
        """See Family."""
        return super().messages(one_call_a_message(messages), tools)
