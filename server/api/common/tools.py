"""The tools of a request, and which of them may, must or must not be called: OpenAI's `tools`, and `functions` before
them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from coe.engine.request import Tool, ToolUse

from ...runtime.errors import RequestError

MAX_TOOLS: Final = 512
_MAX_CHARS: Final = 2**20  # of all tools together, as JSON
# OpenAI's own, and what clients make of tools of other servers: server.tool, server:tool, server/tool.
_NAME: Final = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_NAME_RULE: Final = "1 to 128 letters, digits, _, -, ., : or /"
_SCHEMAS: Final = ("parameters", "input_schema")
_NOTHING: Final[Mapping[str, Any]] = {"type": "object", "properties": {}, "additionalProperties": False}
CHOICES: Final = 'Write "auto", "none", "required" or {"type": "function", "function": {"name": ...}}.'


@dataclass(frozen=True)
class ToolWish:
    """What a body says of tools.

    tools:  those that the model is told of, also where the client forbids calls.
    legacy: the client speaks of functions: its answer has a `function_call` in place of `tool_calls`.
    notes:  what was left out, for the client to know.
    write:  how the dialect writes a choice, for errors.
    """

    tools: tuple[Tool, ...] = ()
    use: ToolUse = field(default_factory=ToolUse)
    legacy: bool = False
    notes: tuple[str, ...] = ()
    write: str = CHOICES


def tool_wish(
    *,
    tools: Sequence[Any] | None,
    tool_choice: Any,
    parallel: bool | None,
    functions: Sequence[Any] | None = None,
    function_call: Any = None,
    schema: str = "parameters",
    places: Sequence[str] | None = None,
    write: str = CHOICES,
) -> ToolWish:
    """What a body's fields come to; None: left out. schema: what the dialect calls the schema of the arguments.
    places: where each of the tools stands in the body, for errors; tools[0], tools[1] and so on without. write: how the
    dialect writes a choice.

    Raises RequestError naming the field.
    """
    if functions:
        if tools:
            raise RequestError("functions: tools says the same. Send one of them.", param="functions")
        found = tuple(_function(each, f"functions[{i}]", schema) for i, each in enumerate(functions))
        _bounded(found, "functions")
        wish = ToolWish(found, ToolUse(parallel=False), legacy=True)
        if function_call is not None:
            return _chosen(wish, function_call, "function_call", asked_for_one=None)
        return _chosen(wish, tool_choice, "tool_choice", asked_for_one=None)
    if function_call not in (None, "", "auto", "none"):
        raise RequestError("function_call: there are no functions. Send them.", param="function_call")
    listed = tools or ()
    found, dropped = _tools(listed, places or [f"tools[{index}]" for index in range(len(listed))], schema)
    _bounded(found, "tools")
    wish = ToolWish(found, ToolUse(parallel=parallel is not False), notes=_notes(dropped), write=write)
    choice = function_call if tool_choice is None else tool_choice
    return _chosen(wish, choice, "tool_choice", asked_for_one=parallel)


# --- tools --------------------------------------------------------------------------------------------------------


def _tools(listed: Sequence[Any], places: Sequence[str], schema: str) -> tuple[tuple[Tool, ...], list[str]]:
    """Those that can be called, and the types of those that OpenAI would have run itself."""
    found: list[Tool] = []
    dropped: list[str] = []
    for each, param in zip(listed, places, strict=True):
        if not isinstance(each, Mapping):
            raise RequestError(f"{param} must be an object.", param=param)
        kind = each.get("type", "function")
        if not isinstance(kind, str):
            raise RequestError(f"{param}.type must be a text: function.", param=f"{param}.type")
        if kind != "function":
            dropped.append(kind)
            continue
        # Some send the function itself in the tool's place, as the Responses API has it.
        inner = each.get("function")
        if inner is None and "name" in each:
            found.append(_function(each, param, schema))
        else:
            strict = each.get("strict")
            tool = _function(inner, f"{param}.function", schema)
            found.append(replace(tool, strict=True) if strict is True else tool)
    return tuple(found), dropped


def _notes(dropped: Sequence[str]) -> tuple[str, ...]:
    if not dropped:
        return ()
    kinds = list(dict.fromkeys(kind[:40] for kind in dropped))
    more = f" and {len(kinds) - 5} more" if len(kinds) > 5 else ""
    return (f"tools of type {', '.join(kinds[:5])}{more} are not served and were left out",)


def _function(value: Any, param: str, schema: str) -> Tool:
    if not isinstance(value, Mapping):
        raise RequestError(f"{param} must be an object with the function's name.", param=param)
    name, description, strict = value.get("name"), value.get("description"), value.get("strict")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        said = "is missing" if name is None else f"{str(name)[:80]!r} cannot be called"
        raise RequestError(f"{param}.name {said}: give {_NAME_RULE}.", param=f"{param}.name")
    if description is not None and not isinstance(description, str):
        raise RequestError(f"{param}.description must be a text.", param=f"{param}.description")
    if strict is not None and not isinstance(strict, bool):
        raise RequestError(f"{param}.strict must be true or false.", param=f"{param}.strict")
    if schema not in value:  # as Anthropic's API and OpenAI's have it: whichever is there
        schema = next((name for name in _SCHEMAS if name in value), schema)
    return Tool(name, description or "", _parameters(value.get(schema), f"{param}.{schema}"), bool(strict))


def _parameters(value: Any, param: str) -> Mapping[str, Any]:
    """The schema of an object. Clients leave its type out, and all of it where a function takes nothing."""
    if value in (None, {}):
        return _NOTHING
    if not isinstance(value, Mapping):
        raise RequestError(f"{param} must be a JSON schema, an object.", param=param)
    kind = value.get("type", "object")
    if kind is None or (isinstance(kind, list) and "object" in kind):
        return {**value, "type": "object"}
    if kind != "object":
        raise RequestError(f"{param}.type must be object: arguments have names.", param=f"{param}.type")
    return value


def _bounded(tools: Sequence[Tool], param: str) -> None:
    names: set[str] = set()
    for tool in tools:
        if tool.name in names:
            raise RequestError(f"{param}: there are two of the name {tool.name}. Send one of them.", param=param)
        names.add(tool.name)
    if sum(len(tool.description) + len(json.dumps(tool.parameters)) for tool in tools) > _MAX_CHARS:
        raise RequestError(
            f"{param} have more than {_MAX_CHARS:,} characters. Send fewer or shorter ones.", param=param
        )


# --- the choice ---------------------------------------------------------------------------------------------------


def _chosen(wish: ToolWish, choice: Any, param: str, *, asked_for_one: bool | None) -> ToolWish:
    """asked_for_one: what the client says of calls in parallel, None for nothing."""
    if choice in (None, "", "auto"):
        return wish
    if choice == "none":
        return _forbidden(wish)
    if choice in ("required", "any"):
        return _required(wish, (), param, wish.use.parallel)
    if not isinstance(choice, Mapping):
        raise RequestError(f"{param}: {json.dumps(choice)[:60]} is not known. {wish.write}", param=param)
    kind = choice.get("type")
    if kind == "allowed_tools":
        return _allowed(wish, choice, param)
    if kind in ("auto", "none", "required", "any"):
        return _chosen(wish, kind, param, asked_for_one=asked_for_one)
    if kind not in (None, "function", "tool"):
        raise RequestError(f"{param}.type: {str(kind)[:60]!r} is not served. {wish.write}", param=f"{param}.type")
    # One tool is one call, but for a client that says otherwise: small models repeat what they must say.
    return _required(wish, (_name(choice, param, wish.write),), param, asked_for_one is True)


def _name(choice: Any, param: str, write: str) -> str:
    inner = choice.get("function") if isinstance(choice, Mapping) else None
    name = (
        inner.get("name") if isinstance(inner, Mapping) else choice.get("name") if isinstance(choice, Mapping) else None
    )
    if not isinstance(name, str):
        raise RequestError(f"{param} names no tool. {write}", param=param)
    return name


def _required(wish: ToolWish, only: tuple[str, ...], param: str, parallel: bool) -> ToolWish:
    known = [tool.name for tool in wish.tools]
    if not known:
        why = f" ({'; '.join(wish.notes)})" if wish.notes else ""
        raise RequestError(f"{param}: there is no tool to be called{why}. Send tools of type function.", param=param)
    _known(only, known, param)
    return replace(wish, use=replace(wish.use, required=True, only=only, parallel=parallel))


def _known(names: Sequence[str], known: Sequence[str], param: str) -> None:
    for name in names:
        if name not in known:
            listed = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
            raise RequestError(f"{param}: {name[:80]!r} is none of the tools: {listed or 'none'}.", param=param)


def _allowed(wish: ToolWish, choice: Mapping[str, Any], param: str) -> ToolWish:
    """{"type": "allowed_tools", "allowed_tools": {"mode": ..., "tools": [...]}}, or its inside beside the type."""
    inner = choice.get("allowed_tools", choice)
    listed = inner.get("tools") if isinstance(inner, Mapping) else None
    mode = inner.get("mode", "auto") if isinstance(inner, Mapping) else None
    if not isinstance(listed, list) or mode not in ("auto", "required") or len(listed) > MAX_TOOLS:
        raise RequestError(f"{param}: allowed_tools has a mode, auto or required, and tools.", param=param)
    functions = [each for each in listed if not isinstance(each, Mapping) or each.get("type", "function") == "function"]
    names = tuple(dict.fromkeys(_name(each, param, wish.write) for each in functions))
    if mode == "required":
        if not names:
            raise RequestError(f"{param}: none of the allowed tools can be called.", param=param)
        return _required(wish, names, param, wish.use.parallel)
    _known(names, [tool.name for tool in wish.tools], param)
    # The model is told of all of them all the same: so the prompt stays as it was, and its cache with it.
    return replace(wish, use=replace(wish.use, only=names)) if names else _forbidden(wish)


def _forbidden(wish: ToolWish) -> ToolWish:
    """No call may come. The model is told of the tools all the same, for its prompt's sake."""
    return replace(wish, use=replace(wish.use, forbidden=True))
