"""The ways in which clients ask for thinking, or for none: Ollama's, vLLM's, OpenAI's, Anthropic's. A specialist's
policy decides what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ...runtime.errors import RequestError

_NONE: Final = ("none", "minimal", "off", "false", "disabled")
_OF_TEMPLATES: Final = ("enable_thinking", "thinking")


def thinking_wish(body: Mapping[str, Any]) -> bool | None:
    """Whether a chat body asks for thinking; None where it leaves that open. The first wish counts.

    Raises RequestError naming a field that cannot be understood.
    """
    wishes = [read(body[name], name) for name, read in _READERS.items() if body.get(name) is not None]
    return next((wish for wish in wishes if wish is not None), None)


def _switch(value: Any, param: str) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"{param} must be true or false.", param=param)
    return value


def _level(value: Any, param: str) -> bool:
    if not isinstance(value, str):
        raise RequestError(f"{param} must be a text, such as none, low or high.", param=param)
    return value not in _NONE


def _switch_or_level(value: Any, param: str) -> bool:
    return value if isinstance(value, bool) else _level(value, param)


def _kwargs(value: Any, param: str) -> bool | None:
    """Of the variables that a template could be given, those that switch thinking."""
    asked = _object(value, param)
    for name, inner in asked.items():
        if name not in _OF_TEMPLATES and inner not in (False, "", [], {}):
            raise RequestError(
                f"{param}.{name[:60]} is not served: of a template's variables, a request sets enable_thinking alone.",
                param=f"{param}.{name[:60]}",
            )
    wishes = [_switch(asked[name], f"{param}.{name}") for name in _OF_TEMPLATES if name in asked]
    return wishes[0] if wishes else None


def _thinking(value: Any, param: str) -> bool | None:
    """{"type": "enabled"} or {"type": "disabled"}."""
    if isinstance(value, bool):
        return value
    asked = _object(value, param)
    return _level(asked["type"], f"{param}.type") if "type" in asked else None


def _reasoning(value: Any, param: str) -> bool | None:
    """{"effort": ...}, or {"enabled": ...}."""
    asked = _object(value, param)
    if "enabled" in asked:
        return _switch(asked["enabled"], f"{param}.enabled")
    return _level(asked["effort"], f"{param}.effort") if "effort" in asked else None


def _object(value: Any, param: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise RequestError(f"{param} must be an object.", param=param)
    return {name: inner for name, inner in value.items() if inner is not None}


_READERS: Final = {
    "think": _switch_or_level,
    "enable_thinking": _switch,
    "chat_template_kwargs": _kwargs,
    "thinking": _thinking,
    "reasoning_effort": _level,
    "reasoning": _reasoning,
}
