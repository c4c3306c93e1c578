"""Bodies and answers as JSON Schemas, for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Final

from ..openapi import body_schema
from .requests import MAX_TEXTS, EmbeddingBody, RerankBody

_COUNT: Final = {"type": "integer", "minimum": 0}
_TEXT: Final = {"type": "string", "minLength": 1}
_USAGE: Final = {
    "type": "object",
    "required": ["prompt_tokens", "total_tokens"],
    "properties": {"prompt_tokens": _COUNT, "total_tokens": _COUNT},
}


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """null is as good as left out."""
    required = schema.get("required", ())
    properties = {
        name: part if name in required else {"anyOf": [part, {"type": "null"}]}
        for name, part in schema["properties"].items()
    }
    return {**schema, "properties": properties}


def _embedding_body() -> dict[str, Any]:
    body = _nullable(body_schema(EmbeddingBody))
    body["properties"]["input"] = {
        "anyOf": [_TEXT, {"type": "array", "minItems": 1, "maxItems": MAX_TEXTS, "items": _TEXT}]
    }
    body["properties"]["truncate_prompt_tokens"] = _CUT
    return body


def _rerank_body() -> dict[str, Any]:
    body = _nullable(body_schema(RerankBody))
    document = {"type": "object", "required": ["text"], "properties": {"text": _TEXT}}
    body["properties"]["query"] = _TEXT
    documents = {"type": "array", "minItems": 1, "maxItems": MAX_TEXTS, "items": {"anyOf": [_TEXT, document]}}
    body["properties"] |= {"documents": documents, "texts": documents}
    # One of the two; null is as good as left out, so neither is described as such.
    body["oneOf"] = [{"required": ["documents"]}, {"required": ["texts"]}]
    body["properties"]["truncate_prompt_tokens"] = _CUT
    return body


_CUT: Final = {"anyOf": [{"const": -1}, {"type": "integer", "minimum": 1}, {"type": "null"}]}
EMBEDDING_BODY: Final = _embedding_body()
RERANK_BODY: Final = _rerank_body()
EMBEDDINGS: Final = {
    "type": "object",
    "required": ["object", "data", "model", "usage"],
    "properties": {
        "object": {"const": "list"},
        "model": {"type": "string"},
        "usage": _USAGE,
        "data": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["object", "index", "embedding"],
                "properties": {
                    "object": {"const": "embedding"},
                    "index": _COUNT,
                    "embedding": {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string"}]},
                },
            },
        },
    },
}
_DOCUMENTS_RANKED: Final = {
    "type": "object",
    "required": ["object", "model", "results", "usage"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "list"},
        "model": {"type": "string"},
        "usage": _USAGE,
        "results": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["index", "relevance_score"],
                "properties": {
                    "index": _COUNT,
                    "relevance_score": {"type": "number", "minimum": 0, "maximum": 1},
                    "document": {
                        "type": "object",
                        "required": ["text"],
                        "properties": {"text": {"type": "string"}},
                    },
                },
            },
        },
    },
}
_TEXTS_RANKED: Final = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["index", "score"],
        "properties": {"index": _COUNT, "score": {"type": "number", "minimum": 0, "maximum": 1}, "text": _TEXT},
    },
}
RANKS: Final = {"anyOf": [_DOCUMENTS_RANKED, _TEXTS_RANKED]}  # the second where a body has `texts`, as TEI's
