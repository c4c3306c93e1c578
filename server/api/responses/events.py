"""The items of an answer as they come, and the events that tell a stream of them. Pure: what an event needs beside its
item, its number, is the envelope's.

             ┌───────────────────────── nothing is open <─────────────────────────┐
             │ thinking          │ text                  │ a call's name          │
             v                   v                       v                        │
         reasoning            message                function_call, or            │ what comes is of another kind,
         item added           item added             custom_tool_call             │ or another call, or the end:
         part added           part added             item added                   │ text or arguments done, part done,
             │                   │                       │                        │ item done
             v                   v                       v                        │
         text delta ..        text delta ..          arguments delta ..  ─────────┘

White space before the first word of a message waits for it: between two calls it is no message.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from coe.engine.request import CallPiece, Delta, TokenLogprob

from ..common.calls import in_pieces
from .tools import INPUT, ToolName

Event = dict[str, Any]

COMPLETED: Final = "completed"
INCOMPLETE: Final = "incomplete"
_BEGUN: Final = "in_progress"


class _Open(ABC):
    """An item that is being told of. Events come without the item's id and index, which are the same in all of them."""

    def __init__(self, id_: str) -> None:
        self.id = id_

    @abstractmethod
    def item(self, status: str) -> dict[str, Any]:
        """As far as it came."""

    @abstractmethod
    def begin(self) -> Iterator[Event]:
        """What follows its being added."""

    @abstractmethod
    def end(self) -> Iterator[Event]:
        """What comes before it is done."""


class _Reasoning(_Open):
    """Thinking. told: it is no thinking of the model, but what the user is told: the summary, not the content."""

    def __init__(self, id_: str, *, told: bool) -> None:
        super().__init__(id_)
        self.told = told
        self._pieces: list[str] = []
        self._at = {"summary_index": 0} if told else {"content_index": 0}
        self._text = "response.reasoning_summary_text" if told else "response.reasoning_text"
        self._part = "response.reasoning_summary_part" if told else "response.content_part"
        self._kind = "summary_text" if told else "reasoning_text"

    def item(self, status: str) -> dict[str, Any]:
        parts = [{"type": self._kind, "text": "".join(self._pieces)}] if self._pieces else []
        said = {"summary": parts, "content": []} if self.told else {"summary": [], "content": parts}
        # Nothing is encrypted here: the content itself comes back to be read.
        return {"id": self.id, "type": "reasoning", **said, "encrypted_content": None, "status": status}

    def begin(self) -> Iterator[Event]:
        yield {"type": f"{self._part}.added", **self._at, "part": {"type": self._kind, "text": ""}}

    def add(self, text: str) -> Iterator[Event]:
        self._pieces.append(text)
        yield {"type": f"{self._text}.delta", **self._at, "delta": text}

    def end(self) -> Iterator[Event]:
        text = "".join(self._pieces)
        yield {"type": f"{self._text}.done", **self._at, "text": text}
        yield {"type": f"{self._part}.done", **self._at, "part": {"type": self._kind, "text": text}}


class _Message(_Open):
    """Text."""

    def __init__(self, id_: str) -> None:
        super().__init__(id_)
        self._pieces: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._begun = False

    def item(self, status: str) -> dict[str, Any]:
        content = [self._whole()] if self._begun else []
        return {"id": self.id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _whole(self) -> dict[str, Any]:
        text = "".join(self._pieces)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs(self._logprobs)}

    def begin(self) -> Iterator[Event]:
        yield {"type": "response.content_part.added", "content_index": 0, "part": self._whole()}
        self._begun = True

    def add(self, text: str, entries: Sequence[TokenLogprob]) -> Iterator[Event]:
        self._pieces.append(text)
        self._logprobs += entries
        yield {
            "type": "response.output_text.delta",
            "content_index": 0,
            "delta": text,
            "logprobs": logprobs(entries, with_bytes=False),
        }

    def end(self) -> Iterator[Event]:
        whole = self._whole()
        told = {"text": whole["text"], "logprobs": logprobs(self._logprobs, with_bytes=False)}
        yield {"type": "response.output_text.done", "content_index": 0, **told}
        yield {"type": "response.content_part.done", "content_index": 0, "part": whole}


class _Call(_Open):
    """A call of a function."""

    def __init__(self, id_: str, call_id: str, name: ToolName) -> None:
        super().__init__(id_)
        self._known = {"call_id": call_id, "name": name.name}
        if name.namespace is not None:
            self._known["namespace"] = name.namespace
        self._pieces: list[str] = []

    def item(self, status: str) -> dict[str, Any]:
        written = {"arguments": "".join(self._pieces), "status": status}
        return {"id": self.id, "type": "function_call", **self._known, **written}

    def begin(self) -> Iterator[Event]:
        yield from ()

    def add(self, arguments: str) -> Iterator[Event]:
        self._pieces.append(arguments)
        yield {"type": "response.function_call_arguments.delta", "delta": arguments}

    def end(self) -> Iterator[Event]:
        told = {"name": self._known["name"], "arguments": "".join(self._pieces)}
        yield {"type": "response.function_call_arguments.done", **told}


class _CustomCall(_Call):
    """A call of a tool that takes a text: the model's one argument, which is told of when it is whole."""

    def item(self, status: str) -> dict[str, Any]:
        return {"id": self.id, "type": "custom_tool_call", **self._known, "input": self._input(), "status": status}

    def add(self, arguments: str) -> Iterator[Event]:
        self._pieces.append(arguments)
        yield from ()

    def end(self) -> Iterator[Event]:
        yield {"type": "response.custom_tool_call_input.delta", "delta": self._input()}
        yield {"type": "response.custom_tool_call_input.done", "input": self._input()}

    def _input(self) -> str:
        """The text; of a call that was cut, what the model wrote of its arguments."""
        written = "".join(self._pieces)
        try:
            value = json.loads(written)
        except ValueError:
            return written
        text = value.get(INPUT) if isinstance(value, dict) else None
        return text if isinstance(text, str) else written


class OutputItems:
    """The items of one answer. Each method gives the events of what it takes in.

    new_id: an id by its prefix and the item's place among the items. call_id: what a call is known by, by its number.
    named: what a client calls a tool, by the name that the model knows.
    """

    def __init__(
        self, new_id: Callable[[str, int], str], call_id: Callable[[int], str], named: Callable[[str], ToolName]
    ) -> None:
        self._new_id, self._call_id, self._named = new_id, call_id, named
        self.done: list[dict[str, Any]] = []
        self._open: _Open | None = None
        self._blank: list[tuple[str, Sequence[TokenLogprob]]] = []  # before the first word of a message

    def add(self, delta: Delta) -> Iterator[Event]:
        """What is new of an answer."""
        if delta.reasoning:
            item = self._open
            if not isinstance(item, _Reasoning) or item.told:
                yield from self._close(COMPLETED)
                item = _Reasoning(self._id("rs_"), told=False)
                yield from self._begin(item)
            yield from self._placed(item.add(delta.reasoning))
        if delta.text or delta.logprobs:
            yield from self._text(delta.text, delta.logprobs)
        for piece in in_pieces(delta.calls):
            yield from self._call(piece)

    def tell(self, text: str) -> Iterator[Event]:
        """Something that the user is to know, and the model has not said."""
        item = self._open
        if not isinstance(item, _Reasoning) or not item.told:
            yield from self._close(COMPLETED)
            item = _Reasoning(self._id("rs_"), told=True)
            yield from self._begin(item)
        yield from self._placed(item.add(text))

    def finish(self, status: str) -> Iterator[Event]:
        """The end. status: of the item that is open."""
        yield from self._close(status)
        if status == COMPLETED and all(item["type"] == "reasoning" for item in self.done):
            yield from self._message()  # an answer without a word is one all the same
            yield from self._close(status)

    def _text(self, text: str, entries: Sequence[TokenLogprob]) -> Iterator[Event]:
        item = self._open
        if not isinstance(item, _Message):
            self._blank.append((text, entries))
            if text.strip():
                yield from self._message()
            return
        yield from self._placed(item.add(text, entries))

    def _message(self) -> Iterator[Event]:
        yield from self._close(COMPLETED)
        item = _Message(self._id("msg_"))
        yield from self._begin(item)
        blank, self._blank = self._blank, []
        if blank:
            text = "".join(text for text, _ in blank)
            yield from self._placed(item.add(text, [entry for _, entries in blank for entry in entries]))

    def _call(self, piece: CallPiece) -> Iterator[Event]:
        if piece.name is not None:
            yield from self._close(COMPLETED)
            self._blank = []
            name = self._named(piece.name)
            kind = _CustomCall if name.custom else _Call
            id_ = self._id("ctc_" if name.custom else "fc_")
            yield from self._begin(kind(id_, self._call_id(piece.index), name))
        elif isinstance(self._open, _Call):
            yield from self._placed(self._open.add(piece.arguments))

    def _id(self, prefix: str) -> str:
        return self._new_id(prefix, len(self.done))

    def _begin(self, item: _Open) -> Iterator[Event]:
        self._open = item
        yield {"type": "response.output_item.added", "output_index": len(self.done), "item": item.item(_BEGUN)}
        yield from self._placed(item.begin())

    def _close(self, status: str) -> Iterator[Event]:
        item = self._open
        if item is None:
            return
        yield from self._placed(item.end())
        self._open = None
        whole = item.item(status)
        self.done.append(whole)
        yield {"type": "response.output_item.done", "output_index": len(self.done) - 1, "item": whole}

    def _placed(self, events: Iterator[Event]) -> Iterator[Event]:
        assert self._open is not None, "events are of an open item"
        at = {"item_id": self._open.id, "output_index": len(self.done)}
        for event in events:
            yield {**event, **at}


def logprobs(entries: Sequence[TokenLogprob], *, with_bytes: bool = True) -> list[dict[str, Any]]:
    """Log-probabilities of tokens, as items have them; events have no bytes."""

    def one(token: str, value: float | None, data: Sequence[int]) -> dict[str, Any]:
        return {"token": token, "logprob": value, **({"bytes": list(data)} if with_bytes else {})}

    return [
        {
            **one(entry.token, entry.logprob, entry.bytes),
            "top_logprobs": [one(token, value, data) for token, data, value in entry.top],
        }
        for entry in entries
    ]
