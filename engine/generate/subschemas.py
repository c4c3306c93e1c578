"""Where the parts of a JSON schema stand.

Not every object in one is a schema: `properties` maps names to schemas, and a property may be named `type` or `enum`;
`default`, `examples`, `const` and `enum` hold values that may look like schemas.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

MAPS: Final = ("properties", "patternProperties", "$defs", "definitions")
LISTS: Final = ("allOf", "anyOf", "oneOf", "prefixItems")
SINGLE: Final = ("items", "additionalItems", "additionalProperties", "propertyNames")


def subschemas(schema: Any) -> Iterator[Mapping[str, Any]]:
    """A schema and all schemas within it, but for those that are true or false. References are not followed."""
    todo = [schema]
    while todo:
        node = todo.pop()
        if not isinstance(node, Mapping):
            continue
        yield node
        for word in MAPS:
            if isinstance(node.get(word), Mapping):
                todo += node[word].values()
        for word in LISTS:
            todo += node.get(word) or ()
        for word in SINGLE:
            inner = node.get(word)
            todo += inner if isinstance(inner, list) else [inner]


def references(schema: Any) -> Iterator[str]:
    """What a schema and the schemas within it refer to, each as often as it is named."""
    return (node["$ref"] for node in subschemas(schema) if isinstance(node.get("$ref"), str))
