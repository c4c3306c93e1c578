"""An end to numbers: a small model that may go on with digits goes on with digits."""

from __future__ import annotations

from typing import Final

from .json_place import JsonPlace

# A double has 17 digits that count, an integer of 64 bits 20; beside them a sign, a point, an exponent.
MOST_CHARS: Final = 32
_MOST_EXPONENT: Final = 2  # digits: beyond 10^308 a double is infinite
_GOES_ON: Final = frozenset(b"0123456789.eE+-")


class NumberEnd:
    """Follows a JSON text, and tells when its number has gone on for long enough."""

    def __init__(self) -> None:
        self._place = JsonPlace()
        self._chars = 0
        self._exponent: int | None = None  # digits since its `e`

    @property
    def is_due(self) -> bool:
        """Whether the number that the text ends in is to end now, if it can."""
        return self._chars >= MOST_CHARS or (self._exponent or 0) >= _MOST_EXPONENT

    def read(self, piece: bytes) -> None:
        """Go on by a token's bytes."""
        for byte in piece:
            self._place.read(byte)
            if not self._place.in_number:
                self._chars, self._exponent = 0, None
                continue
            self._chars += 1
            if byte in b"eE":
                self._exponent = 0
            elif self._exponent is not None and byte in b"0123456789":
                self._exponent += 1

    @staticmethod
    def goes_on(piece: bytes) -> bool:
        """Whether a token goes on with the number."""
        return piece[:1] != b"" and piece[0] in _GOES_ON

    def copy(self) -> NumberEnd:
        """Another one at the same place."""
        made = NumberEnd()
        made._place = self._place.copy()
        made._chars, made._exponent = self._chars, self._exponent
        return made
