"""Events of a stream: each item told of from its beginning to its end, in an order that clients put together again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coe.engine.request import CallPiece, Delta, TokenLogprob
from coe.server.api.responses.events import COMPLETED, INCOMPLETE, Event, OutputItems
from coe.server.api.responses.tools import ToolName

NAMES = {"team__wait": ToolName("wait", "team"), "patch": ToolName("patch", custom=True)}


def items() -> OutputItems:
    return OutputItems(
        lambda prefix, place: f"{prefix}{place}",
        lambda number: f"call_{number}",
        lambda name: NAMES.get(name, ToolName(name)),
    )


def told(deltas: Sequence[Delta], status: str = COMPLETED) -> tuple[list[Event], list[dict[str, Any]]]:
    made = items()
    events = [event for delta in deltas for event in made.add(delta)]
    return [*events, *made.finish(status)], made.done


def call(name: str, *arguments: str, index: int = 0) -> Delta:
    return Delta("", calls=(CallPiece(index, name), *(CallPiece(index, None, piece) for piece in arguments)))


def kinds(events: Sequence[Event]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def test_a_message() -> None:
    events, done = told([Delta("", "Hel"), Delta("", "lo")])
    assert events == [
        {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": {"id": "msg_0", "type": "message", "role": "assistant", "status": "in_progress", "content": []},
        },
        {
            "type": "response.content_part.added",
            "item_id": "msg_0",
            "output_index": 0,
            "content_index": 0,
            "part": {"type": "output_text", "text": "", "annotations": [], "logprobs": []},
        },
        *(
            {
                "type": "response.output_text.delta",
                "item_id": "msg_0",
                "output_index": 0,
                "content_index": 0,
                "delta": piece,
                "logprobs": [],
            }
            for piece in ("Hel", "lo")
        ),
        {
            "type": "response.output_text.done",
            "item_id": "msg_0",
            "output_index": 0,
            "content_index": 0,
            "text": "Hello",
            "logprobs": [],
        },
        {
            "type": "response.content_part.done",
            "item_id": "msg_0",
            "output_index": 0,
            "content_index": 0,
            "part": {"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []},
        },
        {"type": "response.output_item.done", "output_index": 0, "item": done[0]},
    ]
    assert done[0]["content"][0]["text"] == "Hello"
    assert done[0]["status"] == COMPLETED


def test_thinking_text_and_calls_follow_each_other() -> None:
    events, done = told(
        [
            Delta("", reasoning="Hm"),
            Delta("", "I look."),
            call("look", '{"at":', "1}"),
            call("team__wait", "{}", index=1),
        ]
    )
    assert [item["type"] for item in done] == ["reasoning", "message", "function_call", "function_call"]
    assert [item["id"] for item in done] == ["rs_0", "msg_1", "fc_2", "fc_3"]
    assert done[0]["content"] == [{"type": "reasoning_text", "text": "Hm"}]
    assert (done[2]["call_id"], done[2]["name"], done[2]["arguments"]) == ("call_0", "look", '{"at":1}')
    assert "namespace" not in done[2]
    assert (done[3]["call_id"], done[3]["name"], done[3]["namespace"]) == ("call_1", "wait", "team")
    assert kinds(events)[-6:] == [
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]


def test_a_text_for_a_tool_comes_when_it_is_whole() -> None:
    events, done = told([call("patch", '{"input": "a\\', 'n\\u00e9"}')])
    assert kinds(events) == [
        "output_item.added",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
        "output_item.done",
    ]
    assert (done[0]["type"], done[0]["input"], done[0]["id"]) == ("custom_tool_call", "a\né", "ctc_0")


def test_what_was_cut_is_said_of_the_item_that_was_open() -> None:
    _, done = told([Delta("", "I look."), call("look", '{"at')], INCOMPLETE)
    assert [item["status"] for item in done] == [COMPLETED, INCOMPLETE]
    assert done[1]["arguments"] == '{"at'
    _, done = told([call("patch", '{"input": "a')], INCOMPLETE)
    assert done[0]["input"] == '{"input": "a'


def test_white_space_around_calls_is_no_message() -> None:
    _, done = told([Delta("", "\n"), call("a", "{}"), Delta("", "\n\n"), call("b", "{}", index=1), Delta("", "\n")])
    assert [item["type"] for item in done] == ["function_call", "function_call"]


def test_white_space_before_a_word_belongs_to_it() -> None:
    _, done = told([Delta("", reasoning="Hm"), Delta("", "\n"), Delta("", " Yes")])
    assert done[1]["content"][0]["text"] == "\n Yes"


def test_an_answer_without_a_word_is_a_message_unless_it_was_cut() -> None:
    events, done = told([])
    assert kinds(events)[0] == "output_item.added"
    assert done[0]["content"] == [{"type": "output_text", "text": "", "annotations": [], "logprobs": []}]
    assert told([], INCOMPLETE) == ([], [])
    _, done = told([Delta("", reasoning="Hm")])
    assert [item["type"] for item in done] == ["reasoning", "message"]


def test_waiting_is_told_in_a_summary() -> None:
    made = items()
    events = [
        *made.tell("Loading\n"),
        *made.tell("40 %\n"),
        *made.add(Delta("", reasoning="Hm")),
        *made.finish(COMPLETED),
    ]
    assert [item["type"] for item in made.done] == ["reasoning", "reasoning", "message"]
    assert made.done[0]["summary"] == [{"type": "summary_text", "text": "Loading\n40 %\n"}]
    assert made.done[0]["content"] == []
    assert kinds(events)[:4] == [
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.delta",
    ]


def test_logprobs_come_with_their_text() -> None:
    token = TokenLogprob("é", [195, 169], -0.5, [("é", [195, 169], -0.5)])
    events, done = told([Delta("", "", logprobs=(token,)), Delta("", "é", logprobs=(token,))])
    delta = next(event for event in events if event["type"] == "response.output_text.delta")
    assert delta["logprobs"] == [{"token": "é", "logprob": -0.5, "top_logprobs": [{"token": "é", "logprob": -0.5}]}] * 2
    assert done[0]["content"][0]["logprobs"][0]["bytes"] == [195, 169]
