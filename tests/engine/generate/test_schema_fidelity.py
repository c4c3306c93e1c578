"""What a grammar lets through is what its schema allows: random schemas and answers, judged by jsonschema itself."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, cast

import pytest
from jsonschema import Draft202012Validator, ValidationError, validators
from llguidance import LLTokenizer

from coe.engine.errors import GrammarError
from coe.engine.generate.grammar import Grammar
from fakes.schemas import Schemas, answer

BYTES = LLTokenizer("byte")
NO_OPTION = re.compile(r"coerce|lenient|x-guidance|\boptions?\b|\benable\b", re.IGNORECASE)


def _multiple_of(validator: Any, step: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """In decimals, as they are written: doubles say that 0.3 is no multiple of 0.1."""
    if validator.is_type(instance, "number") and Fraction(repr(instance)) % Fraction(repr(step)):
        yield ValidationError(f"{instance} is not a multiple of {step}")


JUDGE = cast(Any, validators.extend(Draft202012Validator, {"multipleOf": _multiple_of}))


def judged(schema: Any, text: str) -> str | None:
    fault = next(JUDGE(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).iter_errors(json.loads(text)), None)
    return fault.message if fault is not None else None


def some_answers(schema: Any, seed: int, count: int) -> Iterator[tuple[str, Grammar]]:
    for at in range(count):
        grammar = Grammar.of_schema(BYTES, schema)
        text = answer(grammar, random.Random(f"{seed}/{at}"))
        if text is not None:
            yield text, grammar


@pytest.mark.slow
@pytest.mark.parametrize("block", range(4))
def test_random_schemas_are_kept_or_refused_in_words_that_help(block: int) -> None:
    followed = 0
    refusals: list[GrammarError] = []
    for seed in range(100 * block, 100 * block + 100):
        schema = Schemas(random.Random(seed)).root()
        try:
            for text, grammar in some_answers(schema, seed, 4):
                fault = judged(schema, text)
                said = grammar.violation(text)
                assert (said is None) == (fault is None), (seed, schema, text, fault, said)
                # A key that comes twice counts once: the one thing that only the check at the end sees.
                assert fault is None or "minProperties" in json.dumps(schema), (seed, schema, text, fault)
                followed += 1
        except GrammarError as error:
            refusals.append(error)
    assert all(refusal.remedy for refusal in refusals)
    assert [refusal for refusal in refusals if NO_OPTION.search(str(refusal))] == []
    assert followed > 100


def fits(schema: Any, text: str) -> bool:
    """Whether a grammar takes a whole text, and an answer may end there."""
    grammar = Grammar.of_schema(BYTES, schema)
    return all(grammar.take(byte) for byte in text.encode()) and (grammar.complete or grammar.take(BYTES.eos_token))


BIG = 1199999999999999999
CASES: list[tuple[Any, list[str], list[str]]] = [
    ({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}, ["0.5", "0.1", "0.00001"], ["0", "0.0", "0.51", "-0"]),
    ({"type": "number", "exclusiveMaximum": 1}, ["0.999", "0.9", "-5"], ["1", "1.0"]),
    ({"type": "number", "exclusiveMinimum": -0.5, "exclusiveMaximum": 0}, ["-0.25"], ["0", "-0.5", "-0.0"]),
    ({"type": "number", "exclusiveMinimum": 1, "maximum": 1.5}, ["1.5", "1.01"], ["1", "1.0"]),
    ({"type": "number", "minimum": -1.5, "exclusiveMaximum": -1}, ["-1.5", "-1.01"], ["-1", "-1.0"]),
    ({"type": "number", "minimum": 1.2500000000000002, "maximum": 1.9999999999999998}, ["1.5"], ["2", "2.0", "1.25"]),
    ({"type": "integer", "exclusiveMinimum": 1.5, "exclusiveMaximum": 4}, ["2", "3"], ["1", "4"]),
    ({"type": "number", "minimum": 0.1, "maximum": 0.3}, ["0.1", "0.3", "0.25"], ["0.09", "0.31"]),
    ({"const": BIG}, [f"{BIG}"], ["1200000000000000000", f"{BIG}0"]),
    ({"const": -BIG}, [f"-{BIG}"], ["-1200000000000000000"]),
    ({"const": 2**64 + 1}, [f"{2**64 + 1}"], [f"{2**64}"]),
    ({"enum": [BIG, 7, "x"]}, [f"{BIG}", "7", '"x"'], ["1200000000000000000"]),
    ({"const": 0.1234567890123456}, ["0.1234567890123456"], ["0.12345678901234561", "0.123456789012346"]),
    ({"const": {"id": BIG, "of": [1.5, None]}}, [f'{{"id":{BIG},"of":[1.5,null]}}'], ['{"id":1200000000000000000}']),
    (
        {"type": "object", "properties": {"id": {"const": BIG}, "n": {"type": "integer"}}, "required": ["id"]},
        [f'{{"id": {BIG}, "n": 5}}', f'{{ "id":{BIG} }}'],
        ['{"id": 1200000000000000000}', '{"n": 5}', "{}"],
    ),
    (
        {
            "type": "array",
            "items": {"$ref": "#/$defs/id"},
            "minItems": 1,
            "maxItems": 2,
            "$defs": {"id": {"enum": [BIG]}},
        },
        [f"[{BIG}]", f"[{BIG}, {BIG}]"],
        ["[]", f"[{BIG},{BIG},{BIG}]", "[1200000000000000000]"],
    ),
    (
        {"type": "integer", "minimum": 0, "maximum": 2**64 - 1},
        ["0", "9", "18446744073709551615", f"{BIG}"],
        ["18446744073709551616", "-1", "01", "99999999999999999999"],
    ),
    ({"type": "integer", "minimum": BIG}, [f"{BIG}", f"{BIG + 1}", f"{BIG}0"], [f"{BIG - 1}", "5"]),
    ({"type": "integer", "maximum": -BIG}, [f"-{BIG}", f"-{BIG + 1}"], [f"-{BIG - 1}", "5", "0"]),
    ({"type": "object", "properties": {"a": {"type": "integer"}}}, ['{"a":1}', "{}"], ['{"a":1,"b":2}']),
    (
        {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": True},
        ['{"a":1,"b":2}'],
        ['{"a":1,"\\u0061":"x"}'],
    ),
    ({"type": "string", "format": "date"}, ['"2024-02-29"', '"2023-02-28"'], ['"2023-02-29"', '"0000-01-01"']),
    ({"type": "string", "format": "date-time"}, ['"2000-02-29T10:00:00Z"'], ['"1900-02-29T10:00:00Z"']),
    ({"type": "string", "format": "time"}, ['"23:59:59Z"', '"10:00:00.5+01:00"'], ['"23:59:60Z"']),
    ({"type": "integer", "format": "int64", "deprecated": True, "uniqueItems": False}, ["5"], ["5.5"]),
    ({"type": "array", "items": [{"type": "string"}], "additionalItems": False}, ['["x"]'], ['["x",1]']),
    (
        {"type": "object", "propertyNames": {"enum": ["x", "y"]}, "additionalProperties": {"type": "integer"}},
        ['{"x":1}', '{"x":1,"y":2}'],
        ['{"z":1}', '{"x":"1"}'],
    ),
    ({"type": "object", "unevaluatedProperties": False, "properties": {"a": True}}, ['{"a":1}'], ['{"b":1}']),
    ({"const": "\x01\x7f"}, ['"\\u0001\\u007f"'], ['"x"']),
    ({"type": "string", "pattern": '^[^"]*$'}, ['"a\\\\b"', '"a\\n"'], ['"a\\"b"']),
    ({"type": "string", "pattern": r"^[^\\]+$"}, ['"a\\"b"', '"a\\n"'], ['"a\\\\b"']),
    (
        {
            "type": "object",
            "patternProperties": {'^[^"]*$': {"type": "integer"}},
            "additionalProperties": {"type": "null"},
        },
        ['{"a":1,"b\\"":null}'],
        ['{"b\\"":1}', '{"a":null}'],
    ),
    ({"type": "string", "minLength": 2.0, "maxLength": 2.0}, ['"ab"'], ['"a"', '"abc"']),
    ({"$ref": "#/$defs/List%5Bint%5D", "$defs": {"List[int]": {"type": "integer"}}}, ["1"], ['"x"']),
    ({"$ref": "#/$defs/Zähler", "$defs": {"Zähler": {"type": "integer"}}}, ["1"], ['"x"']),
    (
        {"type": "string", "format": "time"},
        ['"10:00:00.123456789Z"', '"10:00:00-01:00"'],
        ['"10:00:00.1234567890Z"', '"10:00:00.0000000000"'],
    ),
    (
        {"type": "string", "format": "date-time"},
        ['"2024-01-01T10:00:00.123456+01:00"'],
        ['"2024-01-01T10:00:00.1234567890Z"'],
    ),
    (
        {"type": "string", "format": "duration"},
        ['"P3Y6M4DT12H30M5S"', '"PT0S"', '"P2W"', '"P999999D"'],
        ['"P1234567D"', '"P"', '"PT"'],
    ),
    (
        {"type": "string", "format": "ipvanyaddress"},
        ['"10.0.0.255"', '"2001:db8:0:0:0:0:0:1"', '"fe80::1"'],
        ['"10.0.0.256"', '"10.0.0"', '"x"', '""'],
    ),
    (
        {"type": "string", "format": "ipvanyinterface"},
        ['"10.0.0.1/24"', '"fe80::1/128"'],
        ['"10.0.0.1/33"', '"fe80::1/129"'],
    ),
    (
        {"type": "string", "format": "ipvanynetwork"},
        ['"10.0.0.0/8"', '"10.0.0.1"', '"1:2::/32"'],
        ['"10.0.0.1/24"', '"10.0.1.0/16"'],
    ),
    ({"type": "string", "format": "ipv4network"}, ['"10.2.0.0/16"'], ['"1:2::/32"']),
    ({"type": "string", "format": "ipv6interface"}, ['"1:2::3/64"'], ['"10.0.0.0/8"']),
    ({"type": "string", "format": "name-email"}, ['"ann@example.org"'], ['"ann"']),
    ({"type": "string", "format": "idn-hostname"}, ['"example.org"'], ['"-"']),
    ({"type": "string", "format": "multi-host-uri"}, ['"redis://one:6379/0"'], ['"one"']),
    ({"type": "string", "format": "password"}, ['"x y"'], ["1"]),
    ({"type": "string", "format": "byte"}, ['"QUI="', '"QUJD"', '""'], ['"QUI"', '"QU I"']),
    (
        {"type": "string", "format": "uuid4"},
        ['"9b2e4c1a-7d3f-4e5a-8b6c-0d1e2f3a4b5c"'],
        ['"9b2e4c1a-7d3f-1e5a-8b6c-0d1e2f3a4b5c"'],
    ),
    (True, ["1", '{"a":[null]}'], ["{]"]),
]


@pytest.mark.parametrize(("schema", "right", "wrong"), CASES, ids=[json.dumps(case[0])[:60] for case in CASES])
def test_what_is_right_may_come_and_what_is_wrong_may_not(schema: Any, right: list[str], wrong: list[str]) -> None:
    assert [text for text in right if not fits(schema, text)] == []
    assert [text for text in wrong if fits(schema, text)] == []


def variant(tag: Any, *, required: bool, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"kind": {"const": tag, "default": tag}, **properties},
        "required": [*properties, *(["kind"] if required else [])],
    }


EXCLUSIVE: list[dict[str, Any]] = [
    {"oneOf": [{"type": "string"}, {"type": "null"}, {"type": "integer"}]},
    {"oneOf": [{"const": "a"}, {"const": "b"}, {"enum": ["c", 1]}]},
    {"oneOf": [{"type": "integer", "maximum": 0}, {"type": "integer", "minimum": 1}]},
    {"oneOf": [{"type": "number", "exclusiveMaximum": 0}, {"type": "number", "minimum": 0}]},
    {"oneOf": [variant("cat", required=True), variant("dog", required=True)]},
    {"oneOf": [variant(True, required=True), variant(False, required=True)]},
    {
        "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}],
        "discriminator": {"propertyName": "kind", "mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"}},
        "$defs": {
            "Cat": variant("cat", required=False, lives={"type": "integer"}),
            "Dog": variant("dog", required=False, of={"anyOf": [{"$ref": "#/$defs/Cat"}, {"type": "null"}]}),
        },
    },
    {"type": "object", "properties": {"k": {"enum": ["a", "b"]}}, "required": ["k"],
     "oneOf": [{"properties": {"k": {"const": "a"}}}, {"properties": {"k": {"const": "b"}}}]},
    {"oneOf": [{"type": "object", "properties": {"a": {}}, "required": ["a"], "additionalProperties": False},
               {"type": "object", "properties": {"b": {}}, "required": ["b"], "additionalProperties": False}]},
    {"oneOf": [{"type": "string", "maxLength": 2}, {"type": "string", "minLength": 3}]},
    {"oneOf": [{"enum": ["x"]}, {"type": "string", "pattern": "^[a-f]+$"}]},
    {"oneOf": [{"anyOf": [{"type": "null"}, {"const": 1}]}, {"allOf": [{"type": "string"}, {"minLength": 1}]}]},
]  # fmt: skip


@pytest.mark.parametrize("schema", EXCLUSIVE, ids=range(len(EXCLUSIVE)))
def test_one_of_branches_that_exclude_each_other_is_followed(schema: dict[str, Any]) -> None:
    texts = [text for text, _ in some_answers(schema, 0, 12)]
    assert texts
    assert [judged(schema, text) for text in texts] == [None] * len(texts)


@pytest.mark.parametrize(
    "branches",
    [
        [{"type": "integer"}, {"type": "number"}],
        [{"type": "string"}, {"const": "a"}],
        [{"type": "object", "properties": {"a": {"type": "string"}}}, {"type": "object", "required": ["b"]}],
        [{"minimum": 2}, {"type": "integer"}],
        [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}],
    ],
)
def test_one_of_branches_that_overlap_is_refused_in_words_that_help(branches: list[Any]) -> None:
    with pytest.raises(GrammarError, match="two branches of oneOf") as refusal:
        Grammar.of_schema(BYTES, {"oneOf": branches, "$defs": {"a": {"type": "null"}}})
    assert "Use anyOf" in refusal.value.remedy


REFUSED: list[tuple[Any, str]] = [
    ({"type": "array", "uniqueItems": True}, "uniqueItems, at $,"),
    ({"properties": {"a": {"not": {"type": "string"}}}}, "not, at $.properties.a"),
    ({"if": {"type": "string"}, "then": {"minLength": 2}}, "if, at $"),
    ({"contains": {"type": "string"}}, "contains, at $"),
    ({"dependentRequired": {"a": ["b"]}}, "dependentRequired, at $"),
    ({"dependencies": {"a": ["b"]}}, "dependencies, at $"),
    ({"anyOf": [{"properties": {}}], "unevaluatedProperties": False}, "unevaluatedProperties, at $"),
    ({"x-guidance": {"lenient": True}, "type": "string"}, "x-guidance, at $"),
    ({"allOf": [{"const": BIG}, {"type": "integer"}]}, "numbers of so many digits cannot be followed at $"),
    ({"const": float("inf")}, "$.const is out of range"),
    ({"minimum": -float("inf")}, "$.minimum is out of range"),
    ({"$ref": "#/$defs/none"}, "nothing is at #/$defs/none"),
    ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "defined by itself alone"),
    ({"items": {"type": "string", "format": "frob"}}, "the format 'frob', at $.items"),
    ({"multipleOf": 0.07}, "multipleOf 0.07, at $"),
    ({"type": "strin"}, "at $.type, 'strin' is not valid"),
    ({"minimum": "3"}, "at $.minimum"),
    ({"required": "a"}, "at $.required"),
    ("string", "it must be an object"),
    (False, "allows nothing"),
]


@pytest.mark.parametrize(("schema", "said"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_followed_is_named_with_its_place_and_a_remedy(schema: Any, said: str) -> None:
    with pytest.raises(GrammarError) as refusal:
        Grammar.of_schema(BYTES, schema)
    assert said in refusal.value.message
    assert refusal.value.remedy
    assert not re.search(r"coerce|lenient|\boptions?\b", str(refusal.value).replace("x-guidance", ""))


def test_a_draft_is_read_by_its_own_rules() -> None:
    schema = {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "type": "number",
        "minimum": 0,
        "exclusiveMinimum": True,
    }
    assert fits(schema, "0.5")
    assert not fits(schema, "0")
