"""The check of a finished answer: independent of the grammar, bounded, and without a look outside."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from coe.engine.errors import GrammarError
from coe.engine.generate.conformity import Conformity, matches
from coe.engine.generate.json_schema import JsonSchema


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
