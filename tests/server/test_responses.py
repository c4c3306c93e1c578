"""The Responses API over HTTP, as the openai package speaks it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from fakes.demo_college import PARENT
from fakes.server_process import ENDLESS, ServerProcess, write_roster
from fakes.weight import brings

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}
TEAM: Any = {
    "type": "namespace",
    "name": "team",
    "description": "A team",
    "tools": [{"type": "function", "name": "wait"}],
}
PATCH: Any = {"type": "custom", "name": "apply_patch", "description": "Changes files."}
ASK = "What is the weather in Paris?"
GREEDILY: Any = {"model": "general", "max_output_tokens": 120, "temperature": 0}


@pytest.fixture(scope="module")
@brings("server")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A specialist with a context for tools, and one that thinks."""
    roomy: dict[str, Any] = {"context_tokens": 4096, "cache_tokens": 8192}
    thinks: dict[str, Any] = {
        "package": None,
        "pattern": None,
        "file": str(PARENT),
        "thinking": {"budget": 12},
        "domains": ["math"],
    }
    specialists = {"general": roomy, "thinker": thinks}
    roster = write_roster(
        tmp_path_factory.mktemp("responses"), specialists, fallback="general", server={"max_stored_bytes": 2_000_000}
    )
    with ServerProcess(roster) as server:
        yield server


def test_a_text_is_answered(served: ServerProcess) -> None:
    response = served.openai().responses.create(**{**GREEDILY, "max_output_tokens": 8}, input=ASK)
    assert response.output_text
    assert response.status in ("completed", "incomplete")
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    chat = served.chat(ASK, max_tokens=8, repeat_penalty=None).json()
    assert response.output_text == chat["choices"][0]["message"]["content"], (
        "one specialist, one answer, in any dialect"
    )
    assert response.usage.input_tokens == chat["usage"]["prompt_tokens"]


def test_a_stream_is_put_together_to_the_same(served: ServerProcess) -> None:
    with served.openai().responses.stream(**{**GREEDILY, "max_output_tokens": 8}, input=ASK) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:4]] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    last: Any = events[-1]
    assert last.type in ("response.completed", "response.incomplete")
    whole = served.openai().responses.create(**{**GREEDILY, "max_output_tokens": 8}, input=ASK)
    assert last.response.output_text == whole.output_text
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text


def test_what_is_cut_is_incomplete(served: ServerProcess) -> None:
    response = served.openai().responses.create(
        model="general", input="Go on", max_output_tokens=3, extra_body={"logit_bias": ENDLESS["logit_bias"]}
    )
    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[-1].status == "incomplete"  # type: ignore[union-attr]


def test_a_tool_is_called_its_result_read_and_the_conversation_gone_on_from(served: ServerProcess) -> None:
    client = served.openai()
    first = client.responses.create(**GREEDILY, input=ASK, tools=[WEATHER], tool_choice="required")
    calls = [item for item in first.output if item.type == "function_call"]
    assert calls
    assert set(json.loads(calls[0].arguments)) == {"city", "days"}
    results: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"} for call in calls]
    second = client.responses.create(**GREEDILY, input=results, tools=[WEATHER], previous_response_id=first.id)
    by_hand: Any = [{"role": "user", "content": ASK}, *(item.to_dict() for item in first.output), *results]
    again = client.responses.create(**GREEDILY, input=by_hand, tools=[WEATHER], store=False)
    assert second.usage is not None
    assert again.usage is not None
    assert again.usage.input_tokens == second.usage.input_tokens, "kept here or sent again, it is one conversation"
    assert again.output_text == second.output_text


@pytest.mark.parametrize("stream", [False, True])
def test_tools_of_namespaces_and_texts_come_back_as_such(served: ServerProcess, stream: bool) -> None:
    found = {}
    choices: list[Any] = [
        {"type": "function", "name": "wait", "namespace": "team"},
        {"type": "custom", "name": "apply_patch"},
    ]
    for choice in choices:
        asked: Any = {**GREEDILY, "input": "Go", "tools": [TEAM, PATCH], "tool_choice": choice}
        if stream:
            events: list[Any] = list(served.openai().responses.create(**asked, stream=True))
            (item,) = (event.item for event in events if event.type == "response.output_item.done")
        else:
            (item,) = served.openai().responses.create(**asked).output
        found[item.name] = item
    assert (found["wait"].type, found["wait"].namespace) == ("function_call", "team")
    assert found["apply_patch"].type == "custom_tool_call"
    assert isinstance(found["apply_patch"].input, str)


class Weather(BaseModel):
    """How the weather will be."""

    city: Literal["Paris", "Rome"]
    days: int


@pytest.mark.parametrize("stream", [False, True])
def test_typed_output(served: ServerProcess, stream: bool) -> None:
    client = served.openai()
    if stream:
        with client.responses.stream(**GREEDILY, input=ASK, text_format=Weather) as events:
            parsed = events.get_final_response().output_parsed
    else:
        parsed = client.responses.parse(**GREEDILY, input=ASK, text_format=Weather).output_parsed
    assert isinstance(parsed, Weather)


def test_logprobs(served: ServerProcess) -> None:
    response = served.openai().responses.create(
        **{**GREEDILY, "max_output_tokens": 5}, input=ASK, include=["message.output_text.logprobs"], top_logprobs=2
    )
    (message,) = response.output
    part: Any = message.content[0]
    assert "".join(entry.token for entry in part.logprobs) == part.text
    assert all(len(entry.top_logprobs) == 2 for entry in part.logprobs)


def test_thinking_is_an_item_of_its_own(served: ServerProcess) -> None:
    asked: Any = {**GREEDILY, "model": "thinker", "input": "What is 27 + 35?"}
    response = served.openai().responses.create(**asked)
    thought = response.output[0]
    assert thought.type == "reasoning"
    assert thought.content
    assert thought.content[0].text
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens > 0
    without = served.openai().responses.create(**asked, reasoning={"effort": "none"})
    assert [item.type for item in without.output] == ["message"]
    with served.openai().responses.stream(**asked) as stream:
        types = [event.type for event in stream]
    assert "response.reasoning_text.delta" in types


def test_a_prompt_is_counted_as_its_answer_counts_it(served: ServerProcess) -> None:
    client = served.openai()
    made = client.responses.create(**{**GREEDILY, "max_output_tokens": 2}, input=ASK)
    assert made.usage is not None
    counted = client.responses.input_tokens.count(model=GREEDILY["model"], input=ASK)
    assert counted.input_tokens == made.usage.input_tokens
    with pytest.raises(openai.NotFoundError, match="is not served"):
        served.openai().post("/responses/compact", body={"model": "auto", "input": ASK}, cast_to=object)


def test_what_is_kept_is_looked_at_and_forgotten(served: ServerProcess) -> None:
    client = served.openai()
    made = client.responses.create(**{**GREEDILY, "max_output_tokens": 4}, input=ASK)
    assert client.responses.retrieve(made.id).output_text == made.output_text
    (item,) = client.responses.input_items.list(made.id)
    assert item.to_dict()["content"] == [{"type": "input_text", "text": ASK}]
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError, match="not found"):
        client.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**GREEDILY, input="And?", previous_response_id=made.id)
    assert refused.value.code == "previous_response_not_found"


def test_a_conversation_that_does_not_fit_is_refused_in_the_words_that_clients_know(served: ServerProcess) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is") as refused:
        served.openai().responses.create(**GREEDILY, input="word " * 5000)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")


def test_a_schema_that_cannot_be_followed_is_named(served: ServerProcess) -> None:
    form: Any = {"type": "json_schema", "name": "x", "schema": {"not": {}}}
    with pytest.raises(openai.BadRequestError) as refused:
        served.openai().responses.create(**GREEDILY, input=ASK, text={"format": form})
    assert refused.value.param == "text.format"


async def test_the_asynchronous_client_leaves_early(served: ServerProcess) -> None:
    client = served.async_openai()
    stream: Any = await client.responses.create(
        model="general", input="Go on", stream=True, extra_body={"logit_bias": ENDLESS["logit_bias"]}
    )
    async for event in stream:
        if event.type == "response.output_text.delta":
            break
    await stream.close()
    await client.close()
    served.until(lambda: served.leases() == 0)
