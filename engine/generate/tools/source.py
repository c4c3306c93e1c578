"""The text of calls as it comes, for parsers that read on as soon as there is more (coroutines).

A family's parser is a generator: it takes characters, and yields where it needs one that is not there yet. So a parser
reads as if the whole text were there, and what it has read goes out at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from typing import Final, TypeAlias, TypeVar

from ...request import CallPiece

_T = TypeVar("_T")
Parser: TypeAlias = Generator[None, None, _T]

# Characters that stand for a vocabulary's own tokens on their way out: a tag that was drawn as one token is no text
# that spells it. Unicode keeps these for uses within a program; whoever else writes one gets U+FFFD.
# Source: Unicode 16, section 23.7, Noncharacters.
SENTINELS: Final = tuple(chr(0xFDD0 + number) for number in range(32))
FOREIGN_SENTINELS: Final = re.compile("[\ufdd0-\ufdef]")

_SPACE: Final = re.compile(r"[ \t\r\n]*")
MAX_CALLS: Final = 128  # of one answer


class MalformedCallError(Exception):
    """What began as a call goes on as none; the message says why."""


class Source:
    """What follows the opening of a call.

    opening: the opening itself, which a parser may have to tell from others.
    spelt:   how each tag of the family comes: a sentinel where it is a token of its own, else its text.
    names:   the tools that may be called.
    """

    def __init__(self, opening: str, spelt: Mapping[str, str], names: frozenset[str], first: int = 0) -> None:
        """first: how many calls the answer has made already."""
        self.opening = opening
        self.spelt = spelt
        self.names = names
        self.first = first
        self.taken = 0  # characters
        self._raw: list[str] = []
        self._text = ""
        self._at = 0
        self._final = False
        self._pieces: list[CallPiece] = []
        self._next = first
        self._open = False
        self._has_arguments = False

    # --- the owner's side -----------------------------------------------------------------------------------------

    def feed(self, text: str) -> None:
        """More text."""
        self._text = self._text[self._at :] + text
        self._at = 0

    def end(self) -> None:
        """No more text comes."""
        self._final = True

    def pieces(self) -> tuple[CallPiece, ...]:
        """What is new of the calls since the last time."""
        pieces, self._pieces = self._pieces, []
        return tuple(pieces)

    @property
    def raw(self) -> str:
        """All that was taken since the last whole call."""
        return "".join(self._raw)

    @property
    def rest(self) -> str:
        """What has not been taken."""
        return self._text[self._at :]

    @property
    def n_calls(self) -> int:
        """Calls of this answer so far, those before this opening included."""
        return self._next

    @property
    def is_open(self) -> bool:
        """Whether a call has its name and not yet its end."""
        return self._open

    def plain(self, text: str) -> str:
        """A text with its sentinels as the tags that they stand for."""
        return plain(text, self.spelt)

    # --- the parser's side: what is written -----------------------------------------------------------------------

    def call(self, name: str) -> None:
        """A call of a tool begins. Raises MalformedCallError where there is no such tool."""
        if name not in self.names:
            raise MalformedCallError(f"there is no tool {name[:80]!r}")
        if self._next >= MAX_CALLS:
            raise MalformedCallError(f"an answer has at most {MAX_CALLS} calls")
        self._pieces.append(CallPiece(self._next, name))
        self._open = True
        self._has_arguments = False

    def write(self, text: str) -> None:
        """More of the arguments' JSON."""
        if text:
            self._pieces.append(CallPiece(self._next, None, text))
            self._has_arguments = True

    def close(self) -> None:
        """The call is whole."""
        if not self._has_arguments:
            self.write("{}")
        self._open = False
        self._next += 1
        self._raw.clear()

    # --- the parser's side: what is read --------------------------------------------------------------------------

    def peek(self) -> Parser[str]:
        """The next character; "" at the end of the text."""
        while self._at >= len(self._text):
            if self._final:
                return ""
            yield
        return self._text[self._at]

    def take(self) -> Parser[str]:
        """The next character, which is passed. Raises MalformedCallError at the end of the text."""
        char = yield from self.peek()
        if not char:
            raise MalformedCallError("it is cut short")
        self._pass(1)
        return char

    def skip_space(self) -> Parser[None]:
        """Pass white space."""
        while (char := (yield from self.peek())) and char in " \t\r\n":
            found = _SPACE.match(self._text, self._at)
            assert found is not None
            self._pass(found.end() - self._at)

    def expect(self, text: str) -> Parser[None]:
        """Pass exactly this. Raises MalformedCallError where something else comes."""
        for char in text:
            if (yield from self.take()) != char:
                raise MalformedCallError(f"{text!r} is missing")

    def closes(self, tag: str) -> Parser[None]:
        """Pass the tag that closes what is whole without it. Models leave it out at the end of an answer, and where it
        ends generation it never comes. Raises MalformedCallError where something else comes."""
        spelt = spelling(tag, self.spelt)
        if not (yield from self.passes(spelt)):
            if not spelt.startswith(self.rest):
                raise MalformedCallError(f"{tag!r} is missing")
            self._pass(len(self.rest))

    def begins(self, text: str) -> Parser[bool]:
        """Whether exactly this comes next; nothing is passed."""
        while len(self._text) - self._at < len(text):
            if self._final or not text.startswith(self._text[self._at :]):
                return False
            yield
        return self._text.startswith(text, self._at)

    def passes(self, text: str) -> Parser[bool]:
        """Pass exactly this if it comes next."""
        found = yield from self.begins(text)
        if found:
            self._pass(len(text))
        return found

    def run(self, stops: str) -> Parser[str]:
        """What is there before the next of some characters, without waiting for more; "" when one of them is next.

        Raises MalformedCallError at the end of the text.
        """
        if not (yield from self.peek()):
            raise MalformedCallError("it is cut short")
        at = self._at
        found = min((place for stop in stops if (place := self._text.find(stop, at)) >= 0), default=len(self._text))
        self._pass(found - at)
        return self._text[at:found]

    def until(self, mark: str, write: Callable[[str], None] | None = None) -> Parser[str]:
        """Pass all before a mark, and the mark. write: gets what is before it as it comes; else it is given back.

        Raises MalformedCallError where the text ends first.
        """
        taken: list[str] = []
        keep = write or taken.append
        while True:
            at = self._text.find(mark, self._at)
            end = at if at >= 0 else len(self._text) - overlap(self._text, self._at, mark)
            if end > self._at:
                begin = self._at
                self._pass(end - begin)
                keep(self._text[begin:end])
            if at >= 0:
                self._pass(len(mark))
                return "".join(taken)
            if self._final:
                raise MalformedCallError(f"{mark!r} is missing")
            yield

    def _pass(self, count: int) -> None:
        self._raw.append(self._text[self._at : self._at + count])
        self._at += count
        self.taken += count


def spelling(text: str, spelt: Mapping[str, str]) -> str:
    """How a text comes that has tags in it. spelt: how each of them comes."""
    for tag in sorted(spelt, key=len, reverse=True):
        text = text.replace(tag, spelt[tag])
    return text


def plain(text: str, spelt: Mapping[str, str]) -> str:
    """A text with its sentinels as the tags that they stand for."""
    if not text.isascii():
        for tag, sentinel in spelt.items():
            if sentinel != tag:
                text = text.replace(sentinel, tag)
    return text


def overlap(text: str, begin: int, mark: str) -> int:
    """How many characters at the end of a text, after `begin`, may be the beginning of a mark."""
    most = min(len(mark) - 1, len(text) - begin)
    return next((n for n in range(most, 0, -1) if text.endswith(mark[:n])), 0)
