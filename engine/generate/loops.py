"""The loop guard (detection of degenerate repetition): ends an answer that repeats itself for ever, and leaves text
alone that repeats itself for a reason.

Two looks at the text, at fixed distances, so that the result does not depend on how the text is cut into pieces:

- Blocks (loop_blocks.py): the end of the text is one block of characters over and over, exactly.
- News (loop_words.py): how long the text has said nothing that it had not said before, or nothing but numbers that
  count up.

How long is too long depends on what is repeated: a sentence in running text should come once, a row of zeros may come
a thousand times. What that costs and saves is measured by benchmarks/loop_guard.py; see docs/loops.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ..request import Patience
from .loop_blocks import TAIL_CHARS, Blocks
from .loop_lines import Fence, Kind, kind_of
from .loop_words import News

MIN_CHARS: Final = 600
EARLY_CHARS: Final = 400  # what begins before is what the answer is about, an introduction apart

_EVERY_CHARS: Final = 200
_LINE_CHARS: Final = 512  # an unfinished line is judged from this length on
_REPORT_CHARS: Final = 200
_MAX_COUNT: Final = 1000  # numbers above this in a question are years and prices, for the most part
_NUMBER: Final = re.compile(r"\d+")
_WORD: Final = re.compile(r"\w+")

_EARLY_SHARE: Final = 0.3  # of the patience with what the user quoted, for what an answer begins with in its own words

# How much longer than normal repetition may go on.
_FACTORS: Final = {Patience.STRICT: 0.5, Patience.NORMAL: 1.0, Patience.PATIENT: 4.0}


@dataclass(frozen=True)
class Loop:
    """A loop that was met.

    reason:   one phrase, for logs.
    repeated: what is repeated, shortened to 200 characters.
    at_chars: characters of the whole text when it was noticed.
    period:   characters of one round, 0 where the rounds differ.
    """

    reason: str
    repeated: str
    at_chars: int
    period: int = 0


class Asked:
    """What the user said, as far as it tells whether a repetition is wanted."""

    def __init__(self, text: str) -> None:
        self._words = frozenset(word.lower() for word in _WORD.findall(text))
        counts = [int(number) for number in _NUMBER.findall(text) if len(number) <= len(str(_MAX_COUNT))]
        self.rounds = max((count for count in counts if count <= _MAX_COUNT), default=0)

    def __bool__(self) -> bool:
        return bool(self._words)

    def quotes(self, block: str) -> bool:
        """Whether the user's own words are what is repeated."""
        words = {word.lower() for word in _WORD.findall(block)}
        return bool(words) and len(words & self._words) >= 0.8 * len(words)


class LoopGuard:
    """Watches one text as it is made.

    patience: how long repetition may go on. asked: what the user said last; "" where nobody asks for anything, as in a
    text that is continued, None where it is not known.
    """

    def __init__(self, patience: Patience = Patience.NORMAL, asked: str | None = None) -> None:
        self._factor = _FACTORS[patience]
        self._strict = patience is Patience.STRICT
        self._is_known = asked is not None
        self._asked = Asked(asked or "")
        self._chars = 0  # looked at; what is pending comes on top
        self._pending = ""
        self._tail = ""
        self._line = ""
        self._fence = Fence()
        self._blocks = Blocks(self._factor)
        self._news = News(self._factor)
        self._loop: Loop | None = None

    def feed(self, text: str) -> Loop | None:
        """Go on by `text`. Gives the loop as soon as there is one, and then at every call."""
        self._pending += text
        if len(self._pending) < _EVERY_CHARS or self._loop is not None:
            return self._loop
        at = 0
        while self._loop is None and len(self._pending) - at >= _EVERY_CHARS:
            self._read(self._pending[at : at + _EVERY_CHARS])
            at += _EVERY_CHARS
            if self._chars >= MIN_CHARS:
                self._loop = self._repeated_block() or self._no_news()
        self._pending = self._pending[at:]
        return self._loop

    def look_again(self) -> None:
        """Take the loop that was met for none: it is met again at the next look if the text still goes on so."""
        self._loop = None

    def _read(self, text: str) -> None:
        self._chars += len(text)
        self._tail = (self._tail + text)[-TAIL_CHARS:]
        at = self._chars - len(text) - len(self._line)
        for piece in self._pieces(text):
            self._news.read(piece, self._kind_of(piece), at)
            at += len(piece)

    def _pieces(self, text: str) -> Iterator[str]:
        """Finished lines, and what an unfinished one has beyond some length, cut between words."""
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            yield line + "\n"
        if len(self._line) >= _LINE_CHARS:
            cut = self._line.rfind(" ") + 1 or len(self._line)
            piece, self._line = self._line[:cut], self._line[cut:]
            yield piece

    def _kind_of(self, piece: str) -> Kind:
        if piece.endswith("\n"):
            self._fence.read(piece)
        return Kind.DATA if self._fence.open else kind_of(piece)

    def _repeated_block(self) -> Loop | None:
        block = self._blocks.find(self._tail, fenced=self._fence.open)
        if block is None:
            return None
        wanted = self._may_be_wanted(block.text, early=self._chars - block.chars <= EARLY_CHARS)
        need = block.plain_chars + wanted * (block.asked_chars - block.plain_chars)
        if block.chars < need or self._is_counted_out(block.text, block.chars / block.period):
            return None
        return self._found(f"a block of {block.period} characters over and over", block.text, block.period)

    def _no_news(self) -> Loop | None:
        words = self._news.no_news()
        if words is not None:
            wanted = self._may_be_wanted(words.text, early=words.since <= EARLY_CHARS)
            if words.debt >= 1 + wanted * (words.asked_debt - 1) and not self._is_counted_out(words.text, words.rounds):
                return self._found(f"nothing new in {words.stale} words", words.text)
        counting = self._news.only_counting()
        if counting is not None and counting.rounds > 1.1 * self._asked.rounds:
            return self._found(f"nothing new but a count in {counting.stale} words", counting.text)
        return None

    def _may_be_wanted(self, block: str, *, early: bool) -> float:
        """How far, from 0 to 1, a repetition may be what the user asked for."""
        if self._strict:
            return 0.0
        if self._asked.quotes(block) or (early and not self._is_known):
            return 1.0
        return _EARLY_SHARE if early and self._asked else 0.0

    def _is_counted_out(self, block: str, rounds: float) -> bool:
        """Whether the user named the number of rounds, and they are not over yet."""
        return rounds <= 1.1 * self._asked.rounds and self._asked.quotes(block)

    def _found(self, reason: str, repeated: str, period: int = 0) -> Loop:
        return Loop(reason, repeated[:_REPORT_CHARS], self._chars, period)
