"""Which keys a schema declares where, for families whose notation is read by it. Takes whatever a client sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from ..json_schema import target_of

_MAX_PARTS = 64
_TYPES: Final = {"string", "number", "integer", "boolean", "object", "array", "null"}


class Shape:
    """What may stand at one place of a tool's arguments: all the alternatives of its schema."""

    def __init__(self, root: Any, nodes: Iterable[Any] | None = None) -> None:
        """root: the schema of the arguments. nodes: its parts that are meant, the root itself where left out."""
        self._root = root
        self.parts: list[Mapping[str, Any]] = []
        todo, seen = [root] if nodes is None else list(nodes), set()
        while todo and len(self.parts) < _MAX_PARTS:
            node = todo.pop(0)
            if not isinstance(node, Mapping) or id(node) in seen:
                continue
            seen.add(id(node))
            self.parts.append(node)
            if isinstance(node.get("$ref"), str):
                todo.append(target_of(node["$ref"], root))
            for word in ("anyOf", "oneOf", "allOf"):
                if isinstance(node.get(word), list):
                    todo += node[word]

    @property
    def keys(self) -> list[str]:
        """The keys that are declared."""
        found = [node["properties"] for node in self.parts if isinstance(node.get("properties"), Mapping)]
        return list(dict.fromkeys(str(key) for properties in found for key in properties))

    def at(self, key: str) -> Shape:
        """What may stand under a key."""
        found: list[Any] = []
        for node in self.parts:
            properties = node.get("properties")
            if isinstance(properties, Mapping) and key in properties:
                found.append(properties[key])
            else:
                found.append(node.get("additionalProperties"))
        return Shape(self._root, found)

    def items(self) -> Shape:
        """What may stand in an array."""
        found: list[Any] = []
        for node in self.parts:
            for word in ("items", "prefixItems"):
                inner = node.get(word)
                found += inner if isinstance(inner, list) else [inner]
        return Shape(self._root, found)

    @property
    def types(self) -> set[str]:
        """The types that are named, or are those of the values that are; empty where nothing says what may come, and
        where a name is none of JSON's: no validator reads that, so that anything may come."""
        found: set[str] = set()
        for node in self.parts:
            named = node.get("type")
            found |= {named} if isinstance(named, str) else {kind for kind in named or () if isinstance(kind, str)}
            values = node["enum"] if isinstance(node.get("enum"), list) else []
            found |= {_type_of(value) for value in [*values, *([node["const"]] if "const" in node else [])]}
        return found if found <= _TYPES else set()


def _type_of(value: Any) -> str:
    for kind, name in ((bool, "boolean"), (str, "string"), (int, "integer"), (float, "number"), (list, "array")):
        if isinstance(value, kind):
            return name
    return "null" if value is None else "object"
