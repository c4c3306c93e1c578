"""Answers in OpenAI's shapes."""

from __future__ import annotations

from typing import Any, cast

from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from coe.engine.request import Delta, Finish, Finished, TokenLogprob
from coe.engine.spec import ThinkingMode
from coe.server.api.openai.replies import Shape, usage
from coe.server.api.openai.requests import chat_ask, completion_ask
from coe.server.roster.models import Specialist
from coe.server.runtime.answer import Answer, Outcome
from coe.server.runtime.college import Choice, College
from coe.server.runtime.metrics import Metrics
from fakes.college import NOBODY, FakeCollege

TOKEN = TokenLogprob("é", [195, 169], -0.5, [("é", [195, 169], -0.5), ("e", [101], -1.5)])


def end(
    reason: Finish = Finish.STOP, *, prompt: int = 7, cached: int = 2, completion: int = 3, **more: Any
) -> Finished:
    return Finished("", reason, prompt, cached, completion, **more)


def shape(*, chat: bool = True, thinking: Any = "off", **fields: Any) -> Shape:
    specialist = Specialist.model_validate({"name": "math", "file": "x.gguf", "thinking": thinking})
    ask = (
        chat_ask({"messages": [{"role": "user", "content": "Hi"}], **fields})
        if chat
        else completion_ask({"prompt": "Hi", **fields})
    )
    college = cast(College, FakeCollege([]))
    return Shape(Answer(college, ask, Choice(specialist, 0.5, "why"), Metrics(lambda: NOBODY)), chat=chat)


def test_a_chat_body_is_complete_for_the_openai_package() -> None:
    outcomes = [Outcome(0, "Yes", end=end()), Outcome(1, "No", end=end(Finish.LENGTH))]
    body = shape(n=2).body(outcomes)
    parsed = ChatCompletion.model_validate(body, strict=True)
    assert [choice.message.content for choice in parsed.choices] == ["Yes", "No"]
    assert [choice.finish_reason for choice in parsed.choices] == ["stop", "length"]
    assert body["id"].startswith("chatcmpl-")


def test_a_completion_body_is_complete_for_the_openai_package() -> None:
    body = shape(chat=False, logprobs=2).body([Outcome(0, "é", logprobs=[TOKEN], end=end())])
    parsed = Completion.model_validate(body, strict=True)
    assert parsed.choices[0].text == "é"
    assert parsed.choices[0].logprobs is not None
    assert parsed.choices[0].logprobs.token_logprobs == [-0.5]
    assert parsed.choices[0].logprobs.top_logprobs == [{"é": -0.5, "e": -1.5}]


def test_chat_logprobs_carry_text_bytes_and_rivals() -> None:
    body = shape(logprobs=True, top_logprobs=2).body([Outcome(0, "é", logprobs=[TOKEN], end=end())])
    logprobs = ChatCompletion.model_validate(body, strict=True).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    (entry,) = logprobs.content
    assert (entry.token, entry.bytes, entry.logprob) == ("é", [195, 169], -0.5)
    assert [rival.token for rival in entry.top_logprobs] == ["é", "e"]


def test_usage_counts_the_prompt_once_and_every_answer() -> None:
    counted = usage([end(completion=3), end(completion=4, cached=6, reasoning_tokens=2)])
    assert (counted["prompt_tokens"], counted["completion_tokens"], counted["total_tokens"]) == (7, 7, 14)
    assert counted["prompt_tokens_details"]["cached_tokens"] == 6
    assert counted["completion_tokens_details"]["reasoning_tokens"] == 2


def test_reasoning_has_a_field_of_its_own_only_where_the_specialist_thinks() -> None:
    outcome = Outcome(0, "Yes", reasoning="Hm", end=end())
    assert shape(thinking="on").answer.rules.thinking.mode is ThinkingMode.ON
    assert shape(thinking="on").body([outcome])["choices"][0]["message"]["reasoning_content"] == "Hm"
    assert "reasoning_content" not in shape().body([outcome])["choices"][0]["message"]
    delta = shape(thinking="on").piece(0, Delta("", reasoning="Hm"))["choices"][0]["delta"]
    assert delta == {"reasoning_content": "Hm"}


def test_every_chunk_is_one_for_the_openai_package() -> None:
    chat = shape(logprobs=True)
    opening = chat.opening(0)
    assert opening is not None
    ending = chat.ending(0, end(), chat.answer.facts([end()]))
    chunks = [opening, chat.piece(0, Delta("", "é", logprobs=(TOKEN,))), ending, chat.usage_chunk([end()], {})]
    parsed = [ChatCompletionChunk.model_validate(chunk, strict=True) for chunk in chunks]
    assert parsed[0].choices[0].delta.role == "assistant"
    assert parsed[1].choices[0].delta.content == "é"
    assert parsed[2].choices[0].finish_reason == "stop"
    assert parsed[3].choices == []
    assert parsed[3].usage is not None
    assert parsed[3].usage.total_tokens == 10


def test_a_plain_completion_has_no_opening_and_streams_text() -> None:
    plain = shape(chat=False)
    assert plain.opening(0) is None
    assert plain.piece(0, Delta("", "Yes"))["choices"][0]["text"] == "Yes"


def test_leaked_thinking_and_loops_stand_in_the_coe_object() -> None:
    ends = [end(Finish.LOOP, loop="again and again", leaked_blocks=2)]
    facts = shape().body([Outcome(0, "x", end=ends[0])])["coe"]
    assert facts["leaked_think_blocks"] == 2
    assert facts["loop"] == {"ended": True, "repeated": "again and again"}
    assert facts["thinking"] == "off"
    assert "leaked_think_blocks" not in shape().answer.facts([end()])
