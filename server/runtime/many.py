"""Several requests of one call, answered as one: each has a life of its own, some of them at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from .answer import Answer, Outcome, Step, bound_scores, n_scores
from .choice import Choice
from .provenance import AnswerProvenance
from .request import Request

_T = TypeVar("_T")


class ManyAnswers:
    """The answers to several prompts. As with an Answer: `open`, then `steps` or `whole`, and `close` at the end.

    The first is opened by `open`, so that status and headers are its own; the others follow, as many at a time as its
    specialist has slots for, each with its own lease. Their choices are numbered on: those of prompt i begin at i * n.
    The first failure ends them all.
    """

    def __init__(self, first: Answer, others: Sequence[Request], make: Callable[[Request, Choice], Answer]) -> None:
        """make: an answer to a request by a choice."""
        self._first = first
        self._others = others
        self._make = make
        self._n = first.request.n
        self._scores = 0

    @property
    def tells_waiting(self) -> bool:
        """See Answer."""
        return self._first.tells_waiting

    @property
    def waits_for(self) -> str:
        """See Answer."""
        return self._first.waits_for

    @property
    def provenance(self) -> AnswerProvenance:
        """The first's."""
        return self._first.provenance

    async def open(self) -> None:
        """See Answer: the first one's. Of token ids it is known beforehand whether they ask for too much."""
        bound_scores(sum(n_scores(request, len(request.prompt_ids or ())) for request in self._others))
        await self._first.open()
        self._scores = self._first.n_scores

    async def whole(self) -> list[Outcome]:
        """All choices of all prompts, in their order."""

        async def read(at: int, answer: Answer) -> list[Outcome]:
            return [replace(outcome, index=at * self._n + outcome.index) for outcome in await answer.whole()]

        tasks = self._begin(read)
        try:
            return [outcome for outcomes in await asyncio.gather(*tasks) for outcome in outcomes]
        finally:
            await _end(tasks)

    async def steps(self) -> AsyncGenerator[Step, None]:
        """Events of all choices of all prompts as they come."""
        queue: asyncio.Queue[Step | None] = asyncio.Queue(maxsize=1)  # what is not read yet, the answers bound

        async def read(at: int, answer: Answer) -> None:
            async with aclosing(answer.steps()) as steps:
                async for step in steps:
                    await queue.put(Step(at * self._n + step.index, step.event))

        tasks = self._begin(read)

        async def finish() -> None:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            await queue.put(None)

        finishing = asyncio.create_task(finish())
        try:
            while (step := await queue.get()) is not None:
                yield step
            for task in tasks:
                if task.done():
                    task.result()  # raises what ended them all
        finally:
            await _end([*tasks, finishing])

    async def close(self) -> None:
        """End the first, in case neither `whole` nor `steps` has; they end the others."""
        await self._first.close()

    def _begin(self, read: Callable[[int, Answer], Awaitable[_T]]) -> list[asyncio.Task[_T]]:
        """A task a prompt."""
        room = asyncio.Semaphore(max(1, self._first.answered_by.parallel // self._first.request.n_made))

        async def one(at: int) -> _T:
            async with room:
                answer = self._first
                if at:
                    # By the same specialist, wherever the supervisor would have sent this one.
                    answer = self._make(self._others[at - 1], replace(self._first.choice, decision=None))
                try:
                    if at:
                        await answer.open()
                        self._scores += answer.n_scores
                        bound_scores(self._scores)
                    return await read(at, answer)
                finally:
                    await answer.close()  # its lease ends before the others have

        return [asyncio.create_task(one(at)) for at in range(1 + len(self._others))]


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
