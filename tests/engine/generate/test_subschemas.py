"""Names of properties and values in a schema are no keywords, whatever they are called."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llguidance import LLTokenizer

from coe.engine.errors import GrammarError
from coe.engine.generate.grammar import Grammar
from coe.engine.generate.subschemas import subschemas
from coe.engine.generate.tools.constraint import CallConstraint
from coe.engine.generate.tools.family import Family
from coe.engine.generate.tools.find import FAMILIES, GENERIC
from coe.engine.request import Tool, ToolUse

BYTES = LLTokenizer("byte")
WIDE = 1199999999999999999
TEXT = {"type": "string"}
# Every word of JSON Schema that says something, as a client's property may be called.
WORDS = (
    *("type", "enum", "const", "properties", "required", "additionalProperties", "patternProperties", "propertyNames"),
    *("items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems", "contains", "minProperties"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "pattern", "format", "minLength"),
    *("allOf", "anyOf", "oneOf", "not", "if", "then", "else", "$ref", "$defs", "definitions", "$schema", "$id", "id"),
    *("default", "examples", "title", "description", "discriminator", "x-guidance", "dependencies", "nullable"),
)


def object_of(word: str, **more: Any) -> dict[str, Any]:
    properties = {word: {**TEXT, "default": "all"}, "count": {"type": "integer", **more}}
    return {"type": "object", "properties": properties, "required": [word, "count"]}


def fits(schema: Any, text: str) -> bool:
    grammar = Grammar.of_schema(BYTES, schema)
    return all(grammar.take(byte) for byte in text.encode()) and (grammar.complete or grammar.could_end)


@pytest.mark.parametrize("more", [{}, {"minimum": 1, "maximum": WIDE}], ids=["narrow", "wide"])
@pytest.mark.parametrize("word", WORDS)
def test_a_property_may_have_the_name_of_a_keyword(word: str, more: dict[str, Any]) -> None:
    schema = object_of(word, **more)
    assert fits(schema, json.dumps({word: "x", "count": 1}))
    assert not fits(schema, json.dumps({word: 1, "count": 1}))
    assert not fits(schema, json.dumps({"count": 1}))


@pytest.mark.parametrize("family", [*FAMILIES, GENERIC], ids=lambda family: family.name)
def test_and_so_may_an_argument_of_a_tool(family: Family) -> None:
    tools = [Tool(f"tool_{at}", "", object_of(word), strict=True) for at, word in enumerate(WORDS)]
    assert CallConstraint(BYTES, family, tools, ToolUse(required=True), {}).whole is not None


@pytest.mark.parametrize(
    "value",
    [{"type": {"a": 1}}, {"$ref": "nowhere"}, {"enum": WIDE}, {"const": {"a": [WIDE]}}, [{"type": "no such type"}]],
    ids=repr,
)
@pytest.mark.parametrize("word", ["default", "examples", "x-more"])
def test_what_a_value_looks_like_is_of_no_account(word: str, value: Any) -> None:
    held = [value] if word == "examples" else value
    schema = {"type": "object", "properties": {"a": {**TEXT, word: held}}, "required": ["a"]}
    assert fits(schema, '{"a":"x"}')
    for family in [*FAMILIES, GENERIC]:
        CallConstraint(BYTES, family, [Tool("f", "", schema, strict=True)], ToolUse(required=True), {})


def test_a_number_of_many_digits_is_found_behind_a_reference() -> None:
    schema = {"type": "object", "properties": {"id": {"$ref": "#/$defs/id"}}, "$defs": {"id": {"const": WIDE}}}
    assert fits(schema, json.dumps({"id": WIDE}))
    assert not fits(schema, json.dumps({"id": WIDE + 1}))


def test_one_behind_a_reference_elsewhere_is_not_rounded() -> None:
    elsewhere = {"schemas": {"id": {"const": WIDE}}}
    schema = {"type": "object", "properties": {"id": {"$ref": "#/components/schemas/id"}}, "components": elsewhere}
    with pytest.raises(GrammarError, match="so many digits"):
        fits(schema, json.dumps({"id": WIDE}))


def test_schemas_are_told_from_maps_and_values() -> None:
    inner = {"type": "string", "enum": [{"type": "integer"}], "default": {"type": "null"}}
    schema = {"properties": {"type": inner, "b": True}, "items": [{"minimum": 1}], "anyOf": [{"$ref": "#"}, False]}
    found = list(subschemas(schema))
    assert len(found) == 4
    assert all(part in found for part in (schema, inner, {"minimum": 1}, {"$ref": "#"}))
