"""Answers held to a JSON schema: what is allowed, what is refused, and what a schema may cost."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from llguidance import LLTokenizer

from coe.engine.errors import GrammarError
from coe.engine.generate.grammar import Grammar, schema_of, tokenizer_of
from coe.engine.llama.model import Model


@pytest.fixture(scope="module")
def tokenizer(smollm2_model: Model) -> LLTokenizer:
    return tokenizer_of(smollm2_model.vocab)


def fits(model: Model, grammar: Grammar, text: str) -> bool:
    """Whether a whole text is taken, and an answer may end there."""
    if not all(grammar.take(token) for token in model.vocab.tokenize(text)):
        return False
    return grammar.complete or grammar.take(model.vocab.end)


class TestWantedFormat:
    def test_text_wants_nothing(self) -> None:
        assert schema_of(None) is None
        assert schema_of({"type": "text"}) is None

    def test_json_object_wants_an_object(self, smollm2_model: Model, tokenizer: LLTokenizer) -> None:
        schema = schema_of({"type": "json_object"})
        assert fits(smollm2_model, Grammar.of_schema(tokenizer, schema), '{"a": [1, null, {"b": "c"}]}')
        assert not fits(smollm2_model, Grammar.of_schema(tokenizer, schema), "[1]")

    def test_a_schema_that_is_missing_is_said_to_be(self) -> None:
        with pytest.raises(GrammarError, match="no json_schema"):
            schema_of({"type": "json_schema"})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "no such type"},
        {"$ref": "#/nowhere"},
        {"$ref": "https://example.com/schema.json"},
        {"type": "string", "pattern": "("},
        {"type": "string", "pattern": "^(?=x)x$"},
        {"const": "\ud83d"},
        3,
        {"not": {"type": "string"}},
    ],
)
def test_what_cannot_be_followed_is_refused_with_a_reason(tokenizer: LLTokenizer, schema: Any) -> None:
    with pytest.raises(GrammarError, match=r"json_schema.*\. [A-Z]"):
        Grammar.of_schema(tokenizer, schema)


def test_a_schema_is_kept_to_the_letter(smollm2_model: Model, tokenizer: LLTokenizer) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    assert fits(smollm2_model, Grammar.of_schema(tokenizer, schema), '{"name": "Ada", "age": 36}')
    assert fits(smollm2_model, Grammar.of_schema(tokenizer, schema), '{\n  "name": "Ada",\n  "age": 36\n}')
    for wrong in ('{"name": "Ada Lovelace", "age": 1}', '{"name": "Ada", "age": -1}', '{"name": "Ada"}'):
        assert not fits(smollm2_model, Grammar.of_schema(tokenizer, schema), wrong), wrong


@pytest.mark.parametrize("text", ["🐍é", 'tab\tquote"', "日本", "a\\b"])
def test_any_character_can_be_asked_for(smollm2_model: Model, tokenizer: LLTokenizer, text: str) -> None:
    written = json.dumps(text, ensure_ascii=False)
    assert fits(smollm2_model, Grammar.of_schema(tokenizer, {"const": text}), written)
    assert not fits(smollm2_model, Grammar.of_schema(tokenizer, {"const": text}), '"another"')


def test_the_allowed_tokens_are_those_that_are_taken(smollm2_model: Model, tokenizer: LLTokenizer) -> None:
    schema = {"enum": ["north", "south"]}
    grammar = Grammar.of_schema(tokenizer, schema)
    allowed = set(grammar.allowed().tolist())
    sample = {*list(allowed)[:40], *np.random.default_rng(0).integers(0, smollm2_model.vocab.n_tokens, 200).tolist()}
    for token in sample:
        assert Grammar.of_schema(tokenizer, schema).take(token) == (token in allowed)


def test_a_refused_token_changes_nothing(smollm2_model: Model, tokenizer: LLTokenizer) -> None:
    grammar = Grammar.of_schema(tokenizer, {"type": "boolean"})
    (wrong,) = smollm2_model.vocab.tokenize("x")
    before = grammar.allowed().tolist()
    assert not grammar.take(wrong)
    assert grammar.allowed().tolist() == before
    assert fits(smollm2_model, grammar, "true")


def test_white_space_is_not_endless(smollm2_model: Model, tokenizer: LLTokenizer) -> None:
    grammar = Grammar.of_schema(tokenizer, {"type": "object"})
    (brace,) = smollm2_model.vocab.tokenize("{")
    (newline,) = smollm2_model.vocab.tokenize("\n")
    assert grammar.take(brace)
    assert sum(grammar.take(newline) for _ in range(200)) <= 40


# Each of them overflowed a stack, or kept all other answers waiting for minutes, with llama.cpp's own grammars.
COSTLY = [
    {"type": "array", "items": {"type": "integer"}, "minItems": 100_000, "maxItems": 1_000_000},
    {"type": "string", "pattern": "^a{1,1000000}$"},
    {"type": "string", "pattern": "^([a-z]{0,10}){0,200}$"},
    {"type": "string", "maxLength": 50_000},
    {"enum": [f"a rather long choice, number {i}" for i in range(5000)]},
    {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(300)}},
    {
        "anyOf": [
            {"type": "object", "properties": {f"p{j}": {"pattern": f"^[a-z]{{1,{j + 5}}}$"} for j in range(20)}}
            for i in range(60)
        ]
    },
]


@pytest.mark.parametrize("schema", COSTLY, ids=range(len(COSTLY)))
def test_a_costly_schema_is_followed_or_given_up_with_a_reason(
    smollm2_model: Model, tokenizer: LLTokenizer, schema: dict[str, Any]
) -> None:
    taken: list[bool] = []
    with suppress(GrammarError):
        grammar = Grammar.of_schema(tokenizer, schema)
        while len(taken) < 30 and not grammar.complete:
            taken.append(grammar.take(int(grammar.allowed()[-1])))
    assert all(taken)
    assert taken or schema is COSTLY[-1]


def test_a_schema_too_large_to_be_read_is_refused_by_its_size(tokenizer: LLTokenizer) -> None:
    with pytest.raises(GrammarError, match="262,144 are taken"):
        Grammar.of_schema(tokenizer, {"const": "x" * 300_000})
