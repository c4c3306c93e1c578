"""Answers in OpenAI's shapes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, cast

from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from coe.engine.request import Accepted, CallPiece, Delta, Finish, Finished, TokenLogprob
from coe.engine.spec import ThinkingMode
from coe.server.api.openai.replies import ChatEnvelope, CompletionEnvelope, OpenAIEnvelope, usage
from coe.server.api.openai.requests import parse_chat, parse_completion
from coe.server.roster.models import Specialist
from coe.server.runtime.answer import Answer, Outcome, Step
from coe.server.runtime.calls import ToolCall
from coe.server.runtime.choice import Choice
from coe.server.runtime.college import College
from coe.server.runtime.metrics import Metrics
from fakes.college import NOBODY, FakeCollege

TOKEN = TokenLogprob("é", [195, 169], -0.5, [("é", [195, 169], -0.5), ("e", [101], -1.5)])


def end(
    reason: Finish = Finish.STOP, *, prompt: int = 7, cached: int = 2, completion: int = 3, **more: Any
) -> Finished:
    return Finished("", reason, prompt, cached, completion, **more)


def envelope(*, chat: bool = True, thinking: Any = "off", include_usage: bool = False, **fields: Any) -> OpenAIEnvelope:
    specialist = Specialist.model_validate({"name": "math", "file": "x.gguf", "thinking": thinking})
    parsed = (
        parse_chat({"messages": [{"role": "user", "content": "Hi"}], **fields})
        if chat
        else parse_completion({"prompt": "Hi", **fields})
    )
    choice = Choice(specialist, 0.5, "why")
    answer = Answer(cast(College, FakeCollege([])), parsed.request, choice, Metrics(lambda: NOBODY))
    kind = ChatEnvelope if chat else CompletionEnvelope
    return kind(answer, include_usage=include_usage, legacy_calls=parsed.legacy_calls)


def chunks(frames: Iterable[bytes]) -> list[dict[str, Any]]:
    """The JSON of frames, [DONE] left out."""
    return [json.loads(f.removeprefix(b"data: ")) for f in frames if f != b"data: [DONE]\n\n"]


def test_a_chat_body_is_complete_for_the_openai_package() -> None:
    outcomes = [Outcome(0, "Yes", end=end()), Outcome(1, "No", end=end(Finish.LENGTH))]
    body = envelope(n=2).body(outcomes)
    parsed = ChatCompletion.model_validate(body, strict=True)
    assert [choice.message.content for choice in parsed.choices] == ["Yes", "No"]
    assert [choice.finish_reason for choice in parsed.choices] == ["stop", "length"]
    assert body["id"].startswith("chatcmpl-")


def test_a_completion_body_is_complete_for_the_openai_package() -> None:
    body = envelope(chat=False, logprobs=2).body([Outcome(0, "é", logprobs=[TOKEN], end=end())])
    parsed = Completion.model_validate(body, strict=True)
    assert parsed.choices[0].text == "é"
    assert parsed.choices[0].logprobs is not None
    assert parsed.choices[0].logprobs.token_logprobs == [-0.5]
    assert parsed.choices[0].logprobs.top_logprobs == [{"é": -0.5, "e": -1.5}]


def test_chat_logprobs_carry_text_bytes_and_rivals() -> None:
    body = envelope(logprobs=True, top_logprobs=2).body([Outcome(0, "é", logprobs=[TOKEN], end=end())])
    logprobs = ChatCompletion.model_validate(body, strict=True).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    (entry,) = logprobs.content
    assert (entry.token, entry.bytes, entry.logprob) == ("é", [195, 169], -0.5)
    assert [rival.token for rival in entry.top_logprobs] == ["é", "e"]


def test_tokens_that_are_no_text_of_their_own_are_told_apart_by_their_bytes() -> None:
    top = [("\ufffd", [0xE6, 0x97], -0.1), ("\ufffd", [0xE5], -0.7), ("a", [97], -1.0), ("a", [97], -2.0)]
    entries = [TokenLogprob("\ufffd", [0xE5], -0.7, top), TokenLogprob("b", [98], -3.0, top[2:], offset=1)]
    body = envelope(chat=False, logprobs=4).body([Outcome(0, "日b", logprobs=entries, end=end())])
    logprobs = Completion.model_validate(body, strict=True).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == [r"bytes:\xe5", "b"]
    assert logprobs.top_logprobs == [{r"bytes:\xe6\x97": -0.1, r"bytes:\xe5": -0.7, "a": -1.0}, {"a": -1.0, "b": -3.0}]
    assert logprobs.text_offset == [0, 1]


def test_usage_counts_the_prompt_once_and_every_answer() -> None:
    counted = usage([end(completion=3), end(completion=4, cached=6, reasoning_tokens=2)])
    assert (counted["prompt_tokens"], counted["completion_tokens"], counted["total_tokens"]) == (7, 7, 14)
    assert counted["prompt_tokens_details"]["cached_tokens"] == 6
    assert counted["completion_tokens_details"]["reasoning_tokens"] == 2


def test_reasoning_has_a_field_of_its_own_only_where_the_specialist_thinks() -> None:
    outcome = Outcome(0, "Yes", reasoning="Hm", end=end())
    assert envelope(thinking="on").answer.rules.thinking.mode is ThinkingMode.ON
    assert envelope(thinking="on").body([outcome])["choices"][0]["message"]["reasoning_content"] == "Hm"
    assert "reasoning_content" not in envelope().body([outcome])["choices"][0]["message"]
    (chunk,) = chunks(envelope(thinking="on").frames(Step(0, Delta("", reasoning="Hm"))))
    assert chunk["choices"][0]["delta"] == {"reasoning_content": "Hm"}


def test_every_chunk_is_one_for_the_openai_package() -> None:
    chat = envelope(logprobs=True, include_usage=True)
    frames = [
        *chat.opening(),
        *chat.frames(Step(0, Accepted("", 7))),
        *chat.frames(Step(0, Delta("", "é", logprobs=(TOKEN,)))),
        *chat.frames(Step(0, end())),
        *chat.closing(),
    ]
    assert frames[-1] == b"data: [DONE]\n\n"
    parsed = [ChatCompletionChunk.model_validate(chunk, strict=True) for chunk in chunks(frames)]
    assert parsed[0].choices[0].delta.role == "assistant"
    assert parsed[1].choices[0].delta.content == "é"
    assert parsed[2].choices[0].finish_reason == "stop"
    assert parsed[3].choices == []
    assert parsed[3].usage is not None
    assert parsed[3].usage.total_tokens == 10


def test_a_plain_completion_has_no_opening_and_streams_text() -> None:
    plain = envelope(chat=False)
    assert list(plain.opening()) == []
    (chunk,) = chunks(plain.frames(Step(0, Delta("", "Yes"))))
    assert chunk["choices"][0]["text"] == "Yes"


def test_only_the_last_choices_last_chunk_says_how_the_answer_came_about() -> None:
    two = envelope(n=2)
    first, second = (chunks(two.frames(Step(index, end())))[0] for index in (1, 0))
    assert "coe" not in first
    assert second["coe"]["specialist"] == "math"


def test_leaked_thinking_and_loops_stand_in_the_coe_object() -> None:
    ends = [end(Finish.LOOP, loop="again and again", leaked_blocks=2)]
    facts = envelope().body([Outcome(0, "x", end=ends[0])])["coe"]
    assert facts["leaked_think_blocks"] == 2
    assert facts["loop"] == {"ended": True, "repeated": "again and again"}
    assert facts["thinking"] == "off"
    assert "leaked_think_blocks" not in envelope().answer.provenance.facts([end()])


# --- calls of tools -----------------------------------------------------------------------------------------------

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("weather", "now")]
FUNCTIONS = [{"name": "weather"}]
ROME = ToolCall("weather", '{"city": "Rome"}')


def calling(*calls: ToolCall, text: str = "", reason: Finish = Finish.CALLS, index: int = 0) -> Outcome:
    return Outcome(index, text, end=end(reason), calls=calls)


def test_calls_come_in_the_place_of_the_content() -> None:
    body = envelope(tools=TOOLS).body([calling(ROME, ToolCall("now", "{}"))])
    (choice,) = ChatCompletion.model_validate(body, strict=True).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert body["choices"][0]["message"]["tool_calls"][0]["function"] == {
        "name": "weather",
        "arguments": ROME.arguments,
    }
    assert [call.type for call in choice.message.tool_calls or []] == ["function"] * 2


def test_text_before_a_call_stays_and_an_answer_without_calls_has_none() -> None:
    beside = envelope(tools=TOOLS).body([calling(ROME, text="Let me look.")])["choices"][0]["message"]
    assert beside["content"] == "Let me look."
    plain = envelope(tools=TOOLS).body([Outcome(0, "", end=end())])["choices"][0]["message"]
    assert plain["content"] == ""
    assert "tool_calls" not in plain


def test_a_call_that_was_cut_comes_as_far_as_it_came() -> None:
    body = envelope(tools=TOOLS).body([calling(ToolCall("weather", '{"ci'), reason=Finish.LENGTH)])
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == '{"ci'


def test_a_call_has_one_id_of_its_own_wherever_it_stands() -> None:
    written = envelope(tools=TOOLS, n=2)
    body = written.body([calling(ROME, ROME), calling(ROME, index=1)])
    ids = [call["id"] for choice in body["choices"] for call in choice["message"]["tool_calls"]]
    assert len(set(ids)) == 3
    assert all(id_.startswith("call_") and id_.removeprefix("call_").isalnum() for id_ in ids)
    again = envelope(tools=TOOLS).body([calling(ROME)])["choices"][0]["message"]["tool_calls"][0]["id"]
    assert again not in ids, "another answer"


def stream_of(written: OpenAIEnvelope, *events: Delta | Finished) -> list[dict[str, Any]]:
    found = [*written.opening(), *(frame for event in events for frame in written.frames(Step(0, event)))]
    for chunk in (parsed := chunks(found)):
        ChatCompletionChunk.model_validate(chunk, strict=True)
    return [chunk["choices"][0] for chunk in parsed]


def test_a_streamed_call_is_named_first_and_then_comes_in_pieces() -> None:
    written = envelope(tools=TOOLS, stream=True)
    _, named, *pieces, last = stream_of(
        written,
        Delta("", calls=(CallPiece(0, "weather", '{"ci'), CallPiece(0, None, 'ty": '))),
        Delta("", calls=(CallPiece(0, None, '"Rome"}'),)),
        end(Finish.CALLS),
    )
    (call,) = named["delta"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": ""}
    assert call["type"] == "function"
    assert pieces == [
        {"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}, "finish_reason": None,
         "logprobs": None}
        for text in ('{"city": ', '"Rome"}')
    ]  # fmt: skip
    assert last["finish_reason"] == "tool_calls"
    assert call["id"] == written.body([calling(ROME)])["choices"][0]["message"]["tool_calls"][0]["id"]


def test_several_streamed_calls_have_an_index_each() -> None:
    deltas = stream_of(
        envelope(tools=TOOLS, stream=True),
        Delta("", text="Both.", calls=(CallPiece(0, "weather", "{}"), CallPiece(1, "now", "{"))),
        Delta("", calls=(CallPiece(1, None, "}"),)),
    )[1:]
    assert deltas[0]["delta"] == {"content": "Both."}
    calls = [call for delta in deltas[1:] for call in delta["delta"]["tool_calls"]]
    assert [(call["index"], call["function"].get("name"), call["function"]["arguments"]) for call in calls] == [
        (0, "weather", ""), (0, None, "{}"), (1, "now", ""), (1, None, "{"), (1, None, "}"),
    ]  # fmt: skip
    assert len({call["id"] for call in calls if "id" in call}) == 2


def test_log_probabilities_go_out_once_beside_calls() -> None:
    first, *rest = stream_of(
        envelope(tools=TOOLS, stream=True, logprobs=True),
        Delta("", logprobs=(TOKEN,), calls=(CallPiece(0, "weather", "{}"),)),
    )[1:]
    assert [entry["token"] for entry in first["logprobs"]["content"]] == ["é"]
    assert all(chunk["logprobs"] is None for chunk in rest)


def test_who_sends_functions_gets_a_function_call() -> None:
    body = envelope(functions=FUNCTIONS).body([calling(ROME)])
    (choice,) = ChatCompletion.model_validate(body, strict=True).choices
    assert choice.finish_reason == "function_call"
    assert choice.message.function_call is not None
    assert choice.message.function_call.arguments == ROME.arguments
    assert choice.message.tool_calls is None
    deltas = stream_of(
        envelope(functions=FUNCTIONS, stream=True),
        Delta("", calls=(CallPiece(0, "weather", "{}"),)),
        end(Finish.CALLS),
    )
    assert [delta["delta"] for delta in deltas[1:]] == [
        {"function_call": {"name": "weather", "arguments": ""}},
        {"function_call": {"arguments": "{}"}},
        {},
    ]
    assert deltas[-1]["finish_reason"] == "function_call"


def test_malformed_calls_are_told() -> None:
    facts = envelope(tools=TOOLS).body([Outcome(0, "<tool_call>{", end=end(malformed_calls=2))])["coe"]
    assert facts["malformed_calls"] == 2
    assert "malformed_calls" not in envelope(tools=TOOLS).body([calling(ROME)])["coe"]
