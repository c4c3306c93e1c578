"""Formats that an answer has to keep to, as the runtime has them: a JSON schema, or any JSON object.

The runtime's form is OpenAI's: {"type": "json_object"}, or {"type": "json_schema", "json_schema": {"schema": ...}}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from ...runtime.errors import RequestError

Format = Mapping[str, Any]

WRITE: Final = 'Write response_format: {"type": "json_schema", "json_schema": {"name": ..., "schema": ...}}.'
_FORMAT_KEYS: Final = frozenset({"type", "json_schema", "schema", "name", "description", "strict"})
_ENVELOPE_KEYS: Final = frozenset({"name", "description", "schema", "strict"})
# One of these at the place of the envelope, and it is the schema itself.
SCHEMA_KEYS: Final = frozenset(
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


def format_of(value: Any, param: str = "response_format", *, write: str = WRITE) -> Format | None:
    """OpenAI's; also with the schema beside the type, as the Responses API and llama-server have it. write: what to
    write instead, for errors."""
    asked = object_of(value, param, write=write)
    kind = asked.get("type")
    _only(asked, _FORMAT_KEYS, param)
    schemas = [name for name in ("json_schema", "schema") if name in asked]
    if kind not in ("text", "json_object", "json_schema"):
        said = "is missing" if kind is None else f"{kind!r:.60} is not served"
        raise RequestError(f"{param}.type {said}: give text, json_object or json_schema.", param=f"{param}.type")
    if kind == "text":
        if schemas:
            raise RequestError(f"{param}: the type text takes no schema. {write}", param=f"{param}.{schemas[0]}")
        return None
    if len(schemas) > 1:
        raise RequestError(f"{param}.schema: json_schema has the schema already. Send one.", param=f"{param}.schema")
    if not schemas:
        if kind == "json_object":
            return {"type": "json_object"}
        raise RequestError(f"{param}.json_schema is missing. {write}", param=f"{param}.json_schema")
    if schemas == ["schema"]:
        more = {name: asked[name] for name in ("name", "strict") if name in asked}
        return of_schema(asked["schema"], f"{param}.schema", **more)
    return envelope(asked["json_schema"], f"{param}.json_schema", write=write)


def envelope(value: Any, param: str, *, write: str = WRITE) -> Format:
    """{"name": ..., "schema": ...}, or the schema itself in its place."""
    asked = object_of(value, param, write=write)
    if "schema" not in asked:
        if SCHEMA_KEYS & asked.keys():
            return of_schema(value, param)
        near = next((key for key in asked if key.lower().replace("_", "") in ("schema", "jsonschema")), None)
        if near is not None:
            raise RequestError(f"{param}.{near[:60]} is not understood: write schema.", param=f"{param}.{near[:60]}")
        raise RequestError(f"{param}.schema is missing. {write}", param=f"{param}.schema")
    _only(asked, _ENVELOPE_KEYS, param)
    if not isinstance(asked.get("strict", False), bool):
        raise RequestError(f"{param}.strict must be true or false.", param=f"{param}.strict")
    more = {name: asked[name] for name in ("name", "strict") if name in asked}
    return of_schema(asked["schema"], f"{param}.schema", **more)


def of_schema(schema: Any, param: str, **more: Any) -> Format:
    if not isinstance(schema, Mapping | bool):
        raise RequestError(f"{param} must be a JSON schema, an object.", param=param)
    return {"type": "json_schema", "json_schema": {**more, "schema": schema}}


def written_schema(value: Any, param: str) -> Format:
    """A schema, or its JSON in a text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RequestError(
                f"{param} is a text that is no JSON. Send the schema as an object.", param=param
            ) from error
    return of_schema(value, param)


def object_of(value: Any, param: str, *, write: str = WRITE) -> dict[str, Any]:
    """An object's entries, null being left out."""
    if not isinstance(value, Mapping):
        raise RequestError(f"{param} must be an object. {write}", param=param)
    return {name: inner for name, inner in value.items() if inner is not None}


def _only(asked: Mapping[str, Any], known: frozenset[str], param: str) -> None:
    for name in asked:
        if name not in known:
            raise RequestError(
                f"{param}.{name[:60]} is not understood. Remove it, or write one of {', '.join(sorted(known))}.",
                param=f"{param}.{name[:60]}",
            )
