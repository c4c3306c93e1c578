"""Random JSON schemas over all keywords, and random texts that a grammar allows: for differential tests."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from typing import Any

from coe.engine.generate.grammar import Grammar

_CLOSING = frozenset(b'"}]')
_FORMATS = ("date", "time", "date-time", "email", "ipv4", "ipv6", "uuid", "hostname", "uri")
_CHARS = string.ascii_lowercase + '"\\\n\té/😀 '


def answer(grammar: Grammar, draw: random.Random, *, chars: int = 120) -> str | None:
    """A random walk over the tokens of a byte vocabulary that a grammar allows; None where it finds no end.

    chars: from here on whatever closes is preferred.
    """
    out = bytearray()
    while not grammar.complete:
        allowed = grammar.allowed().tolist()
        text = [token for token in allowed if token < 256]
        if len(text) < len(allowed) and (not text or draw.random() < 0.3):
            break
        if len(out) > 6 * chars:
            return None
        liked = [token for token in text if 32 < token < 127] or text
        if len(out) > chars:
            liked = [token for token in text if token in _CLOSING] or liked
        elif draw.random() < 0.15:
            liked = text
        elif draw.random() < 0.3:
            liked = [token for token in liked if token in b'"}],0129.-eE'] or liked
        token = draw.choice(liked)
        assert grammar.take(token)
        out.append(token)
    return out.decode()


class Schemas:
    """Draws schemas. Each is well-formed; many are contradictory, unsupported or odd."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._refs = False  # whether there are definitions to refer to

    def root(self) -> dict[str, Any]:
        """A whole schema, some of them with definitions that refer to each other."""
        refs = self._chance(0.3)
        schema = self._schema(3, refs=refs)
        if refs:
            schema["$defs"] = {name: self._schema(2, refs=True) for name in ("a", "b")}
            if self._draw.random() < 0.5 and "properties" in schema:
                schema["properties"]["r"] = {"$ref": "#/$defs/a"}
            elif self._draw.random() < 0.5:
                schema = {"$defs": schema["$defs"], "anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}]}
        return schema

    def _chance(self, odds: float) -> bool:
        return self._draw.random() < odds

    def _schema(self, depth: int, *, refs: bool = False) -> dict[str, Any]:
        draw = self._draw
        if refs and self._chance(0.15):
            return {"$ref": f"#/$defs/{draw.choice('ab')}"}
        kinds: list[Callable[[int], dict[str, Any]]] = [self._number, self._number, self._string, self._values]
        if depth > 0:
            kinds += [self._object, self._object, self._array, self._combined]
        self._refs = refs
        made = draw.choice(kinds)(depth)
        if self._chance(0.06):
            made.pop("type", None)
        elif self._chance(0.05) and isinstance(made.get("type"), str):
            made["type"] = [made["type"], draw.choice([kind for kind in ("null", "boolean") if kind != made["type"]])]
        if depth > 0 and self._chance(0.06):
            made |= self._rare(depth)
        return made

    def number(self) -> float:
        """A number of one of the sizes and spellings at which things go wrong."""
        draw = self._draw
        return draw.choice(
            [
                lambda: draw.randint(-12, 12),
                lambda: draw.randint(-12, 12) / 4,
                lambda: round(draw.uniform(-2, 2), draw.randint(1, 6)),
                lambda: draw.choice([0, 0.0, 0.5, 1, 1.0, 100, 1e3, 0.1, 0.3, 1e-7, 1e22, 2.5e-5, -0.0]),
                lambda: draw.choice([2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 1199999999999999999]),
                lambda: draw.randint(-(10**20), 10**20),
                lambda: draw.uniform(-2, 2),
                lambda: draw.randint(-(10**6), 10**6),
            ]
        )()

    def _number(self, depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {"type": self._draw.choice(["number", "integer"])}
        low, high = sorted((self.number(), self.number()))
        for word, value in (("minimum", low), ("maximum", high), ("exclusiveMinimum", low), ("exclusiveMaximum", high)):
            if self._chance(0.35):
                made[word] = value
        if self._chance(0.2):
            made["multipleOf"] = self._draw.choice([1, 2, 3, 7, 10, 0.5, 0.1, 0.25, 0.01, 1.5, 100])
        return made

    def _string(self, depth: int) -> dict[str, Any]:
        draw = self._draw
        made: dict[str, Any] = {"type": "string"}
        if self._chance(0.3):
            made["minLength"] = draw.randint(0, 4)
        if self._chance(0.3):
            made["maxLength"] = draw.randint(0, 8)
        if self._chance(0.3):
            made["pattern"] = draw.choice(
                [
                    "^[a-z]+$", r"^\d{2,4}$", "b", "^a|b$", "^(a|bc)*$", r"\w-\w", r"^\S+$", "[^a-z]", "^$", r"^.{2}$",
                    r"^[\s\S]{1,3}$", r"^\w+@\w+\.com$", "x?", r"^\-?[0-9]+$", "^(?:ab){1,2}", "[.]", "^é+$", r"^\/a$",
                    '^[^"]*$',                     r"^[^\\\s]+$", r"^[^x-z\[]{1,3}$",
                ]
            )  # fmt: skip
        elif self._chance(0.2):
            made["format"] = draw.choice(
                ["date", "time", "date-time", "email", "ipv4", "ipv6", "uuid", "hostname", "uri"]
            )
        return made

    def _values(self, depth: int) -> dict[str, Any]:
        if self._chance(0.4):
            return {"const": self.value(2)}
        return {"enum": [self.value(1) for _ in range(self._draw.randint(1, 4))]}

    def value(self, depth: int) -> Any:
        """A JSON value."""
        draw = self._draw
        kinds: list[Callable[[], Any]] = [lambda: None, lambda: draw.choice([True, False]), self.number, self.text]
        if depth > 0:
            kinds += [
                lambda: [self.value(depth - 1) for _ in range(draw.randint(0, 3))],
                lambda: {self.text(): self.value(depth - 1) for _ in range(draw.randint(0, 3))},
            ]
        return draw.choice(kinds)()

    def text(self) -> str:
        """A text, some with characters that JSON escapes."""
        return "".join(self._draw.choice(_CHARS) for _ in range(self._draw.randint(0, 5)))

    def _object(self, depth: int) -> dict[str, Any]:
        draw = self._draw
        made: dict[str, Any] = {"type": "object"}
        names = draw.sample(["a", "b", "c", "kind", "a b", 'q"', "é"], draw.randint(0, 4))
        if names:
            made["properties"] = {name: self._schema(depth - 1, refs=self._refs) for name in names}
        if self._chance(0.6):
            made["required"] = [name for name in names if self._chance(0.6)] + ["z"] * self._chance(0.1)
        if self._chance(0.7):
            made["additionalProperties"] = draw.choice([False, False, True, self._schema(depth - 1)])
        if self._chance(0.15):
            made["patternProperties"] = {draw.choice(["^x", "^[a-c]$", r"\d", "b"]): self._schema(depth - 1)}
        if self._chance(0.15):
            made["minProperties"] = draw.randint(0, 3)
        if self._chance(0.15):
            made["maxProperties"] = draw.randint(0, 4)
        return made

    def _array(self, depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {"type": "array"}
        if self._chance(0.7):
            made["items"] = self._draw.choice([False, self._schema(depth - 1), self._schema(depth - 1)])
        if self._chance(0.3):
            made["prefixItems"] = [self._schema(depth - 1) for _ in range(self._draw.randint(1, 3))]
        if self._chance(0.4):
            made["minItems"] = self._draw.randint(0, 3)
        if self._chance(0.4):
            made["maxItems"] = self._draw.randint(0, 4)
        return made

    def _combined(self, depth: int) -> dict[str, Any]:
        draw = self._draw
        word = draw.choice(["anyOf", "anyOf", "allOf", "oneOf", "oneOf"])
        made: dict[str, Any] = {word: [self._schema(depth - 1) for _ in range(draw.randint(1, 3))]}
        if word == "oneOf" and self._chance(0.5):
            made = {"oneOf": [self._tagged(depth - 1, tag) for tag in ("x", "y", draw.choice(["z", "x"]))]}
        if self._chance(0.3):
            made |= self._schema(depth - 1)
        return made

    def _tagged(self, depth: int, tag: str) -> dict[str, Any]:
        made = self._object(max(1, depth))
        made["properties"] = {"kind": {"const": tag}, **made.get("properties", {})}
        made["properties"]["kind"] = {"const": tag}
        return made

    def _rare(self, depth: int) -> dict[str, Any]:
        draw, inner = self._draw, self._schema(depth - 1)
        return draw.choice(
            [
                {"not": inner},
                {"if": inner, "then": self._schema(depth - 1), "else": self._schema(depth - 1)},
                {"contains": inner, "minContains": draw.randint(0, 2)},
                {"uniqueItems": self._chance(0.5)},
                {"propertyNames": draw.choice([inner, {"enum": ["a", "b"]}, {"pattern": "^[ab]"}, {"maxLength": 2}])},
                {"dependentRequired": {"a": ["b"]}},
                {"dependentSchemas": {"a": inner}},
                {"unevaluatedProperties": draw.choice([False, True, inner])},
                {"unevaluatedItems": draw.choice([False, True, inner])},
                {"deprecated": True, "x-more": 1, "nullable": True},
            ]
        )
