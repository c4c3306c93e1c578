"""Objects are closed where nothing is said of further properties, and only there."""

from __future__ import annotations

from typing import Any

import pytest
from llguidance import LLTokenizer

from coe.engine.generate.digits import MOST_CHARS
from coe.engine.generate.grammar import Grammar

BYTES = LLTokenizer("byte")
A, B = {"properties": {"a": {"type": "integer"}}}, {"properties": {"b": {"type": "integer"}}}


def fits(schema: Any, text: str) -> bool:
    grammar = Grammar.of_schema(BYTES, schema)
    return all(grammar.take(byte) for byte in text.encode()) and (grammar.complete or grammar.take(BYTES.eos_token))


@pytest.mark.parametrize(
    ("schema", "closed"),
    [
        (A, True),
        ({"type": "object", **A}, True),
        ({"type": ["object", "null"], **A}, True),
        ({"type": "object", **A, "additionalProperties": True}, False),
        ({"type": "object", **A, "additionalProperties": {"type": "integer"}}, False),
        ({"type": "object", **A, "patternProperties": {"^z": {}}, "additionalProperties": True}, False),
        ({"type": "object"}, False),
        ({"type": "object", "properties": {}}, False),
        ({"type": "object", **A, "required": ["z"]}, False),
        ({"anyOf": [A, B]}, True),
        ({"$ref": "#/$defs/a", "$defs": {"a": A}}, True),
        ({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": A}}, True),
        ({"type": "array", "items": A}, None),
    ],
)
def test_what_names_properties_and_says_nothing_of_others_is_closed(schema: Any, closed: bool | None) -> None:
    if closed is None:
        assert fits(schema, '[{"a":1}]')
        assert not fits(schema, '[{"a":1,"z":1}]')
        return
    if not (isinstance(schema, dict) and schema.get("required")):
        assert fits(schema, '{"a":1}')
    assert fits(schema, '{"a":1,"z":1}') is not closed


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [A, B]},
        {**A, "allOf": [B]},
        {**A, "anyOf": [B, {"properties": {"c": {"type": "integer"}}, "required": ["c"]}]},
        {"allOf": [{"$ref": "#/$defs/a"}, B], "$defs": {"a": A}},
        {"$ref": "#/$defs/a", **B, "$defs": {"a": A}},
    ],
)
def test_parts_of_one_object_leave_room_for_each_other(schema: Any) -> None:
    assert fits(schema, '{"a":1,"b":2}')


@pytest.mark.parametrize("space", [" ", "\n", "\r\n", "\n\n", "\n  ", "\n\t\t", "\n" + " " * 20, ""])
def test_white_space_is_that_of_one_blank_or_an_indented_line(space: str) -> None:
    assert fits(A, '{"a":' + space + "1}")


@pytest.mark.parametrize("space", ["  ", "\n\n\n", "\n" + " " * 21, " \n", "\t"])
def test_and_no_more(space: str) -> None:
    assert not fits(A, '{"a":' + space + "1}")


@pytest.mark.parametrize("schema", [{"type": "number"}, {"type": "integer"}, {"type": "number", "exclusiveMinimum": 0}])
@pytest.mark.parametrize("start", ["1", "0."])
def test_a_number_ends_in_time(schema: Any, start: str) -> None:
    grammar = Grammar.of_schema(BYTES, {"type": "array", "items": schema})
    text = "[" + (start if schema["type"] == "number" else "1")
    assert all(grammar.take(byte) for byte in text.encode())
    digits = 0
    while grammar.take(ord("1")):
        digits += 1
        assert digits <= MOST_CHARS
    assert digits >= 16
    assert grammar.take(ord(","))
    assert grammar.take(ord("1"))


def test_an_exponent_ends_before_a_number_is_infinite() -> None:
    assert fits({"type": "number"}, "1.5e99")
    assert not fits({"type": "number"}, "1.5e999")


def test_digits_of_a_text_and_of_a_number_that_has_to_be_long_are_left_alone() -> None:
    assert fits({"type": "string"}, '"' + "7" * 100 + '"')
    long = int("9" * 60)
    assert fits({"const": long}, str(long))
