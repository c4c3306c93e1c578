"""One request's life, with a college and residents that do what they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

from coe.engine.errors import (
    EngineError,
    GrammarError,
    PromptTooLongError,
    SchemaViolationError,
    WaitTimeoutError,
    WorkerDiedError,
)
from coe.engine.request import Accepted, CallPiece, Delta, Finish, Finished, GenerateRequest
from coe.router.choose import Decision
from coe.router.client_tasks import ClientTask
from coe.server.api.openai.replies import ChatEnvelope
from coe.server.api.openai.requests import parse_chat
from coe.server.roster.models import Specialist
from coe.server.runtime.answer import Answer, Outcome
from coe.server.runtime.calls import ToolCall
from coe.server.runtime.choice import Choice
from coe.server.runtime.college import College
from coe.server.runtime.errors import Part, RequestError, failure_of
from coe.server.runtime.metrics import Metrics
from coe.server.runtime.policy import rules_for
from fakes.college import GENERAL, LOOPED, MATH, NOBODY, SAID, FakeCollege, FakeLease, Script, script, specialist


@dataclass
class Scene:
    answer: Answer
    college: FakeCollege
    metrics: Metrics

    def counted(self, name: str) -> float:
        """A counter's sum over the specialists."""
        families = text_string_to_metric_families(self.metrics.text().decode())
        return sum(s.value for family in families for s in family.samples if s.name == name)

    def ended(self) -> dict[tuple[str, str], float]:
        """Answers by specialist and reason."""
        families = text_string_to_metric_families(self.metrics.text().decode())
        samples = [sample for family in families for sample in family.samples if sample.name == "coe_answers_total"]
        return {(sample.labels["specialist"], sample.labels["reason"]): sample.value for sample in samples}


def scene(*leases: FakeLease | EngineError, fallback: Specialist | None = GENERAL, **fields: Any) -> Scene:
    college = FakeCollege(list(leases), fallback)
    metrics = Metrics(lambda: NOBODY)
    request = parse_chat({"messages": [{"role": "user", "content": "Sing"}], **fields}).request
    answer = Answer(cast(College, college), request, Choice(MATH, 0.75, "math 0.75"), metrics)
    return Scene(answer, college, metrics)


async def whole(scene: Scene) -> list[Outcome]:
    try:
        await scene.answer.open()
        return await scene.answer.whole()
    finally:
        await scene.answer.close()


def texts(outcomes: Sequence[Outcome]) -> list[str]:
    return [outcome.text for outcome in outcomes]


async def test_an_answer_ends_with_its_lease_given_back_once() -> None:
    lease = FakeLease([SAID], "math")
    told = scene(lease)
    assert texts(await whole(told)) == ["Hello"]
    assert (lease.releases, lease.running) == (1, 0)
    assert told.ended() == {("math", "stop"): 1}


async def test_the_wait_that_is_told_at_the_end_has_the_turn_in_it() -> None:
    told = scene(FakeLease([script("Hello", Finish.STOP, queued_s=0.5)], "math"))
    facts = ChatEnvelope(told.answer).body(await whole(told))["coe"]
    assert facts["wait_ms"] == 1000 * (FakeLease.waited_s + 0.5)


async def test_a_loop_is_tried_again_with_a_fresh_seed() -> None:
    lease = FakeLease([LOOPED, SAID], "math")
    told = scene(lease, seed=7)
    outcomes = await whole(told)
    assert texts(outcomes) == ["Hello"]
    first, second = lease.requests
    assert first.seed == 7
    assert second.seed not in (None, 7)
    assert first.id != second.id
    facts = ChatEnvelope(told.answer).body(outcomes)["coe"]
    assert facts["retries"] == 1
    assert "loop" not in facts
    assert "chosen" not in facts
    assert told.ended() == {("math", "loop"): 1, ("math", "stop"): 1}


async def test_a_greedy_loop_is_drawn_the_second_time_for_the_same_tokens_would_come_again() -> None:
    lease = FakeLease([LOOPED, SAID], "math")
    told = scene(lease, temperature=0)
    await whole(told)
    assert [request.sampling.temperature > 0 for request in lease.requests] == [False, True]
    assert "drawn" in told.answer.provenance.facts([])["notes"][0]


async def test_a_second_loop_is_answered_by_the_fallback_after_the_lease_was_given_back() -> None:
    math, general = FakeLease([LOOPED, LOOPED], "math"), FakeLease([SAID], "general")
    told = scene(math, general)
    outcomes = await whole(told)
    assert texts(outcomes) == ["Hello"]
    assert told.college.asked == ["math", "general"]
    assert (math.releases, general.releases) == (1, 1)
    (request,) = general.requests
    assert request.specialist == "general"
    assert request.messages is not None
    assert request.messages[0] == {"role": "system", "content": "Be kind."}
    body = ChatEnvelope(told.answer).body(outcomes)
    assert body["model"] == body["coe"]["specialist"] == "general"
    assert told.answer.provenance.headers()["x-coe-specialist"] == "general"
    assert body["coe"]["chosen"] == "math"
    assert body["coe"]["retries"] == 2
    assert told.ended() == {("math", "loop"): 2, ("general", "stop"): 1}


async def test_only_the_choice_that_looped_is_tried_again() -> None:
    lease = FakeLease([SAID, LOOPED, script("Hi", Finish.STOP)], "math")
    told = scene(lease, n=2)
    outcomes = await whole(told)
    assert texts(outcomes) == ["Hello", "Hi"]
    assert [outcome.index for outcome in outcomes] == [0, 1]


async def test_without_a_fallback_the_loop_is_cut_and_told() -> None:
    told = scene(FakeLease([LOOPED, LOOPED], "math"), fallback=None)
    outcomes = await whole(told)
    assert texts(outcomes) == ["la la"]
    body = ChatEnvelope(told.answer).body(outcomes)
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["coe"]["loop"] == {"ended": True, "repeated": "la"}
    assert body["coe"]["retries"] == 1


async def test_a_fallback_that_cannot_be_had_leaves_the_cut_answer() -> None:
    math = FakeLease([LOOPED, LOOPED], "math")
    told = scene(math, WaitTimeoutError("general was not free."))
    assert texts(await whole(told)) == ["la la"]
    assert math.releases
    assert told.answer.answered_by.name == "math"


async def test_a_stream_that_loops_takes_nothing_back() -> None:
    lease = FakeLease([LOOPED], "math")
    told = scene(lease)
    await told.answer.open()
    events = [step.event async for step in told.answer.steps()]
    await told.answer.close()
    assert isinstance(events[-1], Finished)
    assert told.answer.provenance.facts([events[-1]])["loop"] == {"ended": True, "repeated": "la"}
    assert len(lease.requests) == 1


INVALID = script("0", Finish.INVALID, violation="at $, 0 is too small", conforms=False)
KEPT = script("1", Finish.STOP, conforms=True)


async def test_an_answer_that_breaks_its_schema_is_tried_again_with_fresh_seeds() -> None:
    lease = FakeLease([INVALID, INVALID, KEPT], "math")
    told = scene(lease, seed=7, temperature=0.5)
    outcomes = await whole(told)
    assert texts(outcomes) == ["1"]
    assert len({request.seed for request in lease.requests}) == 3
    facts = ChatEnvelope(told.answer).body(outcomes)["coe"]
    assert (facts["retries"], facts["schema"]) == (2, "kept")
    assert told.ended() == {("math", "invalid"): 2, ("math", "stop"): 1}


async def test_an_answer_that_breaks_its_schema_each_time_is_an_error() -> None:
    lease = FakeLease([INVALID, INVALID, INVALID], "math")
    told = scene(lease, temperature=0.5)
    with pytest.raises(SchemaViolationError, match=r"breaks its JSON schema: at \$, 0 is too small") as error:
        await whole(told)
    assert error.value.remedy
    assert (failure_of(error.value).status, failure_of(error.value).code) == (422, "schema_violated")
    assert lease.releases == 1


async def test_a_greedy_answer_that_breaks_its_schema_is_drawn_the_second_time() -> None:
    lease = FakeLease([INVALID, KEPT], "math")
    told = scene(lease, temperature=0)
    assert texts(await whole(told)) == ["1"]
    assert [request.sampling.temperature > 0 for request in lease.requests] == [False, True]
    assert "drawn" in told.answer.provenance.facts([])["notes"][0]


async def test_only_the_choice_that_breaks_its_schema_is_tried_again() -> None:
    lease = FakeLease([KEPT, INVALID, script("2", Finish.STOP, conforms=True)], "math")
    assert texts(await whole(scene(lease, n=2, temperature=0.5))) == ["1", "2"]


async def test_a_retry_after_a_broken_schema_may_loop_and_is_tried_again_then() -> None:
    lease = FakeLease([INVALID, LOOPED, KEPT], "math")
    assert texts(await whole(scene(lease, temperature=0.5))) == ["1"]


async def test_a_stream_that_breaks_its_schema_ends_with_an_error() -> None:
    lease = FakeLease([INVALID], "math")
    told = scene(lease, temperature=0.5)
    await told.answer.open()
    seen: list[object] = []

    async def read() -> None:
        async for step in told.answer.steps():
            seen.append(step.event)

    with pytest.raises(SchemaViolationError):
        await read()
    await told.answer.close()
    assert not any(isinstance(event, Finished) for event in seen)
    assert lease.releases == 1
    assert told.ended() == {("math", "invalid"): 1}


async def test_an_answer_that_was_cut_does_not_say_that_it_kept_its_schema() -> None:
    told = scene(FakeLease([script('{"a', Finish.LENGTH, conforms=False)], "math"))
    assert ChatEnvelope(told.answer).body(await whole(told))["coe"]["schema"] == "cut"
    free = scene(FakeLease([SAID], "math"))
    assert "schema" not in ChatEnvelope(free.answer).body(await whole(free))["coe"]


async def test_leaving_whole_answers_ends_them_and_counts_them_as_cancelled() -> None:
    lease = FakeLease([[Accepted("", 5), Delta("", "He")], [Accepted("", 5)]], "math")
    told = scene(lease, n=2)
    task = asyncio.create_task(whole(told))
    while lease.running < 2 or told.answer._unended < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (lease.releases, lease.running) == (1, 0)
    assert told.ended() == {("math", "cancelled"): 2}


async def test_leaving_a_stream_between_two_steps_ends_its_generation() -> None:
    lease = FakeLease([[Accepted("", 5), Delta("", "He")]], "math")
    told = scene(lease)
    await told.answer.open()
    steps = told.answer.steps()
    assert isinstance((await anext(steps)).event, Delta)
    await steps.aclose()
    await told.answer.close()
    assert (lease.releases, lease.running) == (1, 0)
    assert told.ended() == {("math", "cancelled"): 1}


async def test_a_resident_that_dies_fails_the_answer_and_counts_it() -> None:
    lease = FakeLease([[Accepted("", 5), Delta("", "He"), WorkerDiedError("It died.")]], "math")
    told = scene(lease)
    with pytest.raises(WorkerDiedError):
        await whole(told)
    assert lease.releases == 1
    assert told.ended() == {("math", "failed"): 1}


@pytest.mark.parametrize("error", [WorkerDiedError("It died."), RuntimeError("a bug")])
async def test_an_error_in_a_stream_reaches_its_reader(error: Exception) -> None:
    lease = FakeLease([[Accepted("", 5), Delta("", "He"), error]], "math")
    told = scene(lease)
    await told.answer.open()
    with pytest.raises(type(error)):
        [step async for step in told.answer.steps()]
    await told.answer.close()
    assert lease.releases == 1
    assert told.ended() == {("math", "failed"): 1}


async def test_a_rejected_prompt_gives_the_lease_back() -> None:
    lease = FakeLease([[EngineError("It does not fit.")]], "math")
    told = scene(lease)
    with pytest.raises(EngineError, match="does not fit"):
        await whole(told)
    assert lease.releases == 1
    assert told.ended() == {}


@pytest.mark.parametrize("reason", ["two\r\nx-evil: 1", "nul\0 and bell\a", "snow ☃ and é"])
def test_a_reason_cannot_break_out_of_its_header(reason: str) -> None:
    told = scene()
    told.answer.choice = Choice(MATH, 0.5, reason)
    value = told.answer.provenance.headers()["x-coe-reason"]
    assert value.encode("latin-1").decode("latin-1").isprintable()


def test_each_choice_has_a_seed_of_its_own() -> None:
    told = scene(seed=2**32 - 1)
    make: Callable[[int], GenerateRequest] = lambda i: told.answer._generate_request(MATH, told.answer.rules, i)  # noqa: E731
    assert [make(index).seed for index in range(2)] == [2**32 - 1, 0]


def too_long_for(lease_of: str, tokens: int, limit: int) -> FakeLease:
    return FakeLease([[PromptTooLongError(tokens, limit)]], lease_of)


def chosen(*leases: FakeLease, roomy: Sequence[Specialist], decided: bool = True) -> Scene:
    told = scene(*leases)
    told.college.roomy = list(roomy)
    if decided:
        told.answer.choice = replace(told.answer.choice, decision=DECISION)
    return told


SMALL = specialist("small", context_tokens=2048)
LARGE = specialist("large", context_tokens=8192)
DECISION = Decision("math", 0.75, "math 0.75", (), "math", "ngrams")


async def test_an_automatic_choice_that_cannot_hold_the_prompt_is_passed_over() -> None:
    small, large = too_long_for("math", 2653, 2048), FakeLease([SAID], "large")
    told = chosen(small, large, roomy=[SMALL, LARGE])
    assert texts(await whole(told)) == ["Hello"]
    assert told.college.asked == ["math", "large"]
    assert (small.releases, large.releases) == (1, 1)
    assert told.answer.choice.reason == "math 0.75; 2653"
    assert told.answer.answered_by is LARGE
    assert told.ended() == {("large", "stop"): 1}
    assert told.college.counted == [("large", 5)]


async def test_where_nobody_holds_the_prompt_the_largest_context_is_named() -> None:
    told = chosen(too_long_for("math", 9000, 2048), roomy=[SMALL, LARGE])
    with pytest.raises(PromptTooLongError, match=r"maximum context length is 8192 tokens.*has 9000 tokens"):
        await whole(told)


async def test_one_that_was_named_is_not_passed_over() -> None:
    told = chosen(too_long_for("math", 2653, 2048), roomy=[LARGE], decided=False)
    with pytest.raises(PromptTooLongError, match="maximum context length is 2048 tokens"):
        await whole(told)
    assert told.college.asked == ["math"]


# --- tools --------------------------------------------------------------------------------------------------------

TOOLS = [{"type": "function", "function": {"name": "weather"}}]


def called(reason: Finish = Finish.CALLS, **facts: Any) -> Script:
    return [
        Accepted("", 5),
        Delta("", calls=(CallPiece(0, "weather", '{"city": '),)),
        Delta("", calls=(CallPiece(0, None, '"Rome"}'), CallPiece(1, "weather"), CallPiece(1, None, "{}"))),
        Finished("", reason, 5, 0, 9, **facts),
    ]


BOTH = (ToolCall("weather", '{"city": "Rome"}'), ToolCall("weather", "{}"))


async def test_calls_are_put_together_and_counted() -> None:
    told = scene(FakeLease([called(malformed_calls=3)], "math"), tools=TOOLS)
    (outcome,) = await whole(told)
    assert outcome.calls == BOTH
    assert told.counted("coe_tool_calls_total") == 2
    assert told.counted("coe_malformed_tool_calls_total") == 3
    assert told.ended() == {("math", "calls"): 1}


async def test_streamed_calls_are_counted_too_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    told = scene(FakeLease([called()], "math"), tools=TOOLS, stream=True)
    await told.answer.open()
    with caplog.at_level("INFO"):
        [step async for step in told.answer.steps()]
    await told.answer.close()
    assert told.counted("coe_tool_calls_total") == 2
    assert "| calls, 2 calls" in caplog.text


async def test_the_engine_is_told_of_the_tools_and_of_what_the_client_wants_of_them() -> None:
    lease = FakeLease([called()], "math")
    await whole(scene(lease, tools=TOOLS, tool_choice="required", parallel_tool_calls=False))
    (request,) = lease.requests
    assert [tool.name for tool in request.tools] == ["weather"]
    assert (request.tool_use.required, request.tool_use.parallel, request.tool_use.generic) == (True, False, False)
    assert GenerateRequest.from_json(request.to_json()) == request


async def test_a_loop_or_a_broken_schema_among_calls_is_tried_again_and_the_fallback_has_the_tools() -> None:
    lease = FakeLease([called(Finish.INVALID, violation="x"), called()], "math")
    assert (await whole(scene(lease, tools=TOOLS, temperature=0.5)))[0].calls == BOTH
    math, general = FakeLease([called(Finish.LOOP, loop="x"), LOOPED], "math"), FakeLease([called()], "general")
    (outcome,) = await whole(scene(math, general, tools=TOOLS))
    assert outcome.calls == BOTH
    assert [len(request.tools) for request in (*math.requests, *general.requests)] == [1, 1, 1]


async def test_a_fallback_that_refuses_tools_leaves_the_cut_answer_and_one_that_ignores_them_says_so() -> None:
    refuses, ignores = (specialist("general", tools=tools) for tools in ("refuse", "ignore"))
    told = scene(FakeLease([LOOPED, LOOPED], "math"), fallback=refuses, tools=TOOLS)
    assert texts(await whole(told)) == ["la la"]
    lease = FakeLease([SAID], "general")
    told = scene(FakeLease([LOOPED, LOOPED], "math"), lease, fallback=ignores, tools=TOOLS)
    assert texts(await whole(told)) == ["Hello"]
    assert not lease.requests[0].tools
    assert "general calls no tools" in told.answer.provenance.headers()["x-coe-note"]


async def test_a_fallback_that_calls_no_tools_does_not_answer_a_demanded_call_in_words() -> None:
    ignores = specialist("general", tools="ignore")
    told = scene(FakeLease([LOOPED, LOOPED], "math"), fallback=ignores, tools=TOOLS, tool_choice="required")
    assert texts(await whole(told)) == ["la la"]


async def test_calls_that_break_their_schema_each_time_are_an_error_that_names_the_call() -> None:
    broken = called(Finish.INVALID, violation="in the call of weather, at $, 5 is too small")
    told = scene(FakeLease([broken] * 3, "math"), tools=TOOLS, temperature=0.5)
    with pytest.raises(SchemaViolationError, match="in the call of weather, at"):
        await whole(told)


@pytest.mark.parametrize(
    ("fields", "message", "part"),
    [
        ({"tools": TOOLS}, "response_format.json_schema is nested too deeply.", Part.TOOLS),
        ({"tools": TOOLS}, "the parameters of the tool weather is nested too deeply.", Part.TOOLS),
        (
            {"tools": TOOLS, "response_format": {"type": "json_object"}},
            "response_format.json_schema is nested too deeply.",
            Part.FORMAT,
        ),
        (
            {"tools": TOOLS, "response_format": {"type": "json_object"}},
            "the parameters of the tool weather is nested too deeply.",
            Part.TOOLS,
        ),
        ({"response_format": {"type": "json_object"}}, "response_format.json_schema is nested.", Part.FORMAT),
    ],
)
async def test_a_schema_that_cannot_be_followed_is_named_where_it_stands(
    fields: dict[str, Any], message: str, part: Part
) -> None:
    told = scene(FakeLease([[GrammarError(message)]], "math"), **fields)
    with pytest.raises((GrammarError, RequestError)) as error:
        await whole(told)
    failure = failure_of(error.value)
    assert (failure.status, failure.code, failure.param) == (400, "invalid_schema", part)
    assert ("response_format" in failure.message) == (part is Part.FORMAT)


async def test_a_clients_task_is_bounded_and_says_what_ended_it() -> None:
    long = [Accepted("", 5), Delta("", "A title"), Finished("", Finish.LENGTH, 5, 0, 15, reasoning_tokens=5)]
    lease = FakeLease([long, SAID], "math")
    told = scene(lease, n=2)
    told.answer.choice = replace(told.answer.choice, task=ClientTask("title", 10))
    told.answer.rules = rules_for(told.answer.request, MATH, told.answer.choice.task)
    ends = [outcome.end for outcome in await whole(told)]
    assert [request.max_answer_tokens for request in lease.requests] == [10, 10]
    provenance = told.answer.provenance
    (note,) = provenance.facts(ends)["notes"]
    assert "10 tokens are enough for a chat client's own task (title)" in note
    assert provenance.headers(ends)["x-coe-note"] == note
    assert "notes" not in provenance.facts(ends[1:])
    assert "x-coe-note" not in provenance.headers()


async def test_the_fallback_keeps_to_the_bound_of_a_clients_task() -> None:
    task = ClientTask("title", 10)
    math, general = FakeLease([LOOPED, LOOPED], "math"), FakeLease([SAID], "general")
    told = scene(math, general)
    told.answer.choice = replace(told.answer.choice, task=task)
    told.answer.rules = rules_for(told.answer.request, MATH, task)
    assert texts(await whole(told)) == ["Hello"]
    assert [request.max_answer_tokens for request in (*math.requests, *general.requests)] == [10, 10, 10]


async def test_who_does_not_think_is_shown_no_thinking_of_its_past() -> None:
    call = {"id": "c", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "tool_calls": [call], "reasoning_content": "Look it up."},
        {"role": "tool", "tool_call_id": "c", "content": "sunny"},
    ]
    lease = FakeLease([SAID], "math")
    await whole(scene(lease, messages=messages))
    assert lease.requests[0].messages is not None
    assert "reasoning" not in lease.requests[0].messages[1]
    thinker = specialist("thinker", thinking="on")
    told = scene(FakeLease([], "math"), messages=messages)
    told.answer.choice = Choice(thinker, 1.0, "")
    told.answer.rules = rules_for(told.answer.request, thinker)
    made = told.answer._generate_request(thinker, told.answer.rules, 0)
    assert made.messages is not None
    assert made.messages[1]["reasoning"] == "Look it up."
