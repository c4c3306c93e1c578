"""The batch loop in this process, for tests that look at single steps."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from coe.engine.generate.prompt import PromptReader
from coe.engine.generate.renderer import InProcess
from coe.engine.llama.context import BATCH_TOKENS, Context
from coe.engine.llama.model import Model
from coe.engine.request import Accepted, Delta, Event, Finished, GenerateRequest, Rejected, TokenLogprob
from coe.engine.spec import LoadSpec, Sampling
from coe.engine.worker.batch import BatchLoop

GREEDY = Sampling(temperature=0.0, repeat_penalty=1.0)


@dataclass(frozen=True)
class Answer:
    """All events of one request, put together."""

    text: str
    reasoning: str
    finished: Finished
    deltas: tuple[Delta, ...]

    @property
    def logprobs(self) -> list[TokenLogprob]:
        return [entry for delta in self.deltas for entry in delta.logprobs]


class LocalEngine:
    """A context, its loop, and the events that came out."""

    def __init__(self, model: Model, spec: LoadSpec, *, batch_tokens: int = BATCH_TOKENS) -> None:
        """batch_tokens: the most that one step evaluates."""
        self.model = model
        self.context = Context(model, spec, batch_tokens=batch_tokens)
        self.events: list[Event] = []
        prompts = PromptReader(model, spec, renderer=InProcess)  # no stranger's template
        self.loop = BatchLoop(model, self.context, spec, self.events.append, prompts=prompts)
        self._ids = itertools.count()

    def submit(self, text: str | list[dict[str, str]], **fields: Any) -> str:
        """Queue a prompt (text) or a conversation (messages), greedy and short unless told; gives the request's id."""
        request_id = f"r{next(self._ids)}"
        what: dict[str, Any] = {"prompt": text} if isinstance(text, str) else {"messages": text}
        defaults = {"sampling": GREEDY, "max_tokens": 16, "loop_guard": None}
        self.loop.submit(GenerateRequest(request_id, "specialist", **what, **{**defaults, **fields}))
        return request_id

    def run(self) -> None:
        """Step until nothing is left to do."""
        while self.loop.step():
            pass

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.loop.step()

    def of(self, request_id: str) -> list[Event]:
        return [event for event in self.events if event.id == request_id]

    def answer(self, request_id: str) -> Answer:
        """What a request that has ended got."""
        events = self.of(request_id)
        accepted, *deltas, finished = events
        assert isinstance(accepted, Accepted)
        assert isinstance(finished, Finished), events
        assert all(isinstance(event, Delta) for event in deltas)
        texts = tuple(event for event in deltas if isinstance(event, Delta))
        return Answer("".join(d.text for d in texts), "".join(d.reasoning for d in texts), finished, texts)

    def ask(self, text: str | list[dict[str, str]], **fields: Any) -> Answer:
        """Submit, run, and give the answer."""
        request_id = self.submit(text, **fields)
        self.run()
        return self.answer(request_id)

    def rejection(self, request_id: str) -> Rejected:
        (event,) = self.of(request_id)
        assert isinstance(event, Rejected), event
        return event

    def close(self) -> None:
        self.loop.close()
        self.context.close()
