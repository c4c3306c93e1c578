"""Ollama's bodies as JSON Schemas, for the OpenAPI document. What is read is described by the models that read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

from ..common.tools import MAX_TOOLS
from ..dialect import Described
from ..openapi import body_schema
from .options import MAX_OPTIONS
from .requests import ChatBody, GenerateBody

_TEXT: Final = {"type": "string"}
_TEXT_OR_NULL: Final = {"type": ["string", "null"]}
_WHOLE: Final = {"type": "integer", "minimum": 0}
_OBJECT: Final = {"type": "object"}
_NO_IMAGES: Final = {"type": ["array", "null"], "maxItems": 0}
_KEEP_ALIVE: Final = {"anyOf": [{"type": ["number", "null"]}, {"type": "string", "pattern": "^-?[0-9]+(ms|s|m|h)$"}]}

ERROR: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": _TEXT},
}

# Read by functions: described is Ollama's own form.
_READ: Final[Mapping[str, Any]] = {
    "format": {"anyOf": [{"enum": ["json", "", None]}, _OBJECT]},
    "think": {"enum": [True, False, "low", "medium", "high", "max", None]},
    "keep_alive": _KEEP_ALIVE,
}
_CALL: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["function"],
    "properties": {
        "id": _TEXT,
        "function": {
            "type": "object",
            "required": ["name", "arguments"],
            "properties": {"index": _WHOLE, "name": {"type": "string", "minLength": 1}, "arguments": _OBJECT},
        },
    },
}
_MESSAGE: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": ["system", "user", "assistant", "tool"]},
        "content": _TEXT_OR_NULL,
        "thinking": _TEXT_OR_NULL,
        "tool_calls": {"type": ["array", "null"], "items": _CALL},
        "tool_name": _TEXT_OR_NULL,
        "tool_call_id": _TEXT_OR_NULL,
        "images": _NO_IMAGES,
    },
}
_TOOL: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[A-Za-z0-9_.:/-]+$"},
                "description": _TEXT_OR_NULL,
                "parameters": {"type": ["object", "null"], "properties": {"type": {"const": "object"}}},
            },
        },
    },
}
_LOGPROBS: Final = {"type": "array", "items": _OBJECT}


def _body(model: type[BaseModel], **more: Any) -> dict[str, Any]:
    body = body_schema(model)
    body["properties"] |= {**_READ, **more}
    body["properties"]["options"] = {**body["properties"]["options"], "maxProperties": MAX_OPTIONS}
    return body


def _answer(**said: Any) -> dict[str, Any]:
    """A whole answer, or what is said of a model that was loaded or unloaded: then there are no counts."""
    counts = ("prompt_eval_count", "eval_count", "prompt_eval_duration", "eval_duration")
    return {
        "type": "object",
        "required": ["model", "created_at", *said, "done", "done_reason"],
        "properties": {
            "model": _TEXT,
            "created_at": _TEXT,
            **said,
            "done": {"const": True},
            "done_reason": {"enum": ["stop", "length", "load", "unload"]},
            **dict.fromkeys(("total_duration", "load_duration", *counts), _WHOLE),
            "logprobs": _LOGPROBS,
            "coe": {"type": "object", "description": "How the answer came about: docs/api.md."},
        },
    }


CHAT_DESCRIBED: Final = Described(
    summary="A chat's next message, whole or, unless `stream` is false, line by line",
    body=_body(
        ChatBody,
        messages={"type": ["array", "null"], "items": _MESSAGE},
        tools={"type": ["array", "null"], "maxItems": MAX_TOOLS, "items": _TOOL},
    ),
    answer=_answer(
        message={
            "type": "object",
            "required": ["role", "content"],
            "properties": {
                "role": {"const": "assistant"},
                "content": _TEXT,
                "thinking": _TEXT,
                "tool_calls": {"type": "array", "minItems": 1, "items": _CALL},
            },
        }
    ),
    error=ERROR,
)

GENERATE_DESCRIBED: Final = Described(
    summary="The answer to a prompt, whole or, unless `stream` is false, line by line",
    body=_body(
        GenerateBody,
        images=_NO_IMAGES,
        template={"enum": ["", None]},
        context={"type": ["array", "null"], "maxItems": 0},
    ),
    answer=_answer(response=_TEXT),
    error=ERROR,
)
