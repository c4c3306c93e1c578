"""The arguments of a call in XML as Lark rules: of any keys, and of what a JSON schema allows.

A value and the tags behind it are one lexeme, since the text before them may go on with anything else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from jsonschema import Draft202012Validator

from ...errors import GrammarError
from ...request import Tool
from ..json_schema import SIMPLIFY, JsonSchema
from ..subschemas import references
from ..validators import validator_of
from ..wide_numbers import has_wide_numbers
from . import lexemes
from .markup import Markup
from .merging import flat, merged, types_of_values
from .rules import CallRules
from .shapes import Shape

LINE: Final = r"/\n?/"  # where a line may end
_KEY: Final = r"[^<>=\"\s\x{fdd0}-\x{fdef}][^<>\"\r\n\x{fdd0}-\x{fdef}]{0,80}"
_ANY: Final = {"type": ["object", "array", "number", "boolean", "null"]}


_UNDECLARED: Final = "\0"  # in place of a parameter's name


def arguments_rule(rules: CallRules, tool: Tool, markup: Markup) -> str:
    """The name of the rule for a call's arguments and what ends them. Raises GrammarError when it finds none."""
    return _Writer(rules, rules.schema(tool), markup, Shape(tool.parameters)).arguments()


class _Writer:
    def __init__(self, rules: CallRules, schema: JsonSchema | None, markup: Markup, read_as: Shape) -> None:
        """read_as: what the call is read by."""
        self._rules = rules
        self._schema = schema
        self._markup = markup
        self._gap = LINE if markup.lines_are_free else rules.text("\n")
        self._end = markup.end or markup.closing
        self._marks_are_tokens = rules.is_token(markup.value_end)
        ends = "|".join(map(lexemes.escaped, dict.fromkeys((markup.key, self._end, markup.closing))))
        # What ends a value when it is read.
        self._ends = rf"{lexemes.escaped(markup.value_end)}[ \t\r\n]*({ends})"
        self._root = schema.followed if schema is not None else {"type": "object"}
        self._json: dict[str, str] = {}
        self._read_as = read_as

    def arguments(self) -> str:
        return self._rules.as_far_as_it_goes(self._root, self._arguments)

    def _arguments(self, root: Mapping[str, Any]) -> str:
        self._json.clear()
        node = flat(root, self._root, "$")
        properties: dict[str, Any] = dict(node.get("properties") or {})
        required = list(node.get("required") or ())
        additional = node.get("additionalProperties", not properties)
        for word in ("anyOf", "patternProperties", "const", "enum"):
            if word in node:
                raise _refused(f"{word} of the arguments themselves")
        for name in required:
            if properties.setdefault(name, additional) is False:
                raise _refused(f"{name[:60]!r}, which is required and not declared,")
        least, most = node.get("minProperties", 0), node.get("maxProperties")
        if least > len(required) or (most is not None and (most < len(properties) or additional is not False)):
            raise _refused("minProperties or maxProperties of the arguments")
        new, tag = self._rules.new, self._rules.tag
        after = self._others(properties, additional) if additional is not False else None
        may_end = True
        for name, inner in reversed(properties.items()):
            if inner is False:
                continue
            ways = self._ways(name, inner, after, may_end)
            if name not in required and after is not None:
                ways.append(after)
            may_end = may_end and name not in required
            after = new(" | ".join(ways))
        ways = [f"{tag(self._markup.key)} {after}"] if after is not None else []
        return new(" | ".join([*ways, *([tag(self._end)] if may_end else [])]))

    def _key_end(self) -> str:
        between = f" {self._gap} ".join(map(self._rules.tag, self._markup.key_end))
        return f"{between} {self._rules.text(self._markup.line)}" if self._markup.line else between

    def _others(self, declared: Mapping[str, Any], additional: Any) -> str:
        """A rule for keys that are not declared, one after the other."""
        name = self._rules.reserve()
        but = [f"~/{'|'.join(map(lexemes.escaped, declared))}/"] if declared else []
        key = self._rules.lexeme(" & ".join([f"/{_KEY}/", *but]))
        more, end = (self._value(additional, _UNDECLARED, end=end) for end in (False, True))
        head = f"{key} {self._key_end()}"
        self._rules.add(f"{name}: {head} {more} {name} | {head} {end}")
        return name

    def _ways(self, name: str, node: Any, after: str | None, may_end: bool) -> list[str]:
        head = f"{self._rules.text(name)} {self._key_end()}"
        ways = [f"{head} {self._value(node, name)} {after}"] if after is not None else []
        if may_end:
            ways.append(f"{head} {self._value(node, name, end=True)}")
        return ways

    def _value(self, node: Any, name: str, *, end: bool = False) -> str:
        """The name of a rule for a value and what comes behind it: the end of the function, or another parameter."""
        path = f"$.{name}" if name != _UNDECLARED else "$"
        # A call is read by the schema as it was sent: where no text may stand, none may come of what is dropped of it.
        types = self._read_as.at(name).types
        is_json = bool(types) and "string" not in types
        if not isinstance(node, Mapping):
            return self._written({}, path, end=end, is_json=is_json)
        known = dict(self._json)

        def write(left: Mapping[str, Any]) -> str:
            self._json = dict(known)
            return self._written(left, path, end=end, is_json=is_json)

        return self._rules.as_far_as_it_goes(node, write)

    def _written(self, node: Mapping[str, Any], path: str, *, end: bool, is_json: bool = False) -> str:
        lexical, rest = self._tail(end=end)
        without = () if self._marks_are_tokens else (self._ends,)
        found = []
        for part in [node or _ANY] if is_json else self._parts(node, path):
            if isinstance(part, str):
                if self._marks_are_tokens or self._markup.value_end not in part:
                    found.append(" ".join(filter(None, (self._rules.text(part), *lexical, *rest))))
            elif part.get("type") == "string":
                body = self._rules.lexeme(lexemes.lexeme(part, *without))
                found.append(" ".join([self._rules.lexeme(" ".join([body, *lexical])), *rest]))
            else:
                found.append(" ".join([self._of_json(part, path), *lexical, *rest]))
        if not found:
            raise _refused(f"no value is allowed at {path[:200]}")
        return self._rules.new(" | ".join(dict.fromkeys(found)))

    def _tail(self, *, end: bool) -> tuple[list[str], list[str]]:
        """What comes behind a value: the text that is one lexeme with it, and what is not, from the first token on."""
        line, rules = self._markup.line, self._rules
        texts = [rules.text(line)] if line else []
        parts = [
            *texts,
            rules.tag(self._markup.value_end),
            self._gap,
            rules.tag(self._end if end else self._markup.key),
        ]
        first = next((at for at, part in enumerate(parts) if part.startswith("<[")), len(parts))
        return parts[:first], parts[first:]

    def _parts(self, node: Mapping[str, Any], path: str) -> Iterator[str | Mapping[str, Any]]:
        """What a value may be: texts as they are, schemas of texts, and schemas of what is written as JSON."""
        if not _names_texts(node, self._root):
            yield node or _ANY
            if not node:
                yield {"type": "string"}
            return
        node = flat(node, self._root, path)
        if "anyOf" in node:
            beside = {word: inner for word, inner in node.items() if word != "anyOf"}
            for branch in node["anyOf"]:
                whole = merged(beside, branch if isinstance(branch, Mapping) else {}, path)
                if branch is not False and whole is not None:
                    yield from self._parts(whole, path)
            return
        if "const" in node or "enum" in node:
            yield from self._named(node)
            return
        kinds = types_of_values(node)
        if "string" in kinds:
            yield {**node, "type": "string"}
        if others := sorted(kinds - {"string"}):
            yield {**node, "type": others}

    def _named(self, node: Mapping[str, Any]) -> Iterator[str | Mapping[str, Any]]:
        assert self._schema is not None
        judge = validator_of(self._schema.draft, self._schema.wanted).evolve(schema=node)
        values = [node["const"]] if "const" in node else node["enum"]
        for value in values:
            if judge.is_valid(value):
                yield value if isinstance(value, str) else {"const": value}

    def _of_json(self, node: Mapping[str, Any], path: str) -> str:
        shared = {word: self._root[word] for word in ("$defs", "definitions") if word in self._root}
        whole = {**shared, **node}
        key = json.dumps(whole, sort_keys=True)
        if key not in self._json:
            if has_wide_numbers(whole):
                raise _refused(f"numbers of so many digits at {path[:200]}")
            if any(not found.startswith(("#/$defs/", "#/definitions/")) for found in references(whole)):
                raise _refused(f"a reference to what is not in $defs, at {path[:200]},")
            draft = self._schema.draft if self._schema is not None else Draft202012Validator
            self._json[key] = self._rules.json_of(JsonSchema(whole, whole, draft), f"{self._rules.reserve()}_")
        return self._json[key]


def _names_texts(node: Mapping[str, Any], root: Any) -> bool:
    """Whether a text is among the values of a schema that says what they are."""
    shape = Shape(root, [node])
    if "string" in shape.types:
        return True
    return bool(node) and not shape.types and "string" in types_of_values(node)


def _refused(what: str) -> GrammarError:
    return GrammarError(f"response_format.json_schema: {what} cannot be followed in this model's calls.", SIMPLIFY)
