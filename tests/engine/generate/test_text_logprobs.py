"""Log-probabilities and the end of a text: what is listed is what went out, whatever the tokens are cut like."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.engine.generate.json_schema import JsonSchema
from coe.engine.generate.output import StopMatcher, ThinkSplitter, Utf8Stream
from coe.engine.generate.text_logprobs import TextLogprobs
from coe.engine.llama.model import Model
from coe.engine.request import Finish, TokenLogprob
from fakes.local_engine import LocalEngine

NewEngine = Callable[..., LocalEngine]

JAPANESE = "日本語の文章です。😀終"


def listed(
    data: bytes, places: Sequence[int], stops: Sequence[str] = (), ledger: TextLogprobs | None = None
) -> tuple[str, list[TokenLogprob]]:
    """The answer of a stream of bytes cut into tokens at `places`, and the entries that came with it."""
    utf8, splitter, matcher = Utf8Stream(), ThinkSplitter([("<t>", "</t>")]), StopMatcher(stops)
    ledger = ledger or TextLogprobs()
    out, found, decoded, met = "", [], 0, False
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    for a, b in itertools.pairwise(edges):
        piece = data[a:b]
        text = utf8.feed(piece)
        start, decoded = decoded, decoded + len(text)
        ledger.add(TokenLogprob(f"{a}", list(piece), 0.0, []), start, decoded + (not utf8.at_boundary))
        released, met = matcher.feed(splitter.feed(text).answer)
        ledger.classify(splitter.places())
        found += ledger.release(len(released), splitter.decided)
        out += released
        if met:
            return out, [*found, *ledger.rest()]
    rest, met = matcher.feed(splitter.flush().answer)
    rest += "" if met else matcher.flush()
    ledger.classify(splitter.places())
    return out + rest, [*found, *ledger.release(len(rest), splitter.decided), *ledger.rest()]


PLACES = st.lists(st.integers(0, 1000), max_size=40)


@given(
    st.text("ab日😀é<t>/", max_size=30), st.integers(0, 3), PLACES, st.lists(st.text("ab日", min_size=1, max_size=3))
)
def test_where_every_token_is_listed_each_is_once_and_in_order(
    text: str, cut: int, places: list[int], stops: list[str]
) -> None:
    data = text.encode()
    data = data[: len(data) - cut] if cut else data
    out, found = listed(data, places, stops, TextLogprobs(7, every=True))
    fed = b"".join(bytes(entry.bytes) for entry in found)
    assert data.startswith(fed)
    assert fed == data or stops, "all of it, up to the token that ended it"
    offsets = [entry.offset for entry in found]
    assert offsets == sorted(offsets)
    assert all(7 <= offset <= 7 + len(out) for offset in offsets)


@given(st.text("ab日😀é", max_size=20), st.integers(0, 3), PLACES, st.lists(st.text("ab日", min_size=1, max_size=3)))
def test_an_entry_is_listed_when_it_has_a_byte_in_the_text(
    text: str, cut: int, places: list[int], stops: list[str]
) -> None:
    data = text.encode()
    data = data[: len(data) - cut] if cut else data
    out, found = listed(data, places, stops)
    assert data.startswith(out.encode())
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    wanted = [f"{a}" for a, b in itertools.pairwise(edges) if a < len(out.encode())]
    assert [entry.token for entry in found] == wanted
    for entry in found:
        before = out[: entry.offset].encode()
        assert len(before) <= int(entry.token) < len(before) + len(out[entry.offset].encode())


BLOCK = st.text("XYZ", max_size=5).map(lambda inner: f"<t>{inner}</t>")


@given(st.lists(st.text("ab日", min_size=1, max_size=5) | BLOCK, max_size=6), PLACES)
def test_thinking_and_its_tags_are_not_listed(parts: list[str], places: list[int]) -> None:
    text = "".join(parts)
    out, found = listed(text.encode(), places)
    assert out == "".join(part for part in parts if "<" not in part)
    answer = [place for place, char in enumerate(text) if char in "ab日"]
    has_text = {byte for place in answer for byte in _bytes_of(text, place)}
    edges = sorted({0, len(text.encode()), *(place % (len(text.encode()) + 1) for place in places)})
    wanted = [f"{a}" for a, b in itertools.pairwise(edges) if has_text & set(range(a, b))]
    assert [entry.token for entry in found] == wanted


def _bytes_of(text: str, place: int) -> range:
    start = len(text[:place].encode())
    return range(start, start + len(text[place].encode()))


def held_to(value: str) -> dict[str, Any]:
    """Makes a model write a text."""
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": {"const": value}}}}


def test_a_text_that_its_length_cuts_ends_at_a_character(smollm2_model: Model, new_engine: NewEngine) -> None:
    whole = f'"{JAPANESE}"'
    within = 0
    for length in range(1, 40):
        answer = new_engine(smollm2_model).ask("Write:", max_tokens=length, top_logprobs=1, **held_to(JAPANESE))
        assert whole.startswith(answer.text)
        written = b"".join(bytes(entry.bytes) for entry in answer.logprobs)
        assert written.startswith(answer.text.encode())
        assert answer.finished.completion_tokens >= len(answer.logprobs)
        if answer.finished.reason is Finish.STOP:
            break
        assert answer.finished.completion_tokens == length
        within += answer.finished.completion_tokens > len(answer.logprobs)
    assert answer.text == whole
    assert within, "some lengths end within a character"


@pytest.mark.parametrize("stop", ["章", "語の", "😀", '"'])
def test_tokens_of_a_stop_text_are_not_listed(smollm2_model: Model, new_engine: NewEngine, stop: str) -> None:
    engine = new_engine(smollm2_model)
    whole = engine.ask("Write:", max_tokens=60, top_logprobs=0, **held_to(JAPANESE))
    answer = engine.ask("Write:", max_tokens=60, top_logprobs=0, stop=[stop], **held_to(JAPANESE))
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert answer.finished.reason is Finish.STOP
    sizes = itertools.accumulate((len(entry.bytes) for entry in answer.logprobs), initial=0)
    assert all(size < len(answer.text.encode()) for size, _ in zip(sizes, answer.logprobs, strict=False))
    assert answer.finished.conforms is False, "cut, and so not held to be of its schema"


def test_an_answer_of_a_schema_is_checked_at_its_end(smollm2_model: Model, new_engine: NewEngine) -> None:
    engine = new_engine(smollm2_model)
    assert engine.ask("Write:", max_tokens=60, **held_to("yes")).finished.conforms is True
    assert engine.ask("Write:", max_tokens=2, **held_to(JAPANESE)).finished.conforms is False
    assert engine.ask("Write:", max_tokens=2).finished.conforms is None


def test_an_answer_that_breaks_its_schema_is_invalid(
    smollm2_model: Model, new_engine: NewEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it would be with a grammar library that gets something wrong."""
    read = JsonSchema.read
    monkeypatch.setattr(JsonSchema, "read", lambda schema: replace(read(schema), followed={"const": "no"}))
    finished = new_engine(smollm2_model).ask("Write:", max_tokens=60, **held_to("yes")).finished
    assert finished.reason is Finish.INVALID
    assert finished.conforms is False
    assert finished.violation == "at $, 'yes' was expected"
