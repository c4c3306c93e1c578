"""Two schemas that must both hold as one, where that can be said in one (allOf, and what stands beside a reference)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ...errors import GrammarError
from ..json_schema import SIMPLIFY, target_of

_SAYS_NOTHING: Final = frozenset(
    ("title", "description", "default", "examples", "$comment", "readOnly", "writeOnly", "discriminator", "nullable")
) | {"$schema", "$id", "$defs", "definitions", "$anchor", "id", "deprecated"}
_NARROWER: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"), min),
}


TYPES: Final = ("string", "integer", "number", "boolean", "null", "object", "array")
# What a schema says of values of a type.
SPEAKS_OF: Final[Mapping[str, Sequence[str]]] = {
    "string": ("pattern", "minLength", "maxLength", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "object": ("properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties"),
    "array": ("items", "prefixItems", "additionalItems", "minItems", "maxItems"),
}
_OF_TEXTS: Final = frozenset(("type", *SPEAKS_OF["string"]))


def types_of_values(node: Mapping[str, Any]) -> set[str]:
    """The types of what is written for a schema: those it names, or else those it says something of, or else any."""
    named = node.get("type")
    if named is not None:
        return _as_set(named)
    return {kind for kind, words in SPEAKS_OF.items() if any(word in node for word in words)} or set(TYPES)


def flat(node: Mapping[str, Any], root: Any, path: str) -> Mapping[str, Any]:
    """A schema with what it refers to and all that it joins in one; what several say of a text may stay in allOf.

    Raises GrammarError where that cannot be said, and where nothing is left.
    """
    for _ in range(50):
        parts = list(node.get("allOf") or ())
        if "$ref" in node:
            parts.append(target_of(node["$ref"], root))
        if not parts or (set(node) <= {"allOf", *_OF_TEXTS} and all(map(_is_of_texts, parts))):
            return node
        whole: Mapping[str, Any] | None = {word: node[word] for word in node if word not in ("$ref", "allOf")}
        for part in parts:
            whole = None if part is False or whole is None else merged(whole, part, path) if part is not True else whole
        if whole is None:
            raise GrammarError(f"response_format.json_schema: no value is allowed at {path[:200]}.", SIMPLIFY)
        node = whole
    raise GrammarError(f"response_format.json_schema: what is at {path[:200]} refers to itself.", SIMPLIFY)


def _is_of_texts(part: Any) -> bool:
    return isinstance(part, Mapping) and set(part) <= _OF_TEXTS and part.get("type", "string") == "string"


def words_of(node: Mapping[str, Any]) -> set[str]:
    """The keywords of a schema that forbid something."""
    return {word for word in node if word not in _SAYS_NOTHING and not word.startswith("x-")}


def merged(one: Mapping[str, Any], other: Mapping[str, Any], path: str) -> Mapping[str, Any] | None:
    """A schema of what both allow; None where they cannot both hold. Raises GrammarError where it cannot be said."""
    found = {word: one[word] for word in words_of(one)}
    _require_open(one, other, path)
    _require_open(other, one, path)
    for word in sorted(words_of(other)):
        theirs = other[word]
        if word not in found or found[word] == theirs:
            found[word] = theirs
        elif word in _NARROWER:
            found[word] = _NARROWER[word](found[word], theirs)
        elif word == "type":
            kinds = _widened(found[word]) & _widened(theirs)
            if not kinds:
                return None
            found[word] = sorted(kinds)
        elif word == "properties":
            ours = found[word]
            both = {name: {"allOf": [ours[name], theirs[name]]} for name in ours if name in theirs}
            found[word] = {**ours, **theirs, **both}
        elif word == "required":
            found[word] = [*dict.fromkeys([*found[word], *theirs])]
        elif word == "enum":
            found[word] = [value for value in found[word] if value in theirs]
        elif word == "allOf":
            found[word] = [*found[word], *theirs]
        elif word in ("pattern", "anyOf", "$ref"):
            found["allOf"] = [*found.get("allOf", ()), {word: theirs}]
        else:
            raise GrammarError(
                f"response_format.json_schema: two schemas that both say {word}, at {path[:200]}, cannot be followed "
                "in this model's calls.",
                SIMPLIFY,
            )
    return found


def _as_set(named: Any) -> set[str]:
    return set(named) if isinstance(named, list) else {named}


def _widened(named: Any) -> set[str]:
    kinds = _as_set(named)
    return kinds | {"integer"} if "number" in kinds else kinds


def _require_open(one: Mapping[str, Any], other: Mapping[str, Any], path: str) -> None:
    """What one schema says of keys that it does not declare concerns those which the other one declares."""
    if one.get("additionalProperties", True) in (True, {}) and not one.get("patternProperties"):
        return
    declared = one.get("properties") or {}
    if any(name not in declared for name in other.get("properties") or ()):
        raise GrammarError(
            f"response_format.json_schema: additionalProperties in one of several schemas, at {path[:200]}, cannot be "
            "followed in this model's calls.",
            SIMPLIFY,
        )
