"""Answers that may call no tool: the prompt is as it was, an opening that is a token is not drawn, a call that comes
all the same is left out and counted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from random_model import write_random_model

from coe.engine.generate.exact_tokens import ExactTokens
from coe.engine.generate.prompt import PromptReader
from coe.engine.llama.model import Model
from coe.engine.request import Finish, GenerateRequest, Tool, ToolUse
from coe.engine.spec import LoadSpec
from fakes.local_engine import LocalEngine
from fakes.tool_templates import TEMPLATES
from fakes.weight import brings

ADD = Tool("add", "Add.", {"type": "object", "properties": {"a": {"type": "integer"}}})
ASKED = {"role": "user", "content": "Add one."}
CALLED = [
    ASKED,
    {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "name": "add", "arguments": {"a": 1}}]},
    {"role": "tool", "tool_call_id": "c", "name": "add", "content": "2"},
]
FORBIDDEN = ToolUse(forbidden=True)


def engine_of(path: Path, template: str, tags: Sequence[str]) -> LocalEngine:
    written = write_random_model(path, chat_template="{{ bos_token }}" + TEMPLATES[template], more_control=list(tags))
    spec = LoadSpec(written, 2048)
    return LocalEngine(Model(spec), spec)


@pytest.fixture(scope="module")
@brings("model")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> LocalEngine:
    """A model with its family's tags in its vocabulary."""
    return engine_of(tmp_path_factory.mktemp("f") / "x.gguf", "hermes", ["<tool_call>", "</tool_call>"])


@pytest.fixture(scope="module")
@brings("model")
def spelt(tmp_path_factory: pytest.TempPathFactory) -> LocalEngine:
    """A model that has to spell the tags."""
    return engine_of(tmp_path_factory.mktemp("f") / "x.gguf", "hermes", [])


def answered(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch, written: str, **fields: Any
) -> tuple[str, list[Any], Any]:
    """What becomes of an answer that a model writes so: text, calls, and how it finished."""
    request = GenerateRequest("r", "s", **{"messages": [ASKED], "tools": (ADD,), "tool_use": FORBIDDEN, **fields})
    prompts = PromptReader(engine.model, LoadSpec(Path(), 2048))
    vocab = engine.model.vocab
    sequence = prompts.read(request, prompts.held_to(request), 0)
    drawn = iter([*ExactTokens(vocab, vocab.pieces()).of(written.encode()), vocab.end])
    monkeypatch.setattr(sequence.sampler, "sample", lambda *_: next(drawn))
    deltas = []
    while sequence.finish is None:
        deltas.append(sequence.advance(engine.context, 0))
    sequence.close()
    prompts.close()
    found = [delta for delta in deltas if delta]
    return (
        "".join(delta.text for delta in found),
        [c for d in found for c in d.calls],
        sequence.finished(sequence.finish, 0.0),
    )


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


@pytest.mark.parametrize(
    "fields",
    [{}, {"tools": (), "messages": CALLED}, {"tools": (), "messages": CALLED, "tool_use": ToolUse()}],
    ids=["tools", "only calls of the past", "no word of tools"],
)
def test_a_call_that_comes_all_the_same_is_left_out(
    spelt: LocalEngine, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    text, calls, finished = answered(spelt, monkeypatch, f"Well.\n{CALL}\n{CALL}", **fields)
    assert (text, calls) == ("Well.", [])
    assert finished.reason is Finish.STOP
    assert (finished.forbidden_calls, finished.malformed_calls) == (2, 0)


def test_what_is_no_call_stays_text(spelt: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = '<tool_call>\n{"name": "add", "arguments": 7}\n</tool_call>'
    text, calls, finished = answered(spelt, monkeypatch, f"Well.\n{broken}")
    assert "".join(text.split()) == "".join(f"Well.{broken}".split())
    assert not calls
    assert (finished.forbidden_calls, finished.malformed_calls) == (0, 1)


def test_an_opening_that_is_a_token_is_not_drawn(tokens: LocalEngine) -> None:
    vocab = tokens.model.vocab
    (opening,) = vocab.tokenize("<tool_call>")
    wanted = {"max_tokens": 4, "logit_bias": {opening: 100.0}, "tools": (ADD,)}
    assert tokens.ask([ASKED], **wanted).finished.malformed_calls, "else it would be"
    for fields in ({"messages": [ASKED]}, {"messages": CALLED, "tools": ()}):
        messages = fields.pop("messages")
        answer = tokens.ask(messages, **{**wanted, **fields}, tool_use=FORBIDDEN, top_logprobs=0)
        assert "<tool_call>" not in answer.text
        assert not answer.finished.forbidden_calls
        drawn = [bytes(entry.bytes).decode("utf-8", "replace") for entry in answer.logprobs]
        assert "<tool_call>" not in drawn


def test_a_banned_opening_counts_where_it_is_spelt(tokens: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    vocab = tokens.model.vocab
    request = GenerateRequest("r", "s", messages=[ASKED], tools=(ADD,), tool_use=FORBIDDEN)
    prompts = PromptReader(tokens.model, LoadSpec(Path(), 2048))
    sequence = prompts.read(request, prompts.held_to(request), 0)
    (closing,) = vocab.tokenize("</tool_call>")
    written = CALL.removesuffix("</tool_call>")
    texts = [b"" if vocab.is_control(token) else piece for token, piece in enumerate(vocab.pieces())]
    drawn = iter([*ExactTokens(vocab, texts).of(written.encode()), closing, vocab.end])
    monkeypatch.setattr(sequence.sampler, "sample", lambda *_: next(drawn))
    while sequence.finish is None:
        sequence.advance(tokens.context, 0)
    finished = sequence.finished(sequence.finish, 0.0)
    sequence.close()
    prompts.close()
    assert finished.forbidden_calls == 1


@pytest.mark.model
@pytest.mark.parametrize("which", ["tokens", "spelt"])
def test_the_prompt_is_found_in_the_cache(request: pytest.FixtureRequest, which: str) -> None:
    engine: LocalEngine = request.getfixturevalue(which)
    first = engine.ask([ASKED], tools=(ADD,), max_tokens=1)
    last = engine.ask([ASKED], tools=(ADD,), tool_use=FORBIDDEN, max_tokens=1)
    assert last.finished.prompt_tokens == first.finished.prompt_tokens
    assert last.finished.cached_tokens >= first.finished.prompt_tokens - 1


def test_a_schema_holds_as_without_tools(spelt: LocalEngine) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["a", "b"]}}}
    answer = spelt.ask([ASKED], tools=(ADD,), tool_use=FORBIDDEN, response_format=wanted, max_tokens=20)
    assert json.loads(answer.text) in ("a", "b")
    assert answer.finished.conforms
