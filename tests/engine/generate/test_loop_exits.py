"""The loop guard under a grammar: what the schema dictates is no loop, what the model goes on with freely is one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llguidance import LLTokenizer

from coe.engine.generate.grammar import Grammar, tokenizer_of
from coe.engine.generate.json_place import JsonPlace
from coe.engine.generate.loop_exits import GrammarLoops
from coe.engine.generate.loops import Loop, LoopGuard
from coe.engine.llama.model import Model
from coe.engine.llama.vocab import Vocab


@pytest.fixture(scope="module")
def tokenizer(smollm2_model: Model) -> LLTokenizer:
    return tokenizer_of(smollm2_model.vocab)


def first_loop(vocab: Vocab, tokenizer: LLTokenizer, schema: Any, text: str) -> Loop | None:
    """What the guard says while a model writes the text under the schema."""
    grammar = Grammar.of_schema(tokenizer, schema)
    loops = GrammarLoops(LoopGuard(), grammar)
    for token in vocab.tokenize(text):
        assert grammar.take(token), "the schema forbids the text"
        piece = vocab.piece(token)
        if loop := loops.feed(piece.decode(), token, piece):
            return loop
    return None


def array_of(items: Any, n: int | None = None) -> dict[str, Any]:
    return {"type": "array", "items": items} | ({} if n is None else {"minItems": n, "maxItems": n})


RECORD = {"note": "nothing to report from here, all is well", "state": "unknown", "ok": True}
ANY_RECORD = {"type": "object", "properties": {"note": {"type": "string"}, "state": {}, "ok": {}}}
CONST_RECORD = {"type": "object", "properties": {"note": {"const": "a b c d"}}, "required": ["note"]}

DICTATED: dict[str, tuple[Any, str]] = {
    "an array of true": (array_of({"const": True}, 2000), json.dumps([True] * 2000)),
    "an array of booleans of one length": (array_of({"type": "boolean"}, 2000), json.dumps([True] * 2000)),
    "one letter": ({"type": "string", "pattern": "^a{4000}$"}, json.dumps("a" * 4000)),
    "any letters, but so many": ({"type": "string", "minLength": 4000, "maxLength": 4000}, json.dumps("ab" * 2000)),
    "a constant": ({"const": "no, " * 2000}, json.dumps("no, " * 2000)),
    "prefixItems": (
        {"type": "array", "prefixItems": [{"const": "yes"}] * 900, "minItems": 900}, json.dumps(["yes"] * 900),
    ),
    "so many records of free texts": (array_of(ANY_RECORD, 200), json.dumps([RECORD] * 200)),
    "digits": ({"type": "string", "pattern": "^(0123){3000}$"}, json.dumps("0123" * 3000)),
    "free text after what was dictated": (
        {
            "type": "object",
            "properties": {"flags": array_of({"const": True}, 2000), "why": {"type": "string"}},
            "required": ["flags", "why"],
            "additionalProperties": False,
        },
        json.dumps({"flags": [True] * 2000, "why": " ".join(f"Reason {i} is {i * i % 97} words." for i in range(60))}),
    ),
}  # fmt: skip

FREE: dict[str, tuple[Any, str]] = {
    "an array that could end": (array_of({"type": "boolean"}), json.dumps([True] * 2000)),
    "a text that could end": ({"type": "string"}, json.dumps("I need to check the result again. " * 200)),
    "records that could end": (array_of(ANY_RECORD), json.dumps([RECORD] * 200)),
    "a length that is due later": (
        {"type": "array", "items": {"type": "boolean"}, "minItems": 3}, json.dumps([False, True, *[True] * 2000]),
    ),
    "a text within a dictated array": (
        array_of({"type": "string"}, 3), json.dumps(["a", "we add one to it and look again, " * 200, "b"]),
    ),
    "keys without end": (
        {"type": "object", "additionalProperties": {"const": 0}}, json.dumps({"a": 0})[:-1] + ', "a": 0' * 2000 + "}",
    ),
    "brackets without end": (
        {"$ref": "#/$defs/nest", "$defs": {"nest": {"type": "array", "items": {"$ref": "#/$defs/nest"}}}}, "[" * 2500,
    ),
    "a list that goes on although its records are dictated": (
        array_of(CONST_RECORD), json.dumps([{"note": "a b c d"}] * 500),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DICTATED)
def test_what_the_schema_dictates_is_no_loop(smollm2_model: Model, tokenizer: LLTokenizer, name: str) -> None:
    schema, text = DICTATED[name]
    assert LoopGuard().feed(text + " " * 200) is not None, "without the schema it would be one"
    assert first_loop(smollm2_model.vocab, tokenizer, schema, text) is None


@pytest.mark.parametrize("name", FREE)
def test_what_the_model_could_have_ended_is_a_loop(smollm2_model: Model, tokenizer: LLTokenizer, name: str) -> None:
    schema, text = FREE[name]
    loop = first_loop(smollm2_model.vocab, tokenizer, schema, text)
    assert loop is not None
    assert loop.reason


@pytest.mark.parametrize(
    ("text", "depth", "exits"),
    [
        ("", 0, ()),
        ('{"a', 2, (b'"',)),
        ('{"a": ["b", ', 2, (b"]",)),
        ('"a\\', 1, ()),
        ('"a\\"[', 1, (b'"',)),
        ("[-1.5e3", 2, (b",", b"]", b"}")),
        ("[1, 2], true", 0, ()),
        ('{"a": {}, "b": tru', 1, (b"}",)),
    ],
)
def test_what_would_end_what_is_open(text: str, depth: int, exits: tuple[bytes, ...]) -> None:
    place = JsonPlace()
    for byte in text.encode():
        place.read(byte)
    assert (place.depth, place.exits) == (depth, exits)
