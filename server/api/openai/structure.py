"""Structured output, in the ways that clients ask for it: OpenAI's response_format, and what llama-server, vLLM and
others take beside it. What is certain is understood, what is not is refused with what to write: a schema that is
left aside in silence gives answers that look right."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from ...runtime.errors import RequestError

Format = Mapping[str, Any]

_WRITE: Final = 'Write response_format: {"type": "json_schema", "json_schema": {"name": ..., "schema": ...}}.'
_FORMAT_KEYS: Final = frozenset({"type", "json_schema", "schema", "name", "description", "strict"})
_ENVELOPE_KEYS: Final = frozenset({"name", "description", "schema", "strict"})
# One of these at the place of the envelope, and it is the schema itself.
_SCHEMA_KEYS: Final = frozenset(
    {
        "type",
        "properties",
        "required",
        "items",
        "prefixItems",
        "additionalProperties",
        "anyOf",
        "oneOf",
        "allOf",
        "$ref",
    }
    | {"enum", "const", "$schema", "$defs", "definitions", "pattern", "minimum", "maximum", "patternProperties"}
)

# Fields that hold an answer to something that no JSON schema says.
_NOT_SERVED: Final[Mapping[str, str]] = {
    "grammar": _WRITE,
    "guided_regex": "Use a JSON schema with a pattern. " + _WRITE,
    "guided_choice": "Use a JSON schema with an enum. " + _WRITE,
    "guided_grammar": _WRITE,
    "guided_whitespace_pattern": "Remove it.",
    "structural_tag": _WRITE,
    "regex": "Use a JSON schema with a pattern. " + _WRITE,
    "ebnf": _WRITE,
    "format": _WRITE,
    "response_schema": _WRITE,
    "response_mime_type": _WRITE,
    "output_schema": _WRITE,
    "output_format": _WRITE,
    "output_config": _WRITE,
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
        if body.get(name) is not None:
            found[name] = read(body[name])
    wanted = {name: asked for name, asked in found.items() if asked is not None}
    if len(wanted) > 1 and len({json.dumps(asked.get("json_schema"), sort_keys=True) for asked in wanted.values()}) > 1:
        first, second, *_ = wanted
        raise RequestError(f"{first} and {second} ask for two formats. Send one of them.", param=second)
    return next(iter(wanted.values()), None)


def _response_format(value: Any, param: str = "response_format") -> Format | None:
    """OpenAI's; also with the schema beside the type, as the Responses API and llama-server have it."""
    asked = _object(value, param)
    kind = asked.get("type")
    _only(asked, _FORMAT_KEYS, param)
    schemas = [name for name in ("json_schema", "schema") if name in asked]
    if kind not in ("text", "json_object", "json_schema"):
        said = "is missing" if kind is None else f"{kind!r:.60} is not served"
        raise RequestError(f"{param}.type {said}: give text, json_object or json_schema.", param=f"{param}.type")
    if kind == "text":
        if schemas:
            raise RequestError(f"{param}: the type text takes no schema. {_WRITE}", param=f"{param}.{schemas[0]}")
        return None
    if len(schemas) > 1:
        raise RequestError(f"{param}.schema: json_schema has the schema already. Send one.", param=f"{param}.schema")
    if not schemas:
        if kind == "json_object":
            return {"type": "json_object"}
        raise RequestError(f"{param}.json_schema is missing. {_WRITE}", param=f"{param}.json_schema")
    if schemas == ["schema"]:
        more = {name: asked[name] for name in ("name", "strict") if name in asked}
        return _of_schema(asked["schema"], f"{param}.schema", **more)
    return _envelope(asked["json_schema"], f"{param}.json_schema")


def _envelope(value: Any, param: str) -> Format:
    """{"name": ..., "schema": ...}, or the schema itself in its place."""
    asked = _object(value, param)
    if "schema" not in asked:
        if _SCHEMA_KEYS & asked.keys():
            return _of_schema(value, param)
        near = next((key for key in asked if key.lower().replace("_", "") in ("schema", "jsonschema")), None)
        if near is not None:
            raise RequestError(f"{param}.{near[:60]} is not understood: write schema.", param=f"{param}.{near[:60]}")
        raise RequestError(f"{param}.schema is missing. {_WRITE}", param=f"{param}.schema")
    _only(asked, _ENVELOPE_KEYS, param)
    if not isinstance(asked.get("strict", False), bool):
        raise RequestError(f"{param}.strict must be true or false.", param=f"{param}.strict")
    more = {name: asked[name] for name in ("name", "strict") if name in asked}
    return _of_schema(asked["schema"], f"{param}.schema", **more)


def _of_schema(schema: Any, param: str, **more: Any) -> Format:
    if not isinstance(schema, Mapping | bool):
        raise RequestError(f"{param} must be a JSON schema, an object.", param=param)
    return {"type": "json_schema", "json_schema": {**more, "schema": schema}}


def _written_schema(value: Any, param: str) -> Format:
    """A schema, or its JSON in a text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RequestError(
                f"{param} is a text that is no JSON. Send the schema as an object.", param=param
            ) from error
    return _of_schema(value, param)


def _structured_outputs(value: Any, param: str = "structured_outputs") -> Format | None:
    """vLLM's: of its kinds, those that are JSON."""
    asked = {name: inner for name, inner in _object(value, param).items() if inner is not False}
    for name in asked:
        if name not in ("json", "json_object", "disable_fallback", "disable_any_whitespace"):
            raise RequestError(f"{param}.{name[:60]} is not served. {_WRITE}", param=f"{param}.{name[:60]}")
    if "json" in asked:
        return _written_schema(asked["json"], f"{param}.json")
    return {"type": "json_object"} if asked.get("json_object") is True else None


def _text(value: Any, param: str = "text") -> Format | None:
    """The Responses API's {"format": ...}."""
    asked = _object(value, param)
    return _response_format(asked["format"], f"{param}.format") if "format" in asked else None


_READERS: Final[Mapping[str, Callable[[Any], Format | None]]] = {
    "response_format": _response_format,
    "json_schema": lambda value: _top_level(value),
    "guided_json": lambda value: _written_schema(value, "guided_json"),
    "structured_outputs": _structured_outputs,
    "text": _text,
}


STRUCTURED: Final = tuple(_READERS)
"""The fields that ask for structured output."""


def _top_level(value: Any) -> Format:
    """llama-server's json_schema; some send OpenAI's envelope there."""
    if isinstance(value, Mapping) and "schema" in value and not _SCHEMA_KEYS & value.keys():
        return _envelope(value, "json_schema")
    return _written_schema(value, "json_schema")


def _object(value: Any, param: str) -> dict[str, Any]:
    """An object's entries, null being left out."""
    if not isinstance(value, Mapping):
        raise RequestError(f"{param} must be an object. {_WRITE}", param=param)
    return {name: inner for name, inner in value.items() if inner is not None}


def _only(asked: Mapping[str, Any], known: frozenset[str], param: str) -> None:
    for name in asked:
        if name not in known:
            raise RequestError(
                f"{param}.{name[:60]} is not understood. Remove it, or write one of {', '.join(sorted(known))}.",
                param=f"{param}.{name[:60]}",
            )
