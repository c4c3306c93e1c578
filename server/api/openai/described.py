"""OpenAI's bodies as JSON Schemas, for the OpenAPI document. What is read is described by the models that read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

from ..common.tools import MAX_TOOLS
from ..dialect import Described
from ..openapi import body_schema
from .requests import ChatBody, CompletionBody

_TEXT: Final = {"type": "string"}
_WHOLE: Final = {"type": "integer", "minimum": 0}
_OBJECT: Final = {"type": "object"}

ERROR: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}

_CONTENT: Final = {
    "anyOf": [
        _TEXT,
        {"type": "null"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type", "text"],
                "properties": {"type": {"const": "text"}, "text": _TEXT},
            },
        },
    ]
}
_FUNCTION_CALL: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["name", "arguments"],
    "properties": {"name": _TEXT, "arguments": {"type": "string", "description": "A JSON object."}},
}
_TOOL_CALL: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["id", "type", "function"],
    "properties": {"id": _TEXT, "type": {"const": "function"}, "function": _FUNCTION_CALL},
}

# A message is read part by part, so that its errors name the part: no model of it exists.
_MESSAGE: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool", "function"]},
        "content": _CONTENT,
        "tool_calls": {"type": ["array", "null"], "items": _TOOL_CALL},
        "tool_call_id": {"type": ["string", "null"]},
        "name": {"type": ["string", "null"]},
        "reasoning_content": {"type": ["string", "null"]},
    },
}

# Read by server/api/common/tools.py: described is OpenAI's own form.
_FUNCTION: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[A-Za-z0-9_.:/-]+$"},
        "description": {"type": ["string", "null"]},
        "parameters": {"type": ["object", "null"], "properties": {"type": {"const": "object"}}},
        "strict": {"type": ["boolean", "null"]},
    },
}
_NAMED: Final = {"type": "object", "required": ["name"], "properties": {"name": _TEXT}}
_TOOLS: Final[Mapping[str, Any]] = {
    "tools": {
        "type": ["array", "null"],
        "maxItems": MAX_TOOLS,
        "items": {
            "type": "object",
            "required": ["type", "function"],
            "properties": {"type": {"const": "function"}, "function": _FUNCTION},
        },
    },
    "tool_choice": {
        "anyOf": [
            {"enum": ["auto", "none", "required", None]},
            {
                "type": "object",
                "required": ["type", "function"],
                "properties": {"type": {"const": "function"}, "function": _NAMED},
            },
            {
                "type": "object",
                "required": ["type", "allowed_tools"],
                "properties": {
                    "type": {"const": "allowed_tools"},
                    "allowed_tools": {
                        "type": "object",
                        "required": ["mode", "tools"],
                        "properties": {
                            "mode": {"enum": ["auto", "required"]},
                            "tools": {"type": "array", "items": _OBJECT},
                        },
                    },
                },
            },
        ]
    },
    "functions": {"type": ["array", "null"], "maxItems": MAX_TOOLS, "items": _FUNCTION},
    "function_call": {"anyOf": [{"enum": ["auto", "none", None]}, _NAMED]},
}

_USAGE: Final = {
    "type": "object",
    "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
    "properties": {"prompt_tokens": _WHOLE, "completion_tokens": _WHOLE, "total_tokens": _WHOLE},
}
_COE: Final = {"type": "object", "description": "How the answer came about: docs/api.md."}


def _answer(kind: str, choice: Mapping[str, Any]) -> dict[str, Any]:
    """A whole answer whose choices hold `choice` beside what all choices hold."""
    shared = {
        "index": _WHOLE,
        "finish_reason": _TEXT,
        "logprobs": {"type": ["object", "null"]},
    }
    choices = {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "required": ["index", "finish_reason", *choice],
            "properties": {**shared, **choice},
        },
    }
    properties = {
        "id": _TEXT,
        "object": {"const": kind},
        "created": _WHOLE,
        "model": _TEXT,
        "choices": choices,
        "usage": _USAGE,
        "coe": _COE,
    }
    return {"type": "object", "required": list(properties), "properties": properties}


# Structured output is read in many forms, by server/api/openai/structure.py: described are those of OpenAI's own.
_SCHEMA: Final = {"anyOf": [_OBJECT, {"type": "boolean"}]}
_STRUCTURED: Final[Mapping[str, Any]] = {
    "anyOf": [
        {"type": "null"},
        {"type": "object", "required": ["type"], "properties": {"type": {"enum": ["text", "json_object"]}}},
        {
            "type": "object",
            "required": ["type", "json_schema"],
            "properties": {
                "type": {"const": "json_schema"},
                "json_schema": {
                    "type": "object",
                    "required": ["schema"],
                    "properties": {
                        "name": {"type": ["string", "null"]},
                        "schema": _SCHEMA,
                        "strict": {"type": ["boolean", "null"]},
                    },
                },
            },
        },
    ]
}


def _body(model: type[BaseModel]) -> dict[str, Any]:
    body = body_schema(model)
    body["properties"]["response_format"] = dict(_STRUCTURED)
    return body


def _chat_body() -> dict[str, Any]:
    body = _body(ChatBody)
    body["properties"]["messages"]["items"] = dict(_MESSAGE)
    body["properties"] |= _TOOLS
    return body


CHAT_DESCRIBED: Final = Described(
    summary="A chat's next message, whole or as a stream of chunks",
    body=_chat_body(),
    answer=_answer(
        "chat.completion",
        {
            "message": {
                "type": "object",
                "required": ["role", "content"],
                "properties": {
                    "role": {"const": "assistant"},
                    "content": {"type": ["string", "null"]},
                    "reasoning_content": {"type": ["string", "null"]},
                    "tool_calls": {"type": "array", "minItems": 1, "items": _TOOL_CALL},
                    "function_call": _FUNCTION_CALL,
                },
            }
        },
    ),
    error=ERROR,
)

COMPLETIONS_DESCRIBED: Final = Described(
    summary="What follows a text, whole or as a stream of chunks",
    body=_body(CompletionBody),
    answer=_answer("text_completion", {"text": _TEXT}),
    error=ERROR,
)

# Of /v1/route, which takes what a chat takes, or a bare text.
ROUTE: Final[Mapping[str, Any]] = {
    "type": "object",
    "anyOf": [{"required": ["text"]}, {"required": ["messages"]}],
    "properties": {
        "text": _TEXT,
        "messages": {"type": "array", "minItems": 1, "items": _MESSAGE},
        "model": {"type": ["string", "null"], "minLength": 1, "maxLength": 200},
    },
}
DECISION: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["specialist", "confidence", "reason", "domain", "path", "ranking", "ms"],
    "properties": {
        "specialist": _TEXT,
        "confidence": {"type": "number", "minimum": 0, "maximum": 1},
        "reason": _TEXT,
        "domain": {"type": ["string", "null"]},
        "path": _TEXT,
        "ranking": {"type": "array", "items": _OBJECT},
        "ms": {"type": "number"},
    },
}
