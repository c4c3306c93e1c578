"""Where in a JSON text its end is: which strings, arrays, objects and numbers are open."""

from __future__ import annotations

from typing import Final

_CLOSING: Final = {ord("["): b"]", ord("{"): b"}", ord('"'): b'"'}
_NUMBER: Final = frozenset(b"0123456789+-.eE")
_NUMBER_START: Final = frozenset(b"0123456789-")
_IN_NUMBER: Final = ord("0")


class JsonPlace:
    """Where in a JSON text its end is: which strings, arrays, objects, numbers are open."""

    def __init__(self) -> None:
        self._open: list[int] = []
        self._escaped = False

    @property
    def in_number(self) -> bool:
        """Whether the text ends in a number."""
        return bool(self._open) and self._open[-1] == _IN_NUMBER

    def copy(self) -> JsonPlace:
        """Another one at the same place."""
        made = JsonPlace()
        made._open, made._escaped = list(self._open), self._escaped
        return made

    @property
    def depth(self) -> int:
        """How many things are open."""
        return len(self._open)

    @property
    def exits(self) -> tuple[bytes, ...]:
        """What would end the innermost open thing; nothing where it is the text itself, or in an escape."""
        if not self._open or self._escaped:
            return ()
        if self._open[-1] == _IN_NUMBER:
            return b",", b"]", b"}"
        return (_CLOSING[self._open[-1]],)

    @property
    def is_value(self) -> bool:
        """Whether the text itself may be over: nothing is open, or nothing but a number."""
        return not self._open or self._open == [_IN_NUMBER]

    def settle(self, byte: int) -> None:
        """End a number that `byte`, the next one, does not go on with."""
        if self._open and self._open[-1] == _IN_NUMBER and byte not in _NUMBER:
            self._open.pop()

    def read(self, byte: int) -> None:
        """Go on by one byte."""
        self.settle(byte)
        inside = self._open[-1] if self._open else 0
        if inside == ord('"'):
            if self._escaped:
                self._escaped = False
            elif byte == ord("\\"):
                self._escaped = True
            elif byte == ord('"'):
                self._open.pop()
            return
        if inside == _IN_NUMBER:
            return
        if byte in _CLOSING:
            self._open.append(byte)
        elif byte in b"]}":
            if self._open:
                self._open.pop()
        elif byte in _NUMBER_START:
            self._open.append(_IN_NUMBER)
