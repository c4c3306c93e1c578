"""Kimi K2 and DeepSeek V3.1: each call between two marks, one between its name and its JSON, and two around all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from ...request import Tool
from . import json_call
from .family import Family, Message
from .generic import with_manual
from .rules import SPACE, CallRules
from .source import MAX_CALLS, MalformedCallError, Parser, Source

_MAX_NAME_CHARS: Final = 256


class Marked(Family):
    """See Family. opening, begin, between, end, closing: the marks, in their order."""

    opening: ClassVar[str]
    begin: ClassVar[str]
    between: ClassVar[str]
    end: ClassVar[str]
    closing: ClassVar[str]

    def writes(self, template: str) -> bool:
        """See Family."""
        return all(mark in template for mark in self.tags)

    def read(self, source: Source, tools: Mapping[str, Tool]) -> Parser[None]:
        """See Family."""
        begin, between = source.spelt[self.begin], source.spelt[self.between]
        yield from source.skip_space()
        yield from source.expect(begin)
        while True:
            written = yield from _up_to(source, between)
            source.call(self.tool_name(written, tools))
            yield from source.skip_space()
            yield from json_call.arguments(source, source.write)
            yield from source.skip_space()
            yield from source.closes(self.end)
            source.close()
            yield from source.skip_space()
            if not (yield from source.passes(begin)):
                break
        yield from source.closes(self.closing)

    def rule(self, rules: CallRules, tools: Sequence[Tool], opening: str) -> str:
        """See Family."""
        begin, between, end = rules.tag(self.begin), rules.tag(self.between), rules.tag(self.end)
        calls = [f"{self.name_rule(rules, tool)} {between} {rules.json(tool)} {SPACE} {end}" for tool in tools]
        one = f"{begin} {rules.new(' | '.join(calls))}"
        several = f"({one}){{0,{MAX_CALLS - 1}}}" if rules.parallel else ""
        return f"{one} {several} {rules.tag(self.closing)}"

    def tool_name(self, written: str, tools: Mapping[str, Tool]) -> str:
        """The tool that is meant by what stands before its arguments."""
        return written

    def name_rule(self, rules: CallRules, tool: Tool) -> str:
        """What stands before a tool's arguments, as a part of a rule's body."""
        return rules.text(tool.name)


class Kimi(Marked):
    """Kimi K2, which numbers calls: functions.NAME:0. Its template knows results by that, whatever a client's id is."""

    opening, closing = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
    begin, between, end = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"

    name = "kimi"
    openings = (opening,)
    tags = (opening, begin, between, end, closing)

    def tool_name(self, written: str, tools: Mapping[str, Tool]) -> str:
        """See Marked."""
        if written in tools:
            return written
        return re.sub(r":[0-9]+\Z", "", written.removeprefix("functions."))

    def name_rule(self, rules: CallRules, tool: Tool) -> str:
        """See Marked."""
        return f"{rules.text(f'functions.{tool.name}:')} /[0-9]{{1,3}}/"

    def messages(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[list[Message], list[Any] | None]:
        """See Family."""
        ids: dict[str, str] = {}
        found = []
        for message in messages:
            made = dict(message)
            if calls := made.get("tool_calls"):
                ids |= {call["id"]: f"functions.{call['name']}:{at}" for at, call in enumerate(calls)}
                made["tool_calls"] = [{**call, "id": ids[call["id"]]} for call in calls]
            if (client_id := made.get("tool_call_id")) is not None:
                made["tool_call_id"] = ids.get(client_id, client_id)
            found.append(made)
        return super().messages(found, tools)


# The marks are not spelt in it: a system prompt's text is text, and the model knows its own.
_MANUAL: Final = """\
# Tools

These functions can be called in your own form of tool calls, with arguments as JSON:

{tools}

Call one only where it helps; else answer in words."""


class DeepSeek(Marked):
    """DeepSeek V3.1, whose template writes calls and results; of the tools the system prompt has to tell."""

    opening, closing = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
    begin, between, end = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"

    name = "deepseek"
    openings = (opening,)
    tags = (opening, begin, between, end, closing)

    def writes(self, template: str) -> bool:
        """See Family. Of R1 and V3 the arguments stand in a fence."""
        return super().writes(template) and "```json" not in template

    def messages(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[list[Message], list[Any] | None]:
        """See Family."""
        found, _ = super().messages(messages, ())
        return with_manual(found, _MANUAL, tools), None


def _up_to(source: Source, mark: str) -> Parser[str]:
    """What is there before a mark, which is passed."""
    found = ""
    while not (yield from source.passes(mark)):
        found += yield from source.take()
        if len(found) > _MAX_NAME_CHARS:
            raise MalformedCallError("its arguments are missing")
    return source.plain(found).strip()
