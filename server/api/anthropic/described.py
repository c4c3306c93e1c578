"""Anthropic's bodies as JSON Schemas, for the OpenAPI document: what is read by the models that read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..common.tools import MAX_TOOLS
from ..dialect import Described
from ..openapi import body_schema
from .requests import MessagesBody

_TEXT: Final = {"type": "string"}
_WHOLE: Final = {"type": "integer", "minimum": 0}
_OBJECT: Final = {"type": "object"}
_FLAG: Final = {"type": ["boolean", "null"]}


def _object(required: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": {**required, **more}}


def _typed(kind: str, required: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return _object({"type": {"const": kind}, **required}, **more)


ERROR: Final[Mapping[str, Any]] = _typed(
    "error", {"error": _object({"type": _TEXT, "message": _TEXT})}, request_id={"type": ["string", "null"]}
)

# Messages are read block by block, so that their errors name the block: no model of them exists.
_TEXT_BLOCK: Final = _typed("text", {"text": _TEXT})
_TEXTS: Final = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT_BLOCK}]}
_DOCUMENT: Final = _typed(
    "document",
    {
        "source": {
            "anyOf": [
                _typed("text", {"data": _TEXT}),
                _typed("content", {"content": _TEXTS}),
            ]
        }
    },
    title={"type": ["string", "null"]},
    context={"type": ["string", "null"]},
)
_SEARCH_RESULT: Final = _typed("search_result", {"title": _TEXT, "source": _TEXT, "content": _TEXTS})
_REFERENCE: Final = _typed("tool_reference", {"tool_name": _TEXT})
_RESULT: Final = _typed(
    "tool_result",
    {"tool_use_id": _TEXT},
    content={
        "anyOf": [
            _TEXT,
            {"type": "null"},
            {"type": "array", "items": {"anyOf": [_TEXT_BLOCK, _DOCUMENT, _SEARCH_RESULT, _REFERENCE]}},
        ]
    },
    is_error=_FLAG,
)
_THINKING: Final = _typed("thinking", {"thinking": _TEXT}, signature=_TEXT)
_CALL: Final = _typed("tool_use", {"id": _TEXT, "name": {"type": "string", "minLength": 1}, "input": _OBJECT})


def _message(role: str, *blocks: Mapping[str, Any]) -> dict[str, Any]:
    content = {"anyOf": [_TEXT, {"type": "array", "items": {"anyOf": list(blocks)}}]}
    return _object({"role": {"const": role}, "content": content})


_MESSAGE: Final = {
    "anyOf": [
        _message("user", _TEXT_BLOCK, _RESULT, _DOCUMENT, _SEARCH_RESULT),
        _message("assistant", _TEXT_BLOCK, _CALL, _THINKING, _typed("redacted_thinking", {"data": _TEXT})),
        _message("system", _TEXT_BLOCK),
    ]
}
# Read by server/api/anthropic/tools.py.
_TOOL: Final = _object(
    {"name": {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[A-Za-z0-9_.:/-]+$"}},
    type={"enum": ["custom", None]},
    description={"type": ["string", "null"]},
    input_schema={"type": "object", "properties": {"type": {"const": "object"}}},
    strict=_FLAG,
    defer_loading=_FLAG,
)
_SCHEMA: Final = {"anyOf": [_OBJECT, {"type": "boolean"}]}
_FORMAT: Final = _typed("json_schema", {"schema": _SCHEMA})
_FIELDS: Final[Mapping[str, Any]] = {
    "system": {"anyOf": [*_TEXTS["anyOf"], {"type": "null"}]},
    "tools": {"type": ["array", "null"], "maxItems": MAX_TOOLS, "items": _TOOL},
    "tool_choice": {
        "anyOf": [
            {"type": "null"},
            _object({"type": {"enum": ["auto", "any", "none"]}}, disable_parallel_tool_use=_FLAG),
            _typed("tool", {"name": _TEXT}, disable_parallel_tool_use=_FLAG),
        ]
    },
    "output_config": {
        "type": ["object", "null"],
        "properties": {"effort": {"type": ["string", "null"]}, "format": {"anyOf": [_FORMAT, {"type": "null"}]}},
    },
    "output_format": {"anyOf": [_FORMAT, {"type": "null"}]},
}


def _body() -> dict[str, Any]:
    body = body_schema(MessagesBody)
    body["properties"]["messages"]["items"] = _MESSAGE
    body["properties"] |= _FIELDS
    return body


def _count() -> dict[str, Any]:
    """What of a body its prompt depends on."""
    body = _body()
    of_prompt = ("model", "messages", "system", "tools", "tool_choice", "thinking", "output_config", "output_format")
    return {**body, "properties": {name: body["properties"][name] for name in of_prompt}}


_USAGE: Final = _object(
    {
        "input_tokens": _WHOLE,
        "cache_creation_input_tokens": _WHOLE,
        "cache_read_input_tokens": _WHOLE,
        "output_tokens": _WHOLE,
    }
)
_ANSWER: Final = _object(
    {
        "id": _TEXT,
        "type": {"const": "message"},
        "role": {"const": "assistant"},
        "model": _TEXT,
        "content": {"type": "array", "items": {"anyOf": [_THINKING, _TEXT_BLOCK, _CALL]}},
        "stop_reason": {
            "enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]
        },
        "stop_sequence": {"type": ["string", "null"]},
        "usage": _USAGE,
        "coe": {"type": "object", "description": "How the answer came about: docs/api.md."},
    }
)

MESSAGES_DESCRIBED: Final = Described(
    summary="An answer to messages, whole or as a stream of events, as Anthropic's API has it",
    body=_body(),
    answer=_ANSWER,
    error=ERROR,
)
COUNT: Final[Mapping[str, Any]] = _count()
COUNTED: Final[Mapping[str, Any]] = _object({"input_tokens": _WHOLE}, context_management=_OBJECT)
