"""Tools whose schemas have words that no grammar follows: the rest of them is followed all the same."""

from __future__ import annotations

from typing import Any

import pytest
from llguidance import LLTokenizer

from coe.engine.errors import GrammarError
from coe.engine.generate.tools.constraint import CallConstraint
from coe.engine.generate.tools.hermes import Hermes
from coe.engine.generate.tools.loosening import read_loosely
from coe.engine.request import Tool, ToolUse

BYTES = LLTokenizer("byte")
TAGS: dict[str, Any] = {
    "properties": {
        "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        "at": {"type": "string", "format": "x-own"},
        "one": {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    },
    "required": ["tags"],
}


def constraint(*, strict: bool = False) -> CallConstraint:
    tool = Tool("mark", "", TAGS, strict=strict)
    return CallConstraint(BYTES, Hermes(), [tool], ToolUse(required=True, parallel=False), {})


def takes(arguments: str) -> bool:
    grammar = constraint().whole
    assert grammar is not None
    text = f'<tool_call>\n{{"name": "mark", "arguments": {arguments}}}\n</tool_call>'
    return all(grammar.take(byte) for byte in text.encode())


def test_what_can_be_followed_of_a_schema_is() -> None:
    assert takes('{"tags": ["a", "b"], "at": "now", "one": 1}')
    assert not takes('{"ARGUMENT": "VALUE"}')
    assert not takes('{"tags": "a"}')
    assert not takes('{"tags": [1]}')


def test_a_call_that_is_whole_is_held_against_the_whole_of_it() -> None:
    assert constraint().violation("mark", '{"tags": ["a", "b"]}') is None
    assert "a" in str(constraint().violation("mark", '{"tags": ["a", "a"]}'))


def test_a_strict_tool_is_refused_by_the_keyword() -> None:
    with pytest.raises(GrammarError, match="the parameters of the tool mark: uniqueItems"):
        constraint(strict=True)


def test_what_is_no_schema_stays_none() -> None:
    with pytest.raises(GrammarError, match="is no JSON schema"):
        read_loosely({"type": "nonsense"})
