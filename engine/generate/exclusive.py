"""Whether two JSON schemas can both be true of one value (disjointness of types), as far as that can be told cheaply.

`oneOf` cannot be drawn token by token, `anyOf` can: where no value fits two of its branches, the two are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

Resolve = Callable[[str], Any]
"""What a `$ref` points at; None where that cannot be told."""

_TYPES: Final = frozenset({"null", "boolean", "integer", "fraction", "string", "array", "object"})
_MAX_STEPS: Final = 20_000
_MAX_DEPTH: Final = 40


class Exclusion:
    """Comparisons within one schema.

    resolve:  follows references.
    accepts:  whether a value fits a schema: for branches that are a list of values.
    """

    def __init__(self, resolve: Resolve, accepts: Callable[[Any, Any], bool]) -> None:
        self._resolve = resolve
        self._accepts = accepts
        self._steps = 0  # of all comparisons of this schema

    def overlap(self, branches: Sequence[Any], context: Any = True) -> tuple[int, int] | None:
        """Two branches that a value may fit at once, beside `context`, which applies to each; None for none."""
        if self._have_own_values(branches):
            return None
        tag = self.tag(branches)
        if tag is not None and all(self._is_tagged(branch, context, tag) for branch in branches):
            return None
        for at, one in enumerate(branches):
            for other in range(at + 1, len(branches)):
                if not self._exclude([one, context], [branches[other], context], 0):
                    return at, other
        return None

    def tag(self, branches: Sequence[Any], preferred: str | None = None) -> str | None:
        """A property that each branch declares, each with values of its own: a discriminator."""
        tables = [self.properties(branch) for branch in branches]
        names = [name for name in tables[0] if all(name in table for table in tables)]
        for name in sorted(names, key=lambda name: name != preferred):
            if self._have_own_values([table[name] for table in tables]):
                return name
        return None

    def _have_own_values(self, schemas: Sequence[Any]) -> bool:
        """Whether each is a list of plain values, none of which is another's."""
        seen: set[Any] = set()
        for schema in map(self.behind, schemas):
            if not isinstance(schema, Mapping):
                return False
            values = [schema["const"]] if "const" in schema else schema.get("enum")
            if not isinstance(values, list) or any(isinstance(value, list | dict) for value in values):
                return False
            own = {(isinstance(value, bool), value) for value in values}  # to Python, True is 1
            if seen & own:
                return False
            seen |= own
        return True

    def _is_tagged(self, branch: Any, context: Any, tag: str) -> bool:
        """Whether it is for objects alone, all of which have the tag."""
        parts = self._parts([branch, context])
        required = {name for part in parts if isinstance(part, Mapping) for name in part.get("required", ())}
        return _types(parts) == {"object"} and tag in required

    def properties(self, schema: Any) -> Mapping[str, Any]:
        """The properties that a schema declares itself, behind its references."""
        found = self.behind(schema)
        table = found.get("properties") if isinstance(found, Mapping) else None
        return table if isinstance(table, Mapping) else {}

    def behind(self, schema: Any) -> Any:
        """The schema itself, its references followed."""
        for _ in range(_MAX_DEPTH):
            if not isinstance(schema, Mapping) or not isinstance(schema.get("$ref"), str):
                break
            schema = self._resolve(schema["$ref"])
        return schema

    def _parts(self, schemas: Sequence[Any]) -> list[Any]:
        """The schemas that have to be true together, each once: references followed, allOf opened."""
        parts: list[Any] = []
        seen: set[int] = set()
        todo = list(reversed(schemas))
        while todo:
            schema = todo.pop()
            if isinstance(schema, Mapping):
                if id(schema) in seen:
                    continue
                seen.add(id(schema))
                nested = list(schema.get("allOf") or ())
                if isinstance(schema.get("$ref"), str) and (target := self._resolve(schema["$ref"])) is not None:
                    nested.append(target)
                todo += reversed(nested)
            parts.append(schema)
        self._steps += len(parts)
        return parts

    def _exclude(self, one: Sequence[Any], other: Sequence[Any], depth: int) -> bool:
        self._steps += 1
        if self._steps > _MAX_STEPS or depth > _MAX_DEPTH:
            return False
        a, b = self._parts(one), self._parts(other)
        if any(part is False for part in (*a, *b)):
            return True
        shared = _types(a) & _types(b)
        if not shared:
            return True
        a, b = [part for part in a if part is not True], [part for part in b if part is not True]
        if self._values_excluded(a, b) or self._values_excluded(b, a):
            return True
        if all(self._excluded_as(kind, a, b, depth) for kind in shared):
            return True
        return self._branches_excluded(a, b, depth) or self._branches_excluded(b, a, depth)

    def _values_excluded(self, a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> bool:
        for part in a:
            values = [part["const"]] if "const" in part else part.get("enum")
            if isinstance(values, list) and len(values) * len(b) <= 1000:
                self._steps += len(values) * len(b)
                return not any(all(self._accepts(value, other) for other in (*a, *b)) for value in values)
        return False

    def _branches_excluded(self, a: Sequence[Mapping[str, Any]], b: Sequence[Any], depth: int) -> bool:
        """Whether one of a's alternatives is always needed and none of them goes with b."""
        for part in a:
            for word in ("anyOf", "oneOf"):
                branches = part.get(word)
                if isinstance(branches, list):
                    rest = [{key: value for key, value in part.items() if key != word} if p is part else p for p in a]
                    if all(self._exclude([*rest, branch], b, depth + 1) for branch in branches):
                        return True
        return False

    def _excluded_as(
        self, kind: str, a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], depth: int
    ) -> bool:
        """Whether no value of this type fits both."""
        both = (*a, *b)
        if kind == "object":
            required = {name for part in both for name in part.get("required") or () if isinstance(name, str)}
            return any(self._exclude(_property(a, name), _property(b, name), depth + 1) for name in required)
        if kind in ("integer", "fraction"):
            low = [part["minimum"] for part in both if _is_number(part.get("minimum"))]
            high = [part["maximum"] for part in both if _is_number(part.get("maximum"))]
            above = [part["exclusiveMinimum"] for part in both if _is_number(part.get("exclusiveMinimum"))]
            below = [part["exclusiveMaximum"] for part in both if _is_number(part.get("exclusiveMaximum"))]
            return any(x > y for x in low for y in high) or any(
                x >= y for x in (*low, *above) for y in (*high, *below) if x in above or y in below
            )
        if kind in ("string", "array"):
            least, most = ("minLength", "maxLength") if kind == "string" else ("minItems", "maxItems")
            low = [part[least] for part in both if _is_number(part.get(least))]
            high = [part[most] for part in both if _is_number(part.get(most))]
            return any(x > y for x in low for y in high)
        return False


def _property(parts: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """What has to be true of a property that is there."""
    found: list[Any] = []
    for part in parts:
        declared = part.get("properties") or {}
        if name in declared:
            found.append(declared[name])
        elif part.get("additionalProperties") is False and not part.get("patternProperties"):
            found.append(False)
    return found or [True]


def _types(parts: Sequence[Any]) -> frozenset[str]:
    found = _TYPES
    for part in parts:
        if isinstance(part, Mapping):
            if "type" in part:
                named = part["type"] if isinstance(part["type"], list) else [part["type"]]
                found &= {each for name in named for each in _TYPE_NAMES.get(name, (name,))}
            for values in ([part["const"]] if "const" in part else None, part.get("enum")):
                if isinstance(values, list):
                    found &= {_type_of(value) for value in values}
    return found


_TYPE_NAMES: Final[Mapping[str, Sequence[str]]] = {"number": ("integer", "fraction")}


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "integer" if value == value // 1 else "fraction"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
