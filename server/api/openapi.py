"""The OpenAPI document at /openapi.json: what each path takes and gives, for generated clients, readers and fuzzers.

Bodies are described by the dialects from the very models that parse them, so the document cannot fall behind the code.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from .dialect import Described, Dialect

PATH: Final = "/openapi.json"
_REF = "#/components/schemas/"

Schema = Mapping[str, Any]


def body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """A pydantic model's JSON Schema with every `$ref` written out: models of ours do not contain themselves."""
    schema = model.model_json_schema(by_alias=True, mode="validation")
    return dict(_written_out(schema, schema.pop("$defs", {})))


def takes(schema: Schema) -> dict[str, Any]:
    """A route's `openapi_extra` for a JSON body that the route reads by itself."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": dict(schema)}}}}


def gives(schema: Schema, error: Schema, *, stream: str | None = None, status: int = 200) -> dict[int | str, Any]:
    """A route's `responses`: JSON, an error of any other status, and a stream's media type where it may come as one."""
    content: dict[str, Any] = {"application/json": {"schema": dict(schema)}}
    if stream is not None:
        content[stream] = {"schema": {}}  # OpenAPI 3.1 has no words for the members of a stream
    return {
        status: {"description": "Done", "content": content},
        "default": {"description": "An error", "content": {"application/json": {"schema": dict(error)}}},
    }


def of_dialect(dialect: Dialect) -> dict[str, Any]:
    """What FastAPI is to say of a dialect's route."""
    described: Described = dialect.described
    return {
        "summary": described.summary,
        "openapi_extra": takes(described.body),
        "responses": gives(described.answer, described.error, stream=dialect.stream_format.media_type),
    }


def add_openapi(app: FastAPI, *, needs_key: bool) -> None:
    """Serve the document. needs_key: every path but the health checks wants a bearer token."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=version("coe-runtime"), routes=app.routes, description=__doc__)
            if needs_key:
                schemes = made.setdefault("components", {}).setdefault("securitySchemes", {})
                schemes["key"] = {"type": "http", "scheme": "bearer"}
                schemes["header"] = {"type": "apiKey", "in": "header", "name": "x-api-key"}
                made["security"] = [{"key": []}, {"header": []}]
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way of replacing it


def _written_out(node: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(node, dict):
        if (ref := node.get("$ref")) is not None:
            rest = {key: value for key, value in node.items() if key != "$ref"}
            return {**_written_out(definitions[ref.rsplit("/", 1)[1]], definitions), **rest}
        return {key: _written_out(value, definitions) for key, value in node.items()}
    if isinstance(node, list):
        return [_written_out(item, definitions) for item in node]
    return node
