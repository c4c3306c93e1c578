"""The tools of a body. Those that the client runs can be called; those that Anthropic would run are left out."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from ...runtime.errors import RequestError
from ..common.tools import ToolWish, tool_wish

_TEXT: Final = {"type": "string"}
_WHOLE: Final = {"type": "integer"}
_CHOICES: Final = ("auto", "any", "tool", "none")
_CHOICE: Final = 'Write {"type": "auto"}, {"type": "any"}, {"type": "none"} or {"type": "tool", "name": ...}.'

# Tools whose schema Anthropic's models know by heart, by the type without its date. The client runs them.
_KNOWN: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "bash": (
        "Run a command in a bash session that stays open, or start that session anew.",
        {"type": "object", "properties": {"command": _TEXT, "restart": {"type": "boolean"}}},
    ),
    "text_editor": (
        "View, create and edit files. view: a file with line numbers, or a folder. create: a file with file_text. "
        "str_replace: old_str, which must be in the file exactly once, by new_str. insert: insert_text after the line "
        "insert_line.",
        {
            "type": "object",
            "properties": {
                "command": {"type": "string", "enum": ["view", "create", "str_replace", "insert"]},
                "path": _TEXT,
                "file_text": _TEXT,
                "old_str": _TEXT,
                "new_str": _TEXT,
                "insert_line": _WHOLE,
                "insert_text": _TEXT,
                "view_range": {"type": "array", "items": _WHOLE},
            },
            "required": ["command", "path"],
        },
    ),
}
_DATED: Final = re.compile(r"(\w+)_\d{8}")


def read_tools(tools: Sequence[Any] | None, tool_choice: Any, loaded: Collection[str]) -> ToolWish:
    """What a body says of tools. loaded: names of tools to be shown although their loading was deferred.

    Raises RequestError naming the field.
    """
    listed, places = [], []
    for index, tool in enumerate(tools or ()):
        param = f"tools[{index}]"
        if isinstance(tool, Mapping) and tool.get("defer_loading") is True and tool.get("name") not in loaded:
            continue
        listed.append(_as_function(tool, param))
        places.append(param)
    choice, parallel = _choice(tool_choice)
    return tool_wish(tools=listed, places=places, tool_choice=choice, parallel=parallel, schema="input_schema")


def _as_function(tool: Any, param: str) -> Any:
    """A tool as the common reader takes it: a function, or a type that is left out."""
    if not isinstance(tool, Mapping):
        return tool
    about = {name: value for name, value in tool.items() if name in ("name", "description", "input_schema", "strict")}
    about.setdefault("name", None)
    kind = tool.get("type")
    if kind is None or kind == "custom" or "input_schema" in tool:
        return about
    if not isinstance(kind, str):
        raise RequestError(f"{param}.type must be a text: custom, or none.", param=f"{param}.type")
    dated = _DATED.fullmatch(kind)
    if dated is None or dated[1] not in _KNOWN:
        return {"type": kind}
    description, schema = _KNOWN[dated[1]]
    return {"description": description, **about, "input_schema": schema}


def _choice(value: Any) -> tuple[Any, bool | None]:
    """The choice as the common reader takes it, and whether calls in parallel are allowed."""
    if value is None:
        return None, None
    kind = value.get("type") if isinstance(value, Mapping) else value
    if kind not in _CHOICES:
        raise RequestError(f"tool_choice: {str(kind)[:60]!r} is not known. {_CHOICE}", param="tool_choice")
    if not isinstance(value, Mapping):
        value = {"type": kind}
    if kind == "tool" and not isinstance(value.get("name"), str):
        raise RequestError(f"tool_choice.name is missing. {_CHOICE}", param="tool_choice.name")
    alone = value.get("disable_parallel_tool_use")
    if alone is not None and not isinstance(alone, bool):
        raise RequestError(
            "tool_choice.disable_parallel_tool_use must be true or false.",
            param="tool_choice.disable_parallel_tool_use",
        )
    return value, None if alone is None else not alone
