"""Whether a finished answer is what its JSON schema asked for: the last word, not that of the grammar it was drawn by.

jsonschema validates; three things are done in another way than it does them. Patterns are matched by llguidance's
derivatives, in linear time, since a pattern of a stranger can keep Python's `re` busy for years. `multipleOf` is
reckoned in decimals: 0.3 is three times 0.1. And what a validation may cost is bounded.
"""

from __future__ import annotations

import contextvars
import functools
import json
import math
from collections.abc import Callable, Hashable, Iterator
from datetime import date
from fractions import Fraction
from typing import Any, Final, cast

from jsonschema import FormatChecker, ValidationError, validators
from llguidance import LLMatcher, LLTokenizer
from referencing import Registry
from referencing.exceptions import Unresolvable

from ..errors import GrammarError
from .json_schema import JsonSchema, exactly

_MAX_STEPS: Final = 200_000  # keywords looked at: about a second
_MAX_SAID_CHARS: Final = 300

_steps: contextvars.ContextVar[int] = contextvars.ContextVar("steps")

_Keyword = Callable[[Any, Any, Any, Any], Iterator[ValidationError] | None]


class _TooCostlyError(Exception):
    """The bound on steps is reached."""


class Conformity:
    """Validates the answers of one request."""

    def __init__(self, schema: JsonSchema) -> None:
        # With a registry of its own, since jsonschema's default one asks the network.
        made = _bounded(cast(Hashable, schema.draft))
        self._validator = made(schema.wanted, registry=Registry(), format_checker=_FORMATS)

    def violation(self, text: str) -> str | None:
        """What an answer breaks, None when it keeps to the schema.

        Raises GrammarError when finding that out would cost too much.
        """
        token = _steps.set(0)
        try:
            value = json.loads(text)
            fault = next(self._validator.iter_errors(value), None)
        except json.JSONDecodeError as error:
            return f"it is not JSON: {error.msg} at character {error.pos}"
        except ValueError as error:  # an integer of more digits than Python takes
            return f"it is not JSON that can be read: {error}"
        except (_TooCostlyError, RecursionError, Unresolvable) as error:
            raise GrammarError(
                "The answer cannot be checked against response_format.json_schema: that would cost too much.",
                "Simplify it: fewer alternatives within alternatives.",
            ) from error
        finally:
            _steps.reset(token)
        if fault is None:
            return None
        said = fault.message if len(fault.message) <= _MAX_SAID_CHARS else f"{fault.message[:_MAX_SAID_CHARS]}..."
        return f"at {fault.json_path[:_MAX_SAID_CHARS]}, {said}"


@functools.cache
def _bounded(draft: Any) -> Any:
    """A draft's validator that counts its steps, with keywords of our own."""
    own: dict[str, _Keyword] = {"pattern": _pattern, "multipleOf": _multiple_of}
    if "patternProperties" in draft.VALIDATORS:
        own |= {"patternProperties": _pattern_properties, "additionalProperties": _additional_properties}
    keywords = {**draft.VALIDATORS, **own}
    return validators.extend(draft, {word: _counted(check) for word, check in keywords.items()})


def _counted(check: _Keyword) -> _Keyword:
    def counted(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[ValidationError] | None:
        steps = _steps.get() + 1
        if steps > _MAX_STEPS:
            raise _TooCostlyError
        _steps.set(steps)
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


def matches(pattern: str, text: str) -> bool:
    """Whether a regular expression is found in a text. Raises GrammarError where that costs too much."""
    matcher: LLMatcher = _matcher(pattern).deep_copy()
    data = json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f").encode()
    taken: int = matcher.try_consume_tokens(list(data))
    if matcher.is_error():
        raise GrammarError("The answer cannot be checked against a pattern.", "Use a simpler pattern.")
    return taken == len(data) and bool(matcher.is_accepting())


@functools.lru_cache(64)
def _matcher(pattern: str) -> LLMatcher:
    grammar = LLMatcher.grammar_from_json_schema(json.dumps({"type": "string", "pattern": pattern}))
    return LLMatcher(_bytes(), grammar, log_level=0)


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
