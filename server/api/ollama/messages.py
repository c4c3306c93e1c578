"""The messages of Ollama's chat: text, calls whose arguments are objects, and results that name their tool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ...runtime.errors import RequestError
from ...runtime.request import Message
from ..common.history import MAX_CALLS, History
from ..common.text import text_of

_ROLES: Final = ("system", "user", "assistant", "tool")


def read_messages(messages: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Messages as runtime.request.Request has them. Raises RequestError naming the message."""
    history = History("messages", "a message of the role tool with its tool_name")
    for index, message in enumerate(messages):
        _read(history, message, f"messages[{index}]")
    return history.read()


def refuse_images(value: Any, param: str) -> None:
    """Raises RequestError for images; an empty list is none."""
    if value not in (None, [], ""):
        raise RequestError(f"{param}: vision is out of scope, the specialists read text only.", param=param)


def _read(history: History, message: Mapping[str, Any], param: str) -> None:
    given = message.get("role")
    role = given.lower() if isinstance(given, str) else given
    if role not in _ROLES:
        raise RequestError(f"{param}.role: {str(given)[:60]!r} is none of {', '.join(_ROLES)}.", param=f"{param}.role")
    refuse_images(message.get("images"), f"{param}.images")
    content = text_of(message.get("content"), f"{param}.content", optional=True)
    if role == "tool":
        history.result(message.get("tool_call_id"), message.get("tool_name") or message.get("name"), content)
    elif role == "assistant":
        thinking = message.get("thinking")
        history.answer(content, _calls(history, message, param), thinking if isinstance(thinking, str) else "")
    else:
        history.say(role, content)


def _calls(history: History, message: Mapping[str, Any], param: str) -> list[dict[str, Any]]:
    listed = message.get("tool_calls") or []
    if not isinstance(listed, list) or len(listed) > MAX_CALLS:
        raise RequestError(
            f"{param}.tool_calls must be a list of at most {MAX_CALLS:,} calls.", param=f"{param}.tool_calls"
        )
    return [_call(history, call, f"{param}.tool_calls[{index}]") for index, call in enumerate(listed)]


def _call(history: History, call: Any, param: str) -> dict[str, Any]:
    inner = call.get("function") if isinstance(call, Mapping) else None
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(name, str) or not name:
        raise RequestError(f"{param} must be {{function: {{name, arguments: an object}}}}.", param=param)
    return history.call(call.get("id"), name, inner.get("arguments"))
