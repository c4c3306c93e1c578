"""langchain-openai over chat completions and over the Responses API: text, streams, bound tools, structured output."""

from __future__ import annotations

from typing import Any

import pytest

from fakes.habits import ASKED, EVE, Adder, Person, described, people, sums_of_langchain

langchain_openai = pytest.importorskip(
    "langchain_openai", reason="langchain-openai is not installed: `make test-clients` installs it"
)
pytestmark = pytest.mark.clients


@pytest.fixture(params=[False, True], ids=["chat", "responses"])
def model(base_url: str, request: pytest.FixtureRequest) -> Any:
    return langchain_openai.ChatOpenAI(
        model="auto", base_url=base_url, api_key="anything", use_responses_api=request.param
    )


def test_a_chat(model: Any) -> None:
    model.invoke("Say the alphabet.")  # from now on as much of the prompt is found in the cache
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


def test_structured_output_by_default(model: Any) -> None:
    assert isinstance(model.with_structured_output(Person).invoke(described(EVE)), Person)


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_structured_output(model: Any, method: str) -> None:
    opening = {"role": "system", "content": "Answer in JSON."}  # json_mode wants it said
    assert model.with_structured_output(Person, method=method).invoke([opening, *people()]) == EVE


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # of langchain-core, about the parsed answer
@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_in_pieces(model: Any, method: str) -> None:
    assert list(model.with_structured_output(Person, method=method).stream(people()))[-1] == EVE
