"""The messages of a body: turns of blocks, read into a conversation as the runtime has it.

An agent's conversation has to stay the same from turn to turn up to what is new, or its prefix is not found in the
cache. So what is read of a message depends on nothing that comes after it, a text is the same as one block of text, and
instructions that come after the first message stay at their place instead of moving to the front.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from ...runtime.errors import RequestError
from ...runtime.request import Message
from ..common.history import MAX_CALLS, History

_ROLES: Final = ("user", "assistant", "system")
# By this tag Anthropic's agents mark what they tell the model within a user's turn, and the supervisor knows it.
_REMARK: Final = ("<system-reminder>", "</system-reminder>")
_OPAQUE: Final = frozenset({"redacted_thinking"})
_ERROR_CHARS: Final = 40


@dataclass(frozen=True)
class Conversation:
    """What was read.

    loaded: tools that results of a search for tools have named. notes: what was left out, for the client to know.
    """

    messages: tuple[Message, ...]
    loaded: frozenset[str]
    notes: tuple[str, ...]


class _Block(NamedTuple):
    param: str
    value: Mapping[str, Any]
    is_remark: bool = False


@dataclass
class _Turn:
    """Messages of one side that follow each other."""

    role: str
    blocks: list[_Block] = field(default_factory=list)


def read_conversation(system: Any, messages: Sequence[Any]) -> Conversation:
    """Messages as runtime.request.Request has them. system: the field of the body, None where it is left out.

    Raises RequestError naming the message and the block.
    """
    reading = _Reading(History("messages", "a tool_result block with its tool_use_id"))
    if system is not None:
        reading.instruct(_blocks(system, "system"))
    turns: list[_Turn] = []
    for index, message in enumerate(messages):
        param = f"messages[{index}]"
        role = _role(message, param)
        blocks = _blocks(message.get("content"), f"{param}.content")
        if role == "system" and not turns:
            reading.instruct(blocks)
            continue
        if role == "system":
            role, blocks = "user", _remark(blocks)
            if not blocks:
                continue
        if not turns or turns[-1].role != role:
            turns.append(_Turn(role))
        turns[-1].blocks += blocks
    for turn in turns:
        if turn.role == "user":
            reading.user(turn.blocks)
        else:
            reading.assistant(turn.blocks, is_last=turn is turns[-1])
    return reading.end()


class _Reading:
    def __init__(self, history: History) -> None:
        self._history = history
        self._loaded: set[str] = set()
        self._dropped: dict[str, None] = {}

    def instruct(self, blocks: Sequence[_Block]) -> None:
        """Instructions before the first message."""
        for block in blocks:
            if text := _only_text(block).strip():
                self._history.say("system", text)

    def user(self, blocks: Sequence[_Block]) -> None:
        """Results of calls first, then what the user says.

        What a client remarks beside results stands at the end of the last: the model goes on with its calls, and its
        thinking between them counts on, as no human has spoken.
        """
        results: list[tuple[Any, str]] = []
        texts: list[tuple[str, bool]] = []
        for block in blocks:
            if block.value["type"] == "tool_result":
                results.append((block.value.get("tool_use_id"), self._result(block)))
            else:
                text = _text(block)
                texts.append((text, block.is_remark or _is_remark(text)))
        if results:
            remarks = [text for text, is_remark in texts if is_remark]
            texts = [(text, is_remark) for text, is_remark in texts if not is_remark]
            id_, said = results[-1]
            results[-1] = id_, "\n".join([said, *remarks])
        for id_, said in results:
            self._history.result(id_, None, said)
        if texts or not results:
            self._history.say("user", "\n".join(text for text, _ in texts))

    def _result(self, block: _Block) -> str:
        value, param = block.value, f"{block.param}.content"
        content = value.get("content")
        inner = _blocks(content, param) if content is not None else []
        texts: list[str] = []
        for each in inner:
            if each.value["type"] == "tool_reference":
                name = _field(each, "tool_name")
                self._loaded.add(name)
                texts.append(f"The tool {name} can be called from now on.")
            else:
                texts.append(_text(each))
        text = "\n".join(texts)
        if not isinstance(failed := value.get("is_error") or False, bool):
            raise RequestError(f"{block.param}.is_error must be true or false.", param=f"{block.param}.is_error")
        return f"Error: {text}" if failed and "error" not in text[:_ERROR_CHARS].lower() else text

    def assistant(self, blocks: Sequence[_Block], *, is_last: bool) -> None:
        """Thinking, text, calls. The last message is continued, unless it says nothing."""
        texts: list[str] = []
        thoughts: list[str] = []
        calls: list[dict[str, Any]] = []
        for block in blocks:
            kind = block.value["type"]
            if kind == "text":
                texts.append(_field(block, "text"))
            elif kind == "thinking":
                thoughts.append(_field(block, "thinking"))
            elif kind == "tool_use":
                calls.append(self._call(block))
            elif kind not in _OPAQUE:
                self._dropped[kind[:40]] = None
        if len(calls) > MAX_CALLS:
            raise RequestError(f"{blocks[0].param}: give at most {MAX_CALLS:,} calls in one turn.", param="messages")
        text = "\n".join(texts)
        if text or calls or not is_last:
            self._history.answer(text, calls, "\n".join(filter(None, thoughts)))

    def _call(self, block: _Block) -> dict[str, Any]:
        if not (name := _field(block, "name")):
            raise RequestError(f"{block.param}.name names no tool.", param=f"{block.param}.name")
        given = block.value.get("input")
        if given is not None and not isinstance(given, Mapping):
            raise RequestError(f"{block.param}.input must be an object.", param=f"{block.param}.input")
        return self._history.call(block.value.get("id"), name, given)

    def end(self) -> Conversation:
        """All that was read."""
        kinds = list(self._dropped)
        more = f" and {len(kinds) - 5} more" if len(kinds) > 5 else ""
        notes = (f"blocks of type {', '.join(kinds[:5])}{more} in messages were left out",) if kinds else ()
        return Conversation(self._history.read(), frozenset(self._loaded), notes)


# --- blocks -------------------------------------------------------------------------------------------------------


def _role(message: Any, param: str) -> str:
    if not isinstance(message, Mapping):
        raise RequestError(f"{param} must be an object.", param=param)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        said = "is missing" if role is None else f"{str(role)[:60]!r} is not known"
        raise RequestError(f"{param}.role {said}: give one of {', '.join(_ROLES)}.", param=f"{param}.role")
    return role


def _blocks(content: Any, param: str) -> list[_Block]:
    """A content as blocks, each of which has a type; a text is one block."""
    if isinstance(content, str):
        return [_Block(param, {"type": "text", "text": content})]
    if not isinstance(content, list):
        raise RequestError(f"{param} must be a text or a list of blocks.", param=param)
    blocks = [_Block(f"{param}[{index}]", value) for index, value in enumerate(content)]
    for block in blocks:
        if not isinstance(block.value, Mapping):
            raise RequestError(f"{block.param} must be an object.", param=block.param)
        if not isinstance(block.value.get("type"), str):
            raise RequestError(f"{block.param}.type must be a text, such as text.", param=f"{block.param}.type")
    return blocks


def _field(block: _Block, name: str) -> str:
    value = block.value.get(name)
    if not isinstance(value, str):
        said = "is missing" if value is None else "must be a text"
        raise RequestError(f"{block.param}.{name} {said}.", param=f"{block.param}.{name}")
    return value


def _only_text(block: _Block) -> str:
    if block.value["type"] != "text":
        raise RequestError(f"{block.param}.type must be text: instructions are text.", param=f"{block.param}.type")
    return _field(block, "text")


def _remark(blocks: Sequence[_Block]) -> list[_Block]:
    """Instructions that come later, as a block of the user's turn that they belong to."""
    text = "\n".join(map(_only_text, blocks)).strip()
    if not text:
        return []
    said = text if _is_remark(text) else "\n".join([_REMARK[0], text, _REMARK[1]])
    return [_Block(blocks[0].param, {"type": "text", "text": said}, is_remark=True)]


def _is_remark(text: str) -> bool:
    bare = text.strip()
    return bare.startswith(_REMARK[0]) and bare.endswith(_REMARK[1])


def _text(block: _Block) -> str:
    """The text of what a user gives to read. Raises RequestError for what is no text."""
    kind = block.value["type"]
    if kind == "text":
        return _field(block, "text")
    if kind == "document":
        return _document(block)
    if kind == "search_result":
        return "\n".join([_field(block, "title"), _field(block, "source"), _inner(block, "content")])
    if kind == "image":
        raise RequestError(
            f"{block.param} is an image: vision is out of scope, the specialists read text only.", param=block.param
        )
    raise RequestError(
        f"{block.param}.type: {kind[:60]!r} is not read here. Give text, tool_result, document or search_result.",
        param=f"{block.param}.type",
    )


def _document(block: _Block) -> str:
    """Title, context and text of a document that is text."""
    value, param = block.value, f"{block.param}.source"
    source = value.get("source")
    kind = source.get("type") if isinstance(source, Mapping) else None
    head = [text for name in ("title", "context") if isinstance(text := value.get(name), str) and text]
    if isinstance(source, Mapping) and kind == "text":
        return "\n".join([*head, _field(_Block(param, source), "data")])
    if isinstance(source, Mapping) and kind == "content":
        return "\n".join([*head, _inner(_Block(param, source), "content")])
    said = f"{str(kind)[:60]!r} is not read here" if kind is not None else "is missing"
    raise RequestError(f"{param}.type {said}: the specialists read text only, give text.", param=f"{param}.type")


def _inner(block: _Block, name: str) -> str:
    return "\n".join(map(_text_or_image, _blocks(block.value.get(name), f"{block.param}.{name}")))


def _text_or_image(block: _Block) -> str:
    """Of blocks within blocks: text alone, an image being refused as such."""
    return _text(block) if block.value["type"] in ("text", "image") else _only_text(block)
