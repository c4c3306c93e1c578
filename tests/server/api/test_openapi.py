"""The OpenAPI document says what the server does: every route, bodies as they are read, answers as they are written."""

from __future__ import annotations

import json
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from jsonschema import Draft202012Validator, ValidationError

from coe.engine.request import Accepted, CallPiece, Delta, Finish, Finished
from coe.server.api.app import make_app
from coe.server.api.openai.requests import parse_chat
from coe.server.api.responses.requests import parse_response
from coe.server.runtime.college import College
from fakes.college import SAID, FakeLease, ServedCollege, asking, post

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": None}}]
HISTORY = [
    {"role": "user", "content": "Hi"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "c", "content": "42"},
]


FLAT_TOOLS = [
    {"type": "function", "name": "f", "description": None, "parameters": {"type": "object"}, "strict": False},
    {"type": "custom", "name": "patch", "format": {"type": "text"}},
    {"type": "namespace", "name": "team", "description": "", "tools": [{"type": "function", "name": "wait"}]},
]
ITEMS = [
    {"role": "user", "content": "Hi"},
    {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be kind."}]},
    {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "42"},
]
CALLED = [
    Accepted("", 5),
    Delta("", calls=(CallPiece(0, "f"), CallPiece(0, None, "{}"))),
    Finished("", Finish.CALLS, 5, 0, 3),
]


def app_of(*keys: str) -> FastAPI:
    return make_app(cast(College, ServedCollege([])), frozenset(keys))


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return app_of().openapi()


def body_of(document: dict[str, Any], path: str) -> Draft202012Validator:
    content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    Draft202012Validator.check_schema(content["schema"])
    return Draft202012Validator(content["schema"])


async def test_it_is_served(document: dict[str, Any]) -> None:
    transport = httpx.ASGITransport(app_of())
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        assert (await client.get("/openapi.json")).json() == document


def test_every_route_stands_in_it_with_a_summary_and_an_error() -> None:
    app = app_of()
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    assert len(routes) > 10
    for route in routes:
        for method in route.methods - {"HEAD", "OPTIONS"}:
            operation = app.openapi()["paths"][route.path_format][method.lower()]
            assert operation.get("description") or operation["summary"] != route.name, route.path
            assert "422" not in operation["responses"], "FastAPI's own error body is never sent"


def test_schemas_stand_alone(document: dict[str, Any]) -> None:
    assert "$ref" not in json.dumps(document)


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": "Hi"}]},
        {"model": "auto", "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "stream": True},
        {"messages": [{"role": "assistant", "content": None}], "response_format": {"type": "json_object"}, "seed": 3},
        {"messages": HISTORY, "tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False},
        {"messages": HISTORY, "tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"messages": HISTORY, "functions": [{"name": "f"}], "function_call": {"name": "f"}},
    ],
)
def test_a_chat_body_that_is_served_is_described(document: dict[str, Any], body: dict[str, Any]) -> None:
    body_of(document, CHAT).validate(body)
    assert parse_chat(body).request.messages


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": []},
        {"messages": [{"content": "Hi"}]},
        {"messages": [{"role": "user", "content": "Hi"}], "temperature": 3},
        {"messages": [{"role": "user", "content": "Hi"}], "n": 0},
        {"messages": [{"role": "user", "content": "Hi"}], "response_format": {"type": "yaml"}},
        {"messages": HISTORY, "tools": [{"type": "function", "function": {"name": "a b"}}]},
        {"messages": HISTORY, "tools": TOOLS, "tool_choice": "always"},
        {"messages": HISTORY, "tools": TOOLS, "tool_choice": {"type": "function"}},
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "c"}]}]},
    ],
)
async def test_a_chat_body_that_is_refused_is_not_described(document: dict[str, Any], body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        body_of(document, CHAT).validate(body)
    client = asking(body)
    await post(ServedCollege([]), client)
    assert client.got[0]["status"] == 400


@pytest.mark.parametrize(
    "body",
    [
        {"input": "Hi"},
        {"input": ITEMS, "instructions": "Be kind.", "tools": FLAT_TOOLS, "tool_choice": "required", "store": False},
        {"input": ITEMS, "tools": FLAT_TOOLS, "tool_choice": {"type": "custom", "name": "patch"}, "include": []},
        {"input": "Hi", "text": {"format": {"type": "json_schema", "name": "x", "schema": {}}}, "metadata": {"a": "b"}},
        {"input": "Hi", "reasoning": {"effort": "low", "summary": "auto"}, "stream": True, "max_output_tokens": 9},
    ],
)
def test_a_body_of_responses_that_is_served_is_described(document: dict[str, Any], body: dict[str, Any]) -> None:
    body_of(document, RESPONSES).validate(body)
    assert parse_response(body).request.messages


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": []},
        {"input": [{"role": "tool", "content": "Hi"}]},
        {"input": [{"type": "function_call", "arguments": "{}"}]},
        {"input": "Hi", "tools": [{"type": "namespace", "name": "team"}]},
        {"input": "Hi", "tool_choice": "always"},
        {"input": "Hi", "text": {"format": {"type": "yaml"}}},
        {"input": "Hi", "metadata": {"a": 1}},
        {"input": "Hi", "truncation": "middle"},
    ],
)
async def test_a_body_of_responses_that_is_refused_is_not_described(
    document: dict[str, Any], body: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError):
        body_of(document, RESPONSES).validate(body)
    client = asking(body)
    await post(ServedCollege([]), client, RESPONSES)
    assert client.got[0]["status"] == 400


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "Hi"}]}),
        (CHAT, {"messages": HISTORY, "tools": TOOLS}),
        (CHAT, {"messages": HISTORY, "functions": [{"name": "f"}]}),
        (COMPLETIONS, {"prompt": "Hi"}),
        (RESPONSES, {"input": "Hi"}),
        (RESPONSES, {"input": ITEMS, "tools": FLAT_TOOLS}),
    ],
)
async def test_an_answer_is_as_described(document: dict[str, Any], path: str, body: dict[str, Any]) -> None:
    client = asking(body)
    said = CALLED if HISTORY in body.values() or ITEMS in body.values() else SAID
    await post(ServedCollege([FakeLease([said], "math")]), client, path)
    schema = document["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    Draft202012Validator(schema).validate(json.loads(client.body))


async def test_an_error_is_as_described(document: dict[str, Any]) -> None:
    client = asking({"messages": []})
    await post(ServedCollege([]), client)
    schema = document["paths"][CHAT]["post"]["responses"]["default"]["content"]["application/json"]["schema"]
    Draft202012Validator(schema).validate(json.loads(client.body))


def test_keys_are_described_where_they_are_needed(document: dict[str, Any]) -> None:
    assert "security" not in document
    assert app_of("secret").openapi()["security"] == [{"key": []}, {"header": []}]
    assert "secret" not in json.dumps(app_of("secret").openapi())
