"""Objects that name their properties and say nothing of others are closed: no further ones come.

JSON Schema leaves them open, and a small model then invents properties until its tokens are spent. What people mean is
what OpenAI's strict mode and llama.cpp's conversion make of them. A closed object is one that the schema allows too, so
nothing that it forbids can come of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

_COMBINES: Final = ("allOf", "anyOf", "oneOf")
_OF_OBJECTS: Final = ("properties", "patternProperties", "additionalProperties", "required", "minProperties")


def close_objects(places: Iterable[dict[str, Any]], target: Callable[[str], Any]) -> None:
    """Close what can be closed, in place. places: all parts of the schema; target: what a reference points at.

    Parts that describe one object together stay open, since each names but some of its properties.
    """
    nodes = list(places)
    stays_open: set[int] = set()

    def leave_open(node: Any) -> None:
        todo = [node]
        while todo:
            part = todo.pop()
            if isinstance(part, dict) and id(part) not in stays_open:
                stays_open.add(id(part))
                todo += _parts(part, target)

    for node in nodes:
        parts = _parts(node, target)
        together = len(node.get("allOf") or ()) + ("$ref" in node) + any(node.get(word) for word in ("anyOf", "oneOf"))
        if parts and (together > 1 or any(word in node for word in _OF_OBJECTS)):
            leave_open(node)
    for node in nodes:
        if id(node) not in stays_open and _says_nothing_of_others(node):
            node["additionalProperties"] = False


def _parts(node: Mapping[str, Any], target: Callable[[str], Any]) -> list[Any]:
    """What describes the same value as the node."""
    parts = [part for word in _COMBINES for part in node.get(word) or ()]
    reference = node.get("$ref")
    return [*parts, target(reference)] if isinstance(reference, str) else parts


def _says_nothing_of_others(node: Mapping[str, Any]) -> bool:
    properties = node.get("properties")
    if not isinstance(properties, Mapping) or not properties:
        return False
    if any(word in node for word in (*_COMBINES, "$ref", "patternProperties", "additionalProperties")):
        return False
    kind = node.get("type", "object")
    if "object" not in (kind if isinstance(kind, list) else [kind]):
        return False
    return set(node.get("required") or ()) <= set(properties) and node.get("minProperties", 0) <= len(properties)
