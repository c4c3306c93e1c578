"""Arguments in Gemma 4's notation as Lark rules: of any object, and of what a JSON schema allows.

Keys come in the order of the model's chat template, which sorts them regardless of case: so a call's tokens are those
that the template makes of it when it is a part of the conversation, and the prompt's cache serves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ...errors import GrammarError
from ...request import Tool
from ..json_schema import SIMPLIFY, JsonSchema, is_wide, target_of
from ..validators import validator_of
from ..wide_numbers import integers
from . import lexemes
from .merging import SPEAKS_OF, TYPES, flat, merged, types_of_values, words_of
from .rules import CallRules

MARK: Final = '<|"|>'
_MARKED: Final = '<\\|"\\|>'
_INTEGER: Final = "/-?(0|[1-9][0-9]{0,15})/"
_NUMBER: Final = r"/-?(0|[1-9][0-9]{0,15})(\.[0-9]{1,15})?([eE][+\-]?[0-9]{1,2})?/"
_KEY: Final = r'[^\s:{}\[\],"<>|][^:{}\[\],"<>|\r\n\t]{0,80}'
_NULL: Final = '("null" | "None")'  # None is what the template writes, null what models write


def arguments_rule(rules: CallRules, tool: Tool) -> str:
    """The name of the rule for a tool's arguments, braces included. Raises GrammarError where their schema cannot be
    followed."""
    schema = rules.schema(tool)
    if schema is None:
        return _Writer(rules, None).any_object()
    return _Writer(rules, schema).value(schema.followed, "$", only="object")


class _Writer:
    def __init__(self, rules: CallRules, schema: JsonSchema | None) -> None:
        self._rules = rules
        self._schema = schema
        self._root = schema.followed if schema is not None else None
        self._of_reference: dict[str, str] = {}

    # --- of any kind ----------------------------------------------------------------------------------------------

    def any_object(self) -> str:
        once = self._rules.once
        once("gemma_object", '"{" (gemma_pair ("," gemma_pair)*)? "}"')
        once("gemma_array", '"[" (gemma_value ("," gemma_value)*)? "]"')
        once("gemma_pair", 'GEMMA_KEY ":" gemma_value')
        once("GEMMA_KEY", f"/{_KEY}/")
        once("gemma_string", self._string({}))
        kinds = f'gemma_string | gemma_object | gemma_array | {self._number({}, "number")} | "true" | "false" | {_NULL}'
        once("gemma_value", kinds)
        return "gemma_object"

    def _any(self) -> str:
        self.any_object()
        return "gemma_value"

    # --- of a schema ----------------------------------------------------------------------------------------------

    def value(self, node: Any, path: str, only: str | None = None) -> str:
        """The name of the rule for what a schema allows. only: of its types."""
        if node is False:
            raise _refused(f"no value is allowed at {path[:200]}")
        if not isinstance(node, Mapping) or (not words_of(node) and only is None):
            return self._any()
        if words_of(node) == {"$ref"}:
            return self._reference(node["$ref"])
        known = dict(self._of_reference)

        def write(left: Mapping[str, Any]) -> str:
            self._of_reference = dict(known)
            return self._rules.new(" | ".join(self._alternatives(left, path, only)))

        return self._rules.as_far_as_it_goes(node, write)

    def _reference(self, reference: str) -> str:
        if reference not in self._of_reference:
            name = self._of_reference[reference] = self._rules.reserve()
            inner = self.value(target_of(reference, self._root), reference)
            self._rules.add(f"{name}: {inner}")
        return self._of_reference[reference]

    def _alternatives(self, node: Mapping[str, Any], path: str, only: str | None) -> list[str]:
        node = flat(node, self._root, path)
        if "anyOf" in node:
            beside = {word: inner for word, inner in node.items() if word != "anyOf"}
            found = []
            for branch in node["anyOf"]:
                if branch is False:
                    continue
                whole = merged(beside, branch if isinstance(branch, Mapping) else {}, path)
                if only is None and not words_of(beside) and isinstance(branch, Mapping):
                    found.append(self.value(branch, path))
                elif whole is not None:
                    found += self._alternatives(whole, path, only)
            return found or self._none(path)
        if "const" in node or "enum" in node:
            return self._values(node, path)
        kinds = types_of_values(node)
        found = []
        for kind in TYPES:
            if kind in kinds and only in (None, kind):
                found.append(self._of_type(kind, node, path))
        return found or self._none(path)

    def _none(self, path: str) -> list[str]:
        raise _refused(f"no value is allowed at {path[:200]}")

    def _of_type(self, kind: str, node: Mapping[str, Any], path: str) -> str:
        writers: Mapping[str, Callable[[], str]] = {
            "string": lambda: self._string(node),
            "integer": lambda: self._number(node, "integer"),
            "number": lambda: self._number(node, "number"),
            "boolean": lambda: '("true" | "false")',
            "null": lambda: _NULL,
            "object": lambda: self._object(node, path),
            "array": lambda: self._array(node, path),
        }
        return writers[kind]()

    def _values(self, node: Mapping[str, Any], path: str) -> list[str]:
        """Each value that is named, of those that the schema beside it allows."""
        assert self._schema is not None
        values = [node["const"]] if "const" in node else node["enum"]
        if "const" in node and "enum" in node:
            values = [value for value in values if value in node["enum"]]
        beside = {word: inner for word, inner in node.items() if word not in ("const", "enum")}
        judge = validator_of(self._schema.draft, self._schema.wanted).evolve(schema=beside)
        found = [self._literal(value) for value in values if judge.is_valid(value)]
        return [each for each in found if each is not None] or self._none(path)

    def _literal(self, value: Any) -> str | None:
        """A value as it is written; None for one that cannot be."""
        text = self._rules.text
        if isinstance(value, str):
            if self._rules.is_token(MARK):
                return f"{self._rules.tag(MARK)} {text(value)} {self._rules.tag(MARK)}"
            return None if MARK in value else text(f"{MARK}{value}{MARK}")
        if value is None:
            return _NULL
        if isinstance(value, Mapping):
            if not all(re.fullmatch(_KEY, key) for key in value):
                return None
            pairs = [(key, self._literal(inner)) for key, inner in sorted(value.items(), key=_in_order)]
            parts = [None if inner is None else f"{text(f'{key}:')} {inner}" for key, inner in pairs]
        elif isinstance(value, list):
            parts = [self._literal(inner) for inner in value]
        else:
            return text(json.dumps(value))
        if any(part is None for part in parts):
            return None
        braces = "{}" if isinstance(value, Mapping) else "[]"
        return " ".join([text(braces[0]), ' "," '.join(map(str, parts)), text(braces[1])])

    def _string(self, node: Mapping[str, Any]) -> str:
        rules = self._rules
        if rules.is_token(MARK):
            body = rules.lexeme(lexemes.lexeme(node))
            return f"{rules.tag(MARK)} {body} {rules.tag(MARK)}"
        body = rules.lexeme(lexemes.lexeme(node, _MARKED))
        return rules.lexeme(f"{rules.text(MARK)} {body} {rules.text(MARK)}")

    def _number(self, node: Mapping[str, Any], kind: str) -> str:
        bounds = {word: node[word] for word in SPEAKS_OF["number"] if word in node}
        if kind == "integer" and any(map(is_wide, bounds.values())):
            if set(bounds) <= {"minimum", "maximum"}:
                return self._rules.lexeme(f"/{integers(bounds.get('minimum'), bounds.get('maximum'))}/")
            raise _refused("multipleOf, beside numbers of so many digits,")
        if not bounds:
            return self._rules.lexeme(_INTEGER if kind == "integer" else _NUMBER)
        return self._rules.new(f"%json {json.dumps({'type': kind, **bounds})}")

    def _object(self, node: Mapping[str, Any], path: str) -> str:
        properties: dict[str, Any] = dict(node.get("properties") or {})
        required = list(dict.fromkeys(node.get("required") or ()))
        patterns: Mapping[str, Any] = node.get("patternProperties") or {}
        additional = node.get("additionalProperties", not properties and not patterns)
        for name in required:
            if name not in properties:
                if additional is False:
                    raise _refused(f"{name[:60]!r}, which is required and not declared at {path[:200]},")
                properties[name] = additional
        if missing := [name for name in required if properties[name] is False]:
            raise _refused(f"{missing[0][:60]!r}, which is required and may have no value at {path[:200]},")
        least, most = node.get("minProperties", 0), node.get("maxProperties")
        pairs = [
            (f"{self._rules.text(f'{name}:')} {self.value(inner, f'{path}.{name}')}", name in required)
            for name, inner in sorted(properties.items(), key=_in_order)
            if inner is not False
        ]
        more = self._more(properties, patterns, additional, path)
        if pairs and (least > len(required) or (most is not None and (most < len(pairs) or more))):
            raise _refused(f"minProperties or maxProperties, beside properties at {path[:200]},")
        return self._braced(pairs, more, least, most)

    def _more(self, declared: Mapping[str, Any], patterns: Mapping[str, Any], additional: Any, path: str) -> str | None:
        """A rule for a pair that is not declared; None where there is none."""
        others = [f"~/{'|'.join(map(lexemes.escaped, declared))}/"] if declared else []
        found = []
        for pattern, inner in patterns.items():
            if inner is not False:
                key = self._rules.lexeme(" & ".join([f"/{_KEY}/", lexemes.lexeme({"pattern": pattern}), *others]))
                found.append(f'{key} ":" {self.value(inner, path)}')
        if additional is not False:
            if patterns:
                raise _refused(f"patternProperties, beside additionalProperties at {path[:200]},")
            key = self._rules.lexeme(" & ".join([f"/{_KEY}/", *others]))
            found.append(f'{key} ":" {self.value(additional, path)}')
        if len(patterns) > 1:
            raise _refused(f"several patternProperties at {path[:200]}")
        return self._rules.new(" | ".join(found)) if found else None

    def _braced(self, pairs: Sequence[tuple[str, bool]], more: str | None, least: int, most: int | None) -> str:
        new = self._rules.new
        if not pairs:
            return new(f'"{{" {self._several(more, least, most)} "}}"')
        rest = new(f'("," {more})*') if more else new('""')
        first = new(self._several(more, 0, None))
        for pair, needed in reversed(pairs):
            after = rest
            rest = new(f'"," {pair} {after}' + ("" if needed else f" | {after}"))
            first = new(f"{pair} {after}" + ("" if needed else f" | {first}"))
        return new(f'"{{" {first} "}}"')

    def _several(self, item: str | None, least: int, most: int | None) -> str:
        """So many of an item, with commas between."""
        if most is not None and most < least:
            raise _refused(f"more than {least - 1} and fewer than {most + 1} entries")
        if item is None or most == 0:
            if least:
                raise _refused(f"{least} entries where none is allowed")
            return '""'
        upper = "" if most is None else str(most - 1)
        several = f'{item} ("," {item}){{{max(0, least - 1)},{upper}}}'
        return several if least else f"({several})?"

    def _array(self, node: Mapping[str, Any], path: str) -> str:
        """An array, a rule for each of its first items."""
        listed = isinstance(node.get("items"), list)
        firsts: Sequence[Any] = (node["items"] if listed else node.get("prefixItems")) or ()
        others = node.get("additionalItems", True) if listed else node.get("items", True)
        least, most = node.get("minItems", 0), node.get("maxItems")
        heads = [self.value(inner, f"{path}[{at}]") for at, inner in enumerate(firsts[:most])]
        if most is not None and most <= len(heads):
            others = False
        item = self.value(others, f"{path}[]") if others is not False else None
        if not heads:
            return self._rules.new(f'"[" {self._several(item, least, most)} "]"')
        if item is None and least > len(heads):
            raise _refused(f"{least} items where {len(heads)} are declared at {path[:200]}")
        upper = "" if most is None else most - len(heads)
        tail = self._rules.new(f'("," {item}){{{max(0, least - len(heads))},{upper}}}' if item else '""')
        for at in range(len(heads) - 1, -1, -1):
            comma = '"," ' if at else ""
            tail = self._rules.new(f"{comma}{heads[at]} {tail}" + ("" if at < least else ' | ""'))
        return self._rules.new(f'"[" {tail} "]"')


def _in_order(pair: tuple[str, Any]) -> str:
    """As jinja2's dictsort has it."""
    return pair[0].lower()


def _refused(what: str) -> GrammarError:
    return GrammarError(f"response_format.json_schema: {what} cannot be followed in this model's calls.", SIMPLIFY)
