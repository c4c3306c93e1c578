"""Structured output, in every way that clients ask for it: understood, or refused with what to write."""

from __future__ import annotations

import json
from typing import Any

import pytest

from coe.server.api.openai.requests import parse_chat, parse_completion
from coe.server.runtime.errors import RequestError
from coe.server.runtime.request import Request

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def asked(**fields: Any) -> Request:
    return parse_chat({"messages": [{"role": "user", "content": "Hello"}], **fields}).request


def schema_of(request: Request) -> Any:
    assert request.response_format is not None
    assert request.response_format["type"] == "json_schema"
    return request.response_format["json_schema"]["schema"]


FORMS: list[dict[str, Any]] = [
    {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA, "description": None}}},
    {"response_format": {"type": "json_schema", "json_schema": SCHEMA}},
    {"response_format": {"type": "json_schema", "schema": SCHEMA}},
    {"response_format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True}},
    {"response_format": {"type": "json_object", "schema": SCHEMA}},
    {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}},
    {"json_schema": SCHEMA},
    {"json_schema": {"name": "x", "schema": SCHEMA}},
    {"guided_json": SCHEMA},
    {"guided_json": json.dumps(SCHEMA)},
    {"structured_outputs": {"json": SCHEMA, "regex": None}},
    {"guided_json": SCHEMA, "response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
    {"response_format": {"type": "text"}, "json_schema": SCHEMA},
]


@pytest.mark.parametrize("form", FORMS, ids=range(len(FORMS)))
def test_a_schema_arrives_in_each_of_its_forms(form: dict[str, Any]) -> None:
    assert schema_of(asked(**form)) == SCHEMA
    assert schema_of(parse_completion({"prompt": "Once", **form}).request) == SCHEMA


def envelope(**inner: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": inner}}


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": None}}, "response_format.json_schema"),
        (envelope(), "response_format.json_schema.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        (envelope(name="x", Schema=SCHEMA), "response_format.json_schema.Schema"),
        (envelope(schema=SCHEMA, stict=True), "response_format.json_schema.stict"),
        ({"response_format": {"type": "json_schema", "Schema": SCHEMA}}, "response_format.Schema"),
        ({"response_format": {"type": "json_object", "shema": SCHEMA}}, "response_format.shema"),
        ({"response_format": {"type": "text", "schema": SCHEMA}}, "response_format.schema"),
        ({"response_format": {"type": "json"}}, "response_format.type"),
        ({"response_format": {"type": "grammar", "grammar": "root ::= x"}}, "response_format.grammar"),
        ({"response_format": {"schema": SCHEMA}}, "response_format.type"),
        ({"response_format": "json_object"}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": "x"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": SCHEMA, "schema": SCHEMA}},
            "response_format.schema",
        ),
        ({"grammar": "root ::= 'x'"}, "grammar"),
        ({"guided_regex": "a+"}, "guided_regex"),
        ({"guided_choice": ["a", "b"]}, "guided_choice"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"regex": "a+"}}, "structured_outputs.regex"),
        ({"guided_json": "{"}, "guided_json"),
        ({"format": "json"}, "format"),
        ({"format": SCHEMA}, "format"),
        ({"response_schema": SCHEMA}, "response_schema"),
        ({"responseFormat": {"type": "json_object"}}, "responseFormat"),
        ({"extra_body": {"guided_json": SCHEMA}}, "extra_body"),
    ],
)
def test_what_is_not_understood_is_refused_by_its_name(form: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as refusal:
        asked(**form)
    assert refusal.value.param == param
    assert refusal.value.message.startswith(param.split(".")[0])


@pytest.mark.parametrize(
    "form",
    [
        {"response_format": None},
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "text", "json_schema": None}},
        {"grammar": None, "guided_json": None, "json_schema": None, "structured_outputs": None, "extra_body": None},
        {"grammar": "", "guided_choice": [], "structured_outputs": {}, "extra_body": {}},
        {"text": {"verbosity": "low"}},
        {"text": {"format": {"type": "text"}}},
    ],
)
def test_what_asks_for_no_format_is_plain_text(form: dict[str, Any]) -> None:
    assert asked(**form).response_format is None


def test_a_json_object_is_one_in_each_of_its_forms() -> None:
    for form in ({"type": "json_object"}, {"type": "json_object", "schema": None}):
        assert asked(response_format=form).response_format == {"type": "json_object"}
    assert asked(structured_outputs={"json_object": True}).response_format == {"type": "json_object"}


def test_two_formats_at_once_are_refused() -> None:
    with pytest.raises(RequestError, match="json_schema and guided_json ask for two formats") as refusal:
        asked(guided_json=SCHEMA, json_schema={"type": "string"})
    assert refusal.value.param == "guided_json"
