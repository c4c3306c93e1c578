"""The loop guard (detection of degenerate repetition): ends an answer that repeats itself for ever, and leaves text
alone that repeats itself for a reason.

Two looks at the text, at fixed distances, so that the result does not depend on how the text is cut into pieces:

- Words in a row (prose only): few distinct 5-grams among the last words, or one 5-gram again and again.
- Periods (all text): the end of the text is one block of characters over and over, exactly, or but for
  numbers that count.

Code, tables, lists and the like repeat words by nature, so their words count as new ones, and a period must go on
for much longer there. What that costs and saves is measured by benchmarks/loop_guard.py; see docs/loops.md.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, deque
from dataclasses import dataclass

MIN_CHARS = 600
MIN_WORDS = 60
NGRAM = 5
WINDOW_WORDS = 220
MIN_DISTINCT = 0.30  # of the window's 5-grams
MAX_SAME = 12  # times one 5-gram may nearly stand in the window,
SAME_DISTINCT = 0.60  # unless so many are distinct: a poem has new lines between its refrains

PERIOD_CHARS = 4096  # the longest period looked for
PROSE_PERIODS = (600, 3)  # a period counts after this many characters, and as many rounds
NUMBERED_PROSE_PERIODS = (1200, 4)  # the same, its numbers changing from round to round
LINE_PERIODS = (1500, 12)  # in one endless line that is no code: formulas, for the most part
LINE_PERIOD_CHARS = 8  # from this on; arrays of equal numbers have shorter ones
STRUCTURE_PERIODS = (3000, 4)
NUMBERED_STRUCTURE_PERIODS = (6000, 12)
NUMBERED_WORDS = 4  # different words that a numbered round has at least, where it is no prose
FILL_CHARS = 1000  # one character over and over

_EVERY_CHARS = 200
_TAIL_CHARS = 4 * PERIOD_CHARS
_LINE_CHARS = 4096  # how much of an endless line is looked at
_PROBE_CHARS = 48
_CANDIDATES = 40
_REPORT_CHARS = 200

_FENCE = re.compile(r"[ \t>]*(`{3,}|~{3,})")
_STRUCTURE = re.compile(r"\t| {4}|\s*(?:[|#%@$\\+=<{}\[\]]|//|--|[-*•]\s|\(?\w{1,3}[.):]\s)")
_PLAIN_WORD = re.compile(r"[\"'“‘(*_]*[^\W\d_]+(?:['’\-–][^\W\d_]+)*[\"'”’)*_]*[.,;:!?…]*[\"'”’)*_]*")
_NUMBER = re.compile(r"\d+")
_LETTERS = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True)
class Loop:
    """A loop that was met.

    reason:   one phrase, for logs.
    repeated: what is repeated, shortened to 200 characters.
    at_chars: characters of the whole text when it was noticed.
    """

    reason: str
    repeated: str
    at_chars: int


class LoopGuard:
    """Watches one text as it is made."""

    def __init__(self) -> None:
        self._chars = 0  # looked at; what is pending comes on top
        self._pending = ""
        self._tail = ""
        self._line = ""
        self._fence = ""
        self._words: deque[str] = deque(maxlen=WINDOW_WORDS)
        self._word_count = 0
        self._unique = itertools.count()
        self._loop: Loop | None = None

    def feed(self, text: str) -> Loop | None:
        """Go on by `text`. Gives the loop as soon as there is one, and then at every call."""
        self._pending += text
        at = 0
        while self._loop is None and len(self._pending) - at >= _EVERY_CHARS:
            self._read(self._pending[at : at + _EVERY_CHARS])
            at += _EVERY_CHARS
            if self._chars >= MIN_CHARS:
                self._loop = self._repeated_words() or self._repeated_block()
        self._pending = self._pending[at:]
        return self._loop

    def _read(self, text: str) -> None:
        self._chars += len(text)
        self._tail = (self._tail + text)[-_TAIL_CHARS:]
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            words = self._words_of(line)
            self._words.extend(words)
            self._word_count += len(words)
            if fence := _FENCE.match(line):
                if not self._fence:
                    self._fence = fence[1]
                elif fence[1].startswith(self._fence) and fence.end() == len(line.rstrip()):
                    self._fence = ""
        if len(self._line) > 2 * _LINE_CHARS:
            words = self._words_of(self._line[:-_LINE_CHARS])
            self._words.extend(words)
            self._word_count += len(words)
            self._line = self._line[-_LINE_CHARS:]

    def _words_of(self, line: str) -> list[str]:
        """The words of prose, its numbers made equal; for anything else as many words that stand nowhere else."""
        if not self._fence and is_prose(line):
            return _NUMBER.sub("#", line).split()
        return [f"\n{next(self._unique)}" for _ in line.split()]

    def _repeated_words(self) -> Loop | None:
        current = self._words_of(self._line)[:-1]  # the last word may be unfinished
        if self._word_count + len(current) < MIN_WORDS:
            return None
        words = [*self._words, *current][-WINDOW_WORDS:]
        grams = Counter(zip(*(words[i:] for i in range(NGRAM)), strict=False))
        gram, times = grams.most_common(1)[0]
        distinct = len(grams) / grams.total()
        if times >= MAX_SAME and distinct < SAME_DISTINCT and not any("#" in word for word in gram):
            return self._found(f"five words stand {times} times in the last {len(words)}", " ".join(gram))
        if distinct < MIN_DISTINCT:
            return self._found(f"{distinct:.0%} of the last {len(words)} words' 5-grams are distinct", " ".join(gram))
        return None

    def _repeated_block(self) -> Loop | None:
        period = _period(self._tail, FILL_CHARS, 2)
        if period == 1:
            return self._found(f"one character {FILL_CHARS} times", self._tail[-1:])
        prose = not self._fence and _ends_in_prose(self._tail)
        period = _period(self._tail, *(PROSE_PERIODS if prose else STRUCTURE_PERIODS))
        if period:
            return self._found(f"a block of {period} characters over and over", self._tail[-period:])
        if not self._fence and len(self._line) >= LINE_PERIODS[0]:
            period = _period(self._tail, *LINE_PERIODS)
            if period >= LINE_PERIOD_CHARS:
                return self._found(f"a block of {period} characters over and over in one line", self._tail[-period:])
        numbered = _NUMBER.sub("\0", self._tail)
        chars, rounds = NUMBERED_PROSE_PERIODS if prose else NUMBERED_STRUCTURE_PERIODS
        period = _period(numbered, chars, rounds)
        block = numbered[len(numbered) - period :]
        # A table numbers its rows, and the rest of a row is often that of all rows.
        if not period or "\n|" in block:
            return None
        if not _counts(self._tail, block.count("\0"), max(rounds, chars // period)):
            return None
        if prose or len(set(_LETTERS.findall(block))) >= NUMBERED_WORDS:
            block = self._tail[-period:]
            return self._found(f"a block of {period} characters over and over but for its counting", block)
        return None

    def _found(self, reason: str, repeated: str) -> Loop:
        return Loop(reason, repeated[:_REPORT_CHARS], self._chars)


def is_prose(line: str) -> bool:
    """Whether a line reads as running text: four words at least, most of them plain, no mark of structure around."""
    if _STRUCTURE.match(line) or line.rstrip().endswith((";", "{", "}", "(")):
        return False
    words = line[-_LINE_CHARS:].split()
    plain = sum(1 for word in words if _PLAIN_WORD.fullmatch(word))
    return len(words) >= 4 and plain >= 0.7 * len(words)


def _ends_in_prose(tail: str) -> bool:
    lines = tail[-_LINE_CHARS // 2 :].split("\n")
    lines = [line for line in (lines[1:] if len(lines) > 2 else lines) if line.strip()]
    prose = sum(len(line) for line in lines if is_prose(line))
    return prose >= 0.8 * sum(map(len, lines))


def _counts(text: str, numbers: int, rounds: int) -> bool:
    """Whether the last rounds of the text, with so many numbers each, count: each number grows by equal steps, or
    stays. Measured values do not, and what differs only in them is no loop."""
    found = _NUMBER.findall(text.rstrip("0123456789"))  # the last one may be unfinished
    if not numbers or len(found) < rounds * numbers:
        return False
    for place in range(len(found) - rounds * numbers, len(found) - (rounds - 1) * numbers):
        seen = found[place::numbers]
        if len(set(seen)) > 1 and (
            max(map(len, seen)) > 15 or len({int(b) - int(a) for a, b in itertools.pairwise(seen)}) > 1
        ):
            return False
    return True


def _period(text: str, chars: int, rounds: int) -> int:
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
