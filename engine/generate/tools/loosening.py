"""Schemas of tools that hold what no grammar can follow: the keyword gives way at its place, all else is held to.

Clients send the schemas of other people's tools, so none of them refuses a request. What gave way is looked at when a
call is whole: then it is validated against all of its schema that can be validated.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from ...errors import GrammarError
from ..json_schema import SIMPLIFY, JsonSchema, draft_called, faults_of, is_wide, target_of
from ..subschemas import MAPS, subschemas
from ..validators import can_be_matched

# A part of one of these that is left out would forbid more than it does, or stands where parts are not looked for.
_WHOLE: Final = ("not", "if", "then", "else", "oneOf", "contains", "dependentSchemas", "dependencies", "propertyNames",
                 "unevaluatedProperties", "unevaluatedItems")  # fmt: skip
_MOST_ROUNDS: Final = 3

# What gives way in a notation that cannot say it, the least of it first.
_GIVES_WAY: Final[Sequence[tuple[str, ...]]] = (
    ("format",),
    ("pattern",),
    ("multipleOf",),
    ("minLength", "maxLength"),
    ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    ("minProperties", "maxProperties", "minItems", "maxItems"),
    ("patternProperties", "additionalProperties"),
    ("enum", "const"),
    ("anyOf",),
    ("allOf",),
    ("$ref",),
    ("required",),
)


def read_loosely(schema: Any) -> tuple[JsonSchema, Sequence[str]]:
    """A schema as far as it can be followed, and what of it cannot be validated either; its `wanted` is without that.

    Raises GrammarError for what is no schema at all, and for one that cannot be read in bounded time.
    """
    with suppress(GrammarError):
        if not _names_no_draft(schema) and _can_be_read(schema, schema):
            return JsonSchema.read(schema), ()
    try:
        readable, left_out = _readable(schema)
    except RecursionError as error:
        raise GrammarError("response_format.json_schema is nested too deeply.", SIMPLIFY) from error
    return JsonSchema.read(readable, loosely=True), left_out


def looser(node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A schema without one of its keywords each, then without ever more of them, at last without any but its type."""
    there = [words for words in _GIVES_WAY if any(word in node for word in words)]
    for words in there:
        yield {word: inner for word, inner in node.items() if word not in words}
    rest = dict(node)
    for words in there:
        rest = {word: inner for word, inner in rest.items() if word not in words}
        yield rest
    yield {"type": node["type"]} if "type" in node else {}


def plainer(schema: JsonSchema) -> JsonSchema:
    """A schema of types, keys and values alone, for one that the grammar library cannot follow as it is."""
    made = copy.deepcopy(schema.followed)
    for node in list(subschemas(made)):
        assert isinstance(node, dict), "it is a copy of JSON"
        for words in _GIVES_WAY[:6]:
            for word in words:
                node.pop(word, None)
        if node.pop("patternProperties", None) is not None:
            node.pop("additionalProperties", None)
        if is_wide(node.get("enum")) or is_wide(node.get("const")):
            node.pop("enum", None)
            node.pop("const", None)
    return replace(schema, followed=made, loosely=True)


def _readable(schema: Any) -> tuple[Any, Sequence[str]]:
    """A schema without what no validator can read: malformed keywords, references that lead nowhere, patterns with
    look-around, drafts that nobody knows. And what that was."""
    made = copy.deepcopy(schema)
    left_out: list[str] = []
    for _ in range(_MOST_ROUNDS):
        faults = faults_of(made)
        if not faults:
            break
        for path in faults:
            _leave_out(made, path)
            left_out.append(f"what stands at {'.'.join(map(str, path))!r:.200}")
    if _names_no_draft(made):
        left_out.append(f"the draft {made.pop('$schema')!r:.80}")
    for node in list(subschemas(made)):
        assert isinstance(node, dict), "it is a copy of JSON"
        for word in _WHOLE:
            if word in node and not _can_be_read(node[word], made):
                left_out.append(f"what is within {word}")
                del node[word]
        if not _leads_somewhere(node, made):
            left_out.append(f"the reference {node.pop('$ref')!r:.80}")
        if not _can_match(node.get("pattern")):
            left_out.append(f"the pattern {node.pop('pattern')!r:.80}")
        patterns = node.get("patternProperties")
        if isinstance(patterns, dict) and not all(map(_can_match, patterns)):
            left_out += [f"the pattern {name!r:.80}" for name in patterns if not _can_match(name)]
            node["patternProperties"] = {name: inner for name, inner in patterns.items() if _can_match(name)}
            node.pop("additionalProperties", None)  # it would forbid what the patterns allow
    return made, left_out


def _leave_out(schema: Any, path: Sequence[str | int]) -> None:
    """Leave a malformed keyword out, in place; a malformed schema becomes one of anything."""
    if not path:
        raise GrammarError("response_format.json_schema is no JSON schema.", "Give one.")
    is_name = [False]  # of a property, say, which may be called like a keyword
    for part in path:
        is_name.append(part in MAPS and not is_name[-1])
    cut = next((at + 1 for at, part in enumerate(path) if part in _WHOLE and not is_name[at]), len(path))
    # Of a list no part alone can be left out.
    while cut > 1 and isinstance(path[cut - 1], int):
        cut -= 1
    holder = schema
    for part in path[: cut - 1]:
        try:
            holder = holder[part]
        except (KeyError, IndexError, TypeError):
            return  # it was left out along with another
    if not isinstance(holder, dict) or path[cut - 1] not in holder:
        return
    if is_name[cut - 1]:
        holder[path[cut - 1]] = True
    else:
        del holder[path[cut - 1]]


def _names_no_draft(schema: Any) -> bool:
    return isinstance(schema, Mapping) and "$schema" in schema and draft_called(schema["$schema"]) is None


def _can_be_read(value: Any, root: Any) -> bool:
    todo = [value]
    while todo:
        node = todo.pop()
        if isinstance(node, Mapping):
            patterns = node.get("patternProperties")
            names = patterns if isinstance(patterns, Mapping) else ()
            if not all(map(_can_match, [node.get("pattern"), *names])) or not _leads_somewhere(node, root):
                return False
            todo += node.values()
        elif isinstance(node, list):
            todo += node
    return True


def _can_match(pattern: Any) -> bool:
    return not isinstance(pattern, str) or can_be_matched(pattern)


def _leads_somewhere(node: Mapping[str, Any], root: Any) -> bool:
    reference = node.get("$ref")
    return not isinstance(reference, str) or target_of(reference, root) is not None
