"""langchain-ollama: chat, streams, bound tools, structured output, prompts."""

from __future__ import annotations

from typing import Any

import pytest

from fakes.habits import ASKED, EVE, Adder, Person, people, sums_of_langchain
from fakes.server_process import ServerProcess

langchain_ollama = pytest.importorskip(
    "langchain_ollama", reason="langchain-ollama is not installed: `make test-clients` installs it"
)
pytestmark = pytest.mark.clients


@pytest.fixture
def address(base_url: str) -> str:
    return base_url.removesuffix("/v1")


@pytest.fixture
def model(address: str) -> Any:
    return langchain_ollama.ChatOllama(model="general", base_url=address, validate_model_on_init=True)


def test_a_chat(model: Any) -> None:
    answer = model.invoke("Say the alphabet.")
    assert answer.content
    assert answer.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.content for chunk in model.stream("Say the alphabet.")) == answer.content


def test_a_model_that_is_not_there_is_known_before_it_is_asked(address: str) -> None:
    with pytest.raises(ValueError, match="not found"):
        langchain_ollama.ChatOllama(model="llama3.2", base_url=address, validate_model_on_init=True)


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
    (call,) = said.tool_calls
    result = adder.add(**call["args"])
    last = bound.invoke([*messages, said, ToolMessage(str(result), tool_call_id=call["id"])])
    assert not last.tool_calls
    assert str(sum(ASKED)) in last.content
    assert adder.calls == [ASKED]


def test_structured_output_by_default(model: Any) -> None:
    assert model.with_structured_output(Person).invoke(people()) == EVE


def test_structured_output_in_json(model: Any) -> None:
    opening = {"role": "system", "content": "Answer in JSON."}  # json_mode wants it said
    assert model.with_structured_output(Person, method="json_mode").invoke([opening, *people()]) == EVE


def test_a_prompt(address: str) -> None:
    answers = langchain_ollama.OllamaLLM(model="auto", base_url=address, num_predict=8, temperature=0)
    text = answers.invoke("Say the alphabet.")
    assert text
    assert "".join(answers.stream("Say the alphabet.")) == text


def test_texts_are_embedded(encoding: ServerProcess) -> None:
    embeddings = langchain_ollama.OllamaEmbeddings(model="all-minilm", base_url=encoding.url)
    cat, dog = embeddings.embed_documents(["a cat", "a dog"])
    assert len(cat) == 384
    assert embeddings.embed_query("a dog") == pytest.approx(dog)
