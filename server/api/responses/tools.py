"""The tools of the Responses API: functions, alone or in a namespace, and tools that take any text.

A model knows functions with one name each. So a namespace's tools are told to it as `namespace__name`, and a tool that
takes a text as a function of one `input`; calls are given their own names and shapes again on the way out, and take
those of the model on the way in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ...runtime.errors import RequestError
from ..common.tools import MAX_TOOLS, ToolWish, tool_wish

INPUT: Final = "input"
_CUSTOM_SCHEMA: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {INPUT: {"type": "string"}},
    "required": [INPUT],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class ToolName:
    """What a client calls a tool. custom: it takes a text, not arguments."""

    name: str
    namespace: str | None = None
    custom: bool = False


@dataclass(frozen=True)
class Tools:
    """What a body says of tools. names: by the names that the model knows. echo: the tools that are served, for the
    response."""

    wish: ToolWish = field(default_factory=ToolWish)
    names: Mapping[str, ToolName] = field(default_factory=dict)
    echo: Sequence[Mapping[str, Any]] = ()

    def named(self, name: str) -> ToolName:
        """A tool by the name that the model knows."""
        return self.names.get(name) or ToolName(name)


def joined(namespace: Any, name: str) -> str:
    """The name by which a model knows a tool."""
    return f"{namespace}__{name}" if isinstance(namespace, str) and namespace else name


_WRITE: Final = 'Write "auto", "none", "required" or {"type": "function", "name": ...}.'


def read_tools(listed: Sequence[Any], choice: Any, parallel: bool | None) -> Tools:
    """The tools of a body. Raises RequestError naming the field."""
    found = _Found()
    for index, each in enumerate(listed):
        found.add(each, f"tools[{index}]")
    if len(found.functions) > MAX_TOOLS:
        raise RequestError(
            f"tools: give at most {MAX_TOOLS:,}, those of namespaces counted, not {len(found.functions):,}.",
            param="tools",
        )
    wish = tool_wish(
        tools=found.functions, tool_choice=_choice(choice), parallel=parallel, places=found.places, write=_WRITE
    )
    return Tools(wish, found.names, found.echo)


class _Found:
    """Tools as functions, each with its place in the body."""

    def __init__(self) -> None:
        self.functions: list[Any] = []
        self.places: list[str] = []
        self.names: dict[str, ToolName] = {}
        self.echo: list[Mapping[str, Any]] = []

    def add(self, tool: Any, place: str, namespace: str | None = None) -> None:
        kind = tool.get("type", "function") if isinstance(tool, Mapping) else None
        if kind == "namespace" and namespace is None:
            self._namespace(tool, place)
            return
        if kind == "custom":
            if namespace is None:
                self.echo.append(tool)
            tool = _as_function(tool)
            self._named(tool, place, namespace, custom=True)
        elif kind == "function":
            tool = {**tool, **tool["function"]} if isinstance(tool.get("function"), Mapping) else tool
            self._named(tool, place, namespace)
        if namespace is not None and isinstance(tool, Mapping) and isinstance(tool.get("name"), str):
            tool = {**tool, "name": joined(namespace, tool["name"])}
        self.functions.append(tool)
        self.places.append(place)

    def _namespace(self, tool: Mapping[str, Any], place: str) -> None:
        name, inner = tool.get("name"), tool.get("tools")
        if not isinstance(name, str) or not name:
            raise RequestError(f"{place}.name is missing: give the namespace's name.", param=f"{place}.name")
        if not isinstance(inner, list) or len(inner) > MAX_TOOLS:
            raise RequestError(f"{place}.tools must be a list of at most {MAX_TOOLS:,} tools.", param=f"{place}.tools")
        for index, each in enumerate(inner):
            self.add(each, f"{place}.tools[{index}]", name)
        self.echo.append(tool)

    def _named(self, tool: Mapping[str, Any], place: str, namespace: str | None, *, custom: bool = False) -> None:
        name = tool.get("name")
        if not isinstance(name, str):
            raise RequestError(f"{place}.name is missing: give the tool's name.", param=f"{place}.name")
        self.names[joined(namespace, name)] = ToolName(name, namespace, custom)
        if namespace is None and not custom:
            self.echo.append(
                {
                    "type": "function",
                    "name": name,
                    "description": tool.get("description"),
                    "parameters": tool.get("parameters"),
                    "strict": tool.get("strict"),
                }
            )


def _as_function(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool that takes a text, as a function. Its grammar is told to the model, which is not held to it."""
    tool = {**tool, **tool["custom"]} if isinstance(tool.get("custom"), Mapping) else tool
    about = tool.get("description")
    form = tool.get("format")
    if isinstance(form, Mapping) and isinstance(form.get("definition"), str):
        written = f"The input has to follow this {form.get('syntax', 'lark')} grammar:\n{form['definition']}"
        about = f"{about}\n{written}" if isinstance(about, str) and about else written
    return {
        "type": "function",
        "name": tool.get("name"),
        "description": about,
        "parameters": _CUSTOM_SCHEMA,
        "strict": True,
    }


def _choice(choice: Any) -> Any:
    """A choice of tools in the names that the model knows."""
    if not isinstance(choice, Mapping):
        return choice
    if choice.get("type") == "allowed_tools":
        inner = choice.get("allowed_tools")
        inner = inner if isinstance(inner, Mapping) else choice
        listed = inner.get("tools")
        allowed = [_choice(each) for each in listed] if isinstance(listed, list) else listed
        return {"type": "allowed_tools", "mode": inner.get("mode", "auto"), "tools": allowed}
    named = choice.get("function") or choice.get("custom")
    name = named.get("name") if isinstance(named, Mapping) else choice.get("name")
    if choice.get("type", "function") in ("function", "custom", "tool") and isinstance(name, str):
        return {"type": "function", "name": joined(choice.get("namespace"), name)}
    return choice
