"""Calls in an answer as it comes: the same whatever the pieces are cut like, and nothing is lost."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

from coe.engine.generate.tools.family import Family
from coe.engine.generate.tools.find import FAMILIES
from coe.engine.generate.tools.hermes import Hermes
from coe.engine.generate.tools.source import SENTINELS
from coe.engine.generate.tools.splitter import CallSplitter
from coe.engine.request import Tool

TOOLS = {name: Tool(name) for name in ("add", "look_up", "write_file")}
OPEN, CLOSE = SENTINELS[0], SENTINELS[1]
AS_TOKENS = {"<tool_call>": OPEN, "</tool_call>": CLOSE}
AS_TEXT = {tag: tag for tag in Hermes.tags}


@dataclass
class Read:
    """What came of an answer."""

    text: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    malformed: int = 0
    taken: int = 0


def read(answer: str | Iterable[str], *, spelt: dict[str, str] = AS_TEXT, family: Family | None = None) -> Read:
    splitter = CallSplitter(family or Hermes(), TOOLS, spelt, live=True)
    found, names, arguments = Read(), {}, {}
    parts = [part for piece in answer for part in splitter.feed(piece)] + splitter.flush()
    for part in parts:
        found.text += part.text
        found.taken += part.taken
        for piece in part.pieces:
            if piece.name is not None:
                names[piece.index] = piece.name
            arguments[piece.index] = arguments.get(piece.index, "") + piece.arguments
    found.calls = [(name, json.loads(arguments[index])) for index, name in names.items()]
    found.malformed = splitter.malformed
    return found


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


ANSWERS = [
    ("Hello.", "Hello.", []),
    (call("add", a=1, b=2), "", [("add", {"a": 1, "b": 2})]),
    ("I look.\n\n" + call("look_up", word="sea"), "I look.", [("look_up", {"word": "sea"})]),
    (call("add") + "\n" + call("look_up", word="x") + "\nDone.", "\nDone.", [("add", {}), ("look_up", {"word": "x"})]),
    (
        call("write_file", text='</tool_call> and <tool_call> {"}\n`' + "\\"),
        "",
        [("write_file", {"text": '</tool_call> and <tool_call> {"}\n`\\'})],
    ),
    ("Write <tool_call> to call.", "Write <tool_call> to call.", []),
    ("Like this:\n```\n" + call("add") + "\n```\n", "Like this:\n```\n" + call("add") + "\n```\n", []),
]


@pytest.mark.parametrize(("answer", "text", "calls"), ANSWERS)
def test_calls_are_found_however_the_answer_is_cut(answer: str, text: str, calls: list[Any]) -> None:
    for pieces in ([answer], list(answer), [answer[i : i + 7] for i in range(0, len(answer), 7)]):
        found = read(pieces)
        assert (found.text, found.calls, found.malformed) == (text, calls, 0)
        assert found.taken == len(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "<tool_call>\nnonsense\n</tool_call>",
        '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "add", "arguments": [1]}\n</tool_call>',
        '<tool_call>\n{"name": "add", "arguments": {"a": 01}}\n</tool_call>',
        '<tool_call>\n{"arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "ad',
    ],
)
def test_a_malformed_call_comes_as_text(answer: str) -> None:
    for text in (answer, f"Well.\n{answer}", f"{answer}\nAnd on."):
        splitter = CallSplitter(Hermes(), TOOLS, AS_TEXT, live=False)
        parts = splitter.feed(text) + splitter.flush()
        assert "".join(part.text for part in parts).replace("\n", "") == text.replace("\n", "")
        assert not [part for part in parts if part.pieces]
        assert splitter.malformed == 1


def test_a_call_that_is_cut_short_keeps_what_has_gone_out() -> None:
    splitter = CallSplitter(Hermes(), TOOLS, AS_TEXT, live=True)
    parts = splitter.feed('<tool_call>\n{"name": "add", "arguments": {"a": "12') + splitter.flush()
    assert "".join(piece.arguments for part in parts for piece in part.pieces) == '{"a": "12'
    assert not any(part.text for part in parts)


def test_a_tag_of_the_vocabulary_is_not_one_that_is_spelt() -> None:
    spelling = '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'
    assert read([spelling], spelt=AS_TOKENS).text == spelling
    drawn = OPEN + '{"name": "write_file", "arguments": {"text": "a </tool_call> b"}}' + CLOSE
    assert read([drawn], spelt=AS_TOKENS).calls == [("write_file", {"text": "a </tool_call> b"})]
    assert read(list("It is `" + OPEN + "` here"), spelt=AS_TOKENS).text == "It is `<tool_call>` here"


def test_parts_account_for_every_character() -> None:
    answer = "Text \n" + call("add") + "  \n" + '<tool_call>{"name": 1}</tool_call> rest'
    assert read(list(answer)).taken == len(answer)


def test_of_calls_in_one_frame_those_that_are_whole_go_out_and_no_more() -> None:
    family = next(family for family in FAMILIES if family.name == "mistral-list")
    splitter = CallSplitter(family, TOOLS, {tag: tag for tag in family.tags}, live=False)
    parts = splitter.feed('[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}, {"name": "add", "arguments": {"a": ')
    assert {piece.index for part in parts for piece in part.pieces} == {0}
    parts = splitter.feed("nonsense") + splitter.flush()
    assert not [piece for part in parts for piece in part.pieces]
    assert "nonsense" in "".join(part.text for part in parts)


BEHIND = [
    ("Sure: " + call("add", a=1), "Sure:", [("add", {"a": 1})], 0),
    ("Sure: " + call("add") + " " + call("add") + " done", "Sure: done", [("add", {}), ("add", {})], 0),
    ("Use <tool_call> for it: " + call("add"), "Use <tool_call> for it:", [("add", {})], 0),
    ("It is `" + call("add") + "`.", "It is `" + call("add") + "`.", [], 0),
    ("```\nSo: " + call("add") + "\n```", "```\nSo: " + call("add") + "\n```", [], 0),
    ("So: " + call("unknown"), "So: " + call("unknown"), [], 1),
    ('So: <tool_call>{"name": "add", "arguments": 1}', 'So: <tool_call>{"name": "add", "arguments": 1}', [], 1),
    ('So: <tool_call>{"name": "add", "argu', 'So: <tool_call>{"name": "add", "argu', [], 1),
    ('So: <tool_call>{"name": ' + call("add"), 'So: <tool_call>{"name":', [("add", {})], 1),
]


@pytest.mark.parametrize(("answer", "text", "calls", "malformed"), BEHIND)
def test_behind_text_a_call_is_one_if_it_is_whole(answer: str, text: str, calls: list[Any], malformed: int) -> None:
    for pieces in ([answer], list(answer), [answer[i : i + 7] for i in range(0, len(answer), 7)]):
        found = read(pieces)
        assert (found.text, found.calls, found.malformed) == (text, calls, malformed)
        assert found.taken == len(answer)


def test_a_call_behind_text_goes_out_when_it_is_whole() -> None:
    splitter = CallSplitter(Hermes(), TOOLS, AS_TEXT, live=True)
    answer = "Sure: " + call("add", a=1)
    parts = [part for char in answer[:-1] for part in splitter.feed(char)]
    assert "".join(part.text for part in parts) == "Sure:"
    assert not [part for part in parts if part.pieces]
    assert splitter.feed(answer[-1])[-1].pieces


def test_a_text_about_calls_is_held_back_no_longer_than_it_may_be_one() -> None:
    splitter = CallSplitter(Hermes(), TOOLS, AS_TEXT, live=False)
    assert "".join(part.text for part in splitter.feed("Write <tool_call> t")) == "Write <tool_call> t"


@pytest.mark.parametrize("step", [1, 9, 1000])
def test_behind_text_of_a_list_that_breaks_the_whole_calls_count(step: int) -> None:
    family = next(family for family in FAMILIES if family.name == "mistral-list")
    answer = 'So:  [TOOL_CALLS][{"name": "add", "arguments": {}}, {"name": "nobody", "arguments": {}}] then'
    pieces = [answer[i : i + step] for i in range(0, len(answer), step)]
    found = read(pieces, spelt={tag: tag for tag in family.tags}, family=family)
    assert found.calls == [("add", {})]
    assert found.text.startswith("So:")
    assert "nobody" in found.text
    assert (found.malformed, found.taken) == (1, len(answer))


def test_an_empty_list_of_calls_is_none_and_comes_as_text() -> None:
    family = next(family for family in FAMILIES if family.name == "mistral-list")
    found = read(["[TOOL_CALLS][]"], spelt={tag: tag for tag in family.tags}, family=family)
    assert (found.text, found.calls, found.malformed) == ("[TOOL_CALLS][]", [], 1)
