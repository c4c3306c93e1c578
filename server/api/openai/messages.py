"""The messages of a chat: text, calls of tools and their results, as the runtime has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ...runtime.errors import RequestError
from ...runtime.request import Message
from ..common.history import MAX_CALLS, History
from ..common.text import text_of
from .extras import near

_ROLES: Final = ("system", "user", "assistant", "tool", "function")


def read_messages(messages: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Messages as runtime.request.Request has them. Raises RequestError naming the message."""
    history = History("messages")
    for index, message in enumerate(messages):
        _read(history, message, f"messages[{index}]")
    return history.read()


def _read(history: History, message: Mapping[str, Any], param: str) -> None:
    role = message.get("role")
    if role == "developer":  # OpenAI's newer name for it
        role = "system"
    if role not in _ROLES:
        said = "is missing" if role is None else f"{str(role)[:60]!r} is not known"
        known = ", ".join((*_ROLES, "developer"))
        raise RequestError(f"{param}.role {said}: give one of {known}.", param=f"{param}.role")
    if "content" not in message and (other := near("content", message)) is not None:
        raise RequestError(f"{param}.{other[:60]} is not understood: write content.", param=f"{param}.{other[:60]}")
    optional = role not in ("system", "user")
    content = text_of(message.get("content"), f"{param}.content", optional=optional)
    if role in ("tool", "function"):
        history.result(message.get("tool_call_id"), message.get("name"), content)
    elif role == "assistant":
        history.answer(content, _calls(history, message, param), _reasoning(message))
    else:
        history.say(role, content)


def _calls(history: History, message: Mapping[str, Any], param: str) -> list[dict[str, Any]]:
    listed = message.get("tool_calls") or []
    if not isinstance(listed, list) or len(listed) > MAX_CALLS:
        raise RequestError(
            f"{param}.tool_calls must be a list of at most {MAX_CALLS:,} calls.", param=f"{param}.tool_calls"
        )
    calls = [_call(history, call, f"{param}.tool_calls[{index}]") for index, call in enumerate(listed)]
    if not calls and (legacy := message.get("function_call")) is not None:
        calls = [_call(history, {"function": legacy}, f"{param}.function_call")]
    return calls


def _call(history: History, call: Any, param: str) -> dict[str, Any]:
    kind = call.get("type") if isinstance(call, Mapping) else None
    inner = call.get("custom" if kind == "custom" else "function") if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping):
        raise RequestError(f"{param} must be {{id, type: function, function: {{name, arguments}}}}.", param=param)
    name = inner.get("name")
    if not isinstance(name, str) or not name:
        raise RequestError(f"{param} names no function.", param=param)
    arguments = {"input": inner.get("input")} if kind == "custom" else inner.get("arguments")
    return history.call(call.get("id"), name, arguments)


def _reasoning(message: Mapping[str, Any]) -> str:
    texts = (message.get(name) for name in ("reasoning_content", "reasoning"))
    return next((text for text in texts if isinstance(text, str) and text), "")
