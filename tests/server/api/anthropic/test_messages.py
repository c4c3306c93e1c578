"""Turns of blocks become a conversation that stays the same from turn to turn."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.server.api.anthropic.messages import read_conversation
from coe.server.runtime.request import Message

BILLING = "x-anthropic-billing-header: cc_version=2.1.332.{}; cc_entrypoint=sdk-cli;"


def text(said: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": said, **more}


def call(id_: str, name: str = "Bash", **arguments: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": id_, "name": name, "input": arguments}


def result(id_: str, content: Any = "done", **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id_, "content": content, **more}


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def said(*blocks: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(blocks)}


def read(*messages: Any, system: Any = None) -> list[Message]:
    return list(read_conversation(system, messages).messages)


def told(*messages: Any, system: Any = None) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in read(*messages, system=system)]


def test_a_text_is_one_block_of_text() -> None:
    one = told({"role": "user", "content": "Hi"}, system="Be kind.")
    assert one == told(user(text("Hi", cache_control={"type": "ephemeral"})), system=[text("Be kind.")])


@pytest.mark.parametrize("version", ["1c9", "4e9"])
def test_the_line_that_changes_each_turn_is_left_out(version: str) -> None:
    billing = BILLING.format(version)
    assert told(user(text("Hi")), system=[text(billing), text("You are an agent."), text("Rules.")]) == [
        ("system", "You are an agent."),
        ("system", "Rules."),
        ("user", "Hi"),
    ]
    assert told(user(text("Hi")), system=f"{billing}\nYou are an agent.")[0] == ("system", "You are an agent.")
    assert told(user(text("Hi")), system=billing) == [("user", "Hi")]


def test_later_instructions_stay_where_they_are() -> None:
    environment = "# Environment\nLinux"
    first = [user(text("Hi")), {"role": "system", "content": [text(environment, cache_control={})]}]
    second = [
        user(text("Hi")),
        {"role": "system", "content": environment},
        said(call("t1", command="ls")),
        user(result("t1")),
    ]
    begun = read(*first)
    assert read(*second)[: len(begun)] == begun
    assert begun == [
        {"role": "user", "content": f"Hi\n<system-reminder>\n{environment}\n</system-reminder>"},
    ]


def test_instructions_before_the_first_message_are_the_systems() -> None:
    assert told({"role": "system", "content": "Be kind."}, user(text("Hi"))) == [("system", "Be kind."), ("user", "Hi")]


def test_instructions_that_say_nothing_are_no_turn() -> None:
    turns = [user(text("Hi")), said(text("I am")), {"role": "system", "content": " "}]
    assert told(*turns) == [("user", "Hi"), ("assistant", "I am")]


def test_messages_of_one_side_are_one_turn() -> None:
    assert told(user(text("a")), user(text("b")), said(text("c")), said(text("d")), user(text("e"))) == [
        ("user", "a\nb"),
        ("assistant", "c\nd"),
        ("user", "e"),
    ]


def test_results_belong_to_their_calls_and_come_before_what_is_said() -> None:
    found = read(
        user(text("Go.")),
        said(text("I look."), call("c0", command="ls"), call("c1", "Read", path="x")),
        user(text("And now?"), result("c1", "text of x"), result("c0")),
    )
    assert found[1]["tool_calls"] == [
        {"id": "c0", "name": "Bash", "arguments": {"command": "ls"}},
        {"id": "c1", "name": "Read", "arguments": {"path": "x"}},
    ]
    assert [(m["role"], m.get("name"), m["content"]) for m in found[2:]] == [
        ("tool", "Bash", "done"),
        ("tool", "Read", "text of x"),
        ("user", None, "And now?"),
    ]


@pytest.mark.parametrize(
    ("given_", "read_"),
    [
        ({"content": "no such file", "is_error": True}, "Error: no such file"),
        ({"content": "<tool_use_error>InputValidationError</tool_use_error>", "is_error": True}, None),
        ({"content": [text("a"), text("b")]}, "a\nb"),
        ({"content": None}, ""),
        ({"content": []}, ""),
        ({"content": [{"type": "tool_reference", "tool_name": "Web"}]}, "The tool Web can be called from now on."),
        ({"content": [{"type": "search_result", "title": "T", "source": "S", "content": [text("x")]}]}, "T\nS\nx"),
    ],
)
def test_what_a_result_says(given_: dict[str, Any], read_: str | None) -> None:
    found = read(user(text("Go.")), said(call("c")), user({**result("c"), **given_}))
    assert found[-1]["content"] == (given_["content"] if read_ is None else read_)


def test_documents_of_text_are_text() -> None:
    document = {"type": "document", "title": "T", "context": "C", "source": {"type": "text", "data": "D"}}
    parts = {"type": "document", "source": {"type": "content", "content": [text("a"), text("b")]}}
    assert told(user(document, parts, text("What?"))) == [("user", "T\nC\nD\na\nb\nWhat?")]


def test_thinking_counts_within_its_turn() -> None:
    thought = {"type": "thinking", "thinking": "Hm.", "signature": ""}
    turn = [user(text("Go.")), said(thought, {"type": "redacted_thinking", "data": "x"}, call("c")), user(result("c"))]
    assert read(*turn)[1]["reasoning"] == "Hm."
    assert "reasoning" not in read(*turn, said(text("Done.")), user(text("More.")))[1]


def test_a_remark_beside_results_ends_no_turn() -> None:
    thought = {"type": "thinking", "thinking": "Hm.", "signature": ""}
    reminder = "<system-reminder>\nThe file has changed.\n</system-reminder>"
    turn = [user(text("Go.")), said(thought, call("c"))]
    for found in (
        read(*turn, user(result("c"), text(reminder))),
        read(*turn, user(result("c")), {"role": "system", "content": "The file has changed."}),
    ):
        assert found[1]["reasoning"] == "Hm."
        assert found[-1] == {"role": "tool", "tool_call_id": "c", "name": "Bash", "content": f"done\n{reminder}"}


def test_what_only_anthropics_servers_make_is_left_out_with_a_note() -> None:
    searched = said({"type": "server_tool_use", "id": "s"}, {"type": "web_search_tool_result"}, text("Found."))
    found = read_conversation(None, [user(text("Search.")), searched, user(text("And?"))])
    assert [message["content"] for message in found.messages] == ["Search.", "Found.", "And?"]
    assert found.notes == ("blocks of type server_tool_use, web_search_tool_result in messages were left out",)


def test_the_last_message_is_continued_unless_it_says_nothing() -> None:
    assert told(user(text("Hi")), said(text("I am")))[-1] == ("assistant", "I am")
    assert told(user(text("Hi")), said())[-1] == ("user", "Hi")


WORDS = st.text("ab \n", max_size=8)


@st.composite
def conversations(draw: st.DrawFn) -> list[Any]:
    """Turns of an agent: a question, calls with results in any order, remarks between, an answer."""
    messages: list[Any] = []
    for turn in range(draw(st.integers(1, 3))):
        messages.append(user(text(draw(WORDS) + "?")))
        if draw(st.booleans()):
            messages.append({"role": "system", "content": draw(WORDS)})
        for step in range(draw(st.integers(0, 2))):
            ids = [f"{turn}/{step}/{n}" for n in range(draw(st.integers(1, 3)))]
            messages.append(said(text(draw(WORDS)), *(call(id_) for id_ in ids)))
            messages.append(user(*(result(id_, draw(WORDS)) for id_ in draw(st.permutations(ids)))))
            if draw(st.booleans()):
                messages.append({"role": "system", "content": [text(draw(WORDS))]})
        messages.append(said(text(draw(WORDS) + ".")))
    return messages


def asks(messages: Sequence[Any]) -> list[int]:
    """Where a client would ask: before each answer."""
    return [index for index, message in enumerate(messages) if message["role"] == "assistant"]


@given(conversations())
def test_a_conversation_begins_as_it_did_a_turn_before(messages: list[Any]) -> None:
    places = asks(messages)
    for earlier, later in itertools.pairwise(places):
        before, after = read(*messages[:earlier], system="S"), read(*messages[:later], system="S")
        assert after[: len(before)] == before
        assert after[len(before)]["role"] == "assistant"
