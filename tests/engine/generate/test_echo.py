"""A prompt as it is given back: its text in parts, and where its tokens begin."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from coe.engine.generate.echo import Echo


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(st.text(), st.lists(st.integers(0, 1000), max_size=20), st.lists(st.integers(0, 1000), max_size=5))
def test_the_parts_are_the_whole_whatever_the_tokens_are_cut_like(
    text: str, places: list[int], parts: list[int]
) -> None:
    text = text.encode("utf-8", "replace").decode()
    pieces = cut(text.encode(), places)
    echo = Echo(pieces, text)
    edges = sorted({0, len(pieces), *(place % (len(pieces) + 1) for place in parts)})
    assert "".join(echo.part(a, b) for a, b in itertools.pairwise(edges)) == (text if pieces else "")
    before = 0
    for piece, offset in zip(pieces, echo.offsets, strict=True):
        assert len(text.encode()[:before].decode("utf-8", "ignore")) == offset
        before += len(piece)


def test_a_space_that_the_vocabulary_puts_first_is_no_part_of_the_text() -> None:
    echo = Echo([b"", " größer".encode(), b" als"], "größer als")
    assert (echo.text, echo.offsets) == ("größer als", [0, 0, 6])


def test_without_a_text_it_is_what_the_tokens_say() -> None:
    echo = Echo([b"a", b"\xf0\x9f", b"\x98\x80", b"\xf0"])
    assert (echo.text, echo.offsets) == ("a😀�", [0, 1, 1, 2])
    assert [echo.part(at, at + 1) for at in range(4)] == ["a", "", "😀", "�"]


def test_a_vocabulary_that_writes_otherwise_does_not_lead_out_of_the_text() -> None:
    assert Echo([b"abc", b"defgh"], "x").offsets == [0, 0]
    assert Echo([b"a", b"b"], "a longer one").offsets == [11 - 1 + 0, 11]
