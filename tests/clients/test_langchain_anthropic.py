"""langchain-anthropic: chat, streams, bound tools, structured output."""

from __future__ import annotations

from typing import Any

import pytest

from fakes.habits import ASKED, EVE, Adder, Person, described, people, sums_of_langchain
from fakes.server_process import ServerProcess

langchain_anthropic = pytest.importorskip(
    "langchain_anthropic", reason="langchain-anthropic is not installed: `make test-clients` installs it"
)
pytestmark = pytest.mark.clients


@pytest.fixture
def model(agents: ServerProcess) -> Any:
    return langchain_anthropic.ChatAnthropic(
        model="auto", base_url=agents.url, api_key="anything", max_tokens=96, stream_usage=True
    )


def test_a_chat(model: Any) -> None:
    model.invoke("Say the alphabet.")  # both of those that are compared find it in the cache
    answer = model.invoke("Say the alphabet.")
    assert answer.text
    assert answer.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.text for chunk in model.stream("Say the alphabet.")) == answer.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_bound_tool_is_called_and_its_result_read(model: Any, stream: bool) -> None:
    from langchain_core.messages import ToolMessage
    from langchain_core.tools import tool

    adder, messages = Adder(), sums_of_langchain()
    bound = model.bind_tools([tool(adder.add)])
    said = bound.invoke(messages)
    if stream:
        pieces = list(bound.stream(messages))
        said = pieces[0]
        for piece in pieces[1:]:
            said += piece
    assert not said.invalid_tool_calls
    (call,) = said.tool_calls
    result = adder.add(**call["args"])
    last = bound.invoke([*messages, said, ToolMessage(str(result), tool_call_id=call["id"])])
    assert not last.tool_calls
    assert str(sum(ASKED)) in last.text
    assert adder.calls == [ASKED]


@pytest.mark.parametrize("choice", ["any", "Person"])
def test_a_choice_makes_it_call(model: Any, choice: str) -> None:
    said = model.bind_tools([Person], tool_choice=choice, parallel_tool_calls=False).invoke(described(EVE))
    (call,) = said.tool_calls
    assert Person.model_validate(call["args"])


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(model: Any, method: str) -> None:
    assert isinstance(model.with_structured_output(Person, method=method).invoke(people()), Person)
