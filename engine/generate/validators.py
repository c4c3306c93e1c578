"""jsonschema's validators, made fit for strangers' schemas: they ask no network, and what they cost is bounded.

Four things are done in another way than jsonschema does them. Patterns are matched by llguidance's derivatives, in
linear time, since a pattern of a stranger can keep Python's `re` busy for years. `multipleOf` is reckoned in decimals:
0.3 is three times 0.1. `uniqueItems` compares each item once, not with every other. And keywords are counted.
"""

from __future__ import annotations

import contextvars
import functools
import json
import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, TypeAlias, cast

from jsonschema import FormatChecker, ValidationError, validators
from llguidance import LLMatcher, LLTokenizer
from referencing import Registry

from ..errors import GrammarError
from .patterns import as_the_library_reads

Draft: TypeAlias = type[Any]  # a validator class of jsonschema

MAX_STEPS: Final = 200_000  # keywords looked at: about a second

_left: contextvars.ContextVar[float] = contextvars.ContextVar("steps left", default=math.inf)

_Keyword = Callable[[Any, Any, Any, Any], Iterator[ValidationError] | None]


class TooCostlyError(Exception):
    """The bound on steps is reached."""


@contextmanager
def spending(steps: int) -> Iterator[None]:
    """Validations within look at so many keywords together, and then raise TooCostlyError."""
    token = _left.set(steps)
    try:
        yield
    finally:
        _left.reset(token)


def validator_of(draft: Draft, schema: Any, *, formats: FormatChecker | None = None) -> Any:
    """A validator of a draft for a schema. formats: those that are checked; the ones of answers when left out."""
    # With a registry of its own, since jsonschema's default one fetches what a `$ref` names.
    return _bounded(cast(Hashable, draft))(schema, registry=Registry(), format_checker=formats or _FORMATS)


@functools.cache
def _bounded(draft: Any) -> Any:
    """A draft's validator that counts its steps, with keywords of our own."""
    own: dict[str, _Keyword] = {"pattern": _pattern, "multipleOf": _multiple_of, "uniqueItems": _unique_items}
    if "patternProperties" in draft.VALIDATORS:
        own |= {"patternProperties": _pattern_properties, "additionalProperties": _additional_properties}
    keywords = {**draft.VALIDATORS, **own}
    made: Any = validators.extend(draft, {word: _counted(check) for word, check in keywords.items()})
    evolve = made.evolve

    def stay(self: Any, **changes: Any) -> Any:
        """A part that names its draft would be validated by jsonschema's own class for it."""
        schema = changes.get("schema", self.schema)
        if isinstance(schema, Mapping) and "$schema" in schema:
            changes["schema"] = {word: value for word, value in schema.items() if word != "$schema"}
        return evolve(self, **changes)

    made.evolve = stay
    return made


def _counted(check: _Keyword) -> _Keyword:
    def counted(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError] | None:
        left = _left.get() - 1
        if left < 0:
            raise TooCostlyError("it would cost too much")
        _left.set(left)
        return check(validator, value, instance, schema)

    return counted


# --- keywords ---------------------------------------------------------------------------------------------------------


def _pattern(validator: Any, pattern: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "string") and not matches(pattern, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if validator.is_type(instance, "object"):
        for pattern, inner in patterns.items():
            for name, value in instance.items():
                if matches(pattern, name):
                    yield from validator.descend(value, inner, path=name, schema_path=pattern)


def _additional_properties(validator: Any, allowed: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "object"):
        return
    declared, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for name, value in instance.items():
        if name in declared or any(matches(pattern, name) for pattern in patterns):
            continue
        if allowed is False:
            yield ValidationError(f"{name!r} is none of the properties that it may have")
        elif validator.is_type(allowed, "object"):
            yield from validator.descend(value, allowed, path=name)


def _multiple_of(validator: Any, step: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if not validator.is_type(instance, "number"):
        return
    is_finite = isinstance(instance, int) or math.isfinite(instance)
    if not is_finite or Fraction(exactly(instance)) % Fraction(exactly(step)):
        yield ValidationError(f"{instance!r} is not a multiple of {step}")


def _unique_items(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    if wanted and validator.is_type(instance, "array") and len({_plain(item) for item in instance}) < len(instance):
        yield ValidationError(f"{instance!r} has non-unique elements")


def _plain(value: Any) -> Hashable:
    """Equal for values that JSON Schema calls equal: 1 and 1.0 are, true and 1 are not."""
    if isinstance(value, list):
        return ("array", *map(_plain, value))
    if isinstance(value, Mapping):
        return "object", frozenset((name, _plain(inner)) for name, inner in value.items())
    return isinstance(value, bool), value


def exactly(value: float) -> Decimal:
    """A number as it was written."""
    return Decimal(repr(value))


def matches(pattern: str, text: str) -> bool:
    """Whether a regular expression is found in a text. Raises GrammarError where that costs too much."""
    matcher: LLMatcher = _matcher(pattern).deep_copy()
    data = json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f").encode("utf-8", "replace")
    taken: int = matcher.try_consume_tokens(list(data))
    if matcher.is_error():
        raise GrammarError("The answer cannot be checked against a pattern.", "Use a simpler pattern.")
    return taken == len(data) and bool(matcher.is_accepting())


def can_be_matched(pattern: str) -> bool:
    """Whether texts can be held against a pattern: look-around and back-references cannot be matched in linear time."""
    try:
        return not _matcher(pattern).is_error()
    except ValueError:
        return False


@functools.lru_cache(64)
def _matcher(pattern: str) -> LLMatcher:
    wanted = {"type": "string", "pattern": as_the_library_reads(pattern)}
    return LLMatcher(_bytes(), LLMatcher.grammar_from_json_schema(json.dumps(wanted)), log_level=0)


@functools.cache
def _bytes() -> LLTokenizer:
    return LLTokenizer("byte")


# --- formats ----------------------------------------------------------------------------------------------------------

# jsonschema knows them without further packages; the others are held to by the grammar alone.
_FORMATS: Final = FormatChecker(("date", "email", "ipv4", "ipv6", "uuid"))


def _has_a_day(value: object) -> bool:
    if isinstance(value, str):
        try:
            date.fromisoformat(value[:10])
        except ValueError:
            return False
    return True


_FORMATS.checks("date-time")(_has_a_day)
