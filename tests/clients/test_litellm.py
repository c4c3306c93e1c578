"""litellm: chats, tools, overflows and embeddings in the words of three providers, and its proxy in front."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from openai import BadRequestError, OpenAI

from fakes.habits import ASKED, EVE, Adder, Person, people, sums
from fakes.server_process import GIVE_UP_S, ServerProcess

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it fetches prices when it is imported
litellm = pytest.importorskip("litellm", reason="litellm is not installed: `make test-clients` installs it")
pytestmark = pytest.mark.clients

ALPHABET: Any = [{"role": "user", "content": "Say the alphabet."}]
TOO_LONG: Any = [{"role": "user", "content": "word " * 9000}]
ADD: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}


@pytest.fixture(params=["openai", "ollama_chat", "anthropic"])
def provider(request: pytest.FixtureRequest) -> str:
    """Whose dialect is spoken."""
    return str(request.param)


@pytest.fixture
def asked(provider: str, agents: ServerProcess) -> dict[str, Any]:
    """What litellm is told of the server."""
    base = f"{agents.url}/v1" if provider == "openai" else agents.url
    return {"model": f"{provider}/auto", "api_base": base, "api_key": "anything"}


def test_a_chat_whole_and_streamed_says_the_same(asked: dict[str, Any]) -> None:
    for _ in range(2):  # both of those that are compared find the prompt in the cache
        whole = litellm.completion(**asked, messages=ALPHABET)
    text = whole.choices[0].message.content
    assert text
    assert whole.usage.prompt_tokens > 0
    assert whole.usage.completion_tokens > 0
    chunks = list(litellm.completion(**asked, messages=ALPHABET, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


async def test_the_asynchronous_call_streams(asked: dict[str, Any]) -> None:
    stream = await litellm.acompletion(**asked, messages=ALPHABET, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_read(asked: dict[str, Any], stream: bool) -> None:
    adder, messages = Adder(), sums()

    def turn() -> Any:
        said = litellm.completion(**asked, messages=messages, tools=[ADD], stream=stream)
        return (litellm.stream_chunk_builder(list(said)) if stream else said).choices[0]

    said = turn()
    assert said.finish_reason == "tool_calls"
    messages.append(said.message.model_dump(exclude_none=True))
    for call in said.message.tool_calls:
        result = adder.add(**json.loads(call.function.arguments))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": str(result)})
    said = turn()
    assert said.finish_reason == "stop"
    assert str(sum(ASKED)) in said.message.content
    assert adder.calls == [ASKED]


def test_an_answer_of_a_type(asked: dict[str, Any]) -> None:
    said = litellm.completion(**asked, messages=people(), response_format=Person)
    assert Person.model_validate_json(said.choices[0].message.content) == EVE


@pytest.mark.parametrize("stream", [False, True])
def test_too_long_a_prompt_is_known_as_such(provider: str, asked: dict[str, Any], stream: bool) -> None:
    """For Ollama's servers litellm knows no words that would say so: it is a bad request there."""
    kind = litellm.BadRequestError if provider == "ollama_chat" else litellm.ContextWindowExceededError
    with pytest.raises(kind, match="8191 maximum" if provider == "anthropic" else "8192 tokens"):
        litellm.completion(**asked, messages=TOO_LONG, stream=stream)


def test_an_unknown_model_is_not_found(asked: dict[str, Any]) -> None:
    with pytest.raises(litellm.NotFoundError, match="nobody"):
        litellm.completion(**{**asked, "model": asked["model"].replace("auto", "nobody")}, messages=ALPHABET)


@pytest.mark.parametrize("provider", ["openai", "ollama"], indirect=True)
def test_texts_are_embedded(provider: str, encoding: ServerProcess) -> None:
    base = f"{encoding.url}/v1" if provider == "openai" else encoding.url
    texts = ["a cat", "a dog"]
    found = litellm.embedding(model=f"{provider}/all-minilm", input=texts, api_base=base, api_key="anything")
    assert [len(one["embedding"]) for one in found.data] == [384, 384]


def test_too_long_a_text_is_known_as_such(encoding: ServerProcess) -> None:
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.embedding(
            model="openai/all-minilm", input=["word " * 9000], api_base=f"{encoding.url}/v1", api_key="anything"
        )


def test_documents_are_ranked(encoding: ServerProcess) -> None:
    found = litellm.rerank(
        *("cohere/all-minilm", "a cat", ["a dog", "a cat"]), api_base=f"{encoding.url}/v1/rerank", api_key="anything"
    )
    assert [one["index"] for one in found.results] == [1, 0]


def test_what_a_model_can_is_read_from_the_server(agents: ServerProcess) -> None:
    info = litellm.get_model_info("ollama_chat/general", api_base=agents.url)
    assert (info["max_input_tokens"], info["supports_function_calling"]) == (8192, True)


# --- the proxy --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def proxy(agents: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """A client of `litellm --config` in front of the server."""
    command = shutil.which("litellm", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("litellm's proxy is not installed: `make test-clients` installs it")
    folder, key = tmp_path_factory.mktemp("proxy"), f"sk-{secrets.token_hex(16)}"
    params = {"model": "openai/auto", "api_base": f"{agents.url}/v1", "api_key": "anything"}
    config = folder / "litellm.yaml"
    config.write_text(yaml.safe_dump({"model_list": [{"model_name": "college", "litellm_params": params}]}))
    with subprocess.Popen(
        [command, "--config", str(config), "--host", "127.0.0.1", "--port", "0"],
        cwd=folder, env={**os.environ, "LITELLM_MASTER_KEY": key},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        watchdog = threading.Timer(GIVE_UP_S, process.kill)
        watchdog.start()
        try:
            url = _address(process)
            # What it says later is read, or it would wait for a reader.
            reader = threading.Thread(target=deque, args=(process.stderr, 0), daemon=True)
            reader.start()
            with OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=GIVE_UP_S) as client:
                yield client
            process.terminate()
            reader.join()
        finally:
            watchdog.cancel()
            process.terminate()


def _address(process: subprocess.Popen[str]) -> str:
    """Where it listens. Raises RuntimeError with what it said when it ends instead."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"running on (http://\S+)", line):
            return found[1]
    raise RuntimeError(f"the proxy ended: {''.join(said)}")


def test_the_proxy_passes_a_stream_on(proxy: OpenAI, agents: ServerProcess) -> None:
    with agents.openai() as client:
        straight = client.chat.completions.create(model="auto", messages=ALPHABET).choices[0].message.content
    chunks = list(proxy.chat.completions.create(model="college", messages=ALPHABET, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == straight
    assert chunks[-1].model == "college"


def test_the_proxy_says_that_a_prompt_is_too_long(proxy: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="ContextWindowExceededError"):
        proxy.chat.completions.create(model="college", messages=TOO_LONG)
