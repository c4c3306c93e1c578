"""Calls of tools as they come, put together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from coe.engine.request import CallPiece


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool. arguments: JSON; of an answer that was cut, as far as they came."""

    name: str
    arguments: str


class Calls:
    """The calls of one choice."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._arguments: dict[int, list[str]] = {}

    def add(self, pieces: Iterable[CallPiece]) -> None:
        """What is new of them."""
        for piece in pieces:
            if piece.name is not None:
                self._names[piece.index] = piece.name
            self._arguments.setdefault(piece.index, []).append(piece.arguments)

    def whole(self) -> tuple[ToolCall, ...]:
        """All of them so far, in their order."""
        return tuple(ToolCall(name, "".join(self._arguments[index])) for index, name in sorted(self._names.items()))
