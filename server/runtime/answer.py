"""The life of one request, from the decision to the last token; whatever the dialect, whether streamed or not."""

from __future__ import annotations

import asyncio
import logging
import secrets
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

from coe.engine.errors import EngineError, SourceChangedError
from coe.engine.pool.leases import Lease
from coe.engine.request import Accepted, Delta, Event, Finish, Finished, GenerateRequest, TokenLogprob
from coe.engine.spec import ThinkingMode

from ..api.openai.requests import Ask, with_system_prompt
from ..roster.models import Specialist
from .college import Choice, College
from .errors import RequestError
from .metrics import Metrics
from .policy import Rules, rules_for

_log = logging.getLogger(__name__)


@dataclass
class Outcome:
    """One choice of an answer, whole."""

    index: int
    text: str = ""
    reasoning: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    end: Finished | None = None


@dataclass(frozen=True)
class Step:
    """An event of one of an answer's choices."""

    index: int
    event: Event


class Answer:
    """One request being answered. `open` first; then `steps`, or `whole`; `close` at the end, whatever happened.

    Lease, residency and prompt_tokens are known once `open` has returned.
    """

    def __init__(self, college: College, ask: Ask, choice: Choice, metrics: Metrics) -> None:
        """Raises RequestError when the specialist's rules refuse what is asked."""
        self.college = college
        self.ask = ask
        self.choice = choice
        self.rules: Rules = rules_for(ask, choice.specialist)
        self.id = uuid.uuid4().hex
        self.lease: Lease | None = None
        self.retries = 0
        self.answered_by = choice.specialist
        self._metrics = metrics
        self._streams: list[AsyncIterator[Event]] = []
        self._opened = perf_counter()
        self._unended = 0  # choices that a worker was given and has neither rejected nor finished
        self._failed = False
        self.prompt_tokens = 0
        self.residency = ""  # warm, swapped or loaded

    async def open(self) -> None:
        """Get a lease, and the worker's word that the prompt fits.

        Raises EngineError: the pool's, or a rejection.
        """
        self.lease = await self.college.lease(self.choice.specialist, self.choice.thread)
        self.residency = self.lease.residency
        self._streams = [
            self.lease.generate(self._request(self.choice.specialist, self.rules, index)) for index in range(self.ask.n)
        ]
        for stream in self._streams:
            self._unended += 1
            try:
                first = await anext(stream)
            except EngineError:
                self._unended -= 1  # rejected: it has never begun
                raise
            assert isinstance(first, Accepted)
            self.prompt_tokens = first.prompt_tokens
            if first.swap and self.residency == "warm":  # it is another's turn just now
                self.residency = "swapped"
        self._metrics.waited(self.choice.specialist.name, self.residency, self.lease.waited_s)

    def _request(self, specialist: Specialist, rules: Rules, index: int, *, seed: int | None = None) -> GenerateRequest:
        ask = self.ask
        if seed is None and ask.seed is not None:
            seed = (ask.seed + index) % 2**32
        messages = with_system_prompt(ask.messages, specialist.system_prompt) if ask.messages is not None else None
        return GenerateRequest(
            id=f"{self.id}-{specialist.name}-{index}-{self.retries}",
            specialist=specialist.name,
            messages=messages,
            prompt=ask.prompt,
            thinking=rules.thinking,
            sampling=rules.sampling,
            max_tokens=rules.max_tokens,
            max_prompt_tokens=self.college.roster.server.max_prompt_tokens,
            stop=ask.stop,
            seed=seed,
            logit_bias=dict(ask.logit_bias),
            response_format=ask.response_format,
            top_logprobs=ask.top_logprobs,
            loop_guard=specialist.loop_guard,
        )

    async def steps(self) -> AsyncGenerator[Step, None]:
        """Events of all choices as they come, each choice's Finished last. For streams: nothing is taken back."""
        queue: asyncio.Queue[Step | Exception | None] = asyncio.Queue()

        async def pump(index: int, stream: AsyncIterator[Event]) -> None:
            try:
                async for event in stream:
                    queue.put_nowait(Step(index, event))
            except Exception as error:
                queue.put_nowait(error)
            finally:
                queue.put_nowait(None)

        pumps = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(self._streams)]
        try:
            running = len(pumps)
            while running:
                item = await queue.get()
                if item is None:
                    running -= 1
                elif isinstance(item, Exception):
                    self._note_failure(item)
                    raise item
                else:
                    if isinstance(item.event, Finished):
                        self._count(item.event)
                    yield item
        finally:
            for task in pumps:
                task.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def whole(self) -> list[Outcome]:
        """All choices, complete. One that looped is tried again with a fresh seed, then answered by the fallback."""
        try:
            return await self._without_loops(await self._collect(self._streams))
        except Exception as error:
            self._note_failure(error)
            raise

    async def _without_loops(self, outcomes: list[Outcome]) -> list[Outcome]:
        assert self.lease is not None
        again = [outcome.index for outcome in outcomes if _looped(outcome)]
        if again:
            self.retries = 1
            streams = [
                self._after_accepted(
                    self.lease.generate(
                        self._request(self.choice.specialist, self.rules, index, seed=secrets.randbelow(2**32 - 1))
                    )
                )
                for index in again
            ]
            for index, outcome in zip(again, await self._collect(streams), strict=True):
                outcomes[index] = replace(outcome, index=index)
        again = [outcome.index for outcome in outcomes if _looped(outcome)]
        fallback = self.college.fallback_for(self.choice.specialist.name)
        if again and fallback is not None:
            try:
                replacements = await self._from_fallback(fallback, again)
            except (EngineError, RequestError) as error:
                # An answer that was cut is still more than an error.
                _log.warning("%s cannot answer for %s: %s", fallback.name, self.choice.specialist.name, error)
            else:
                for index, outcome in zip(again, replacements, strict=True):
                    outcomes[index] = replace(outcome, index=index)
        return outcomes

    async def _from_fallback(self, fallback: Specialist, indices: list[int]) -> list[Outcome]:
        """The looping specialist's lease goes first: with room for one resident the fallback needs its place."""
        assert self.lease is not None
        rules = rules_for(self.ask, fallback)
        self.lease.release()
        lease = await self.college.lease(fallback, self.choice.thread)
        self.lease = lease
        self.retries = 2
        streams = [self._after_accepted(lease.generate(self._request(fallback, rules, index))) for index in indices]
        outcomes = await self._collect(streams, fallback)
        self.answered_by = fallback
        self.rules = replace(rules, notes=self.rules.notes)
        return outcomes

    async def _after_accepted(self, stream: AsyncIterator[Event]) -> AsyncIterator[Event]:
        async for event in stream:
            if isinstance(event, Accepted):
                self._unended += 1
            else:
                yield event

    async def _collect(self, streams: list[AsyncIterator[Event]], by: Specialist | None = None) -> list[Outcome]:
        async def one(index: int, stream: AsyncIterator[Event]) -> Outcome:
            outcome = Outcome(index)
            async for event in stream:
                if isinstance(event, Delta):
                    outcome.text += event.text
                    outcome.reasoning += event.reasoning
                    outcome.logprobs.extend(event.logprobs)
                elif isinstance(event, Finished):
                    outcome.end = event
                    self._count(event, by)
            return outcome

        tasks = [asyncio.create_task(one(index, stream)) for index, stream in enumerate(streams)]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _note_failure(self, error: Exception) -> None:
        self._failed = True
        if isinstance(error, SourceChangedError):
            self.college.files_changed(error)

    def _count(self, end: Finished, by: Specialist | None = None) -> None:
        specialist = by or self.choice.specialist
        self._unended -= 1
        self._metrics.finished(specialist.name, end)
        seconds = perf_counter() - self._opened
        lease = self.lease
        _log.info(
            "%-12s %s | %s, waited %.0f ms | %d prompt (%d cached) + %d tokens in %.1f s | %s",
            specialist.name,
            self.choice.reason,
            self.residency or "-",
            1000 * ((lease.waited_s if lease else 0) + end.queued_s),
            end.prompt_tokens,
            end.cached_tokens,
            end.completion_tokens,
            seconds,
            end.reason.value,
        )

    async def close(self) -> None:
        """End what still runs, then the lease. Nobody may be reading `steps` any more."""
        try:
            for stream in self._streams:
                await stream.aclose()  # type: ignore[attr-defined]
        finally:
            if self.lease is not None:
                self.lease.release()
        if self._unended:
            reason = "failed" if self._failed else "cancelled"
            self._metrics.unfinished(self.choice.specialist.name, reason, self._unended)
            self._unended = 0
            _log.info("%-12s %s | %s", self.choice.specialist.name, self.choice.reason, reason)

    # --- what the client is told of it ------------------------------------------------------------------------

    def headers(self) -> dict[str, str]:
        """x-coe-* headers; those of the lease only when there is one."""
        headers = {
            "x-coe-specialist": self.choice.specialist.name,
            "x-coe-confidence": f"{self.choice.confidence:.3f}",
            "x-coe-reason": _header_text(self.choice.reason),
        }
        if self.choice.build is not None:
            headers["x-coe-build"] = _header_text(self.choice.build)
        if self.rules.notes:
            headers["x-coe-note"] = _header_text("; ".join(self.rules.notes))
        if self.lease is not None:
            headers["x-coe-residency"] = self.residency
            headers["x-coe-wait-ms"] = f"{self.lease.waited_s * 1000:.0f}"
        return headers

    def facts(self, ends: list[Finished]) -> dict[str, Any]:
        """The `coe` object of the body or of the last chunk."""
        facts: dict[str, Any] = {
            "specialist": self.choice.specialist.name,
            "confidence": round(self.choice.confidence, 4),
            "reason": self.choice.reason,
            "thinking": self.rules.thinking.mode.value,
            "retries": self.retries,
        }
        if self.choice.build is not None:
            facts["build"] = self.choice.build
        if self.rules.notes:
            facts["notes"] = list(self.rules.notes)
        if self.lease is not None:
            facts["residency"] = self.residency
            queued_s = max((end.queued_s for end in ends), default=0.0)
            facts["wait_ms"] = round(1000 * (self.lease.waited_s + queued_s), 1)
        if self.answered_by is not self.choice.specialist:
            facts["answered_by"] = self.answered_by.name
        leaked = sum(end.leaked_blocks for end in ends)
        if leaked:
            facts["leaked_think_blocks"] = leaked
        loops = [end.loop for end in ends if end.reason is Finish.LOOP]
        if loops:
            facts["loop"] = {"ended": True, "repeated": loops[0]}
        return facts

    @property
    def thinks(self) -> bool:
        """Whether reasoning text may come."""
        return self.rules.thinking.mode is not ThinkingMode.OFF


def _looped(outcome: Outcome) -> bool:
    return outcome.end is not None and outcome.end.reason is Finish.LOOP


def _header_text(text: str) -> str:
    """Header values are latin-1 without line breaks and other control characters."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(line.split()).encode("latin-1", "replace").decode("latin-1")
