"""Loops under a grammar: what a schema dictates is nobody's loop.

An array of five hundred equal values, or a text of one letter that has to be 1,500 long, repeats itself as any loop
does. The difference is whether the model could have ended it. So once the guard suspects a loop, this looks at what
else the grammar would have let it write: the end of the string, array, object or number that goes on and on. Only
a model that could have left several times and did not is in a loop.
"""

from __future__ import annotations

from typing import Final

from .grammar import Grammar
from .json_place import JsonPlace
from .loops import Loop, LoopGuard

_REFUSALS: Final = 8  # exits passed by
_AT_LEAST_CHARS: Final = 400  # and so long, or a round
_FRESH_CHARS: Final = 400  # a suspicion that the guard does not renew in so many characters is dropped


class GrammarLoops:
    """A loop guard that knows what its text has to keep to."""

    def __init__(self, guard: LoopGuard, grammar: Grammar) -> None:
        self._guard = guard
        self._grammar = grammar
        self._place = JsonPlace()
        self._fresh = 0  # characters for which the suspicion holds
        self._suspected: Loop | None = None
        self._chars = 0  # since it began
        self._lowest = self._highest = 0
        self._refusals = 0

    def feed(self, text: str, token: int, piece: bytes) -> Loop | None:
        """Go on by a token that the grammar has taken, and by the text that it released. Gives a loop that the model
        could have left."""
        self._fresh -= len(text)
        if self._fresh <= 0:
            self._suspected = None
        if loop := self._guard.feed(text):
            self._guard.look_again()
            if self._suspected is None:
                self._chars = self._refusals = 0
                self._lowest = self._highest = self._place.depth
            self._suspected, self._fresh = loop, _FRESH_CHARS
        if self._suspected is None:
            for byte in piece:
                self._place.read(byte)
            return None
        self._chars += len(text)
        self._pass_exits(token, piece)
        long = max(_AT_LEAST_CHARS, self._suspected.period)
        return self._suspected if self._refusals >= _REFUSALS and self._chars >= long else None

    def _pass_exits(self, token: int, piece: bytes) -> None:
        """Count the places before and within the token where what repeats itself could have been ended."""
        tries: list[bytes] = []
        refused = self._place.is_value and self._grammar.could_have_ended(token)
        for at, byte in enumerate(piece):
            self._place.settle(byte)
            if self._at_the_loops_level():
                tries += [piece[:at] + end for end in self._place.exits if ord(end) != byte]
            self._place.read(byte)
        if refused or (tries and self._grammar.could_have_come(tries, token)):
            self._refusals += 1

    def _at_the_loops_level(self) -> bool:
        """A loop of records is left by the end of their array, not by that of a text in one of them: what counts is the
        outermost level that it comes back to; or, where it opens ever more, each new one."""
        depth = self._place.depth
        if depth < self._lowest:
            self._lowest, self._refusals = depth, 0
        if depth > self._highest:
            self._highest = depth
            return True
        return depth == self._lowest
