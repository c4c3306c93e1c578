"""What the calls of one request are held to: which tools there are, and the schemas of their arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from llguidance import LLMatcher, LLTokenizer
from referencing.exceptions import Unresolvable

from ...errors import GrammarError
from ...request import Tool, ToolUse
from ..conformity import Conformity
from ..grammar import MAX_SCHEMA_CHARS, Grammar
from ..json_schema import JsonSchema
from ..validators import MAX_STEPS, TooCostlyError, spending
from .family import Family
from .loosening import plainer, read_loosely
from .rules import SPACE, CallRules, schema_of_arguments
from .source import MAX_CALLS

_FORMAT: Final = "response_format.json_schema"
_SUBJECT: Final = "tools"


class CallConstraint:
    """Grammars for calls, made beforehand and copied where one begins.

    whole: what the answer is held to from its first character, where a call is required or a plain answer would have to
           keep to a schema; None where a grammar begins with a call.
    loosened: the tools whose calls are held to less than their schemas say.
    """

    def __init__(
        self,
        tokenizer: LLTokenizer | None,
        family: Family,
        tools: Sequence[Tool],
        use: ToolUse,
        tags: Mapping[str, int],
        answer: Any | None = None,
    ) -> None:
        """tokenizer: None where there is nothing to hold to. tools: those that may be called. tags: the token of each
        tag that is one of the vocabulary's own.
        answer: the schema of an answer without a call.

        Takes up to seconds; other Python threads go on meanwhile. Raises GrammarError where a tool that is strict has
        to be called, and what its schema says can neither be followed nor validated.
        """
        self._conformities: dict[str, Conformity] = {}
        self._tokenizer = tokenizer
        self._family, self._tools, self._use, self._tags = family, tools, use, tags
        self.loosened: frozenset[str] = frozenset()
        schemas = {tool.name: self._followed(tool, self._read(tool)) for tool in tools}
        self._answer = JsonSchema.read(answer) if answer is not None else None
        self.answer_conformity = Conformity(self._answer) if self._answer is not None else None
        self.whole: Grammar | None = None
        self._after: dict[str, Grammar] = {}
        if tokenizer is not None:
            self._make_of_what_can_be_followed(schemas)

    def _make_of_what_can_be_followed(self, schemas: Mapping[str, JsonSchema | None]) -> None:
        """The grammars, of ever plainer schemas: one that the library cannot follow would cost all tools theirs."""
        try:
            self._make(schemas)
            return
        except GrammarError:
            alone = {tool.name: self._alone(tool, schemas[tool.name]) for tool in self._tools}
        plain = {name: plainer(schema) if schema is not None else None for name, schema in alone.items()}
        for less in (alone, plain):
            with suppress(GrammarError):
                self._note_looser(schemas, less)
                self._make(less)
                return
        self._make(dict.fromkeys(schemas))

    def _alone(self, tool: Tool, schema: JsonSchema | None) -> JsonSchema | None:
        """A tool's schema, plainer where the library cannot follow it."""
        for left in (schema, plainer(schema)) if schema is not None else ():
            rules = CallRules(self._tags, {tool.name: left}, parallel=False)
            with suppress(GrammarError):
                self._made(rules.grammar(self._family.rule(rules, [tool], self._family.openings[0])))
                return left
        return None

    def _note_looser(self, before: Mapping[str, JsonSchema | None], after: Mapping[str, JsonSchema | None]) -> None:
        self.loosened |= {name for name, schema in before.items() if after[name] is not schema}

    def _make(self, schemas: Mapping[str, JsonSchema | None]) -> None:
        family, use, tools = self._family, self._use, self._tools
        several = use.parallel and family.several
        rules = CallRules(self._tags, schemas, parallel=several)
        calls = {opening: rules.new(family.rule(rules, tools, opening)) for opening in family.openings}
        if use.required or self._answer is not None:
            one = " | ".join(f"{rules.tag(opening)} {calls[opening]}" for opening in family.openings)
            start = f"{SPACE} ({one})" + (f" ({SPACE} ({one})){{0,{MAX_CALLS - 1}}}" if several else "")
            if self._answer is not None and not use.required:
                start = f"({start}) | {rules.json_of(self._answer, 'answer')}"
            self.whole = self._made(rules.grammar(start))
        elif family.certain:
            for opening in family.openings:
                self._after[opening] = self._made(rules.grammar(calls[opening]))

    def _made(self, lark: str) -> Grammar:
        assert self._tokenizer is not None
        try:
            return Grammar(
                self._tokenizer, LLMatcher.grammar_from_lark(lark), subject=_SUBJECT, is_json=self._family.is_json
            )
        except (ValueError, TypeError) as error:
            raise GrammarError(f"{_SUBJECT} cannot be followed: {error}.", "Simplify their parameters.") from error

    def _read(self, tool: Tool) -> JsonSchema | None:
        """A tool's schema as it is followed; None where its calls are only held to be objects.

        What cannot be followed is left out; calls that must keep to it are held against the whole when they are whole.
        """
        schema = schema_of_arguments(tool)
        try:
            if len(str(schema)) > MAX_SCHEMA_CHARS:
                raise GrammarError(f"{_FORMAT} has more than {MAX_SCHEMA_CHARS:,} characters.", "Shorten it.")
            read, left_out = read_loosely(schema)
            if left_out and tool.strict and self._use.required:
                what = f"{_FORMAT}: {', '.join(left_out[:5])} can neither be followed nor validated."
                raise GrammarError(what, "Leave it out, say it in another way, or leave the call to the model.")
        except GrammarError as error:
            self.loosened |= {tool.name}
            if tool.strict and self._use.required:
                raise _of(tool, error) from error
            return None
        if tool.strict or self._use.required:
            self._conformities[tool.name] = Conformity(read)
        return read

    def _followed(self, tool: Tool, schema: JsonSchema | None) -> JsonSchema | None:
        """A tool's schema where the family can write a rule of it."""
        for left in (schema, plainer(schema)) if schema is not None else ():
            rules = CallRules(self._tags, {tool.name: left})
            with suppress(GrammarError, TooCostlyError, Unresolvable, RecursionError), spending(MAX_STEPS):
                self._family.rule(rules, [tool], self._family.openings[0])
                if rules.gave_way or left is not schema or left.loosely:
                    self.loosened |= {tool.name}
                return left
        self.loosened |= {tool.name}
        return None

    def after(self, opening: str) -> Grammar | None:
        """What follows an opening is held to this; None for nothing."""
        grammar = self._after.get(opening)
        return grammar.copy() if grammar is not None else None

    def violation(self, name: str, arguments: str) -> str | None:
        """What a call's arguments break of a schema that they must keep to; None when they keep to it.

        Raises GrammarError as Conformity.
        """
        conformity = self._conformities.get(name)
        return conformity.violation(arguments) if conformity is not None else None


def _of(tool: Tool, error: GrammarError) -> GrammarError:
    return GrammarError(error.message.replace(_FORMAT, f"the parameters of the tool {tool.name}"), error.remedy)
