"""Numbers of many digits in a schema, digit for digit.

llguidance reads the numbers of a JSON schema as doubles, which round them: {"const": 1199999999999999999} would give
1200000000000000000. So the way from the root to such a number is written as rules of its Lark dialect, with the
numbers as literals or regular expressions, and all that hangs off that way as JSON schemas within them.
Source of the dialect: llguidance, docs/syntax.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from referencing.exceptions import Unresolvable

from ..errors import GrammarError
from .json_schema import JsonSchema, is_integral, is_wide, target_of
from .subschemas import references, subschemas
from .validators import MAX_STEPS, TooCostlyError, spending, validator_of

_BOUNDS: Final = ("minimum", "maximum")
_SAYS_NOTHING: Final = frozenset(
    ("title", "description", "default", "examples", "$comment", "readOnly", "writeOnly", "discriminator")
) | {"$schema", "$id", "$defs", "definitions", "$anchor", "id"}
_REMEDY: Final = "Use numbers of up to 15 digits, or have them written as strings."


def has_wide_numbers(schema: Any) -> bool:
    """Whether any part of a schema, or what it refers to, names a number that the library would round."""
    return _leads_to_wide(schema, schema)


def _leads_to_wide(node: Any, root: Any) -> bool:
    todo, followed = [node], set[str]()
    while todo:
        for part in subschemas(todo.pop()):
            if _is_wide_leaf(part):
                return True
            reference = part.get("$ref")
            if isinstance(reference, str) and reference not in followed:
                followed.add(reference)
                todo.append(target_of(reference, root))
    return False


def _is_wide_leaf(node: Mapping[str, Any]) -> bool:
    values = [node["const"]] if "const" in node else node.get("enum")
    if isinstance(values, list) and any(map(is_wide, values)):
        return True
    return is_integral(node) and any(is_wide(node.get(word)) for word in _BOUNDS)


# What may come between the parts of such rules. Not by %ignore, which would hold for the rules around them as well.
_SPACE: Final = "JSON_SPACE?"
_COMMA: Final = f'{_SPACE} "," {_SPACE}'
_COLON: Final = f'":" {_SPACE}'


def rules_of(schema: JsonSchema, options: Mapping[str, Any], prefix: str = "") -> tuple[str, list[str]]:
    """The rules of a schema with wide numbers: the first one's name, and all of them.

    options: the library's, for the JSON schemas within. prefix: what the rules' names begin with.
    Raises GrammarError where such a number stands below a keyword that cannot be written as a rule.
    """
    try:
        with spending(MAX_STEPS):
            rules = _Rules(schema, options, prefix)
            return rules.start(), [f"JSON_SPACE: /{options['whitespace_pattern']}/", *rules.lines]
    except (TooCostlyError, Unresolvable) as error:
        raise GrammarError(f"response_format.json_schema cannot be followed: {error}.", _REMEDY) from error


class _Rules:
    def __init__(self, schema: JsonSchema, options: Mapping[str, Any], prefix: str) -> None:
        self._prefix = prefix
        self._schema = schema
        self._root = schema.followed
        self._options = options
        self.lines: list[str] = []
        self._of_reference: dict[str, str] = {}
        self._validator = validator_of(schema.draft, schema.wanted)

    def start(self) -> str:
        return self._rule(self._root, "$")

    def _new(self, body: str) -> str:
        name = f"{self._prefix}r{len(self.lines)}"
        self.lines.append(f"{name}: {body}")
        return name

    def _rule(self, node: Any, path: str) -> str:
        """The name of a rule for a part of the schema."""
        if not self._leads_to_wide(node):
            return self._new(f"%json {json.dumps(self._alone(node))}")
        words = {word for word in node if word not in _SAYS_NOTHING and not word.startswith("x-")}
        if "const" in node or "enum" in node:
            return self._values(node, path)
        if is_integral(node) and words <= {"type", *_BOUNDS} and any(is_wide(node.get(word)) for word in _BOUNDS):
            return self._integer(node)
        if words == {"$ref"}:
            return self._reference(node["$ref"], path)
        for word in ("anyOf", "allOf"):
            if words == {word} and (word == "anyOf" or len(node[word]) == 1):
                names = [self._rule(inner, f"{path}.{word}[{at}]") for at, inner in enumerate(node[word])]
                return self._new(" | ".join(names))
        if node.get("type") == "object" and words <= {"type", "properties", "required", "additionalProperties"}:
            return self._object(node, path)
        if node.get("type") == "array" and words <= {"type", "items", "prefixItems", "minItems", "maxItems"}:
            return self._array(node, path)
        raise GrammarError(
            f"response_format.json_schema: numbers of so many digits cannot be followed at {path[:200]}, "
            f"beside {', '.join(sorted(words))}.",
            _REMEDY,
        )

    def _leads_to_wide(self, node: Any) -> bool:
        if not isinstance(node, Mapping):
            return False
        used = {word: inner for word, inner in node.items() if word not in ("$defs", "definitions")}
        return _leads_to_wide(used, self._root)

    def _alone(self, node: Any) -> Any:
        """A part of the schema as a schema of its own, with what its references point at."""
        if not isinstance(node, Mapping):
            return {"allOf": [node], "x-guidance": self._options}
        shared = {key: self._root[key] for key in ("$defs", "definitions", "$schema") if key in self._root}
        if (own := [*references(node)]) and node is not self._root:
            for reference in (*own, *references(shared)):
                if not reference.startswith(("#/$defs/", "#/definitions/")):
                    raise GrammarError(
                        f"response_format.json_schema: {reference[:200]} cannot be followed, "
                        "beside numbers of so many digits.",
                        "Put what it points at into $defs.",
                    )
        return {**shared, **node, "x-guidance": self._options}

    def _reference(self, reference: str, path: str) -> str:
        if reference not in self._of_reference:
            self._of_reference[reference] = f"{self._prefix}d{len(self._of_reference)}"
            name = self._of_reference[reference]
            self.lines.append(f"{name}: {self._rule(target_of(reference, self._root), reference)}")
        return self._of_reference[reference]

    def _values(self, node: Mapping[str, Any], path: str) -> str:
        """Each value as it is written, of those that the schema beside it allows."""
        word = "const" if "const" in node else "enum"
        values = [node["const"]] if word == "const" else node["enum"]
        beside = self._validator.evolve(schema={key: inner for key, inner in node.items() if key != word})
        allowed = [value for value in values if beside.is_valid(value)]
        if not allowed:
            raise GrammarError(f"response_format.json_schema allows no value at {path[:200]}.", "Give it one.")
        return self._new(" | ".join(_literal(_json(value)) for value in allowed))

    def _integer(self, node: Mapping[str, Any]) -> str:
        return self._new(f"/{integers(node.get('minimum'), node.get('maximum'))}/")

    def _object(self, node: Mapping[str, Any], path: str) -> str:
        """An object of its declared properties alone, in their order."""
        properties = node.get("properties", {})
        required = node.get("required", [])
        if missing := [name for name in required if name not in properties]:
            raise GrammarError(
                f"response_format.json_schema: {missing[0][:60]} is required but not declared at {path[:200]}, "
                "beside numbers of so many digits.",
                "Declare it in properties.",
            )
        pairs = [
            (
                f"{_literal(json.dumps(name, ensure_ascii=False))} {_SPACE} {_COLON} "
                f"{self._rule(inner, f'{path}.{name}')}",
                name in required,
            )
            for name, inner in properties.items()
            if inner is not False
        ]
        first = rest = self._new('""')
        for pair, needed in reversed(pairs):
            after = rest
            rest = self._new(f"{_COMMA} {pair} {after}" + ("" if needed else f" | {after}"))
            first = self._new(f"{pair} {after}" + ("" if needed else f" | {first}"))
        return self._new(f'"{{" {_SPACE} {first} {_SPACE} "}}"')

    def _array(self, node: Mapping[str, Any], path: str) -> str:
        """An array, a rule for each of its first items."""
        tuple_form = node.get("items") if isinstance(node.get("items"), list) else None
        prefix: Sequence[Any] = tuple_form or node.get("prefixItems", ())
        least, most = node.get("minItems", 0), node.get("maxItems")
        others = True if tuple_form is not None else node.get("items", True)
        if least > (most if most is not None else least) or (others is False and least > len(prefix)):
            raise GrammarError(f"response_format.json_schema allows no array at {path[:200]}.", "Lower minItems.")
        firsts = [self._rule(inner, f"{path}[{at}]") for at, inner in enumerate(prefix[:most])]
        more = others is not False and (most is None or most > len(firsts))
        tail = self._new('""')
        if more:
            item = self._rule(others, f"{path}.items")
            low = max(0, least - len(firsts))
            high = "" if most is None else most - len(firsts)
            if firsts:
                tail = self._new(f"({_COMMA} {item}){{{low},{high}}}")
            elif high == 1:
                tail = self._new(item + ("" if low else ' | ""'))
            else:
                lower, upper = max(0, low - 1), "" if high == "" else int(high) - 1
                tail = self._new(f"{item} ({_COMMA} {item}){{{lower},{upper}}}" + ("" if low else ' | ""'))
        for at in range(len(firsts) - 1, -1, -1):
            comma = f"{_COMMA} " if at else ""
            tail = self._new(f"{comma}{firsts[at]} {tail}" + ("" if at < least else ' | ""'))
        return self._new(f'"[" {_SPACE} {tail} {_SPACE} "]"')


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def integers(low: int | None, high: int | None) -> str:
    """A regular expression of the integers from low to high, in JSON's spelling. Raises GrammarError for none."""
    if low is not None and high is not None and low > high:
        raise GrammarError(f"response_format.json_schema: no integer lies between {low} and {high}.", _REMEDY)
    parts: list[str] = []
    if low is None or low < 0:
        upper = None if low is None else -low
        parts.append(f"-({'|'.join(_natural(max(1, -high) if high is not None else 1, upper))})")
        if high is not None and high < 0:
            return parts[0]
    parts += _natural(max(0, low or 0), high)
    return f"({'|'.join(parts)})"


def _natural(low: int, high: int | None) -> list[str]:
    if high is None:
        length = len(str(low))
        return [*_natural(low, 10**length - 1), f"[1-9][0-9]{{{length},}}"]
    parts: list[str] = []
    for length in range(len(str(low)), len(str(high)) + 1):
        first = max(low, 10 ** (length - 1) if length > 1 else 0)
        parts += _same_length(str(first), str(min(high, 10**length - 1)))
    return parts


def _same_length(low: str, high: str) -> list[str]:
    """Numbers of equally many digits: split at the first digit that differs."""
    at = next((i for i, (a, b) in enumerate(zip(low, high, strict=True)) if a != b), len(low))
    if at == len(low):
        return [low]
    head, left = low[:at], len(low) - at - 1
    if not left:
        return [f"{head}[{low[at]}-{high[at]}]"]
    parts: list[str] = []
    start, stop = int(low[at]), int(high[at])
    if low[at + 1 :].strip("0"):
        parts += _same_length(low, head + low[at] + "9" * left)
        start += 1
    if high[at + 1 :].strip("9"):
        parts += _same_length(head + high[at] + "0" * left, high)
        stop -= 1
    if start <= stop:
        parts.append(f"{head}[{start}-{stop}][0-9]{{{left}}}")
    return parts
