"""The anthropic package: messages whole and streamed, tools, thinking, counts, models, errors."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from fakes.habits import ASKED, DONE, EVE, Adder, Person, described, people, question
from fakes.message_stream import PIECES, THINKS, end, envelope, events, put_together, scripted, stream_frames
from fakes.server_process import ServerProcess

anthropic = pytest.importorskip("anthropic", reason="anthropic is not installed: `make test-clients` installs it")
pytestmark = pytest.mark.clients

ADD: Any = {
    "name": "add",
    "description": "Add two numbers.",
    "input_schema": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
    "strict": True,
}
ALPHABET: Any = [{"role": "user", "content": "Say the alphabet."}]


@pytest.fixture
def client(agents: ServerProcess) -> Any:
    return anthropic.Anthropic(base_url=agents.url, api_key="anything")


def history() -> list[Any]:
    """Sums that were done by the tool, and the one to do."""
    messages: list[Any] = []
    for a, b in DONE:
        id_ = f"toolu_{a}"
        messages += [
            {"role": "user", "content": question(a, b)},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": id_, "name": "add", "input": {"a": a, "b": b}}],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": id_, "content": str(a + b)}]},
            {"role": "assistant", "content": str(a + b)},
        ]
    return [*messages, {"role": "user", "content": question(*ASKED)}]


def test_models_are_listed_in_pages(client: Any) -> None:
    found = list(client.models.list(limit=1))
    assert {"auto", "general", "law"} <= {model.id for model in found}
    assert all(model.type == "model" and model.display_name and model.created_at.year > 2000 for model in found)
    assert client.models.retrieve("law").id == "law"


def test_a_message_whole_and_streamed_says_the_same(client: Any) -> None:
    for _ in range(2):  # both of those that are compared find the prompt in the cache
        whole = client.messages.create(model="auto", max_tokens=64, system="Be kind.", messages=ALPHABET)
    (block,) = whole.content
    assert block.type == "text"
    assert whole.stop_reason in ("end_turn", "max_tokens")
    assert whole.usage.output_tokens > 0
    with client.messages.stream(model="auto", max_tokens=64, system="Be kind.", messages=ALPHABET) as stream:
        assert "".join(stream.text_stream) == block.text
        final = stream.get_final_message()
    assert final.stop_reason == whole.stop_reason
    used = final.usage
    assert used.cache_read_input_tokens > 0  # the same prompt was read a moment ago
    assert used.input_tokens + used.cache_read_input_tokens == (
        whole.usage.input_tokens + whole.usage.cache_read_input_tokens
    )


@pytest.mark.parametrize("stream", [False, True])
def test_the_loop_of_an_agent_comes_to_its_end(client: Any, stream: bool) -> None:
    adder, messages = Adder(), history()

    def turn() -> Any:
        # As many as agents ask for: more than the context holds. Their package wants a timeout to be given then.
        asked: dict[str, Any] = {"model": "auto", "max_tokens": 32_000, "messages": messages, "tools": [ADD]}
        if not stream:
            return client.messages.create(**asked, timeout=600)
        with client.messages.stream(**asked) as events:
            return events.get_final_message()

    said = turn()
    assert said.stop_reason == "tool_use"
    results = []
    for call in said.content:
        if call.type == "tool_use":
            result = adder.add(**call.input)
            results.append({"type": "tool_result", "tool_use_id": call.id, "content": str(result)})
    messages += [
        {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in said.content]},
        {"role": "user", "content": results},
    ]
    said = turn()
    assert said.stop_reason == "end_turn"
    assert str(sum(ASKED)) in said.content[0].text
    assert adder.calls == [ASKED]


def test_a_choice_makes_it_call(client: Any) -> None:
    said = client.messages.create(
        model="auto",
        max_tokens=96,
        messages=history(),
        tools=[ADD],
        tool_choice={"type": "tool", "name": "add", "disable_parallel_tool_use": True},
    )
    (call,) = said.content
    assert set(call.input) == {"a", "b"}


def test_an_answer_of_a_type(client: Any) -> None:
    said = client.messages.parse(model="auto", max_tokens=96, messages=people(), output_format=Person)
    assert said.parsed_output == EVE


def test_a_stop_sequence_is_named(client: Any) -> None:
    said = client.messages.create(model="auto", max_tokens=96, messages=people(), stop_sequences=["Eve", "zzz"])
    assert (said.stop_reason, said.stop_sequence) == ("stop_sequence", "Eve")
    assert "Eve" not in said.content[0].text


def test_an_answer_goes_on_from_its_beginning(client: Any) -> None:
    begun = '{"name":"Eve","age":'
    said = client.messages.create(
        model="auto", max_tokens=8, messages=[*people(), {"role": "assistant", "content": begun}]
    )
    assert said.content[0].text.strip().startswith(str(EVE.age))


def test_tokens_are_counted_as_an_answer_counts_them(client: Any) -> None:
    asked: dict[str, Any] = {"model": "auto", "messages": history(), "tools": [ADD], "system": "Add."}
    counted = client.messages.count_tokens(**asked)
    used = client.messages.create(**asked, max_tokens=4).usage
    assert counted.input_tokens == used.input_tokens + used.cache_read_input_tokens


def test_the_beta_client_is_served(client: Any) -> None:
    said = client.beta.messages.create(
        model="auto",
        max_tokens=16,
        messages=[{"role": "user", "content": described(EVE)}],
        betas=["context-management-2025-06-27"],
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    )
    assert said.content[0].text


async def test_the_asynchronous_client_streams(agents: ServerProcess) -> None:
    client = anthropic.AsyncAnthropic(base_url=agents.url, auth_token="anything", api_key=None)
    async with client.messages.stream(
        model="auto", max_tokens=96, messages=history(), tools=[ADD], tool_choice={"type": "any"}
    ) as stream:
        final = await stream.get_final_message()
    assert {"a", "b"} == set(final.content[-1].input)


def test_errors_are_the_clients_own(client: Any) -> None:
    with pytest.raises(anthropic.NotFoundError, match=r"router\.aliases") as unknown:
        client.messages.create(model="claude-nobody", max_tokens=8, messages=ALPHABET)
    assert unknown.value.type == "not_found_error"
    assert unknown.value.request_id
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\]\.content\[0\] is an image"):
        client.messages.create(model="auto", max_tokens=8, messages=[{"role": "user", "content": [image]}])
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 8191 maximum"):
        client.messages.create(model="general", max_tokens=8, messages=[{"role": "user", "content": "word " * 9000}])
    with pytest.raises(anthropic.NotFoundError):
        client.messages.batches.list()
    with pytest.raises(anthropic.NotFoundError) as model:
        client.models.retrieve("nobody")
    assert model.value.type == "not_found_error"


@given(PIECES)
def test_any_stream_is_put_together_by_the_package_as_by_the_tests(pieces: list[tuple[str, Any]]) -> None:
    """As the package reads it from the wire; `put_together` is stricter about the order of events."""
    import httpx2  # the package's own

    frames = stream_frames(envelope(thinking=THINKS), [*scripted(pieces), end()])

    def answer(_: Any) -> Any:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=b"".join(frames))

    transport = httpx2.Client(transport=httpx2.MockTransport(answer))
    client = anthropic.Anthropic(base_url="http://played", api_key="anything", http_client=transport)
    with client.messages.stream(model="auto", max_tokens=9, messages=ALPHABET) as stream:
        message = stream.get_final_message()
    found = events(frames)
    wanted = put_together(found)
    assert [block.type for block in message.content] == [block["type"] for block in wanted["content"]]
    for block, same in zip(message.content, wanted["content"], strict=True):
        field = "input" if block.type == "tool_use" else block.type
        assert getattr(block, field) == same[field]
    assert message.usage.cache_read_input_tokens == wanted["usage"]["cache_read_input_tokens"]
