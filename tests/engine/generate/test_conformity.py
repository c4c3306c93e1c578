"""The check of a finished answer: independent of the grammar, bounded, and without a look outside."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from llguidance import LLTokenizer

from coe.engine.errors import GrammarError
from coe.engine.generate.conformity import Conformity
from coe.engine.generate.grammar import Grammar
from coe.engine.generate.json_schema import JsonSchema
from coe.engine.generate.validators import matches


def violation(schema: Any, text: str) -> str | None:
    return Conformity(JsonSchema(schema, schema, Draft202012Validator)).violation(text)


@pytest.mark.parametrize(
    ("schema", "text", "said"),
    [
        ({"type": "number", "exclusiveMinimum": 0}, "0", "at $, 0 is less than or equal to the minimum of 0"),
        ({"properties": {"a": {"const": 2}}}, '{"a": 1}', "at $.a, 2 was expected"),
        ({"items": {"pattern": "^a"}}, '["b"]', "at $[0], 'b' does not match '^a'"),
        ({"additionalProperties": False, "patternProperties": {"^x": {}}}, '{"y": 1}', "at $, 'y' is none of"),
        ({"patternProperties": {"^x": {"type": "null"}}}, '{"x1": 1}', "at $.x1, 1 is not of type 'null'"),
        ({"format": "date"}, '"2023-02-29"', "at $, '2023-02-29' is not a 'date'"),
        ({"format": "date-time"}, '"2023-02-29T10:00:00Z"', "is not a 'date-time'"),
        ({"uniqueItems": True}, "[1, 1]", "non-unique"),
        ({"multipleOf": 0.1}, "0.35", "not a multiple"),
        ({"multipleOf": 3}, "1e999", "not a multiple"),
        ({}, '{"a": ', "it is not JSON"),
        ({}, "1" * 5000, "it is not JSON that can be read"),
        ({"const": 1199999999999999999}, "1200000000000000000", "was expected"),
    ],
)
def test_a_violation_is_said_with_its_place(schema: Any, text: str, said: str) -> None:
    assert said in (violation(schema, text) or "")


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"multipleOf": 0.1}, "0.3"),
        ({"multipleOf": 0.01}, "19.99"),
        ({"multipleOf": 3}, "3" * 400),
        ({"pattern": r"^\d+$", "not": {"type": "null"}}, '"12"'),
        ({"const": 1.0}, "1"),
        ({"pattern": "^.$"}, '"\\u007f"'),
    ],
)
def test_what_is_right_is_not_complained_of(schema: Any, text: str) -> None:
    assert violation(schema, text) is None


def test_a_pattern_that_backtracks_for_ever_elsewhere_is_matched_in_linear_time() -> None:
    assert not matches("^(a+)+$", "a" * 3000 + "b")
    assert matches("^(a+)+$", "a" * 3000)


def test_a_check_that_would_double_with_each_level_is_given_up() -> None:
    node = {"oneOf": [{"type": "array", "items": {"$ref": "#/$defs/n"}}, {"type": "array", "maxItems": 0}]}
    schema = {"$defs": {"n": {"oneOf": [node, {"type": "array", "items": node}]}}, "$ref": "#/$defs/n"}
    with pytest.raises(GrammarError, match="would cost too much"):
        violation(schema, "[" * 60 + "]" * 60)


def test_no_reference_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("a connection was opened"))
    with pytest.raises(GrammarError):
        violation({"$ref": "http://127.0.0.1:9/schema.json"}, "1")


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://127.0.0.1:9/schema.json"},
        {"oneOf": [{"enum": [[1]]}, {"$ref": "http://127.0.0.1:9/schema.json"}]},
        {"oneOf": [{"const": [1]}, {"type": "array", "items": {"$ref": "http://127.0.0.1:9/schema.json"}}]},
        {"enum": [2**60 + 1], "$ref": "http://127.0.0.1:9/schema.json"},
    ],
)
def test_no_reference_is_fetched_while_a_schema_is_read(schema: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("a connection was opened"))
    with pytest.raises(GrammarError):
        Grammar.of_schema(LLTokenizer("byte"), schema)


TWO_TO_THE_60 = "a" * 60 + "b"  # steps that `re` needs to find that it is not `^(a+)+$`


def test_a_part_that_names_its_draft_is_validated_as_the_others_are() -> None:
    part = {"$schema": "https://json-schema.org/draft/2020-12/schema", "pattern": "^(a+)+$"}
    assert "does not match" in (violation({"properties": {"a": part}}, f'{{"a": "{TWO_TO_THE_60}"}}') or "")


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [{"const": TWO_TO_THE_60}, {"type": "string", "pattern": "^(a+)+$"}]},
        {"enum": [2**60 + 1, TWO_TO_THE_60], "pattern": "^(a+)+$"},
    ],
)
def test_a_pattern_is_matched_in_linear_time_while_a_schema_is_read(schema: Any) -> None:
    Grammar.of_schema(LLTokenizer("byte"), schema)


def test_a_schema_that_doubles_with_each_level_is_read_all_the_same() -> None:
    levels = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(60)}
    defs = {**levels, "a60": {"type": "integer"}}
    Grammar.of_schema(LLTokenizer("byte"), {"$defs": defs, "oneOf": [{"$ref": "#/$defs/a0"}, {"type": "string"}]})


def test_long_lists_of_mixed_values_are_compared_once_each() -> None:
    values = [value for number in range(20_000) for value in (number, str(number))]
    JsonSchema.read({"$schema": "http://json-schema.org/draft-04/schema#", "enum": values})


@pytest.mark.parametrize(
    ("items", "unique"),
    [('[1, true, [1], {}, {"a": 1}]', True), ("[1, 1.0]", False), ('[{"a": [1]}, {"a": [1.0]}]', False)],
)
def test_items_are_unique_as_json_compares_them(items: str, unique: bool) -> None:
    assert (violation({"uniqueItems": True}, items) is None) == unique
