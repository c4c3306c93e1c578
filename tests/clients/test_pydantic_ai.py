"""pydantic-ai: typed output in its three modes, and agents with tools."""

from __future__ import annotations

from typing import Any

import pytest

from fakes.habits import ASKED, DONE, EVE, KNOWN, Adder, Person, described, question

pydantic_ai = pytest.importorskip("pydantic_ai", reason="pydantic-ai is not installed: `make test-clients` installs it")
pytestmark = pytest.mark.clients


@pytest.fixture
def model(base_url: str) -> Any:
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    return OpenAIChatModel("auto", provider=OpenAIProvider(base_url=base_url, api_key="anything"))


def history() -> list[Any]:
    """Sums that were done by the tool."""
    from pydantic_ai import messages as m

    found: list[Any] = []
    for a, b in DONE:
        id_ = f"call_{a}"
        found += [
            m.ModelRequest(parts=[m.UserPromptPart(question(a, b))]),
            m.ModelResponse(parts=[m.ToolCallPart("add", {"a": a, "b": b}, id_)]),
            m.ModelRequest(parts=[m.ToolReturnPart("add", a + b, id_)]),
            m.ModelResponse(parts=[m.TextPart(str(a + b))]),
        ]
    return found


def people() -> list[Any]:
    """People who were described by JSON."""
    from pydantic_ai import messages as m

    found: list[Any] = []
    for person in KNOWN:
        found.append(m.ModelRequest(parts=[m.UserPromptPart(described(person))]))
        found.append(m.ModelResponse(parts=[m.TextPart(person.model_dump_json())]))
    return found


async def test_text(model: Any) -> None:
    result = await pydantic_ai.Agent(model, instructions="Be short.").run("Say the alphabet.")
    assert isinstance(result.output, str)
    assert result.output
    assert result.usage.output_tokens > 0


async def test_typed_output(model: Any) -> None:
    result = await pydantic_ai.Agent(model, output_type=Person).run(described(EVE))
    assert isinstance(result.output, Person)


async def test_native_output(model: Any) -> None:
    agent = pydantic_ai.Agent(model, output_type=pydantic_ai.NativeOutput(Person))
    assert (await agent.run(described(EVE), message_history=people())).output == EVE


async def test_prompted_output(model: Any) -> None:
    """The schema stands in the prompt alone."""
    agent = pydantic_ai.Agent(model, output_type=pydantic_ai.PromptedOutput(Person))
    assert (await agent.run(described(EVE), message_history=people())).output == EVE


async def test_an_agent_calls_its_tool_and_ends(model: Any) -> None:
    adder = Adder()
    agent = pydantic_ai.Agent(model, tools=[adder.add])
    result = await agent.run(question(*ASKED), message_history=history())
    assert adder.calls == [ASKED]
    assert str(sum(ASKED)) in result.output


async def test_an_agent_calls_its_tool_while_it_streams(model: Any) -> None:
    adder = Adder()
    agent = pydantic_ai.Agent(model, tools=[adder.add])
    async with agent.run_stream(question(*ASKED), message_history=history()) as result:
        text = await result.get_output()
    assert adder.calls == [ASKED]
    assert str(sum(ASKED)) in text


async def test_tools_and_typed_output_together(model: Any) -> None:
    """With a type every turn must call: once the tool was used, only the output is left to be called."""
    adder = Adder()

    async def until_called(context: Any, tool: Any) -> Any:
        return None if adder.calls else tool

    agent = pydantic_ai.Agent(model, output_type=Person, tools=[pydantic_ai.Tool(adder.add, prepare=until_called)])
    result = await agent.run("Ann is 27 + 4 years old.")
    assert isinstance(result.output, Person)


async def test_a_stream_of_typed_output(model: Any) -> None:
    agent = pydantic_ai.Agent(model, output_type=Person)
    async with agent.run_stream(described(EVE)) as result:
        seen = [person async for person in result.stream_output(debounce_by=None)]
    assert isinstance(seen[-1], Person)
