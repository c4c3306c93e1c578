"""Several prompts of one call: some at a time, numbered on, and one failure for all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any, cast

import pytest

from coe.engine.errors import PromptTooLongError, WorkerDiedError
from coe.engine.pool.inbox import Unread
from coe.engine.request import Accepted, Event, Finish, Finished, GenerateRequest
from coe.server.api.openai.requests import parse_completion
from coe.server.runtime.answer import MAX_SCORES, Answer, Outcome, likeliest
from coe.server.runtime.choice import Choice
from coe.server.runtime.college import College
from coe.server.runtime.errors import RequestError
from coe.server.runtime.many import ManyAnswers
from coe.server.runtime.metrics import Metrics
from fakes.college import NOBODY, FakeCollege, FakeLease, Script, ServedCollege, asking, post, script, specialist

PAIR = specialist("math", parallel=2)


class Gates:
    """Leases whose answers wait until the test lets them go; the most that ran at once."""

    def __init__(self) -> None:
        self.gates: list[asyncio.Event] = []
        self.running = self.most = 0

    async def generate(
        self, request: GenerateRequest, *, on_end: Callable[[], None] | None = None, unread: Unread | None = None
    ) -> AsyncGenerator[Event, None]:
        self.running += 1
        self.most = max(self.most, self.running)
        self.gates.append(asyncio.Event())
        gate = self.gates[-1]
        try:
            yield Accepted("", 5)
            await gate.wait()
            yield Finished("", Finish.STOP, 5, 0, 1)
        finally:
            self.running -= 1


def many(leases: list[Any], prompts: list[str], **fields: Any) -> ManyAnswers:
    college = FakeCollege(leases)
    parsed = parse_completion({"prompt": prompts, **fields})

    def make(request: Any, choice: Choice) -> Answer:
        return Answer(cast(College, college), request, choice, Metrics(lambda: NOBODY))

    return ManyAnswers(make(parsed.request, Choice(PAIR, 1.0, "named")), parsed.others, make)


def lease(*scripts: Script) -> FakeLease:
    return FakeLease(list(scripts), "math")


async def whole(answers: ManyAnswers) -> list[Outcome]:
    try:
        await answers.open()
        return await answers.whole()
    finally:
        await answers.close()


async def test_choices_are_numbered_on_and_every_lease_is_given_back() -> None:
    leases = [lease(*(script(f"{a}{b}", Finish.STOP) for b in "xy")) for a in "abc"]
    outcomes = await whole(many([*leases], ["1", "2", "3"], n=2))
    assert [(outcome.index, outcome.text) for outcome in outcomes] == list(
        enumerate(["ax", "ay", "bx", "by", "cx", "cy"])
    )
    assert [(one.releases, one.running) for one in leases] == [(1, 0)] * 3
    assert [one.requests[0].prompt for one in leases] == ["1", "2", "3"]


async def test_as_many_run_as_the_specialist_has_slots_for() -> None:
    gates = Gates()
    leases = []
    for _ in range(5):
        one = lease()
        one.generate = gates.generate  # type: ignore[method-assign]
        leases.append(one)
    task = asyncio.create_task(whole(many([*leases], ["x"] * 5)))
    for done in range(5):
        while len(gates.gates) <= done or (gates.running < 2 and len(gates.gates) < 5):  # noqa: ASYNC110
            await asyncio.sleep(0)
        gates.gates[done].set()
    assert len(await task) == 5
    assert gates.most == 2


@pytest.mark.parametrize(
    "error", [PromptTooLongError(9, 5), WorkerDiedError("It died.")], ids=lambda e: type(e).__name__
)
async def test_the_first_failure_ends_them_all(error: Exception) -> None:
    endless = lease([Accepted("", 5)])
    with pytest.raises(type(error)):
        await whole(many([endless, lease([error])], ["1", "2", "3"]))
    assert (endless.releases, endless.running) == (1, 0)


async def test_a_failure_in_a_stream_comes_after_what_was_said() -> None:
    answers = many([lease(script("a", Finish.STOP)), lease([Accepted("", 5), WorkerDiedError("It died.")])], ["1", "2"])
    await answers.open()
    seen: list[int] = []

    async def read() -> None:
        async for step in answers.steps():
            seen.append(step.index)

    with pytest.raises(WorkerDiedError):
        await read()
    await answers.close()
    assert set(seen) <= {0, 1}


async def test_a_client_that_leaves_a_stream_ends_all_of_them() -> None:
    endless = [lease([Accepted("", 5), *script("a", Finish.STOP)[1:2]]) for _ in range(2)]
    answers = many([*endless], ["1", "2"], stream=True)
    await answers.open()
    steps = answers.steps()
    await anext(steps)
    await steps.aclose()
    await answers.close()
    assert [(one.releases, one.running) for one in endless] == [(1, 0)] * 2


async def test_scores_of_all_prompts_are_bounded_together() -> None:
    def long() -> FakeLease:
        return lease([Accepted("", MAX_SCORES // 3), Finished("", Finish.LENGTH, MAX_SCORES // 3, 0, 0)])

    asked = {"echo": True, "logprobs": 0, "max_tokens": 0}
    assert len(await whole(many([long(), long()], ["1", "2"], **asked))) == 2
    with pytest.raises(RequestError) as refusal:
        await whole(many([long() for _ in range(4)], ["1", "2", "3", "4"], **asked))
    assert refusal.value.param == "logprobs"
    with pytest.raises(RequestError):
        await whole(many([long()], ["1"], **{**asked, "logprobs": 5}))


async def test_one_body_counts_each_prompt_once() -> None:
    leases = [lease(*(script("abc", Finish.STOP) for _ in range(2))) for _ in range(3)]
    client = asking({"prompt": ["1", "2", "3"], "model": "math", "n": 2})
    await post(ServedCollege([*leases]), client, "/v1/completions")
    body = json.loads(client.body)
    assert [choice["index"] for choice in body["choices"]] == list(range(6))
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (15, 18)


class TestLikeliest:
    @staticmethod
    def outcome(index: int, mean: float | None, reason: Finish = Finish.STOP) -> Outcome:
        return Outcome(index, f"{index}", Finished("", reason, 5, 0, 7, mean_logprob=mean))

    def test_the_highest_mean_first_numbered_anew(self) -> None:
        chosen = likeliest([self.outcome(i, mean) for i, mean in enumerate([-3.0, -1.0, None, -2.0])], 2)
        assert [(one.index, one.text) for one in chosen] == [(0, "1"), (1, "3")]
        assert [len(one.discarded) for one in chosen] == [2, 0]

    def test_one_that_breaks_its_schema_is_the_last_resort(self) -> None:
        chosen = likeliest([self.outcome(0, -0.1, Finish.INVALID), self.outcome(1, -9.0)], 1)
        assert chosen[0].text == "1"

    def test_as_many_as_are_wanted_stay_as_they_are(self) -> None:
        outcomes = [self.outcome(0, -3.0), self.outcome(1, -1.0)]
        assert likeliest(outcomes, 2) == outcomes

    async def test_all_that_were_made_are_paid_for(self) -> None:
        scripts = [script("abc", Finish.STOP, mean_logprob=-mean) for mean in (3.0, 1.0, 2.0)]
        client = asking({"prompt": "1", "model": "math", "best_of": 3})
        one = lease(*scripts)
        await post(ServedCollege([one]), client, "/v1/completions")
        body = json.loads(client.body)
        assert len(body["choices"]) == 1
        assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (5, 9)
        assert all(request.ranked for request in one.requests)
