"""openai-agents over the Responses API, its default, and over chat completions: tools, a handoff, typed output,
streams, and what the server keeps of a conversation."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import AsyncOpenAI

from fakes.habits import ASKED, DONE, EVE, Adder, Person, people, question

agents_sdk = pytest.importorskip("agents", reason="openai-agents is not installed: `make test-clients` installs it")
pytestmark = pytest.mark.clients


@pytest.fixture(params=["OpenAIResponsesModel", "OpenAIChatCompletionsModel"])
def model(base_url: str, request: pytest.FixtureRequest) -> Any:
    agents_sdk.set_tracing_disabled(True)  # traces go to OpenAI
    return getattr(agents_sdk, request.param)("auto", AsyncOpenAI(base_url=base_url, api_key="anything"))


def history() -> list[Any]:
    """Sums that were done by the tool, and the one to do."""
    found: list[Any] = []
    for a, b in DONE:
        id_ = f"call_{a}"
        arguments = json.dumps({"a": a, "b": b})
        found += [
            {"role": "user", "content": question(a, b)},
            {"type": "function_call", "call_id": id_, "name": "add", "arguments": arguments},
            {"type": "function_call_output", "call_id": id_, "output": str(a + b)},
            {"role": "assistant", "content": str(a + b)},
        ]
    return [*found, {"role": "user", "content": question(*ASKED)}]


async def test_text(model: Any) -> None:
    agent = agents_sdk.Agent(name="Guide", instructions="Be short.", model=model)
    result = await agents_sdk.Runner.run(agent, "What is the capital of France?")
    assert result.final_output


async def test_an_agent_calls_its_tool_and_ends(model: Any) -> None:
    adder = Adder()
    agent = agents_sdk.Agent(name="Clerk", model=model, tools=[agents_sdk.function_tool(adder.add)])
    result = await agents_sdk.Runner.run(agent, history())
    assert adder.calls == [ASKED]
    assert str(sum(ASKED)) in result.final_output


async def test_the_same_while_it_streams(model: Any) -> None:
    adder = Adder()
    agent = agents_sdk.Agent(name="Clerk", model=model, tools=[agents_sdk.function_tool(adder.add)])
    result = agents_sdk.Runner.run_streamed(agent, history())
    kinds = [event.type async for event in result.stream_events()]
    assert "raw_response_event" in kinds
    assert "run_item_stream_event" in kinds
    assert adder.calls == [ASKED]
    assert str(sum(ASKED)) in result.final_output


async def test_a_required_tool_is_required_once(model: Any) -> None:
    adder = Adder()
    agent = agents_sdk.Agent(
        name="Clerk",
        model=model,
        tools=[agents_sdk.function_tool(adder.add)],
        model_settings=agents_sdk.ModelSettings(tool_choice="required", parallel_tool_calls=False),
    )
    result = await agents_sdk.Runner.run(agent, "What is 27 + 35?")
    assert len(adder.calls) == 1
    assert result.final_output


async def test_a_conversation_is_handed_over(model: Any) -> None:
    lawyer = agents_sdk.Agent(name="Lawyer", handoff_description="Knows the law.", model=model)
    desk = agents_sdk.Agent(
        name="Desk",
        instructions="Hand every question over.",
        model=model,
        handoffs=[lawyer],
        model_settings=agents_sdk.ModelSettings(tool_choice="transfer_to_lawyer"),
    )
    result = await agents_sdk.Runner.run(desk, "May my landlord keep the deposit?")
    assert result.last_agent is lawyer
    assert result.final_output


async def test_typed_output(model: Any) -> None:
    agent = agents_sdk.Agent(name="Clerk", model=model, output_type=Person)
    assert (await agents_sdk.Runner.run(agent, people())).final_output == EVE


async def test_by_its_defaults_it_needs_a_name_alone(base_url: str) -> None:
    agents_sdk.set_tracing_disabled(True)
    agents_sdk.set_default_openai_client(AsyncOpenAI(base_url=base_url, api_key="anything"), use_for_tracing=False)
    adder = Adder()
    agent = agents_sdk.Agent(name="Clerk", model="auto", tools=[agents_sdk.function_tool(adder.add)])
    result = await agents_sdk.Runner.run(agent, history())
    assert adder.calls == [ASKED]
    assert str(sum(ASKED)) in result.final_output
    assert result.last_response_id.startswith("resp_")


async def test_a_conversation_goes_on_from_what_the_server_keeps(base_url: str) -> None:
    agents_sdk.set_tracing_disabled(True)
    model = agents_sdk.OpenAIResponsesModel("auto", AsyncOpenAI(base_url=base_url, api_key="anything"))
    adder = Adder()
    agent = agents_sdk.Agent(name="Clerk", model=model, tools=[agents_sdk.function_tool(adder.add)])
    first = await agents_sdk.Runner.run(agent, history())
    second = await agents_sdk.Runner.run(agent, question(8, 9), previous_response_id=first.last_response_id)
    assert adder.calls == [ASKED, (8, 9)]
    assert "17" in second.final_output
