"""Answers that end within a call: its markup is no text where it can have been nothing else, and text where it may."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from coe.engine.generate.tools.family import Family
from coe.engine.generate.tools.find import FAMILIES
from coe.engine.generate.tools.hermes import Hermes
from coe.engine.generate.tools.splitter import CallSplitter
from coe.engine.request import CallPiece
from fakes import calls as written
from fakes.call_cases import CASES
from fakes.call_samples import TOOLS

CALL = ("add", {"a": 1})
HERMES = written.hermes([CALL], written.as_text)


@dataclass(frozen=True)
class Cut:
    """What came of an answer."""

    text: str
    pieces: list[CallPiece]
    malformed: int


def cut(family: Family, answer: str, *, tokens: bool = False, **how: bool) -> Cut:
    splitter = CallSplitter(family, TOOLS, written.spelling(family, tokens=tokens), **how)
    parts = [*splitter.feed(answer), *splitter.flush(cut=True)]
    assert sum(part.taken for part in parts) == len(answer)
    pieces = [piece for part in parts for piece in part.pieces]
    return Cut("".join(part.text for part in parts), pieces, splitter.malformed)


def answer_of(name: str, *, tokens: bool) -> str:
    case = CASES[name]
    spelt = written.spelling(case.family, tokens=tokens)
    calls = [CALL, CALL] if case.family.several else [CALL]
    return case.write(calls, lambda tag: spelt.get(tag, tag))


def test_every_family_is_here() -> None:
    assert {case.family.name for case in CASES.values()} == {family.name for family in FAMILIES}


@pytest.mark.parametrize("tokens", [True, False], ids=["tokens", "text"])
@pytest.mark.parametrize("name", CASES)
def test_of_a_demanded_call_that_is_cut_nothing_comes_as_text(name: str, tokens: bool) -> None:
    answer = answer_of(name, tokens=tokens)
    for end in range(len(answer) + 1):
        found = cut(CASES[name].family, " " + answer[:end], tokens=tokens, live=True, calls_only=True)
        assert found.text == "", answer[:end]
        assert found.pieces or found.malformed or not answer[:end].strip()


@pytest.mark.parametrize("live", [True, False], ids=["held to its grammar", "free"])
@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].family.tags])
def test_of_a_call_that_began_with_a_token_nothing_comes_as_text(name: str, live: bool) -> None:
    family, answer = CASES[name].family, answer_of(name, tokens=True)
    if answer[0].isascii():
        return  # its opening is spelt
    for end in range(1, len(answer) + 1):
        found = cut(family, "Well.\n" + answer[:end], tokens=True, live=live)
        assert found.text == "Well.", answer[:end]
        assert found.pieces or found.malformed


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].family.certain])
def test_behind_text_on_its_line_a_call_of_any_family_is_read(name: str) -> None:
    case = CASES[name]
    answer = "Sure: " + case.write([CALL], written.as_text)
    for pieces in ([answer], list(answer)):
        found = written.read(case.family, TOOLS, written.spelling(case.family, tokens=False), pieces, live=False)
        assert (found.text, found.calls, found.malformed) == ("Sure:", [CALL], 0)
    fenced = f"So:\n```\n{answer}\n```"
    found = written.read(case.family, TOOLS, written.spelling(case.family, tokens=False), [fenced], live=False)
    assert (found.text, found.calls) == (fenced, [])


def test_the_beginning_of_a_spelt_tag_is_text_where_it_may_be_one() -> None:
    assert cut(Hermes(), "Look:\n<tool_").text == "Look:\n<tool_"
    assert cut(Hermes(), "<tool_").text == "<tool_"


@pytest.mark.parametrize("before", ["", "Sure: ", "Well.\n"])
def test_a_forbidden_call_that_is_cut_behind_its_name_is_left_out(before: str) -> None:
    for end in range(HERMES.index("add") + 5, len(HERMES)):
        assert cut(Hermes(), before + HERMES[:end], live=False, forbidden=True).text == before.strip()


def test_behind_a_call_it_is_the_next_ones() -> None:
    found = cut(Hermes(), HERMES + "\n\n<tool_", live=False)
    assert (found.text, found.malformed, len({piece.index for piece in found.pieces})) == ("", 1, 1)
    assert cut(Hermes(), HERMES + "\n", live=False).text == "", "nor is white space a text"


def test_an_answer_of_a_schema_is_no_call_of_a_family_that_begins_with_a_brace() -> None:
    assert cut(CASES["llama3"].family, '{"sunny": tr', live=True).text == '{"sunny": tr'
