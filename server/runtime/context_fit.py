"""Whether a prompt fits the context of a specialist, as far as its characters tell before it is read into tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

# Characters a token: of English prose about 4.5, of code 3, of most other scripts 1 to 2. What is surely too long for
# the densest text is passed by at once; for the rest the worker counts.
_MOST_CHARS_A_TOKEN: Final = 8.0
_SPARE: Final = 1.25  # an estimate by what was measured must miss by so much to be wrong
_WEIGHT: Final = 0.2  # of the newest measurement
_TELLING_CHARS: Final = 400  # of less the template's own tokens are too large a share


@dataclass(frozen=True)
class Room:
    """A specialist, and how many tokens its context holds."""

    name: str
    context_tokens: int


class ContextFit:
    """Learns how many characters a token of each specialist's prompts has had."""

    def __init__(self) -> None:
        self._chars: dict[str, float] = {}

    def measured(self, name: str, n_chars: int, n_tokens: int) -> None:
        """A prompt of so many characters had so many tokens."""
        if n_chars < _TELLING_CHARS or not n_tokens:
            return
        ratio = n_chars / n_tokens
        before = self._chars.get(name, ratio)
        self._chars[name] = before + _WEIGHT * (ratio - before)

    def at_least_tokens(self, name: str, n_chars: int) -> int:
        """Tokens that a prompt of so many characters has in all likelihood, and probably more."""
        known = self._chars.get(name)
        return int(n_chars / (min(known * _SPARE, _MOST_CHARS_A_TOKEN) if known else _MOST_CHARS_A_TOKEN))

    def is_too_long(self, room: Room, n_chars: int) -> bool:
        """Whether a prompt cannot fit, the room for an answer left aside."""
        return self.at_least_tokens(room.name, n_chars) >= room.context_tokens


def next_room(rooms: Sequence[Room], needed: Callable[[str], int], tried: Sequence[str]) -> Room | None:
    """The first that holds its prompt and was not tried; None when none does. needed: tokens of the prompt, by name."""
    return next((room for room in rooms if room.name not in tried and room.context_tokens > needed(room.name)), None)
