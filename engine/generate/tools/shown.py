"""Tools for templates that show one type a parameter, and nothing of `anyOf` or `$ref`: Gemma 4's leaves such ones
without a type, Hermes 2 Pro's fails on them.

A parameter that may be null is shown by its other type with `nullable`, a reference by what it points at. What the
arguments are held to is the client's schema all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ...request import Tool
from ..json_schema import target_of
from .family import openai_tool

_MAX_DEPTH: Final = 8
_MAX_NODES: Final = 5_000


def simple(tool: Tool) -> dict[str, Any]:
    """A tool in OpenAI's form, with one type a parameter."""
    found = openai_tool(tool)
    shown = _Shown(tool.parameters).schema(tool.parameters, 0)
    found["function"]["parameters"] = {"type": "object", **shown} if shown else shown
    return found


class _Shown:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._left = _MAX_NODES

    def schema(self, node: Any, depth: int) -> dict[str, Any]:
        if not isinstance(node, Mapping) or depth > _MAX_DEPTH or self._left <= 0:
            return {}
        self._left -= 1
        found = self._simple(node)
        properties = found.get("properties")
        if isinstance(properties, Mapping):
            found["properties"] = {name: self.schema(inner, depth + 1) for name, inner in properties.items()}
        if isinstance(found.get("items"), Mapping):
            found["items"] = self.schema(found["items"], depth + 1)
        found.pop("$defs", None)
        found.pop("definitions", None)
        return found

    def _simple(self, node: Mapping[str, Any]) -> dict[str, Any]:
        """A schema of one type."""
        found = dict(node)
        for _ in range(_MAX_DEPTH):
            reference = found.get("$ref")
            if isinstance(reference, str):
                target = target_of(reference, self._root)
                found = {**(target if isinstance(target, Mapping) else {}), **found}
                del found["$ref"]
                continue
            word = next((word for word in ("allOf", "anyOf", "oneOf") if isinstance(found.get(word), list)), None)
            if word is None:
                break
            branches = [branch for branch in found.pop(word) if isinstance(branch, Mapping)]
            others = [branch for branch in branches if branch.get("type") != "null"]
            if len(others) < len(branches):
                found["nullable"] = True
            # Of several alternatives the template can show one.
            found = {**(others[0] if others else {}), **found}
        kinds = found.get("type")
        if isinstance(kinds, list):
            others = [kind for kind in kinds if kind != "null"]
            if len(others) < len(kinds):
                found["nullable"] = True
            found["type"] = others[0] if others else "null"
        if "type" not in found:
            for word, kind in (("properties", "object"), ("items", "array"), ("enum", "string")):
                if word in found:
                    found["type"] = kind
        return found
