"""Which log-probabilities belong to the text that goes out: one entry for each token that has a character in it.

Tokens of thinking blocks and their tags, of a stop text, and of a character that was never finished are no part of the
text, and are not listed; tokens that share a character are listed with it. What is held back keeps its entries back.

An answer that is scored lists every token that was drawn, those too: whoever counts tokens finds as many.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..request import TokenLogprob


@dataclass(frozen=True)
class _Waiting:
    """An entry, and the characters of the decoded text that its token has a byte of."""

    entry: TokenLogprob
    start: int
    stop: int


class TextLogprobs:
    """Follows one text through its filters. Places count characters of the decoded text, before any filter."""

    def __init__(self, offset: int = 0, *, every: bool = False) -> None:
        """offset: characters that come before the answer. every: tokens that are no part of it are listed too."""
        self._waiting: deque[_Waiting] = deque()
        self._answer: deque[range] = deque()  # places of the answer that the stop matcher still holds back
        self._released = offset
        self._every = every

    def add(self, entry: TokenLogprob, start: int, stop: int) -> None:
        """A token that has bytes of the characters from start on, up to stop."""
        self._waiting.append(_Waiting(entry, start, stop))

    def classify(self, places: Iterable[range]) -> None:
        """These places are of the answer, in ascending order."""
        self._answer.extend(places)

    def release(self, count: int, undecided: int) -> tuple[TokenLogprob, ...]:
        """The entries of the next `count` characters of the answer, each with its offset in the whole of it.

        undecided: the first place of which nothing is known yet; entries before it that are not released are dropped,
        or listed where the text goes on.
        """
        out: list[TokenLogprob] = []
        while count:
            places = self._answer.popleft()
            part, rest = places[:count], places[count:]
            if rest:
                self._answer.appendleft(rest)
            count -= len(part)
            out += self._of(part)
            self._released += len(part)
        decided = self._answer[0].start if self._answer else undecided
        while self._waiting and self._waiting[0].stop <= decided:
            self._pass(out)
        return tuple(out)

    def rest(self) -> tuple[TokenLogprob, ...]:
        """At the end of the text: the entries that have not come out, where every one is listed."""
        out: list[TokenLogprob] = []
        while self._waiting:
            self._pass(out)
        return tuple(out)

    def _pass(self, out: list[TokenLogprob]) -> None:
        """Go by an entry that is no part of the text."""
        entry = self._waiting.popleft().entry
        if self._every:
            out.append(replace(entry, offset=self._released))

    def _of(self, places: range) -> list[TokenLogprob]:
        found: list[TokenLogprob] = []
        while self._waiting and self._waiting[0].start < places.stop:
            first = self._waiting[0]
            if first.stop <= places.start or first.start == first.stop:
                self._pass(found)
                continue
            self._waiting.popleft()
            offset = self._released + max(0, first.start - places.start)
            found.append(replace(first.entry, offset=offset))
        return found
