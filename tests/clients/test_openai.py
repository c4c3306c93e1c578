"""The openai package: chat, tools, streams, typed answers."""

from __future__ import annotations

import json
from datetime import time, timedelta
from typing import Any

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel, IPvAnyAddress

from fakes.habits import ASKED, EVE, Adder, Person, described, people, sums

pytestmark = pytest.mark.clients

ADD: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


@pytest.fixture
def client(base_url: str) -> OpenAI:
    return OpenAI(base_url=base_url, api_key="anything")


def test_models_are_listed(client: OpenAI) -> None:
    assert {"auto", "general", "law"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("general").id == "general"


def test_a_chat_whole_and_streamed_says_the_same(client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Say the alphabet."}]
    whole = client.chat.completions.create(model="auto", messages=messages).choices[0].message.content
    assert whole
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(model="auto", messages=messages, stream=True)
        if chunk.choices
    ]
    assert "".join(pieces) == whole


@pytest.mark.parametrize("stream", [False, True])
def test_the_loop_of_an_agent_comes_to_its_end(client: OpenAI, stream: bool) -> None:
    adder, messages = Adder(), sums()

    def turn() -> Any:
        if not stream:
            return client.chat.completions.create(model="auto", messages=messages, tools=[ADD]).choices[0]
        with client.chat.completions.stream(model="auto", messages=messages, tools=[ADD]) as events:
            for _ in events:
                pass
            return events.get_final_completion().choices[0]

    choice = turn()
    assert choice.finish_reason == "tool_calls"
    messages.append(choice.message.model_dump(exclude_none=True, exclude={"parsed"}))
    for call in choice.message.tool_calls:
        result = adder.add(**json.loads(call.function.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": str(result)})
    choice = turn()
    assert choice.finish_reason == "stop"
    assert choice.message.content
    assert adder.calls == [ASKED]


def test_parse_gives_an_object_of_the_type(client: OpenAI) -> None:
    messages: Any = people()
    answer = client.chat.completions.parse(model="auto", messages=messages, response_format=Person)
    assert answer.choices[0].message.parsed == EVE


def test_parse_gives_typed_arguments(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="auto",
        messages=[{"role": "user", "content": described(EVE)}],
        tools=[openai.pydantic_function_tool(Person)],
        tool_choice="required",
        parallel_tool_calls=False,
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Person)


async def test_the_asynchronous_client_streams(base_url: str) -> None:
    client = openai.AsyncOpenAI(base_url=base_url, api_key="anything")
    stream = await client.chat.completions.create(
        model="auto", messages=sums(), tools=[ADD], tool_choice="required", stream=True
    )
    arguments = ""
    async for chunk in stream:
        for call in chunk.choices[0].delta.tool_calls or () if chunk.choices else ():
            arguments += call.function.arguments or "" if call.function and call.index == 0 else ""
    assert set(json.loads(arguments)) == {"a", "b"}


def test_an_unknown_model_is_the_clients_own_error(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "Hi"}])


class Stay(BaseModel):
    """Formats that pydantic's types make."""

    at: time
    lasts: timedelta
    address: IPvAnyAddress


def test_parse_ends_for_types_whose_digits_have_no_end(client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Make one up."}]
    answer = client.chat.completions.parse(model="auto", messages=messages, response_format=Stay, max_tokens=400)
    assert isinstance(answer.choices[0].message.parsed, Stay)
