"""The blocks of a streamed answer: one open at a time, numbered without gaps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from coe.engine.request import CallPiece

Event = dict[str, Any]

_TEXT: Final = "text"
_THINKING: Final = "thinking"
_CALL: Final = "tool_use"


class Blocks:
    """Makes events of pieces of thinking, text and calls.

    White space alone makes no block: Anthropic's API takes no blank text back, so clients leave it out or fail. It is
    held back until something follows that is none.
    """

    def __init__(self, call_id: Callable[[int], str]) -> None:
        """call_id: what a call is known by, by its number."""
        self._call_id = call_id
        self._index = -1
        self._open: str | None = None
        self._held: tuple[str, str] = ("", "")  # blank text, and the kind of block that it may begin
        self._thought: list[str] = []

    def think(self, text: str) -> Iterator[Event]:
        """More thinking."""
        yield from self._write(_THINKING, text)

    def say(self, text: str) -> Iterator[Event]:
        """More text."""
        yield from self._write(_TEXT, text)

    def call(self, piece: CallPiece) -> Iterator[Event]:
        """A call's name, or more of its arguments."""
        if piece.name is not None:
            called = {"type": _CALL, "id": self._call_id(piece.index), "name": piece.name, "input": {}}
            yield from self._begin(_CALL, called)
            yield self._delta({"type": "input_json_delta", "partial_json": ""})
        if piece.arguments:
            yield self._delta({"type": "input_json_delta", "partial_json": piece.arguments})

    def end(self) -> Iterator[Event]:
        """The end of the block that is open, if one is."""
        self._held = ("", "")
        if self._open == _THINKING:
            yield self._delta({"type": "signature_delta", "signature": signature("".join(self._thought))})
            self._thought.clear()
        if self._open is not None:
            yield {"type": "content_block_stop", "index": self._index}
        self._open = None

    def _write(self, kind: str, text: str) -> Iterator[Event]:
        if not text:
            return
        if self._open != kind:
            before, of = self._held
            text = before + text if of == kind else text
            if text.isspace():
                self._held = (text, kind)
                return
            empty = {"type": kind, kind: "", **({"signature": ""} if kind == _THINKING else {})}
            yield from self._begin(kind, empty)
        if kind == _THINKING:
            self._thought.append(text)
        yield self._delta({"type": f"{kind}_delta", kind: text})

    def _begin(self, kind: str, block: Event) -> Iterable[Event]:
        yield from self.end()
        self._index += 1
        self._open = kind
        yield {"type": "content_block_start", "index": self._index, "content_block": block}

    def _delta(self, delta: Event) -> Event:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


def signature(thinking: str) -> str:
    """What a client gives back with thinking, which some want before they do so. It is not read: nothing is secret."""
    return f"coe-{hashlib.blake2b(thinking.encode('utf-8', 'replace'), digest_size=12).hexdigest()}"
