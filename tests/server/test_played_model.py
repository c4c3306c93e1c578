"""The model that plays a script, played by a running server as any other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from fakes.played_model import Call, Script, write_played_model
from fakes.server_process import ServerProcess, write_roster
from fakes.weight import brings

NOTE = {"path": "a folder/ünïcode.txt", "text": 'Three "lines",\n\tone {of} them\nwith <tool_call> in it.\n'}
SCRIPT = Script(
    steps=(
        ("I write it down first.", Call("write", NOTE)),
        (Call("read", {"path": NOTE["path"]}), Call("read", {"path": "another.txt", "lines": [1, 2]})),
        "Both say the same: it is done.",
        Call("read", {"path": "a third.txt"}),
        "That is all there is.",
    ),
    client_task="A note about a note",
)


def _tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": ["path"]}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


STRING = {"type": "string"}
TOOLS: list[Any] = [
    _tool("write", path=STRING, text=STRING),
    _tool("read", path=STRING, lines={"type": "array", "items": {"type": "integer"}}),
]
ASKED: list[Any] = [{"role": "user", "content": "Write a note, then read it."}]


@pytest.fixture(scope="module")
@brings("server")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose one specialist plays SCRIPT."""
    folder = tmp_path_factory.mktemp("played")
    model = write_played_model(folder / "played.gguf", SCRIPT)
    about = {"package": None, "pattern": None, "file": str(model), "context_tokens": 16_384}
    with ServerProcess(write_roster(folder, {"general": about})) as server:
        yield server


def _said(server: ServerProcess, messages: list[Any], **fields: Any) -> Any:
    """The message of the answer, whole."""
    client = server.openai()
    found = client.chat.completions.create(model="general", messages=messages, **{"tools": TOOLS, **fields})
    return found.choices[0].message


def _calls(message: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or []]


def _with_results(messages: list[Any], answer: Any) -> list[Any]:
    results = [{"role": "tool", "tool_call_id": call.id, "content": "done"} for call in answer.tool_calls]
    return [*messages, answer.model_dump(exclude_none=True), *results]


def test_the_script_is_played_to_its_end(played: ServerProcess) -> None:
    first = _said(played, ASKED)
    assert (first.content, _calls(first)) == ("I write it down first.", [("write", NOTE)])
    messages = _with_results(ASKED, first)
    second = _said(played, messages)
    wanted = [("read", {"path": NOTE["path"]}), ("read", {"path": "another.txt", "lines": [1, 2]})]
    assert (second.content, _calls(second)) == (None, wanted)
    messages = _with_results(messages, second)
    third = _said(played, messages)
    assert (third.content, _calls(third)) == ("Both say the same: it is done.", [])
    messages += [{"role": "assistant", "content": third.content}, {"role": "user", "content": "Go on."}]
    fourth = _said(played, messages)
    assert _calls(fourth) == [("read", {"path": "a third.txt"})]
    messages = _with_results(messages, fourth)
    for _ in range(2):
        last = _said(played, messages)
        assert (last.content, _calls(last)) == ("That is all there is.", [])
        messages += [{"role": "assistant", "content": last.content}, {"role": "user", "content": "And then?"}]


def test_each_turn_reads_only_what_is_new(played: ServerProcess) -> None:
    client, messages, before = played.openai(), list(ASKED), 0
    for _ in range(3):
        found = client.chat.completions.create(model="general", messages=messages, tools=TOOLS)
        usage = found.usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        assert (usage.prompt_tokens_details.cached_tokens or 0) >= before - 1
        before = usage.prompt_tokens
        messages = (
            _with_results(messages, found.choices[0].message) if found.choices[0].message.tool_calls else messages
        )


def test_a_stream_brings_the_same(played: ServerProcess) -> None:
    with played.openai().chat.completions.stream(model="general", messages=ASKED, tools=TOOLS) as stream:
        for _event in stream:
            pass
        answer = stream.get_final_completion().choices[0]
    assert answer.message.content == "I write it down first."
    assert (answer.finish_reason, _calls(answer.message)) == ("tool_calls", [("write", NOTE)])


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_no_sampling_leads_away_from_it(played: ServerProcess, temperature: float) -> None:
    assert _calls(_said(played, ASKED, temperature=temperature, frequency_penalty=1.0)) == [("write", NOTE)]


def test_a_request_without_tools_is_a_task_of_the_client(played: ServerProcess) -> None:
    assert (
        played.chat("A title, please.", max_tokens=64).json()["choices"][0]["message"]["content"] == SCRIPT.client_task
    )


@pytest.mark.parametrize("same", ["a", ""])
def test_an_answer_that_cannot_be_told_from_a_word_is_refused(tmp_path: Any, same: str) -> None:
    with pytest.raises(ValueError, match="say more"):
        write_played_model(tmp_path / "short.gguf", Script(steps=(same,)))
