# ruff: noqa: E501 -- texts of models and schemas, a line each
"""What a family's grammar lets through is a call that is read back, and its arguments keep to the tool's schema."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from llguidance import LLTokenizer

from coe.engine.errors import GrammarError
from coe.engine.generate.grammar import Grammar
from coe.engine.generate.tools.constraint import CallConstraint
from coe.engine.generate.tools.family import Family
from coe.engine.generate.tools.find import FAMILIES, GENERIC
from coe.engine.generate.tools.gemma4 import Gemma4
from coe.engine.generate.tools.qwen_xml import QwenXml
from coe.engine.request import Tool, ToolUse
from fakes import calls as written
from fakes.schemas import Schemas

ALL = [*FAMILIES, GENERIC]
BYTES = LLTokenizer("byte")


def of(properties: dict[str, Any], required: list[str] | None = None, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required or [], **more}


NODE = of({"label": {"type": "string"}, "next": {"$ref": "#/$defs/node"}}, ["label"], additionalProperties=False)
POINT = of({"x": {"type": "number"}, "y": {"type": "integer", "minimum": -5, "maximum": 5}}, ["x", "y"])
SCHEMAS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "any": {"type": "object"},
    "simple": of({"city": {"type": "string"}, "days": {"type": "integer"}, "metric": {"type": "boolean"}}, ["city"]),
    "order": of({"b": {"type": "string"}, "A": {"type": "string"}, "a": {"type": "null"}, "C": {}}, ["b", "A"]),
    "texts": of(
        {
            "word": {"type": "string", "pattern": "^[a-z]{2,4}$"},
            "part": {"type": "string", "pattern": "x[0-9]"},
            "short": {"type": "string", "minLength": 1, "maxLength": 3},
            "slash": {"type": "string", "pattern": "^/[a-z]+/"},
            "day": {"type": "string", "format": "date"},
            "id": {"type": "string", "format": "uuid"},
        },
        ["word", "part", "short", "slash", "day", "id"],
    ),
    "values": of(
        {
            "unit": {"enum": ["C", "F", 'q"', "", "<b>", "ü\n"]},
            "mixed": {"enum": ["on", 1, None, True, 2.5, {"k": ["v"]}]},
            "fixed": {"const": "a: {b}, [c]"},
        },
        ["unit", "mixed", "fixed"],
    ),
    "optional": of(
        {
            "a": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "b": {"type": ["integer", "null"]},
            "c": {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}, "maxItems": 2}]},
            "d": {"anyOf": [{"type": "string", "pattern": "^[a-z]+$"}, {"type": "integer"}]},
        },
        ["a", "b", "c", "d"],
    ),
    "lists": of(
        {
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 3},
            "pair": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False, "minItems": 2},
            "points": {"type": "array", "items": {"$ref": "#/$defs/point"}, "maxItems": 2},
        },
        ["tags", "pair", "points"],
        **{"$defs": {"point": POINT}},
    ),
    "recursive": of({"root": {"$ref": "#/$defs/node"}}, ["root"], **{"$defs": {"node": NODE}}),
    "maps": of(
        {
            "open": {"type": "object", "additionalProperties": {"type": "integer"}},
            "half": of({"k": {"type": "string"}}, ["k"], additionalProperties={"type": "boolean"}),
            "few": {"type": "object", "additionalProperties": {"type": "null"}, "minProperties": 1, "maxProperties": 2},
        },
        ["open", "half"],
    ),
    "joined": of(
        {
            "one": {"allOf": [{"$ref": "#/$defs/point"}], "description": "A point."},
            "two": {"allOf": [{"$ref": "#/$defs/point"}, of({"z": {"type": "integer"}}, ["z"])]},
            "which": {"oneOf": [of({"kind": {"const": "a"}}, ["kind"]), of({"kind": {"const": "b"}}, ["kind"])]},
        },
        ["one", "two", "which"],
        **{"$defs": {"point": POINT}},
    ),
    "numbers": of(
        {
            "p": {"type": "number", "minimum": 0, "maximum": 1},
            "n": {"type": "integer", "exclusiveMinimum": 0, "maximum": 1000},
            "m": {"type": "integer", "multipleOf": 5},
        },
        ["p", "n", "m"],
    ),
    "names": of({"a b": {"type": "string"}, 'q"': {"type": "integer"}, "x-y.z": {}, "ключ": {"type": "boolean"}}, ["a b", 'q"']),
}  # fmt: skip


def constraint_of(
    family: Family, tools: list[Tool], use: ToolUse, *, tokens: bool
) -> tuple[CallConstraint, dict[int, str]]:
    tokenizer, tags = written.vocabulary(family) if tokens else (BYTES, {})
    spelt = written.spelling(family, tokens=True)
    return CallConstraint(tokenizer, family, tools, use, tags), {token: spelt[tag] for tag, token in tags.items()}


def faults(family: Family, tools: list[Tool], answer: str, *, tokens: bool) -> list[str]:
    """What is wrong with an answer that a grammar let through."""
    by_name = {tool.name: tool for tool in tools}
    found = written.read(family, by_name, written.spelling(family, tokens=tokens), [answer], live=False)
    said = [] if not found.text.strip() and found.calls and not found.malformed else [f"not all a call: {found}"]
    for name, given in found.calls:
        judge = Draft202012Validator(
            {"type": "object", **by_name[name].parameters}, format_checker=Draft202012Validator.FORMAT_CHECKER
        )
        said += [f"{given}: {error.message}" for error in judge.iter_errors(given)]
    return said


def walks(grammar: Grammar, shown: Mapping[int, str], seed: str, count: int) -> list[str]:
    found = [written.drawn(grammar.copy(), random.Random(f"{seed}/{at}"), shown) for at in range(count)]
    return [text for text in found if text is not None]


@pytest.mark.parametrize("tokens", [True, False], ids=["tokens", "text"])
@pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)
@pytest.mark.parametrize("name", SCHEMAS)
def test_a_required_call_keeps_to_its_schema(family: Family, name: str, tokens: bool) -> None:
    tools = [Tool("get.it-1", parameters=SCHEMAS[name], strict=True)]
    made, shown = constraint_of(family, tools, ToolUse(required=True, parallel=False), tokens=tokens)
    assert made.whole is not None
    answers = walks(made.whole, shown, name, 4)
    assert answers
    assert [fault for answer in answers for fault in faults(family, tools, answer, tokens=tokens)] == []


@pytest.mark.parametrize("tokens", [True, False], ids=["tokens", "text"])
@pytest.mark.parametrize("family", [family for family in ALL if family.certain], ids=lambda family: family.name)
def test_after_an_opening_a_call_of_one_of_the_tools_follows(family: Family, tokens: bool) -> None:
    tools = [Tool(name, parameters=SCHEMAS[name]) for name in ("simple", "lists", "values")]
    made, shown = constraint_of(family, tools, ToolUse(), tokens=tokens)
    assert made.whole is None
    spelt = written.spelling(family, tokens=tokens)
    for opening in family.openings:
        grammar = made.after(opening)
        assert grammar is not None
        begun = opening
        for tag, sentinel in spelt.items():
            begun = begun.replace(tag, sentinel)
        answers = walks(grammar, shown, opening, 4)
        assert answers
        assert [f for answer in answers for f in faults(family, tools, begun + answer, tokens=tokens)] == []


@pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)
def test_several_calls_come_where_they_may(family: Family) -> None:
    tools = [Tool("a", parameters=of({"n": {"type": "integer", "maximum": 9, "minimum": 0}}, ["n"])), Tool("b")]
    several, shown = constraint_of(family, tools, ToolUse(required=True), tokens=True)
    assert several.whole is not None
    answers = walks(several.whole, shown, "several", 25)
    assert [fault for answer in answers for fault in faults(family, tools, answer, tokens=True)] == []
    by_name, spelt = {tool.name: tool for tool in tools}, written.spelling(family, tokens=True)
    counts = {len(written.read(family, by_name, spelt, [answer]).calls) for answer in answers}
    assert max(counts) > 1 if family.several else counts == {1}


def test_keys_of_gemma_4_come_in_the_order_of_its_template() -> None:
    tools = [Tool("f", parameters=SCHEMAS["order"])]
    made, shown = constraint_of(Gemma4(), tools, ToolUse(required=True, parallel=False), tokens=True)
    assert made.whole is not None
    spelt = written.spelling(Gemma4(), tokens=True)
    for answer in walks(made.whole, shown, "order", 20):
        calls = written.read(Gemma4(), {"f": tools[0]}, spelt, [answer]).calls
        keys = list(calls[0][1])
        assert keys == sorted(keys, key=str.lower)
        assert "b" in keys


def test_a_text_of_gemma_4_holds_anything_but_its_mark() -> None:
    tools = [Tool("f", parameters=of({"t": {"type": "string"}}, ["t"]))]
    made, shown = constraint_of(Gemma4(), tools, ToolUse(required=True, parallel=False), tokens=True)
    tokens = {text: token for token, text in shown.items()}
    spelt = written.spelling(Gemma4(), tokens=True)
    mark = tokens[spelt['<|"|>']]
    body = list('a "b" {c} \\ <tool_call|> <|"|>\n\té'.encode())
    grammar = made.whole
    assert grammar is not None
    sequence = [tokens[spelt["<|tool_call>"]], *b"call:f{t:", mark, *body, mark, *b"}", tokens[spelt["<tool_call|>"]]]
    assert all(grammar.take(token) for token in sequence)
    assert grammar.complete


UNSAYABLE = of({"w": {"type": "string", "pattern": "^a|b$"}}, ["w"])


def test_what_a_notation_cannot_say_is_left_out() -> None:
    tools = [Tool("f", parameters=UNSAYABLE), Tool("g", parameters=SCHEMAS["simple"])]
    made, shown = constraint_of(Gemma4(), tools, ToolUse(required=True, parallel=False), tokens=True)
    assert made.whole is not None
    answers = walks(made.whole, shown, "left out", 12)
    found = [f for answer in answers for f in faults(Gemma4(), tools, answer, tokens=True)]
    assert all("does not match" in fault for fault in found)
    assert any("call:g" in answer for answer in answers)


@pytest.mark.slow
@pytest.mark.parametrize("family", [Gemma4(), QwenXml()], ids=lambda family: family.name)
@pytest.mark.parametrize("block", range(3))
def test_random_schemas_are_kept_or_refused_in_words_that_help(family: Family, block: int) -> None:
    followed, refusals = 0, list[GrammarError]()
    for seed in range(60 * block, 60 * block + 60):
        inner = Schemas(random.Random(seed)).root()
        shared = {"$defs": inner.pop("$defs")} if "$defs" in inner else {}
        parameters = of({"x": inner, "y": {"type": "string"}}, ["x"], **shared)
        tools = [Tool("f", parameters=parameters, strict=True)]
        tokens = seed % 2 == 0
        try:
            made, shown = constraint_of(family, tools, ToolUse(required=True, parallel=False), tokens=tokens)
            assert made.whole is not None
            exact = not made.loosened
            for answer in walks(made.whole, shown, str(seed), 3) if exact else ():
                found = faults(family, tools, answer, tokens=tokens)
                # A key that comes twice counts once: that only the check at the end sees.
                assert not found or "minProperties" in json.dumps(parameters), (seed, parameters, answer, found)
                followed += 1
        except GrammarError as error:
            refusals.append(error)
    assert all(error.remedy for error in refusals)
    assert followed > 40
