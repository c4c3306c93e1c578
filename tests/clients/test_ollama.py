"""ollama, the official client library: chats, prompts, tools, formats, models, errors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fakes.habits import ASKED, DONE, EVE, Adder, Person, people, question
from fakes.server_process import ServerProcess

ollama = pytest.importorskip("ollama", reason="ollama is not installed: `make test-clients` installs it")
pytestmark = pytest.mark.clients

ALPHABET = [{"role": "user", "content": "Say the alphabet."}]


@pytest.fixture
def client(base_url: str) -> Any:
    """By the address alone: what OLLAMA_HOST would be set to."""
    return ollama.Client(host=base_url.removesuffix("/v1"))


def history() -> list[dict[str, Any]]:
    """Sums that were done by the tool, and the one to do."""
    found: list[dict[str, Any]] = []
    for a, b in DONE:
        found += [
            {"role": "user", "content": question(a, b)},
            {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {"a": a, "b": b}}}]},
            {"role": "tool", "tool_name": "add", "content": str(a + b)},
            {"role": "assistant", "content": str(a + b)},
        ]
    return [*found, {"role": "user", "content": question(*ASKED)}]


def test_a_chat_whole_and_streamed(client: Any) -> None:
    answer = client.chat("auto", messages=ALPHABET)
    assert answer.message.content
    assert answer.done_reason in ("stop", "length")
    assert min(answer.eval_count, answer.eval_duration, answer.prompt_eval_duration, answer.total_duration) > 0
    pieces = list(client.chat("auto", messages=ALPHABET, stream=True))
    assert "".join(piece.message.content for piece in pieces) == answer.message.content
    assert [piece.done for piece in pieces].count(True) == 1


async def test_the_asynchronous_client(base_url: str) -> None:
    client = ollama.AsyncClient(host=base_url.removesuffix("/v1"))
    pieces = [piece.message.content async for piece in await client.chat("auto", messages=ALPHABET, stream=True)]
    assert "".join(pieces)


def test_a_prompt_whole_streamed_and_raw(client: Any) -> None:
    answer = client.generate("general", ALPHABET[0]["content"], options={"num_predict": 8, "temperature": 0})
    assert answer.response
    assert answer.eval_count <= 8
    pieces = client.generate("general:latest", ALPHABET[0]["content"], stream=True, options={"num_predict": 8})
    assert "".join(piece.response for piece in pieces) == answer.response
    assert client.generate("general", "Roses are red,", raw=True).response


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_read(client: Any, stream: bool) -> None:
    adder, messages = Adder(), history()
    told = client.chat("general", messages=messages, tools=[adder.add], stream=stream)
    said = [piece.message for piece in told] if stream else [told.message]
    (call,) = [call for message in said for call in message.tool_calls or ()]
    result = adder.add(**call.function.arguments)
    messages += [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_name": call.function.name, "content": str(result)},
    ]
    last = client.chat("general", messages=messages, tools=[adder.add]).message
    assert not last.tool_calls
    assert str(sum(ASKED)) in last.content
    assert adder.calls == [ASKED]


def test_an_answer_by_a_schema(client: Any) -> None:
    answer = client.chat("general", messages=people(), format=Person.model_json_schema())
    assert Person.model_validate_json(answer.message.content) == EVE
    assert isinstance(json.loads(client.chat("general", messages=people(), format="json").message.content), dict)


def test_log_probabilities(client: Any) -> None:
    answer = client.chat("general", messages=ALPHABET, logprobs=True, top_logprobs=2, options={"num_predict": 3})
    assert [len(entry.top_logprobs) for entry in answer.logprobs] == [2, 2, 2]


def test_models_are_listed_shown_loaded_and_unloaded(client: Any) -> None:
    listed = {model.model: model for model in client.list().models}
    assert list(listed) == ["auto:latest", "general:latest", "law:latest"]
    assert listed["law:latest"].details.parameter_size == "134.5M"
    shown = client.show("law")
    assert "tools" in shown.capabilities
    assert shown.modelinfo["llama.context_length"] == 8192
    assert client.generate("law").done_reason == "load"
    running = {model.name: model for model in client.ps().models}
    assert running["law:latest"].context_length == 8192
    assert client.generate("law", keep_alive=0).done_reason == "unload"
    assert "law:latest" not in [model.name for model in client.ps().models]


def test_texts_are_embedded(encoding: ServerProcess) -> None:
    client = ollama.Client(host=encoding.url)
    assert "all-minilm:latest" in [model.model for model in client.list().models]
    both = client.embed("all-minilm", input=["a cat", "a dog"])
    assert [len(vector) for vector in both.embeddings] == [384, 384]
    assert both.prompt_eval_count > 2
    assert client.embeddings("all-minilm", "a dog").embedding == pytest.approx(both.embeddings[1])
    with pytest.raises(ollama.ResponseError, match="general"):
        client.embed("general", input="a cat")


def test_what_is_refused_says_why(client: Any) -> None:
    for refused in (
        lambda: client.chat("llama3.2", messages=ALPHABET),
        lambda: next(client.chat("llama3.2", messages=ALPHABET, stream=True)),
        lambda: client.show("llama3.2"),
    ):
        with pytest.raises(ollama.ResponseError) as error:
            refused()
        assert error.value.status_code == 404
        assert "'llama3.2'" in error.value.error
    with pytest.raises(ollama.ResponseError, match="coe pull"):
        client.pull("llama3.2")
    with pytest.raises(ollama.ResponseError, match="roster"):
        client.delete("general")
    assert client.pull("general").status == "success"
