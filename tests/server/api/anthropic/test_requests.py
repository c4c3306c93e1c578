"""Anthropic's bodies become internal requests, or errors that name the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from coe.engine.request import Patience
from coe.server.api.anthropic.requests import parse_messages
from coe.server.runtime.errors import RequestError
from coe.server.runtime.request import Request

HI: list[Any] = [{"role": "user", "content": "Hi"}]
BASH: dict[str, Any] = {
    "name": "Bash",
    "input_schema": {"type": "object", "properties": {"command": {"type": "string"}}},
}


def parsed(**body: Any) -> Request:
    return parse_messages({"model": "auto", "max_tokens": 10, "messages": HI, **body})


def refused(**body: Any) -> RequestError:
    with pytest.raises(RequestError) as error:
        parsed(**body)
    return error.value


def test_a_body_with_everything() -> None:
    request = parsed(
        model="math",
        system="Be kind.",
        stream=True,
        max_tokens=5,
        stop_sequences=["END", ""],
        temperature=0.5,
        top_p=0.9,
        top_k=10,
        seed=3,
        loop_guard="strict",
        tools=[BASH],
        metadata={"user_id": json.dumps({"device_id": "d", "session_id": "s1"})},
        output_config={"effort": "high", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    )
    assert request.model == "math"
    assert request.stream
    assert request.max_tokens == 5
    assert request.stop == ("END",)
    assert request.overrides == {"temperature": 0.5, "top_p": 0.9, "top_k": 10}
    assert request.seed == 3
    assert request.loop_guard is Patience.STRICT
    assert [tool.name for tool in request.tools] == ["Bash"]
    assert request.session == "s1"
    assert request.response_format == {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}
    assert request.messages == ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"})
    assert not request.notes


def test_the_least_body() -> None:
    request = parse_messages({"messages": HI})
    assert request.model == "auto"
    assert request.max_tokens is None
    assert not request.stream


@pytest.mark.parametrize(
    ("thinking", "wants", "most"),
    [
        (None, False, None),
        ({"type": "disabled"}, False, None),
        ({"type": "enabled", "budget_tokens": 2048}, True, 2048),
        ({"type": "enabled", "budget_tokens": 0}, False, None),
        ({"type": "enabled"}, True, None),
        ({"type": "adaptive", "display": "omitted"}, None, None),
        ({"type": "between_tools"}, None, None),
    ],
)
def test_thinking(thinking: Any, wants: bool | None, most: int | None) -> None:
    request = parsed(thinking=thinking)
    assert (request.wants_thinking, request.max_thinking_tokens) == (wants, most)


@pytest.mark.parametrize(
    ("user", "session"),
    [
        ('{"device_id":"d","account_uuid":"","session_id":"5d0a"}', "5d0a"),
        ("user_0f_account__session_0b2d7a4e-5b5c-4a3e-8f6e-2f4d8c1a9e77", "0b2d7a4e-5b5c-4a3e-8f6e-2f4d8c1a9e77"),
        ("somebody", None),  # of all conversations of that user
        ("[1]", None),
        ("[" * 900, None),
        ('{"session_id":3}', None),
        (None, None),
    ],
)
def test_a_session_is_what_an_agent_calls_it(user: str | None, session: str | None) -> None:
    assert parsed(metadata={"user_id": user}).session == session


def test_older_clients_write_the_format_at_the_top() -> None:
    asked = {"type": "json_schema", "schema": {"type": "object"}}
    assert parsed(output_format=asked).response_format == parsed(output_config={"format": asked}).response_format


def test_what_an_agent_sends_beside_is_no_matter() -> None:
    request = parsed(
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        service_tier="auto",
        speed="fast",
        cache_control={"type": "ephemeral"},
        safeguards=[{"type": "dangerous_tool_use"}],
        diagnostics={},
        betas=["a"],
    )
    assert not request.notes


def test_what_is_asked_for_in_vain_is_noted() -> None:
    notes = parsed(
        mcp_servers=[{"type": "url", "url": "http://x"}],
        container="c",
        context_management={"edits": [{"type": "clear_tool_uses_20250919"}]},
        tools=[{"type": "web_search_20250305", "name": "web_search"}, BASH],
    ).notes
    assert len(notes) == 4
    for word, note in zip(("web_search", "mcp_servers", "container", "clear_tool_uses"), notes, strict=True):
        assert word in note


# --- tools --------------------------------------------------------------------------------------------------------


def test_tools_of_a_known_type_get_a_schema() -> None:
    tools = parsed(
        tools=[
            {"type": "bash_20250124", "name": "bash"},
            {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"},
            {"type": "something_20300101", "name": "mine", "input_schema": {"type": "object"}},
        ]
    ).tools
    assert [tool.name for tool in tools] == ["bash", "str_replace_based_edit_tool", "mine"]
    assert "command" in tools[0].parameters["properties"]
    assert tools[1].parameters["required"] == ["command", "path"]


def test_a_deferred_tool_is_shown_once_a_search_has_found_it() -> None:
    later = {**BASH, "name": "WebFetch", "defer_loading": True}
    assert [tool.name for tool in parsed(tools=[BASH, later]).tools] == ["Bash"]
    found: list[Any] = [
        *HI,
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t", "name": "ToolSearch", "input": {"q": "web"}}],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t",
                    "content": [{"type": "tool_reference", "tool_name": "WebFetch"}],
                }
            ],
        },
    ]
    request = parsed(tools=[BASH, later], messages=found)
    assert [tool.name for tool in request.tools] == ["Bash", "WebFetch"]
    assert "WebFetch" in (request.messages or ())[-1]["content"]


@pytest.mark.parametrize(
    ("choice", "required", "only", "parallel"),
    [
        (None, False, (), True),
        ({"type": "auto"}, False, (), True),
        ({"type": "auto", "disable_parallel_tool_use": True}, False, (), False),
        ({"type": "any"}, True, (), True),
        ({"type": "any", "disable_parallel_tool_use": True}, True, (), False),
        ({"type": "tool", "name": "Bash"}, True, ("Bash",), False),
        ({"type": "tool", "name": "Bash", "disable_parallel_tool_use": False}, True, ("Bash",), True),
    ],
)
def test_the_choice_of_a_tool(choice: Any, required: bool, only: tuple[str, ...], parallel: bool) -> None:
    use = parsed(tools=[BASH], tool_choice=choice).tool_use
    assert (use.required, tuple(use.only), use.parallel) == (required, only, parallel)


def test_no_tool_may_be_called() -> None:
    request = parsed(tools=[BASH], tool_choice={"type": "none"})
    assert request.tool_use.forbidden
    assert request.tools  # told of all the same: the prompt stays as it was


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": ["Hi"]}, "messages[0]"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [3]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "base64"}}]}]},
            "messages[0].content[0].source.type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [{"type": "image"}]}]}]},
            "messages[0].content[0].content[0]",
        ),
        (
            {"messages": [*HI, {"role": "assistant", "content": [{"type": "tool_use", "name": ""}]}]},
            "messages[1].content[0].name",
        ),
        (
            {"messages": [*HI, {"role": "assistant", "content": [{"type": "tool_use", "name": "a", "input": []}]}]},
            "messages[1].content[0].input",
        ),
        ({"system": 3}, "system"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"stop_sequences": [3]}, "stop_sequences"),
        ({"temperature": 3}, "temperature"),
        ({"thinking": {"type": "hard"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": -1}}, "thinking.budget_tokens"),
        ({"tools": [{"name": "a b"}]}, "tools[0].name"),
        ({"tools": [{**BASH, "defer_loading": True}, {"name": 3}]}, "tools[1].name"),
        ({"tools": [{}]}, "tools[0].name"),
        ({"tools": [{"name": "a", "type": 3}]}, "tools[0].type"),
        ({"tools": [{"name": "a", "input_schema": {"type": "array"}}]}, "tools[0].input_schema.type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [BASH], "tool_choice": {"type": "required"}}, "tool_choice"),
        ({"tools": [BASH], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [BASH], "tool_choice": {"type": "tool", "name": "b"}}, "tool_choice"),
        (
            {"tools": [BASH], "tool_choice": {"type": "auto", "disable_parallel_tool_use": 1}},
            "tool_choice.disable_parallel_tool_use",
        ),
        ({"output_config": {"format": 3}}, "output_config.format"),
        ({"output_config": {"format": {"type": "json_object"}}}, "output_config.format.type"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"output_format": {"type": "json_schema", "schema": 3}}, "output_format.schema"),
        ({"stop": "END"}, "stop"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"metadata": {"user_id": 3}}, "metadata.user_id"),
    ],
)
def test_bad_input_is_refused_with_the_name_of_the_field(body: dict[str, Any], param: str) -> None:
    error = refused(**body)
    assert error.param == param
    assert param.rpartition("]")[2].lstrip(".").split(".")[0] in error.message
