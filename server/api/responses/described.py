"""Bodies of the Responses API as JSON Schemas, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..common.tools import MAX_TOOLS
from ..dialect import Described
from ..openai.described import ERROR
from ..openapi import body_schema
from .requests import ResponseBody

_TEXT: Final = {"type": "string"}
_WHOLE: Final = {"type": "integer", "minimum": 0}
_OBJECT: Final = {"type": "object"}
_NULLABLE_TEXT: Final = {"type": ["string", "null"]}


def _object(properties: Mapping[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": dict(properties)}


_PARTS: Final = {
    "type": "array",
    "items": _object({"type": {"enum": ["input_text", "output_text"]}, "text": _TEXT}, "type", "text"),
}
_SAID: Final = {"anyOf": [_TEXT, _PARTS]}
_CALL: Final = {"call_id": _TEXT, "name": {"type": "string", "minLength": 1}, "namespace": _NULLABLE_TEXT}
# Items are read one by one, so that errors name them: no model of one exists. Others are left out, and noted.
_ITEM: Final[Mapping[str, Any]] = {
    "anyOf": [
        _object(
            {
                "type": {"const": "message"},
                "role": {"enum": ["user", "system", "developer", "assistant"]},
                "content": _SAID,
            },
            "role",
            "content",
        ),
        _object({"type": {"const": "function_call"}, **_CALL, "arguments": _TEXT}, "type", "name", "arguments"),
        _object({"type": {"const": "function_call_output"}, "call_id": _TEXT, "output": _SAID}, "type", "output"),
        _object({"type": {"const": "custom_tool_call"}, **_CALL, "input": _TEXT}, "type", "name", "input"),
        _object({"type": {"const": "custom_tool_call_output"}, "call_id": _TEXT, "output": _SAID}, "type", "output"),
        _object({"type": {"const": "reasoning"}, "content": {"type": ["array", "null"], "items": _OBJECT}}, "type"),
        _object({"type": {"const": "item_reference"}, "id": _TEXT}, "type", "id"),
    ]
}
_NAME: Final = {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[A-Za-z0-9_.:/-]+$"}
_FUNCTION: Final[Mapping[str, Any]] = _object(
    {
        "type": {"const": "function"},
        "name": _NAME,
        "description": _NULLABLE_TEXT,
        "parameters": {"type": ["object", "null"], "properties": {"type": {"const": "object"}}},
        "strict": {"type": ["boolean", "null"]},
    },
    "type",
    "name",
)
_CUSTOM: Final[Mapping[str, Any]] = _object(
    {"type": {"const": "custom"}, "name": _NAME, "description": _NULLABLE_TEXT, "format": _OBJECT}, "type", "name"
)
_NAMESPACE: Final[Mapping[str, Any]] = _object(
    {
        "type": {"const": "namespace"},
        "name": {"type": "string", "minLength": 1, "maxLength": 64},
        "description": _NULLABLE_TEXT,
        "tools": {"type": "array", "items": {"anyOf": [_FUNCTION, _CUSTOM]}},
    },
    "type",
    "name",
    "tools",
)
_FORMAT: Final[Mapping[str, Any]] = {
    "anyOf": [
        {"type": "null"},
        _object({"type": {"enum": ["text", "json_object"]}}, "type"),
        _object(
            {
                "type": {"const": "json_schema"},
                "name": _NULLABLE_TEXT,
                "schema": {"anyOf": [_OBJECT, {"type": "boolean"}]},
                "strict": {"type": ["boolean", "null"]},
            },
            "type",
            "schema",
        ),
    ]
}


def _body() -> dict[str, Any]:
    body = body_schema(ResponseBody)
    body["properties"] |= {
        "input": {"anyOf": [_TEXT, {"type": "array", "minItems": 1, "items": _ITEM}]},
        "tools": {
            "type": ["array", "null"],
            "maxItems": MAX_TOOLS,
            "items": {"anyOf": [_FUNCTION, _CUSTOM, _NAMESPACE]},
        },
        "tool_choice": {
            "anyOf": [
                {"enum": ["auto", "none", "required", None]},
                _object({"type": {"enum": ["function", "custom"]}, "name": _TEXT}, "type", "name"),
                _object(
                    {
                        "type": {"const": "allowed_tools"},
                        "mode": {"enum": ["auto", "required"]},
                        "tools": {"type": "array", "items": _OBJECT},
                    },
                    "type",
                    "mode",
                    "tools",
                ),
            ]
        },
        "text": {
            "type": ["object", "null"],
            "properties": {"format": _FORMAT, "verbosity": {"enum": ["low", "medium", "high", None]}},
        },
        "reasoning": {
            "type": ["object", "null"],
            "properties": {"effort": _NULLABLE_TEXT, "summary": _NULLABLE_TEXT},
        },
    }
    return body


_USAGE: Final = _object(
    {
        "input_tokens": _WHOLE,
        "input_tokens_details": _object(
            {"cached_tokens": _WHOLE, "cache_write_tokens": _WHOLE}, "cached_tokens", "cache_write_tokens"
        ),
        "output_tokens": _WHOLE,
        "output_tokens_details": _object({"reasoning_tokens": _WHOLE}, "reasoning_tokens"),
        "total_tokens": _WHOLE,
    },
    "input_tokens",
    "input_tokens_details",
    "output_tokens",
    "output_tokens_details",
    "total_tokens",
)
_OUTPUT: Final = {
    "type": "array",
    "items": _object(
        {"id": _TEXT, "type": {"enum": ["message", "function_call", "custom_tool_call", "reasoning"]}}, "id", "type"
    ),
}
_RESPONSE: Final = _object(
    {
        "id": _TEXT,
        "object": {"const": "response"},
        "created_at": _WHOLE,
        "completed_at": {"type": ["integer", "null"]},
        "status": {"enum": ["completed", "incomplete"]},
        "error": {"type": "null"},
        "incomplete_details": {"type": ["object", "null"]},
        "model": _TEXT,
        "output": _OUTPUT,
        "usage": _USAGE,
        "parallel_tool_calls": {"type": "boolean"},
        "tool_choice": {"anyOf": [_TEXT, _OBJECT]},
        "tools": {"type": "array", "items": _OBJECT},
        "store": {"type": "boolean"},
        "previous_response_id": _NULLABLE_TEXT,
        "instructions": _NULLABLE_TEXT,
        "coe": {"type": "object", "description": "How the answer came about: docs/api.md."},
    },
    *("id", "object", "created_at", "status", "model", "output", "usage", "parallel_tool_calls", "tool_choice"),
    *("tools", "store", "coe"),
)

DESCRIBED: Final = Described(
    summary="A response to items, whole or as a stream of events",
    body=_body(),
    answer=_RESPONSE,
    error=ERROR,
)
DELETED: Final = _object(
    {"id": _TEXT, "object": {"const": "response"}, "deleted": {"const": True}}, "id", "object", "deleted"
)
COUNTED: Final = _object(
    {"object": {"const": "response.input_tokens"}, "input_tokens": {"type": "integer", "minimum": 0}},
    *("object", "input_tokens"),
)
ITEMS: Final = _object(
    {
        "object": {"const": "list"},
        "data": {"type": "array", "items": _object({"id": _TEXT, "type": _TEXT}, "id", "type")},
        "first_id": _NULLABLE_TEXT,
        "last_id": _NULLABLE_TEXT,
        "has_more": {"type": "boolean"},
    },
    *("object", "data", "first_id", "last_id", "has_more"),
)
