"""Tools over HTTP, as the openai package sends them, answered by a model whose template knows none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel

from fakes import agent_session
from fakes.played_model import Script, write_played_model
from fakes.server_process import ServerProcess, write_roster
from fakes.weight import brings

ASK: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
NOW: Any = {"type": "function", "function": {"name": "now"}}
GREEDILY: Any = {"model": "general", "messages": ASK, "max_tokens": 120, "temperature": 0}


@pytest.fixture(scope="module")
@brings("server")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with a context for agents, and entries that take tools otherwise."""
    roomy = {"context_tokens": 8192, "cache_tokens": 16384, "system_prompt": None}
    specialists = {
        "general": roomy,
        "deaf": {**roomy, "tools": "ignore", "domains": ["law"]},
        "proud": {**roomy, "tools": "refuse", "domains": ["math"]},
        "native": {**roomy, "tools": "native", "domains": ["medicine"]},
    }
    roster = write_roster(tmp_path_factory.mktemp("agents"), specialists, fallback="general")
    with ServerProcess(roster) as server:
        yield server


@pytest.fixture(scope="module")
@brings("server")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose model reads long prompts in a moment; what it answers is played."""
    folder = tmp_path_factory.mktemp("reader")
    steps = tuple(f"That was step {number} of the plan." for number in range(256))
    model = write_played_model(folder / "played.gguf", Script(steps, "The title of a plan"))
    about = {"package": None, "pattern": None, "file": str(model), "context_tokens": 131_072}
    with ServerProcess(write_roster(folder, {"general": about})) as server:
        yield server


def held(call: Any) -> dict[str, Any]:
    """A call's arguments, which keep to the schema."""
    arguments = json.loads(call.function.arguments)
    schema = PARAMETERS if call.function.name == "weather" else {"type": "object", "maxProperties": 0}
    Draft202012Validator(schema).validate(arguments)
    assert isinstance(arguments, dict)
    return arguments


def test_required_makes_any_model_call(agents: ServerProcess) -> None:
    before = agents.metric("coe_tool_calls_total", specialist="general")
    answer = agents.openai().chat.completions.create(**GREEDILY, tools=[WEATHER, NOW], tool_choice="required")
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    calls = choice.message.tool_calls or []
    assert calls
    for call in calls:
        held(call)
    assert len({call.id for call in calls}) == len(calls)
    assert agents.metric("coe_tool_calls_total", specialist="general") == before + len(calls)
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0


@pytest.mark.parametrize("name", ["weather", "now"])
def test_a_named_function_is_the_one_that_is_called(agents: ServerProcess, name: str) -> None:
    answer = agents.openai().chat.completions.create(
        **GREEDILY, tools=[WEATHER, NOW], tool_choice={"type": "function", "function": {"name": name}}
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == name
    held(call)


def test_one_call_at_a_time(agents: ServerProcess) -> None:
    answer = agents.openai().chat.completions.create(
        **GREEDILY, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False
    )
    assert len(answer.choices[0].message.tool_calls or []) == 1


def test_with_auto_a_model_may_just_answer(agents: ServerProcess) -> None:
    answer = agents.openai().chat.completions.create(**{**GREEDILY, "max_tokens": 8}, tools=[NOW])
    (choice,) = answer.choices
    assert choice.finish_reason in ("length", "stop", "tool_calls")
    assert bool(choice.message.content) or bool(choice.message.tool_calls)


def test_none_leaves_the_prompt_as_it_was(agents: ServerProcess) -> None:
    def prompt_tokens(**fields: Any) -> int:
        answer = agents.openai().chat.completions.create(**{**GREEDILY, "max_tokens": 1}, **fields)
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    assert prompt_tokens(tools=[WEATHER], tool_choice="none") == prompt_tokens(tools=[WEATHER]) > prompt_tokens()


def test_the_openai_package_puts_streamed_calls_together(agents: ServerProcess) -> None:
    with agents.openai().chat.completions.stream(**GREEDILY, tools=[WEATHER, NOW], tool_choice="required") as stream:
        events = [event.type for event in stream]
        final = stream.get_final_completion()
    (choice,) = final.choices
    assert choice.finish_reason == "tool_calls"
    assert "tool_calls.function.arguments.delta" in events
    assert "tool_calls.function.arguments.done" in events
    whole = agents.openai().chat.completions.create(**GREEDILY, tools=[WEATHER, NOW], tool_choice="required")
    streamed, said = choice.message.tool_calls or [], whole.choices[0].message.tool_calls or []
    assert [(call.function.name, call.function.arguments) for call in streamed] == [
        (call.function.name, call.function.arguments) for call in said
    ]


def test_choices_stream_their_calls_side_by_side(agents: ServerProcess) -> None:
    found: dict[tuple[int, int], list[str]] = {}
    ids: set[str] = set()
    ends: dict[int, str] = {}
    for chunk in agents.openai().chat.completions.create(
        **{**GREEDILY, "temperature": 0.9}, n=2, tools=[WEATHER], tool_choice="required", stream=True
    ):
        for choice in chunk.choices:
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason
            for call in choice.delta.tool_calls or []:
                pieces = found.setdefault((choice.index, call.index), [])
                assert (call.id is None) == bool(pieces), "the first piece has the id"
                assert call.function is not None
                pieces.append(call.function.arguments or "")
                ids |= {call.id} if call.id else set()
    assert {choice for choice, _ in found} == {0, 1}
    assert len(ids) == len(found)
    for (choice, _), pieces in found.items():
        if ends[choice] == "tool_calls":
            Draft202012Validator(PARAMETERS).validate(json.loads("".join(pieces)))


class Weather(BaseModel):
    """Look the weather up."""

    city: Literal["Paris", "Rome"]
    days: int


def test_pydantic_models_are_tools_whose_calls_are_parsed(agents: ServerProcess) -> None:
    answer = agents.openai().chat.completions.parse(
        **GREEDILY, tools=[openai.pydantic_function_tool(Weather)], tool_choice="required", parallel_tool_calls=False
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Weather)


def test_a_result_is_read_and_the_call_found_in_the_cache(agents: ServerProcess) -> None:
    client = agents.openai()
    tools = {"tools": [WEATHER], "tool_choice": "auto"}
    first = client.chat.completions.create(
        **{**GREEDILY, **tools, "tool_choice": "required"}, parallel_tool_calls=False
    )
    message = first.choices[0].message
    (call,) = message.tool_calls or []
    history = [*ASK, message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "Sun"}]
    second = client.chat.completions.create(**{**GREEDILY, **tools, "messages": history, "max_tokens": 16})
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens > first.usage.prompt_tokens
    assert second.usage.prompt_tokens_details is not None
    assert (second.usage.prompt_tokens_details.cached_tokens or 0) >= first.usage.prompt_tokens - 1


def test_a_call_that_went_wrong_earlier_does_not_end_the_conversation(agents: ServerProcess) -> None:
    function = {"name": "weather", "arguments": '{"city": "Pa'}
    history = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [{"id": "x", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "another", "content": [{"type": "text", "text": "That was no JSON."}]},
    ]
    for more in ({"tools": [WEATHER]}, {"tools": [WEATHER], "tool_choice": "none"}, {}):
        assert agents.chat(messages=history, **more).status_code == 200


def test_functions_are_answered_in_their_own_words(agents: ServerProcess) -> None:
    answer = agents.openai().chat.completions.create(
        **GREEDILY, functions=[WEATHER["function"]], function_call={"name": "weather"}
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "function_call"
    assert choice.message.function_call is not None
    Draft202012Validator(PARAMETERS).validate(json.loads(choice.message.function_call.arguments))
    assert choice.message.tool_calls is None


def test_an_answer_keeps_to_its_format_where_it_calls_no_tool(agents: ServerProcess) -> None:
    schema = {"type": "object", "properties": {"sunny": {"type": "boolean"}}, "required": ["sunny"]}
    closed = {**schema, "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": closed}}
    for seed in range(4):
        body = agents.chat(tools=[WEATHER], response_format=wanted, max_tokens=120, temperature=0.9, seed=seed).json()
        (choice,) = body["choices"]
        message = choice["message"]
        if choice["finish_reason"] == "tool_calls":
            assert message["content"] is None
        elif choice["finish_reason"] == "stop":
            Draft202012Validator(closed).validate(json.loads(message["content"]))
        for call in message.get("tool_calls", ()) if choice["finish_reason"] == "tool_calls" else ():
            Draft202012Validator(PARAMETERS).validate(json.loads(call["function"]["arguments"]))


def test_a_strict_schema_of_a_demanded_call_that_cannot_be_kept_is_a_400_that_names_the_tools(
    agents: ServerProcess,
) -> None:
    parameters = {"type": "object", "properties": {"x": {"$ref": "#/nowhere"}}, "required": ["x"]}
    tool = {"type": "function", "function": {"name": "f", "strict": True, "parameters": parameters}}
    response = agents.chat(tools=[tool], tool_choice="required")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tools"
    assert response.json()["error"]["code"] == "invalid_schema"
    assert agents.chat(tools=[tool]).status_code == 200
    tool["function"]["strict"] = False  # type: ignore[index]
    assert agents.chat(tools=[tool], tool_choice="required", max_tokens=5).status_code == 200


def test_the_roster_decides_what_becomes_of_tools(agents: ServerProcess) -> None:
    demanded = agents.chat(model="deaf", tools=[WEATHER], tool_choice="required")
    assert demanded.status_code == 400, "an answer in words would break who counts on a call"
    assert demanded.json()["error"]["param"] == "tool_choice"
    assert "Leave tool_choice" in demanded.json()["error"]["message"]
    ignored = agents.chat(model="deaf", tools=[WEATHER])
    assert ignored.status_code == 200
    assert "deaf calls no tools" in ignored.headers["x-coe-note"]
    assert ignored.json()["choices"][0]["message"]["content"]
    refused = agents.chat(model="proud", tools=[WEATHER])
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "tools"
    assert "proud" in refused.json()["error"]["message"]
    assert agents.chat(model="proud", tools=[WEATHER], tool_choice="none").status_code == 200
    cards = {card["id"]: card["coe"] for card in agents.http.get("/v1/models").json()["data"]}
    assert cards["general"]["tools"] == "generic (the chat template knows no tools)"
    assert (cards["deaf"]["tools"], cards["proud"]["tools"]) == ("ignored", "refused")
    assert not cards["native"]["available"]
    assert "knows no tools" in cards["native"]["reason"]


def test_a_demanded_call_goes_to_who_calls_tools(agents: ServerProcess) -> None:
    law: Any = [{"role": "user", "content": "Is an oral contract for the sale of land enforceable in court?"}]
    asked = {"model": "auto", "messages": law, "tools": [WEATHER]}
    assert agents.chat(**asked).headers["x-coe-specialist"] == "deaf"
    demanded = agents.chat(**asked, tool_choice="required", max_tokens=120)
    assert demanded.headers["x-coe-specialist"] == "general"
    assert "deaf is passed over (tool_choice: calls no tools" in demanded.headers["x-coe-reason"]
    assert demanded.json()["choices"][0]["message"]["tool_calls"]
    legacy = {"messages": law, "functions": [WEATHER["function"]], "function_call": {"name": "weather"}}
    assert agents.chat(model="auto", **legacy, max_tokens=120).json()["choices"][0]["message"]["function_call"]


def test_tools_of_other_kinds_are_left_out_and_noted(agents: ServerProcess) -> None:
    response = agents.chat(tools=[{"type": "web_search"}, NOW])
    assert response.status_code == 200
    assert "web_search" in response.headers["x-coe-note"]


def test_an_agents_prompt_is_read_once(reader: ServerProcess) -> None:
    before, read = 0, 0
    n_requests = 0
    for messages in agent_session.requests():
        body = reader.chat(messages=messages, tools=agent_session.TOOLS, max_tokens=1).raise_for_status().json()
        prompt = body["usage"]["prompt_tokens"]
        cached = body["usage"]["prompt_tokens_details"]["cached_tokens"]
        if n_requests:
            assert cached >= before - 1, f"request {n_requests} read more than what is new"
        else:
            assert prompt > 2000
        n_requests += 1
        read += prompt - cached
        before = prompt
    assert n_requests >= 70
    assert before > 15_000
    assert read <= before + 2 * n_requests, "all requests together read the last prompt once"


def test_an_agents_last_step_without_calls_finds_its_prompt_in_the_cache(reader: ServerProcess) -> None:
    before = 0
    for turn, messages in zip(range(4), agent_session.requests(), strict=False):
        choice = "auto" if turn < 3 else "none"
        body = reader.chat(messages=messages, tools=agent_session.TOOLS, tool_choice=choice, max_tokens=1).json()
        cached = body["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached >= before - 1, f"turn {turn} read more than what is new"
        before = body["usage"]["prompt_tokens"]


@pytest.mark.parametrize("tools", [[WEATHER], []])
def test_a_call_that_may_not_come_is_left_out_and_said(agents: ServerProcess, tools: list[Any]) -> None:
    history: list[Any] = []
    for number, city in enumerate(("Rome", "Paris", "Rome", "Paris", "Rome", "Paris")):
        function = {"name": "weather", "arguments": json.dumps({"city": city, "days": 1})}
        call = {"id": f"c{number}", "type": "function", "function": function}
        history += [
            {"role": "user", "content": f"What is the weather in {city}?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": "sunny"},
            {"role": "assistant", "content": "Sunny."},
        ]
    history.append({"role": "user", "content": "What is the weather in Rome?"})
    fields: dict[str, Any] = {"messages": history, "max_tokens": 60, "temperature": 0}
    called = agents.chat(**fields, tools=[WEATHER]).json()["choices"][0]
    assert called["finish_reason"] == "tool_calls", "a small model does as it did before"
    before = agents.metric("coe_forbidden_tool_calls_total", specialist="general")
    body = agents.chat(**fields, tools=tools, tool_choice="none").json()
    (choice,) = body["choices"]
    assert "tool_calls" not in choice["message"]
    assert "<tool_call>" not in choice["message"]["content"]
    assert choice["finish_reason"] != "tool_calls"
    if body["coe"].get("forbidden_calls"):
        assert "left out" in body["coe"]["notes"][-1]
        assert agents.metric("coe_forbidden_tool_calls_total", specialist="general") > before


def test_a_required_call_that_is_cut_has_no_markup_for_text(agents: ServerProcess) -> None:
    for max_tokens in range(1, 30, 4):
        fields = {**GREEDILY, "max_tokens": max_tokens, "tools": [WEATHER], "tool_choice": "required"}
        (choice,) = agents.chat(**fields).json()["choices"]
        assert choice["message"]["content"] is None
        assert choice["finish_reason"] in ("length", "tool_calls")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_conversation_that_ends_in_a_call_lacks_its_result(agents: ServerProcess, legacy: bool) -> None:
    function = {"name": "weather", "arguments": "{}"}
    calls = {"function_call": function} if legacy else {"tool_calls": [{"id": "call_7", "function": function}]}
    response = agents.chat(messages=[*ASK, {"role": "assistant", "content": None, **calls}], tools=[WEATHER])
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "messages"
    assert ("call_0" if legacy else "call_7") in error["message"]
