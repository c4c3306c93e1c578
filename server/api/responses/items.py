"""The items of an input: messages, calls, results and thinking, as the runtime has them.

Clients hand back what they were given, older versions' and other servers' items among it, so items are read leniently:
what a local model has no use for is left out and noted. What stands between two results or messages of others is one
turn of the assistant, in whatever order its items come.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ...runtime.errors import RequestError
from ...runtime.request import Message
from ..common.history import MAX_CALLS, History
from ..common.text import text_of
from .store import Item
from .tools import INPUT, joined

_PARTS: Final = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
_ROLES: Final = ("user", "system", "developer", "assistant")
_OUTPUTS: Final = ("function_call_output", "custom_tool_call_output")
# Without them the conversation is another one.
_NOT_SERVED: Final[Mapping[str, str]] = {
    "compaction": "Send the conversation itself, or a summary of it as a message.",
    "compaction_trigger": "Ask for a summary in a message, and go on with that.",
}
_UNSEEN: Final = "[left out: {}; the specialists read text only]"


@dataclass
class _Turn:
    """The assistant's, as far as it has been read."""

    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)


class Reader:
    """Reads items in their order. known: the item that an id refers to, None for none."""

    def __init__(self, known: Callable[[str], Item | None]) -> None:
        self._known = known
        self._history = History("input", "a function_call_output with its call_id")
        self._turn: _Turn | None = None
        self._dropped: list[str] = []

    def instruct(self, text: str) -> None:
        """What the system says before everything else."""
        self._history.say("system", text)

    def read(self, item: Any, place: str) -> Item:
        """Take an item in; gives it, or the one that it refers to. place: what the client calls it.

        Raises RequestError naming the place.
        """
        if not isinstance(item, Mapping):
            raise RequestError(f"{place} must be an object, an item.", param=place)
        return self._taken({name: value for name, value in item.items() if value is not None}, place)

    def _taken(self, item: Item, place: str) -> Item:
        kind = item.get("type")
        if kind is None and "role" not in item and "id" in item:
            kind = "item_reference"
        if kind == "item_reference":
            item = self._referred(item, place)
            kind = item.get("type")
        if kind == "message" or (kind is None and "role" in item):
            self._message(item, place)
        elif kind in ("function_call", "custom_tool_call"):
            self._call(item, place)
        elif kind in _OUTPUTS:
            self._flush()
            self._history.result(item.get("call_id"), item.get("name"), self._output(item, place))
        elif kind == "reasoning":
            self._assistant().reasoning.append(_thought(item))
        elif not isinstance(kind, str):
            raise RequestError(f"{place} has neither a type nor a role. Give it one.", param=place)
        elif kind in _NOT_SERVED:
            raise RequestError(f"{place}: {kind} is not served. {_NOT_SERVED[kind]}", param=place)
        else:
            self._dropped.append(f"items of type {kind[:40]}")
        return item

    def messages(self) -> tuple[Message, ...]:
        """The conversation. Raises RequestError where nobody has said anything."""
        self._flush()
        if not self._history.messages:
            raise RequestError("input holds no message. Give a text, or an item with a role.", param="input")
        return self._history.read()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out, for the client to know."""
        kinds = list(dict.fromkeys(self._dropped))
        more = f" and {len(kinds) - 5} more kinds" if len(kinds) > 5 else ""
        return (f"{', '.join(kinds[:5])}{more} in the input are not served and were left out",) if kinds else ()

    def _referred(self, item: Mapping[str, Any], place: str) -> Item:
        name = item.get("id")
        found = self._known(name) if isinstance(name, str) else None
        if found is None:
            raise RequestError(
                f"Item with id '{str(name)[:80]}' not found. Items are kept with a response that is stored, for a "
                "while. Send the item itself in place of a reference.",
                param=place,
            )
        return found

    def _message(self, item: Mapping[str, Any], place: str) -> None:
        role = item.get("role")
        if role not in _ROLES:
            hint = " A tool's result is an item of type function_call_output." if role in ("tool", "function") else ""
            raise RequestError(
                f"{place}.role: {str(role)[:60]!r} is none of {', '.join(_ROLES)}.{hint}", param=f"{place}.role"
            )
        content = item.get("content")
        if role == "assistant":
            if isinstance(content, list):
                content = [part for part in content if self._is_text(part)]
            self._assistant().texts.append(text_of(content, f"{place}.content", optional=True, parts=_PARTS))
        else:
            self._flush()
            text = text_of(content, f"{place}.content", optional=False, parts=_PARTS)
            self._history.say("system" if role == "developer" else role, text)

    def _call(self, item: Mapping[str, Any], place: str) -> None:
        name = item.get("name")
        if not isinstance(name, str) or not name:
            raise RequestError(f"{place}.name is missing: which tool was called?", param=f"{place}.name")
        custom = item["type"] == "custom_tool_call"
        arguments = {INPUT: item.get("input", "")} if custom else item.get("arguments")
        calls = self._assistant().calls
        if len(calls) == MAX_CALLS:
            raise RequestError(f"{place}: at most {MAX_CALLS:,} calls may follow each other.", param=place)
        calls.append(self._history.call(item.get("call_id"), joined(item.get("namespace"), name), arguments))

    def _output(self, item: Mapping[str, Any], place: str) -> str:
        """What a tool said. A picture among it is named in its place: what a tool did must not end a conversation."""
        output = item.get("output")
        if isinstance(output, list):
            output = [self._seen(part) for part in output]
        return text_of(output, f"{place}.output", optional=True, parts=_PARTS)

    def _is_text(self, part: Any) -> bool:
        """Whether a part of an answer is text; other servers' answers have others, which the model has no use for."""
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(kind, str) and kind not in _PARTS:
            self._dropped.append(f"parts of type {kind[:40]}")
            return False
        return True

    def _seen(self, part: Any) -> Any:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("input_image", "input_file"):
            return part
        self._dropped.append(f"parts of type {kind}")
        return {"type": "input_text", "text": _UNSEEN.format("an image" if kind == "input_image" else "a file")}

    def _assistant(self) -> _Turn:
        if self._turn is None:
            self._turn = _Turn()
        return self._turn

    def _flush(self) -> None:
        turn, self._turn = self._turn, None
        if turn is not None and (turn.texts or turn.calls):
            self._history.answer("\n".join(turn.texts), turn.calls, "\n".join(filter(None, turn.reasoning)))


def _thought(item: Mapping[str, Any]) -> str:
    """The text of a thinking item. Its summary is what somebody was shown, and not what was thought."""
    parts = item.get("content")
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)] if isinstance(parts, list) else []
    return "".join(text for text in texts if isinstance(text, str))


def as_items(given: str | Sequence[Any]) -> Sequence[Any]:
    """An input as items: a text is a message of the user."""
    return [{"type": "message", "role": "user", "content": given}] if isinstance(given, str) else given


def listed(items: Sequence[Item], response_id: str) -> list[dict[str, Any]]:
    """Items as a listing has them: each with an id, messages with parts."""
    return [_whole(item, f"{response_id}/{index}") for index, item in enumerate(items)]


def _whole(item: Item, place: str) -> dict[str, Any]:
    whole: dict[str, Any] = {"type": "message", **item}
    prefix = "msg_" if whole["type"] == "message" else "item_"
    if not isinstance(whole.get("id"), str):
        whole["id"] = prefix + hashlib.blake2b(place.encode(), digest_size=12).hexdigest()
    if isinstance(content := whole.get("content"), str):
        whole["content"] = [_part(content, whole.get("role"))]
    whole.setdefault("status", "completed")
    return whole


def _part(text: str, role: Any) -> dict[str, Any]:
    if role == "assistant":
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "input_text", "text": text}
