"""Structured output, in the ways that clients ask for it: OpenAI's response_format, and what llama-server, vLLM and
others take beside it. What is certain is understood, what is not is refused with what to write: a schema that is
left aside in silence gives answers that look right."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from ...runtime.errors import RequestError
from ..common.formats import SCHEMA_KEYS, WRITE, Format, envelope, format_of, object_of, written_schema

# Fields that hold an answer to something that no JSON schema says.
_NOT_SERVED: Final[Mapping[str, str]] = {
    "grammar": WRITE,
    "guided_regex": "Use a JSON schema with a pattern. " + WRITE,
    "guided_choice": "Use a JSON schema with an enum. " + WRITE,
    "guided_grammar": WRITE,
    "guided_whitespace_pattern": "Remove it.",
    "structural_tag": WRITE,
    "regex": "Use a JSON schema with a pattern. " + WRITE,
    "ebnf": WRITE,
    "format": WRITE,
    "response_schema": WRITE,
    "response_mime_type": WRITE,
    "output_schema": WRITE,
    "output_format": WRITE,
    "output_config": WRITE,
    "json_mode": 'Write response_format: {"type": "json_object"}.',
}


def response_format(body: Mapping[str, Any]) -> Format | None:
    """What the answer has to be: None for plain text, else as runtime.request.Request has it.

    Raises RequestError naming the field that is not understood, or that contradicts another.
    """
    for name, remedy in _NOT_SERVED.items():
        if body.get(name) not in (None, "", [], {}, False):
            raise RequestError(f"{name} is not served. {remedy}", param=name)
    found: dict[str, Format | None] = {}
    for name, read in _READERS.items():
        if body.get(name) not in (None, False):
            found[name] = read(body[name])
    wanted = {name: asked for name, asked in found.items() if asked is not None}
    if len(wanted) > 1 and len({json.dumps(asked.get("json_schema"), sort_keys=True) for asked in wanted.values()}) > 1:
        first, second, *_ = wanted
        raise RequestError(f"{first} and {second} ask for two formats. Send one of them.", param=second)
    return next(iter(wanted.values()), None)


def _structured_outputs(value: Any, param: str = "structured_outputs") -> Format | None:
    """vLLM's: of its kinds, those that are JSON."""
    asked = {name: inner for name, inner in object_of(value, param).items() if inner is not False}
    for name in asked:
        if name not in ("json", "json_object", "disable_fallback", "disable_any_whitespace"):
            raise RequestError(f"{param}.{name[:60]} is not served. {WRITE}", param=f"{param}.{name[:60]}")
    if "json" in asked:
        return written_schema(asked["json"], f"{param}.json")
    return {"type": "json_object"} if asked.get("json_object") is True else None


def _text(value: Any, param: str = "text") -> Format | None:
    """The Responses API's {"format": ...}."""
    asked = object_of(value, param)
    return format_of(asked["format"], f"{param}.format") if "format" in asked else None


_READERS: Final[Mapping[str, Callable[[Any], Format | None]]] = {
    "response_format": format_of,
    "json_schema": lambda value: _top_level(value),
    "guided_json": lambda value: written_schema(value, "guided_json"),
    "structured_outputs": _structured_outputs,
    "text": _text,
}


STRUCTURED: Final = tuple(_READERS)
"""The fields that ask for structured output."""


def _top_level(value: Any) -> Format:
    """llama-server's json_schema; some send OpenAI's envelope there."""
    if isinstance(value, Mapping) and "schema" in value and not SCHEMA_KEYS & value.keys():
        return envelope(value, "json_schema")
    return written_schema(value, "json_schema")
