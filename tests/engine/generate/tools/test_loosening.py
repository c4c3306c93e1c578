"""Tools whose schemas have words that no grammar follows: these give way at their place, all else is held to."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from llguidance import LLTokenizer

from coe.engine.errors import GrammarError
from coe.engine.generate.json_schema import JsonSchema
from coe.engine.generate.tools.constraint import CallConstraint
from coe.engine.generate.tools.family import Family
from coe.engine.generate.tools.find import FAMILIES, GENERIC
from coe.engine.generate.tools.hermes import Hermes
from coe.engine.generate.tools.loosening import read_loosely
from coe.engine.request import Tool, ToolUse
from fakes import calls as written

BYTES = LLTokenizer("byte")
ALL = [*FAMILIES, GENERIC]
REQUIRED = ToolUse(required=True, parallel=False)
TAGS: dict[str, Any] = {
    "properties": {
        "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        "at": {"type": "string", "format": "x-own"},
        "one": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    },
    "required": ["tags"],
}


def constraint(
    parameters: dict[str, Any], *, strict: bool = False, use: ToolUse = REQUIRED, family: Family | None = None
) -> CallConstraint:
    tool = Tool("mark", "", parameters, strict=strict)
    return CallConstraint(BYTES, family or Hermes(), [tool], use, {})


def takes(parameters: dict[str, Any], arguments: Any) -> bool:
    grammar = constraint(parameters).whole
    assert grammar is not None
    text = f'<tool_call>\n{{"name": "mark", "arguments": {json.dumps(arguments)}}}\n</tool_call>'
    return all(grammar.take(byte) for byte in text.encode())


@pytest.mark.parametrize("strict", [True, False])
def test_what_can_be_followed_of_a_schema_is(strict: bool) -> None:
    assert constraint(TAGS, strict=strict).loosened == {"mark"}
    assert takes(TAGS, {"tags": ["a", "b"], "at": "now", "one": 1})
    assert not takes(TAGS, {"ARGUMENT": "VALUE"})
    assert not takes(TAGS, {"tags": "a"})
    assert not takes(TAGS, {"tags": [1]})


@pytest.mark.parametrize("strict", [True, False])
def test_a_call_that_is_whole_is_held_against_the_whole_of_it(strict: bool) -> None:
    made = constraint(TAGS, strict=strict)
    assert made.violation("mark", '{"tags": ["a", "b"]}') is None
    assert "a" in str(made.violation("mark", '{"tags": ["a", "a"]}'))


def of(inner: Any, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"x": inner, "n": {"type": "integer"}}, "required": ["x"], **more}


TEXT = {"type": "string"}
PLACES: list[tuple[str, Any, dict[str, Any], Any, Any, Any]] = [
    # keyword, schema, what stands beside, what is right, what only the check at the end sees, what cannot come
    ("not", {**TEXT, "not": {"const": "a"}}, {}, "b", "a", 1),
    ("if", {"type": "integer", "if": {"minimum": 5}, "then": {"multipleOf": 2}}, {}, 6, 7, "6"),
    ("contains", {"type": "array", "items": TEXT, "contains": {"const": "a"}}, {}, ["a"], ["b"], [1]),
    ("uniqueItems", {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True}, {}, [1, 2], [1, 1], [3]),
    ("propertyNames", {"type": "object", "additionalProperties": TEXT,
      "propertyNames": {"pattern": "^a", "maxLength": 2}}, {}, {"ab": "c"}, {"abc": "c"}, {"ab": 1}),
    ("dependentRequired", {**of(TEXT), "dependentRequired": {"x": ["n"]}}, {},
     {"x": "a", "n": 1}, {"x": "a"}, {"x": 1}),
    ("oneOf", {"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 5}]}, {}, 5.5, 7, "7"),
    ("format", {**TEXT, "format": "idn-own"}, {}, "b", None, 1),
    ("multipleOf", {"type": "number", "minimum": 0, "multipleOf": 0.07}, {}, 0.14, 0.15, -0.14),
    ("multipleOf of many digits", {"type": "integer", "minimum": 0, "multipleOf": 10**400}, {}, 0, 5, -5),
    ("look-around", {**TEXT, "pattern": "^(?!a)", "maxLength": 1}, {}, "b", None, "bb"),
    ("patternProperties", {"type": "object", "patternProperties": {"^(?=a)": TEXT, "^n$": {"type": "integer"}},
                           "additionalProperties": False}, {}, {"a": "b", "n": 1}, None, {"n": "b"}),
    ("a reference to nothing", {"$ref": "#/$defs/none"}, {}, 1, None, None),
    ("a reference elsewhere", {"$ref": "https://example.com/own.json"}, {}, 1, None, None),
    ("an unknown type", {"type": "any"}, {}, 1, None, None),
    ("a property called like a keyword",
     {"type": "object", "properties": {"not": {"type": "any", "maxLength": 3}, "properties": {"type": "text"}}}, {},
     {"not": "abc", "properties": 1}, None, {"not": "abcd"}),
    ("required as draft 3 has it", {"type": "string", "required": True}, {}, "a", None, 1),
    ("no list of names", {"type": "object", "properties": {"a": TEXT}, "required": "a"}, {},
     {"a": "b"}, None, {"a": 1}),
    ("an unknown draft", TEXT, {"$schema": "https://example.com/own"}, "a", None, 1),
    ("numbers of many digits", {"anyOf": [TEXT, {"type": "integer", "minimum": 0, "maximum": 2**64}], "title": "t"},
     {"patternProperties": {"^y": {}}}, 2**64, 2**64 + 2, []),
    ("values of many digits", {"type": "integer", "enum": [2**64 + 1, 5], "minimum": 3},
     {"patternProperties": {"^y": {}}}, 2**64 + 1, 6, "5"),
]  # fmt: skip


@pytest.mark.parametrize(("inner", "beside", "right", "seen_late", "never"), [case[1:] for case in PLACES],
                         ids=[case[0] for case in PLACES])  # fmt: skip
def test_a_keyword_gives_way_at_its_place(inner: Any, beside: Any, right: Any, seen_late: Any, never: Any) -> None:
    parameters = of(inner, **beside)
    made = constraint(parameters)
    assert takes(parameters, {"x": right, "n": 3})
    assert made.violation("mark", json.dumps({"x": right, "n": 3})) is None
    assert not takes(parameters, {"x": right, "n": "3"}), "what stands beside it is held to"
    assert not takes(parameters, {"n": 3})
    if seen_late is not None:
        assert takes(parameters, {"x": seen_late})
        assert made.violation("mark", json.dumps({"x": seen_late})) is not None
    if never is not None:
        assert not takes(parameters, {"x": never})


LOOK_AROUND = of({"type": "string", "pattern": "^(?!a)"})


def test_what_can_neither_be_followed_nor_validated_refuses_a_strict_tool_only_where_it_must_be_called() -> None:
    with pytest.raises(GrammarError, match="the parameters of the tool mark: the pattern") as refusal:
        constraint(LOOK_AROUND, strict=True)
    assert refusal.value.remedy
    assert constraint(LOOK_AROUND, strict=True, use=ToolUse()).loosened == {"mark"}
    assert constraint(LOOK_AROUND).loosened == {"mark"}


def test_one_tool_that_the_library_cannot_follow_leaves_the_others_theirs() -> None:
    tools = [Tool("mark", "", of(TEXT)), Tool("odd", "", of({"type": "string", "enum": ["a"], "minLength": 5}))]
    made = CallConstraint(BYTES, Hermes(), tools, REQUIRED, {})
    assert made.loosened == {"odd"}
    text = '<tool_call>\n{"name": "mark", "arguments": {"x": 1'
    assert made.whole is not None
    assert not all(made.whole.take(byte) for byte in text.encode())


@pytest.mark.parametrize("schema", [5, [], "object", None, {"type": "object", "$ref": "#"}])
def test_what_is_no_schema_stays_none(schema: Any) -> None:
    with pytest.raises(GrammarError):
        read_loosely(schema)


def test_what_is_nested_too_deeply_is_said_to_be_and_held_to_be_an_object() -> None:
    inner: dict[str, Any] = {"type": "array", "uniqueItems": True}
    for _ in range(400):
        inner = {"oneOf": [inner, {"type": "integer"}]}
    with pytest.raises(GrammarError, match="too deeply"):
        read_loosely(of(inner))
    made = constraint(of(inner))
    assert made.loosened == {"mark"}
    assert made.whole is not None


# --- schemas as other people's tools have them ------------------------------------------------------------------------

_LEAVES = st.one_of(
    st.sampled_from(
        [
            {},
            True,
            {"type": "string"},
            {"type": "integer", "default": 3, "examples": [1]},
            {"type": "boolean", "description": "If so."},
            {"type": ["string", "null"], "nullable": True},
            {"type": ["integer", "null"], "format": "int64"},
            {"const": "a"},
            {"enum": ["a", "b", None]},
            {"type": "string", "format": "uri"},
            {"type": "string", "format": "x-own"},
            {"type": "string", "pattern": "^(?!-)[a-z]+$"},
            {"type": "string", "pattern": r"\d+|^a$", "minLength": 1},
            {"type": "string", "not": {"enum": ["", "a"]}},
            {"type": "number", "exclusiveMinimum": True, "minimum": 0},
            {"type": "integer", "maximum": 18446744073709551615},
            {"type": "integer", "if": {"minimum": 5}, "then": {"multipleOf": 2}, "else": True},
            {"type": "any"},
            {"type": "string", "required": True},
            {"$ref": "#/$defs/own"},
            {"$ref": "#/$defs/missing"},
            {"$ref": "https://example.com/schema.json"},
            {"$ref": "#"},
        ]
    )
)


def _around(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.sampled_from(["a", "b", "x-y", "not", "type", "$ref"])
    objects = st.builds(
        lambda properties, more: {"type": "object", "properties": properties, **more},
        st.dictionaries(names, inner, max_size=3),
        st.fixed_dictionaries(
            {},
            optional={
                "required": st.lists(names, max_size=2, unique=True),
                "additionalProperties": st.booleans() | inner,
                "patternProperties": st.dictionaries(st.sampled_from(["^x-", "^(?=x)", "y$"]), inner, max_size=2),
                "propertyNames": st.sampled_from([{"pattern": "^[a-z]"}, {"maxLength": 3, "not": {"const": "a"}}]),
                "dependentRequired": st.just({"a": ["b"]}),
                "unevaluatedProperties": st.just(False),
                "minProperties": st.integers(0, 3),
                "$schema": st.sampled_from(["http://json-schema.org/draft-07/schema#", "own"]),
            },
        ),
    )
    lists = st.builds(
        lambda items, more: {"type": "array", "items": items, **more},
        inner,
        st.fixed_dictionaries({}, optional={"uniqueItems": st.booleans(), "minItems": st.integers(0, 2),
                                            "contains": inner, "maxItems": st.integers(1, 3)}),
    )  # fmt: skip
    words = st.sampled_from(["anyOf", "oneOf", "allOf"])
    joined = st.builds(lambda word, parts: {word: parts}, words, st.lists(inner, min_size=1, max_size=3))
    return objects | lists | joined


SCHEMAS = st.recursive(_LEAVES, _around, max_leaves=8)
SIMPLE = Tool("simple", "", {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]})


def must_refuse(tool: Tool) -> bool:
    """Whether part of a tool's schema can neither be followed nor validated."""
    try:
        return bool(read_loosely({"type": "object", **tool.parameters})[1])
    except GrammarError:
        return True


@pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)
@settings(max_examples=10, deadline=None)
@given(inner=SCHEMAS, own=SCHEMAS, strict=st.booleans(), seed=st.integers(0, 2**16))
# Of what is left out here, texts must not come where the call is read as JSON.
@example(inner={"anyOf": [{"type": "integer", "maximum": 2**64 - 1}]}, own={}, strict=False, seed=65536)
@example(inner={"oneOf": [{"type": "object", "minimum": "none"}]}, own={}, strict=False, seed=148)
@example(inner={"anyOf": [{"type": "any"}]}, own={}, strict=False, seed=65536)
def test_no_keyword_refuses_a_list_of_tools_and_what_is_drawn_is_a_call(
    family: Family, inner: Any, own: Any, strict: bool, seed: int
) -> None:
    """Whatever other people's tools say: what comes is a call, what is kept of a schema is kept, and nothing passes the
    check at the end that a validator of its own would not let pass."""
    odd = Tool("odd", "", of(inner, **{"$defs": {"own": own}}), strict=strict)
    tokenizer, tags = written.vocabulary(family)
    spelt = written.spelling(family, tokens=True)
    shown = {token: spelt[tag] for tag, token in tags.items()}
    CallConstraint(tokenizer, family, [odd, SIMPLE], ToolUse(), tags)
    if strict and must_refuse(odd):
        with pytest.raises(GrammarError, match="the parameters of the tool odd"):
            CallConstraint(tokenizer, family, [odd, SIMPLE], REQUIRED, tags)
        return
    made = CallConstraint(tokenizer, family, [odd, SIMPLE], REQUIRED, tags)
    assert made.whole is not None
    assert made.loosened <= {"odd"}
    tools = {"odd": odd, "simple": SIMPLE}
    for at in range(2):
        answer = written.drawn(made.whole.copy(), random.Random(seed + at), shown)
        if answer is None:
            continue
        found = written.read(family, tools, spelt, [answer], live=False)
        assert len(found.calls) == 1, (answer, found)
        assert not found.malformed
        ((name, arguments),) = found.calls
        assert isinstance(arguments, dict)
        fault = made.violation(name, json.dumps(arguments))
        if name == "simple":
            assert fault is None
        elif not made.loosened:
            draft = JsonSchema.read(odd.parameters).draft
            assert draft(odd.parameters).is_valid(arguments)
