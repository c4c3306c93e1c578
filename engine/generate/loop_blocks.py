"""Exact repetition: the end of a text is one block of characters over and over. How long it may be so depends on the
block."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from .loop_lines import ends_in_prose

PERIOD_CHARS: Final = 4096  # the longest period looked for
TAIL_CHARS: Final = 4 * PERIOD_CHARS

_LEAST_CHARS: Final = 600
_LEAST_ROUNDS: Final = 4
_LONG_BLOCK: Final = 150
_PROBE_CHARS: Final = 48
_CANDIDATES: Final = 40

_WORD: Final = re.compile(r"\w+")
_LETTERS: Final = re.compile(r"[^\W\d_]{2,}")
_SEPARATORS: Final = re.compile(r"[\s,;|()\[\]{}\"'.:/_-]*")


@dataclass(frozen=True)
class Block:
    """What the end of a text repeats.

    chars:       how long the text has done so, up to the length that is looked at.
    plain_chars: how long it may; asked_chars: how long it may where it could have been asked for.
    """

    text: str
    chars: int
    plain_chars: int
    asked_chars: int

    @property
    def period(self) -> int:
        return len(self.text)


class Blocks:
    """Looks for the block. factor: how much longer than normal it may be repeated."""

    def __init__(self, factor: float) -> None:
        self._factor = factor

    def find(self, tail: str, *, fenced: bool) -> Block | None:
        """The block at the end of a text, of which `tail` is all, or the last TAIL_CHARS; None without repetition."""
        period = find_period(tail, min(_LEAST_CHARS, int(_LEAST_CHARS * self._factor)), 3)
        if not period:
            return None
        block = tail[-period:]
        plain, asked = _patience_with(block, prose=not fenced and ends_in_prose(tail))
        most = TAIL_CHARS - 2 * period
        rounds = _LEAST_ROUNDS * period
        return Block(
            block,
            _length(tail, period),
            min(max(int(plain * self._factor), rounds), most),
            min(max(int(asked * self._factor), rounds), most),
        )


def _patience_with(block: str, *, prose: bool) -> tuple[int, int]:
    """Characters that a block may be repeated for: in any text, and where it could have been asked for."""
    period = len(block)
    if block.isspace():
        return _LEAST_CHARS, _LEAST_CHARS
    if period == 1:
        return (2000, 2000) if block.isalnum() else (1200, 1200)
    block = _from_a_words_start(block)
    words = set(_WORD.findall(block))
    if not words:
        return 3000, 3000  # rules and boxes
    is_chant = _is_chant(block)
    is_listed = not is_chant and not _SEPARATORS.sub("", _WORD.sub("", block))
    if is_listed and len(words) <= 2:
        # Matrices and arrays of bytes; yes and no, true and false.
        has_digits = any(char.isdigit() for char in block)
        most = 10_000 if has_digits else _within(4000, 600 * period, 4500)
    elif prose or is_chant:
        # Once is enough, but a hundred times is what one may have been asked for.
        return _within(700, 14 * period, 1500), _within(800, 110 * period, 5000)
    elif not _LETTERS.search(block):
        most = _within(4000, 200 * period, 8000) if is_listed else _within(1500, 60 * period, 6000)  # formulas
    elif "\n" not in block and not is_listed:
        most = _within(1500, 25 * period, 2500)  # one endless line
    else:
        # Code, tables, lists: a line often, a whole function or form seldom.
        most = _within(3000, 36 * period, 3600) if period < _LONG_BLOCK else _within(2000, 8 * period, 3600)
    return most, most


def _from_a_words_start(block: str) -> str:
    """The block turned so that it cuts no word in two."""
    at = next((at for at, char in enumerate(block) if not char.isalnum()), 0)
    return block[at:] + block[:at]


def _is_chant(block: str) -> bool:
    """Words with nothing but spaces between them."""
    return all(char == " " or char.isalpha() for char in block)


def _within(least: int, value: int, most: int) -> int:
    return max(least, min(value, most))


def find_period(text: str, chars: int, rounds: int) -> int:
    """The period of the text's end if it lasts for `chars` characters and `rounds` rounds at least; 0 for none."""
    if len(text) < chars:
        return 0
    probe = text[-_PROBE_CHARS:]
    start = len(text) - len(probe)
    for _ in range(_CANDIDATES):
        # Wherever the end of the text stood before may be one round ago.
        before = text.rfind(probe, max(0, len(text) - PERIOD_CHARS - len(probe)), start + len(probe) - 1)
        if before < 0:
            return 0
        period = len(text) - len(probe) - before
        length = max(chars, rounds * period)
        if length > len(text):
            return 0
        if text.endswith(text[-length:-period]):
            return period
        start = before
    return 0


def _length(text: str, period: int) -> int:
    """For how many characters the end of the text has the period."""
    least, most = period, len(text)
    while least < most:  # a longer end has the period only where a shorter one has it
        middle = (least + most + 1) // 2
        if text.endswith(text[-middle:-period]):
            least = middle
        else:
            most = middle - 1
    return least
