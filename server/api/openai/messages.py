"""The messages of a chat: text, calls of tools and their results, as the runtime has them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ...runtime.errors import RequestError
from ...runtime.request import Message
from ..json_body import MAX_VALUES, parse_json
from .extras import near

_MAX_PARTS: Final = 1000  # of one message
_MAX_CALLS: Final = 1000  # of one message
_ROLES: Final = ("system", "user", "assistant", "tool", "function")
# The result of a call that the conversation does not have: its template still wants a name.
_UNKNOWN: Final = "unknown"


def read_messages(messages: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Messages as runtime.request.Request has them. Raises RequestError naming the message.

    What a model did wrong earlier does not end its conversation: a call whose arguments are no JSON keeps their text.
    """
    history = _History()
    read = tuple(history.read(message, f"messages[{index}]") for index, message in enumerate(messages))
    return _reasoning_of_this_turn(read)


@dataclass(frozen=True)
class _Waiting:
    id: str
    name: str


@dataclass
class _History:
    """What of a conversation was read. waiting: calls without a result so far. values: in the arguments of calls."""

    n_calls: int = 0
    names: dict[str, str] = field(default_factory=dict)
    waiting: list[_Waiting] = field(default_factory=list)
    values: int = 0

    def read(self, message: Mapping[str, Any], param: str) -> Message:
        role = message.get("role")
        if role == "developer":  # OpenAI's newer name for it
            role = "system"
        if role not in _ROLES:
            said = str(role)[:60]
            raise RequestError(f"{param}.role: {said!r} is none of {', '.join(_ROLES)}.", param=f"{param}.role")
        if "content" not in message and (other := near("content", message)) is not None:
            raise RequestError(f"{param}.{other[:60]} is not understood: write content.", param=f"{param}.{other[:60]}")
        optional = role not in ("system", "user")
        content = text_of(message.get("content"), f"{param}.content", optional=optional)
        if role in ("tool", "function"):
            return self._result(message, content)
        found: Message = {"role": role, "content": content}
        if role == "assistant":
            if calls := self._calls(message, param):
                found["tool_calls"] = calls
                self.waiting = [_Waiting(call["id"], call["name"]) for call in calls]
            if reasoning := _reasoning(message):
                found["reasoning"] = reasoning
        return found

    def _result(self, message: Mapping[str, Any], content: str) -> Message:
        """A result belongs to the call of its id, else of its name, else to the next that waits for one."""
        id_, name = message.get("tool_call_id"), message.get("name")
        id_ = str(id_) if isinstance(id_, str | int) and id_ != "" else None
        waiting = self.waiting
        call = next((each for each in waiting if each.id == id_), None) if id_ is not None else None
        if call is None and id_ not in self.names:
            named = [each for each in waiting if each.name == name]
            call = next(iter(named or waiting), None)
        if call is not None:
            waiting.remove(call)
            id_ = call.id
        known = self.names.get(id_ or "")
        return {
            "role": "tool",
            "tool_call_id": id_ or f"call_{self.n_calls}",
            "name": known or (name if isinstance(name, str) and name else _UNKNOWN),
            "content": content,
        }

    def _calls(self, message: Mapping[str, Any], param: str) -> list[dict[str, Any]]:
        listed = message.get("tool_calls") or []
        if not isinstance(listed, list) or len(listed) > _MAX_CALLS:
            raise RequestError(
                f"{param}.tool_calls must be a list of at most {_MAX_CALLS:,} calls.", param=f"{param}.tool_calls"
            )
        calls = [self._call(call, f"{param}.tool_calls[{index}]") for index, call in enumerate(listed)]
        if not calls and (legacy := message.get("function_call")) is not None:
            calls = [self._call({"function": legacy}, f"{param}.function_call")]
        return calls

    def _call(self, call: Any, param: str) -> dict[str, Any]:
        kind = call.get("type") if isinstance(call, Mapping) else None
        inner = call.get("custom" if kind == "custom" else "function") if isinstance(call, Mapping) else None
        if not isinstance(inner, Mapping):
            raise RequestError(f"{param} must be {{id, type: function, function: {{name, arguments}}}}.", param=param)
        name = inner.get("name")
        if not isinstance(name, str) or not name:
            raise RequestError(f"{param} names no function.", param=param)
        # The same at each turn, or the conversation would not be found in the cache.
        id_ = call.get("id")
        id_ = str(id_) if isinstance(id_, str | int) and id_ != "" else f"call_{self.n_calls}"
        self.n_calls += 1
        self.names[id_] = name
        arguments = {"input": inner.get("input")} if kind == "custom" else self._arguments(inner.get("arguments"))
        return {"id": id_, "name": name, "arguments": arguments}

    def _arguments(self, written: Any) -> dict[str, Any]:
        """An object: JSON in a text, as OpenAI has it, or the object itself, or nothing. Else the text is kept."""
        if isinstance(written, str):
            text = written.strip()
            if text.startswith('"'):  # written out twice
                text = _unquoted(text).strip()
            value = {} if text in ("", "null") else self._object(text)
            return {"arguments": written} if value is None else value
        if isinstance(written, Mapping):
            return dict(written)
        return {} if written is None else {"arguments": written}

    def _object(self, text: str) -> dict[str, Any] | None:
        try:
            value = parse_json(text.encode())
        except RequestError:
            return None
        self.values += _n_values(value)
        if self.values > MAX_VALUES:  # as many as the body itself may have
            raise RequestError(
                f"The arguments of the calls in messages have more than {MAX_VALUES:,} values. Send fewer messages.",
                param="messages",
            )
        return value


def _n_values(value: Any) -> int:
    count, todo = 0, [value]
    while todo:
        members = todo.pop()
        count += len(members)
        todo += [
            one for one in (members.values() if isinstance(members, dict) else members) if isinstance(one, dict | list)
        ]
    return count


def _unquoted(text: str) -> str:
    try:
        value = json.loads(text)
        value.encode()
    except (ValueError, AttributeError):
        return text
    return str(value)


def _reasoning(message: Mapping[str, Any]) -> str:
    texts = (message.get(name) for name in ("reasoning_content", "reasoning"))
    return next((text for text in texts if isinstance(text, str) and text), "")


def _reasoning_of_this_turn(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Thinking counts between the calls of a turn, and is forgotten with it."""
    last_user = max((index for index, message in enumerate(messages) if message["role"] == "user"), default=-1)
    for index, message in enumerate(messages):
        if "reasoning" in message and (index < last_user or "tool_calls" not in message):
            del message["reasoning"]
    return messages


def text_of(content: Any, param: str, *, optional: bool) -> str:
    """The text of a content, its parts joined by line breaks. optional: nothing is as good as an empty text.

    Raises RequestError for what is no text.
    """
    if isinstance(content, str):
        return content
    if content is None and optional:
        return ""
    if not isinstance(content, list):
        raise RequestError(f"{param} must be a text or a list of parts.", param=param)
    if len(content) > _MAX_PARTS:
        raise RequestError(f"{param}: give at most {_MAX_PARTS:,} parts, not {len(content):,}.", param=param)
    return "\n".join(_part(part, f"{param}[{index}]") for index, part in enumerate(content))


def _part(part: Any, param: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("image_url", "image", "input_image"):
        raise RequestError(f"{param} is an image: vision is out of scope, the specialists read text only.", param=param)
    text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, dict) else None
    if kind not in ("text", "refusal") or not isinstance(text, str):
        raise RequestError(f"{param} must be {{type: text, text: ...}}; other parts are not supported.", param=param)
    return text
