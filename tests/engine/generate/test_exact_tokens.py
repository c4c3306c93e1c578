"""The tokens that a grammar is given for a text spell it byte for byte, whatever llama.cpp makes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import random_model

from coe.engine.generate.exact_tokens import ExactTokens
from coe.engine.generate.grammar import Grammar, tokenizer_of
from coe.engine.llama.model import Model
from coe.engine.request import Tool, ToolUse
from coe.engine.spec import LoadSpec
from fakes.local_engine import LocalEngine
from fakes.random_moe import write_random_moe
from fakes.tool_templates import TEMPLATES

pytestmark = pytest.mark.model

# Among them what SentencePiece writes for a blank, and a character that no vocabulary here has a token of.
TEXTS = ["a b", " ", "  x", '{"name": "f", "b": true}', "\u2581", "x\u2581y", "\u00e9\u4e2d\U0001f40e", "\n\t"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("which", ["smollm2_model", "gemma4_model"])
def test_a_text_is_spelt(request: pytest.FixtureRequest, which: str, text: str) -> None:
    vocab = request.getfixturevalue(which).vocab
    exact = ExactTokens(vocab, vocab.pieces())
    assert b"".join(vocab.piece(token) for token in exact.of(text.encode())) == text.encode()
    assert tokenizer_of(vocab).tokenize_bytes(text.encode()) == exact.of(text.encode())


def test_a_token_that_stands_for_no_text_spells_none(gemma4_model: Model) -> None:
    vocab = gemma4_model.vocab
    (tag,) = vocab.tokenize("<|turn>")
    for marked in (set(), {tag}):
        texts = [b"\xff" + piece if token in marked else piece for token, piece in enumerate(vocab.pieces())]
        assert tag not in ExactTokens(vocab, texts).of(b"a <|turn> b") or not marked


def test_of_a_text_that_cannot_be_spelt_the_tokens_end_before_it(gemma4_model: Model) -> None:
    vocab = gemma4_model.vocab
    texts = [b"" if b"q" in piece else piece for piece in vocab.pieces()]
    assert ExactTokens(vocab, texts).of(b"abqcd") == ExactTokens(vocab, texts).of(b"ab")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("which", ["smollm2_model", "gemma4_model"])
def test_an_answer_that_a_grammar_leaves_no_choice_is_that_answer(
    request: pytest.FixtureRequest, new_engine: Callable[..., LocalEngine], which: str, text: str
) -> None:
    engine = new_engine(request.getfixturevalue(which))
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": text}}}
    answer = engine.ask("Say it.", response_format=wanted, max_tokens=100)
    assert json.loads(answer.text) == text
    assert answer.finished.conforms


def test_every_token_of_a_mask_can_be_taken(gemma4_model: Model) -> None:
    grammar = Grammar.of_schema(tokenizer_of(gemma4_model.vocab), {"enum": ["\u2581 a", "b c"]})
    taken = ""
    while not grammar.complete:
        allowed = [int(token) for token in grammar.allowed()]
        assert all(grammar.copy().take(token) for token in allowed), taken
        grammar.take(allowed[0])
        taken += gemma4_model.vocab.piece(allowed[0]).decode("utf-8", "replace")


@pytest.mark.parametrize("family", [name for name in TEMPLATES if name != "harmony"])
def test_a_vocabulary_without_a_token_for_the_space_writes_calls(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_engine: Callable[..., LocalEngine]
) -> None:
    monkeypatch.setattr(random_model, "CHAT_TEMPLATE", TEMPLATES[family])
    model = Model(LoadSpec(write_random_moe(tmp_path / "x.gguf", architecture="olmoe")))
    schema = {"type": "object", "properties": {"b": {"type": "boolean"}}, "required": ["b"]}
    answer = new_engine(model, context_tokens=1024, cache_tokens=1024).ask(
        [{"role": "user", "content": "go"}],
        tools=[Tool("f", parameters={**schema, "additionalProperties": False})],
        tool_use=ToolUse(required=True, parallel=False),
        max_tokens=400,
    )
    pieces = [piece for delta in answer.deltas for piece in delta.calls]
    assert pieces[0].name == "f"
    assert set(json.loads("".join(piece.arguments for piece in pieces))) == {"b"}
    assert not answer.text
