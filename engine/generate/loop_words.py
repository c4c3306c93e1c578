"""Repetition that is not exact: how long a text has said nothing new, word by word.

A word is stale when it and the words before it (an n-gram) have come together several times already. Stale words run
up a debt, and whatever is new pays a part of it back (a leaky bucket), a word that was never there before the most. So
a song whose numbers change, or records with a new name each, never owe much, however alike they are, and a train
of thought that goes round in few variants does.

A second account takes numbers that can be foretold, since they go on by equal steps from the last time, for nothing
new. It runs up much more slowly: many a list counts. Numbers that fall come to an end by themselves.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from .loop_lines import Kind

_TOKEN: Final = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\d+|[^\W\d_\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+(?:['’][^\W\d_]+)*"
)
_SEEN_BEFORE: Final = 3  # times; a text may well be given again, and once more corrected
_LONG_GRAM: Final = 16
_NEW_WORD_PAYS: Final = 40
_GENERATION: Final = 8192  # words that are remembered at least, and twice as many at most
_VARIETY_WORDS: Final = 60
_VARIETY: Final = 10  # with fewer different words among the last ones, a text is a sequence of signs
_SAYING_WORDS: Final = 3
_MAX_DIGITS: Final = 15
_COUNT_ROUNDS: Final = 280  # of data that count: from here on they are hardly wanted
_COUNT_WORDS: Final = 300  # that go beyond


class _Rate(NamedTuple):
    """gram: words of an n-gram. words: stale ones that make a loop. pays: what news is worth, in stale words."""

    gram: int
    words: int
    pays: int


_RATES: Final = {
    Kind.PROSE: _Rate(5, 150, 6),
    Kind.ITEM: _Rate(5, 600, 20),
    Kind.DATA: _Rate(_LONG_GRAM, 2000, 40),
}
_SIGNS: Final = _Rate(_LONG_GRAM, 600, 40)
_COUNTING: Final = {
    Kind.PROSE: _Rate(5, 1300, 20),
    Kind.ITEM: _Rate(5, 1300, 20),
    Kind.DATA: _Rate(_LONG_GRAM, 8000, 40),
}
_ASKED_DEBT: Final = 6.0


@dataclass(frozen=True)
class Stale:
    """A stretch without news.

    debt:   1 makes a loop, asked_debt where it could have been asked for.
    stale:  words of the stretch. rounds: how often the last words have come. since: where in the text they came first.
    text:   the last words.
    """

    debt: float
    asked_debt: float
    stale: int
    rounds: int
    since: int
    text: str


class _Memory:
    """How often each n-gram has come, and where first, over the last words."""

    def __init__(self) -> None:
        self._now: dict[Hashable, tuple[int, int]] = {}
        self._before: dict[Hashable, tuple[int, int]] = {}

    def add(self, gram: Hashable, at: int) -> tuple[int, int]:
        """Times before this one, and the place of the first."""
        times, first = self._now.get(gram) or self._before.get(gram) or (0, at)
        self._now[gram] = (times + 1, first)
        if len(self._now) >= _GENERATION:
            self._before, self._now = self._now, {}
        return times, first


class _Account:
    """The debt of one way of reading the text."""

    def __init__(self) -> None:
        self.debt = 0.0
        self.stale = 0
        self.rounds = 0
        self.since = 0

    def owe(self, share: float, rounds: int, since: int) -> None:
        if not self.debt:
            self.stale, self.since = 0, since
        self.stale += 1
        self.debt = min(self.debt + share, _ASKED_DEBT)
        self.rounds = rounds

    def pay(self, share: float) -> None:
        self.debt = max(0.0, self.debt - share)


class News:
    """Keeps the accounts of one text. factor: how much longer than normal it may go on without news."""

    def __init__(self, factor: float) -> None:
        self._factor = factor
        self._words: deque[str] = deque(maxlen=_LONG_GRAM)
        self._shapes: deque[str] = deque(maxlen=_LONG_GRAM)  # the words, numbers as "#"
        self._known = _Memory()
        self._grams = _Memory()
        self._shape_grams = _Memory()
        self._numbers: dict[Hashable, tuple[int, int]] = {}  # what stood before a number -> it, and its last step
        self._recent: deque[str] = deque()
        self._variety: Counter[str] = Counter()
        self._plain = _Account()
        self._counting = _Account()

    def read(self, text: str, kind: Kind, at: int) -> None:
        """Go on by a piece of one kind that begins at character `at` of the text."""
        for found in _TOKEN.finditer(text):
            self._word(found[0], kind, at + found.start())

    def no_news(self) -> Stale | None:
        """The stretch that says nothing new, once it is long."""
        return self._stale(self._plain)

    def only_counting(self) -> Stale | None:
        """The stretch in which nothing is new but its counting, once it is long."""
        return self._stale(self._counting)

    def _stale(self, account: _Account) -> Stale | None:
        if account.debt < 1:
            return None
        words = " ".join(self._words)
        return Stale(account.debt, _ASKED_DEBT, account.stale, account.rounds, account.since, words)

    def _word(self, word: str, kind: Kind, at: int) -> None:
        is_number = word.isdecimal()
        foreseen = self._foresees(word) if is_number else False
        self._words.append(word)
        self._shapes.append("#" if is_number else word)
        is_known = self._known.add(word, at)[0] > 0
        self._plain_word(word, kind, at, is_known)
        self._shape(kind, at, news=not foreseen if is_number else not is_known)

    def _plain_word(self, word: str, kind: Kind, at: int, is_known: bool) -> None:
        rate = _RATES[kind] if kind is Kind.DATA or self._is_varied(word) else _SIGNS
        whole = rate.words * self._factor
        times, first = self._grams.add(_last(self._words, rate.gram), at)
        if times >= _SEEN_BEFORE and is_known:
            if kind is Kind.DATA and not _says_something(self._words):
                return  # numbers, yes and no: how long these may go on, the blocks tell
            self._plain.owe(1 / whole, times + 1, first)
        else:
            self._plain.pay((rate.pays if is_known else _NEW_WORD_PAYS) / whole)

    def _shape(self, kind: Kind, at: int, *, news: bool) -> None:
        rate = _COUNTING[kind]
        times, first = self._shape_grams.add(_last(self._shapes, rate.gram), at)
        is_long = kind is Kind.DATA and times >= _COUNT_ROUNDS * self._factor
        whole = (_COUNT_WORDS if is_long else rate.words) * self._factor
        if times < _SEEN_BEFORE or news:
            self._counting.pay(rate.pays / whole)
        elif kind is not Kind.DATA or _says_something(self._shapes):
            self._counting.owe(1 / whole, times + 1, first)

    def _is_varied(self, word: str) -> bool:
        self._recent.append(word)
        self._variety[word] += 1
        if len(self._recent) > _VARIETY_WORDS:
            oldest = self._recent.popleft()
            self._variety[oldest] -= 1
            if not self._variety[oldest]:
                del self._variety[oldest]
        return len(self._variety) >= min(_VARIETY, len(self._recent) // 2)

    def _foresees(self, number: str) -> bool:
        """Whether the number goes on by the step of the last time after the same words, and does not fall."""
        if len(number) > _MAX_DIGITS:
            return False
        before = tuple(self._shapes)[-4:]
        value = int(number)
        last, step = self._numbers.get(before, (value, 0))
        self._numbers[before] = (value, value - last)
        if len(self._numbers) > _GENERATION:
            self._numbers.clear()
        return value - last == step and step >= 0


def _says_something(words: Iterable[str]) -> bool:
    """Whether there are more words than labels for signs or numbers need."""
    return len({word for word in words if len(word) > 1 and word.isalpha()}) >= _SAYING_WORDS


def _last(words: deque[str], n: int) -> Hashable:
    if n == _LONG_GRAM:
        return hash(tuple(words))
    return hash((words[-1], *(words[-i] for i in range(2, min(n, len(words)) + 1))))
