"""Tools of a body, and which of them may, must or must not be called."""

from __future__ import annotations

from typing import Any

import pytest

from coe.engine.request import Tool, ToolUse
from coe.server.api.openai.requests import Parsed, parse_chat
from coe.server.runtime.errors import RequestError
from coe.server.runtime.request import Request

HELLO = [{"role": "user", "content": "Hello"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}


def function(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


TWO = [function("weather", description="The weather.", parameters=SCHEMA), function("now")]


def parsed(**fields: Any) -> Parsed:
    return parse_chat({"messages": HELLO, **fields})


def asked(**fields: Any) -> Request:
    return parsed(**fields).request


def refusal(**fields: Any) -> RequestError:
    with pytest.raises(RequestError) as error:
        parsed(**fields)
    return error.value


def names(request: Request) -> list[str]:
    return [tool.name for tool in request.tools]


def test_tools_come_with_their_descriptions_and_schemas() -> None:
    request = asked(tools=TWO)
    assert request.tools == (Tool("weather", "The weather.", SCHEMA), Tool("now", "", NOTHING))
    assert request.tool_use == ToolUse()
    assert request.notes == ()


@pytest.mark.parametrize(
    ("parameters", "read"),
    [
        (None, NOTHING),
        ({}, NOTHING),
        ({"properties": {}}, {"properties": {}}),
        ({"type": None, "properties": {}}, {"type": "object", "properties": {}}),
        ({"type": ["object", "null"]}, {"type": "object"}),
    ],
)
def test_a_function_without_parameters_takes_none(parameters: Any, read: Any) -> None:
    (tool,) = asked(tools=[function("f", parameters=parameters)]).tools
    assert tool.parameters == read


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "function", "function": {"name": "f", "strict": True}},
        {"type": "function", "strict": True, "function": {"name": "f"}},
        {"type": "function", "name": "f", "strict": True},
        {"function": {"name": "f", "strict": True, "description": None}},
    ],
)
def test_strict_is_read_wherever_clients_write_it(tool: dict[str, Any]) -> None:
    assert asked(tools=[tool]).tools == (Tool("f", "", NOTHING, strict=True),)


@pytest.mark.parametrize("name", ["a", "A_b-9", "server.tool", "mcp__x__y", "a:b", "a/b", "x" * 128])
def test_names_that_clients_make_are_taken(name: str) -> None:
    assert names(asked(tools=[function(name)])) == [name]


@pytest.mark.parametrize("name", ["", "a b", "ä", "a\n", "<tool_call>", "a{", 'a"', "x" * 129, 5, None])
def test_a_name_that_cannot_be_called_is_refused_by_its_place(name: Any) -> None:
    error = refusal(tools=[function("ok"), function(name)])
    assert error.param == "tools[1].function.name"


@pytest.mark.parametrize(
    ("tools", "param"),
    [
        ([{"type": "function"}], "tools[0].function"),
        ([{"type": "function", "function": "f"}], "tools[0].function"),
        ([{"type": 5, "function": {"name": "f"}}], "tools[0].type"),
        ([function("f", parameters=[])], "tools[0].function.parameters"),
        ([function("f", parameters={"type": "string"})], "tools[0].function.parameters.type"),
        ([function("f", description=5)], "tools[0].function.description"),
        ([function("f", strict="yes")], "tools[0].function.strict"),
        ([function("f"), function("f")], "tools"),
        ([function(f"f{i}") for i in range(513)], "tools"),
        ([function("f", description="x" * 2**20), function("g", description="x")], "tools"),
        ({"type": "function"}, "tools"),
        ("f", "tools"),
        (["f"], "tools[0]"),
    ],
)
def test_what_is_no_tool_or_too_much_is_refused_by_its_place(tools: Any, param: str) -> None:
    assert refusal(tools=tools).param == param


def test_tools_that_openai_would_run_itself_are_left_out_and_noted() -> None:
    request = asked(tools=[{"type": "web_search"}, function("f"), {"type": "mcp", "server": "x"}, {"type": "mcp"}])
    assert names(request) == ["f"]
    assert request.notes == ("tools of type web_search, mcp are not served and were left out",)
    assert "code_interpreter" in asked(tools=[{"type": "code_interpreter"}]).notes[0]


# --- tool_choice --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", [None, "auto", "", {"type": "auto"}])
def test_auto_leaves_the_choice_to_the_model(choice: Any) -> None:
    request = asked(tools=TWO, tool_choice=choice)
    assert names(request) == ["weather", "now"]
    assert request.tool_use == ToolUse()


@pytest.mark.parametrize("choice", ["none", {"type": "none"}])
def test_none_forbids_calls_and_leaves_the_prompt_as_it_was(choice: Any) -> None:
    request = asked(tools=TWO, tool_choice=choice)
    assert names(request) == ["weather", "now"]
    assert request.tool_use == ToolUse(forbidden=True)
    assert not request.may_call
    assert asked(tools=TWO).may_call


@pytest.mark.parametrize("choice", ["required", "any", {"type": "required"}, {"type": "any"}])
def test_required_wants_a_call(choice: Any) -> None:
    assert asked(tools=TWO, tool_choice=choice).tool_use == ToolUse(required=True)


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "function", "function": {"name": "now"}},
        {"type": "function", "name": "now"},
        {"function": {"name": "now"}},
        {"type": "tool", "name": "now"},
    ],
)
def test_a_named_function_is_called_once_unless_the_client_wants_more(choice: Any) -> None:
    request = asked(tools=TWO, tool_choice=choice)
    assert names(request) == ["weather", "now"], "the model is told of all of them, so that the prompt stays as it was"
    assert request.tool_use == ToolUse(required=True, only=("now",), parallel=False)
    assert asked(tools=TWO, tool_choice=choice, parallel_tool_calls=True).tool_use.parallel


@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize("mode", ["auto", "required"])
def test_allowed_tools_are_those_that_may_be_called(wrap: bool, mode: str) -> None:
    listed = [function("now")] if wrap else [{"type": "function", "name": "now"}]
    inner = {"mode": mode, "tools": [*listed, {"type": "web_search"}]}
    choice = {"type": "allowed_tools", **({"allowed_tools": inner} if wrap else inner)}
    request = asked(tools=TWO, tool_choice=choice)
    assert names(request) == ["weather", "now"]
    assert request.tool_use == ToolUse(required=mode == "required", only=("now",))


def test_no_allowed_tool_is_none() -> None:
    choice = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "web_search"}]}}
    assert asked(tools=TWO, tool_choice=choice).tool_use.forbidden
    choice["allowed_tools"]["mode"] = "required"  # type: ignore[index]
    assert refusal(tools=TWO, tool_choice=choice).param == "tool_choice"


@pytest.mark.parametrize(
    "choice",
    [
        "always", 5, [], ["now"], {}, {"type": "function"}, {"type": "function", "function": {"name": "later"}},
        {"type": "function", "function": {"name": 5}}, {"type": "allowed_tools"},
        {"type": "allowed_tools", "mode": "auto", "tools": ["now"]},
        {"type": "allowed_tools", "mode": "never", "tools": []},
        {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "later"}]},
    ],
    ids=str,
)  # fmt: skip
def test_another_choice_is_refused(choice: Any) -> None:
    assert refusal(tools=TWO, tool_choice=choice).param == "tool_choice"


def test_a_type_of_choice_that_is_not_served_is_named() -> None:
    assert refusal(tools=TWO, tool_choice={"type": "web_search"}).param == "tool_choice.type"


@pytest.mark.parametrize("tools", [None, [], [{"type": "web_search"}]])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "now"}}])
def test_no_call_can_be_required_without_tools(tools: Any, choice: Any) -> None:
    error = refusal(tools=tools, tool_choice=choice)
    assert error.param == "tool_choice"
    assert "Send tools" in error.message


@pytest.mark.parametrize("choice", [None, "auto", "none"])
def test_a_choice_without_tools_that_wants_nothing_is_taken(choice: Any) -> None:
    assert asked(tool_choice=choice).tools == ()


def test_one_call_at_a_time_if_the_client_wants_so() -> None:
    assert not asked(tools=TWO, parallel_tool_calls=False).tool_use.parallel
    assert not asked(tools=TWO, parallel_tool_calls=False, tool_choice="required").tool_use.parallel
    assert refusal(tools=TWO, parallel_tool_calls="no").param == "parallel_tool_calls"


# --- functions ----------------------------------------------------------------------------------------------------


def test_functions_are_tools_of_which_one_is_called() -> None:
    found = parsed(functions=[{"name": "weather", "parameters": SCHEMA}])
    assert found.request.tools == (Tool("weather", "", SCHEMA),)
    assert found.request.tool_use == ToolUse(parallel=False)
    assert found.legacy_calls
    assert not parsed(tools=TWO).legacy_calls


@pytest.mark.parametrize("call", ["auto", "none", {"name": "now"}])
def test_function_call_is_their_choice(call: Any) -> None:
    request = asked(functions=[{"name": "weather"}, {"name": "now"}], function_call=call)
    assert names(request) == ["weather", "now"]
    only = ("now",) if isinstance(call, dict) else ()
    assert request.tool_use == ToolUse(required=bool(only), only=only, parallel=False, forbidden=call == "none")


def test_what_does_not_go_together_is_refused() -> None:
    assert refusal(functions=[{"name": "f"}], tools=TWO).param == "functions"
    assert refusal(function_call={"name": "f"}).param == "function_call"
    assert refusal(functions=[{"name": "f"}], function_call={"name": "g"}).param == "function_call"
    assert refusal(functions=[{"name": "f f"}]).param == "functions[0].name"
    assert refusal(functions=[{"name": f"f{i}"} for i in range(513)]).param == "functions"


def test_a_format_of_the_answer_goes_with_tools() -> None:
    request = asked(tools=TWO, response_format={"type": "json_object"})
    assert request.response_format == {"type": "json_object"}
    assert len(request.tools) == 2


def test_the_schema_may_be_called_as_anthropics_api_calls_it() -> None:
    assert asked(tools=[{"name": "weather", "input_schema": SCHEMA}]).tools == (Tool("weather", "", SCHEMA),)


def test_a_required_call_without_a_tool_says_what_was_left_out() -> None:
    assert "web_search" in refusal(tools=[{"type": "web_search"}], tool_choice="required").message
