"""The life of an answer: lease, generation of its choices, a retry after a loop, release. No dialect is known here."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Final

from coe.engine.errors import EngineError, GrammarError, PromptTooLongError, SchemaViolationError, SourceChangedError
from coe.engine.logs import REQUEST_ID
from coe.engine.pool.leases import Lease
from coe.engine.request import Accepted, Delta, Event, Finish, Finished, GenerateRequest, TokenLogprob
from coe.engine.spec import ThinkingMode

from ..roster.models import Specialist
from .calls import Calls, ToolCall
from .choice import Choice
from .college import College
from .errors import Part, RequestError, failure_of
from .metrics import Metrics
from .policy import Rules, drawn, rules_for
from .provenance import AnswerProvenance
from .request import Request, with_system_prompt
from .waiting import lease_wait

_log = logging.getLogger(__name__)

# How often an answer that breaks its schema is begun again: what comes out is the sampler's draw, not a matter of time.
_SCHEMA_RETRIES: Final = 2
# Log-probabilities of prompts that one call may ask for, rivals counted: each takes some hundred bytes of this process
# until the answer is whole.
MAX_SCORES: Final = 500_000
_UNREAD_SCORES_BYTES: Final = 8 * 2**20  # of one choice's
_FORMAT: Final = "response_format.json_schema"  # as errors of the engine have it


@dataclass(frozen=True)
class Outcome:
    """One choice of an answer, whole. discarded: ends of answers that the choices were preferred to, in the first."""

    index: int
    text: str
    end: Finished
    reasoning: str = ""
    logprobs: Sequence[TokenLogprob] = ()
    calls: Sequence[ToolCall] = ()
    discarded: Sequence[Finished] = ()


@dataclass(frozen=True)
class Step:
    """An event of one of an answer's choices."""

    index: int
    event: Event


class Answer:
    """One request being answered. `open` first; then `steps`, or `whole`; `close` at the end, whatever happened.

        made ── open ──> leased ── steps / whole ──> finished ── close ──> closed
          │                │ streamed: the lease ends with the generation, read or not
          │                │ a loop, unstreamed: begun again with a fresh seed,
          │ refused        │ then a lease of the fallback in place of this one;
          │                │ a broken schema, unstreamed: begun again, then an error
          └──── close ─────┴──────── the client leaves, or a worker dies ──> closed

    Lease, residency and prompt_tokens are known once `open` has returned.
    """

    def __init__(self, college: College, request: Request, choice: Choice, metrics: Metrics) -> None:
        """Raises RequestError when the specialist's rules refuse what is asked."""
        self.request = request
        self.choice = choice
        self.rules: Rules = rules_for(request, choice.specialist, choice.task)
        self.id = uuid.uuid4().hex
        self.lease: Lease | None = None
        self.retries = 0
        self.answered_by = choice.specialist
        self.prompt_tokens = 0
        self.residency: str | None = None  # warm, swapped or loaded
        self._college = college
        self._metrics = metrics
        self._streams: list[AsyncGenerator[Event, None]] = []
        self._opened_s = perf_counter()
        self._unended = 0  # choices that a worker was given and has neither rejected nor finished
        self._failed = False
        self._running = 0  # streamed: choices that the resident has not done with

    @property
    def thinks(self) -> bool:
        """Whether reasoning text may come."""
        return self.rules.thinking.mode is not ThinkingMode.OFF

    @property
    def must_call(self) -> bool:
        """Whether it is to be calls, and no text."""
        return self.rules.must_call

    @property
    def tells_waiting(self) -> bool:
        """Whether a stream tells what it waits for."""
        return self._college.roster.server.show_waiting

    @property
    def waits_for(self) -> str:
        """What it waits for until it has its lease."""
        return lease_wait(self._college.pool.status(), self.choice.specialist.name)

    @property
    def provenance(self) -> AnswerProvenance:
        """What a client is told of the answer, as it stands now."""
        waited_s = self.lease.waited_s if self.lease is not None else 0.0
        return AnswerProvenance(self.choice, self.answered_by.name, self.rules, self.residency, waited_s, self.retries)

    async def open(self) -> None:
        """Get a lease, and the worker's word that the prompt fits. Where the supervisor chose one whose context cannot
        hold it, the next that can takes its place.

        Raises EngineError: the pool's, or a rejection.
        """
        tried: list[str] = []
        while True:
            try:
                await self._open()
                return
            except PromptTooLongError as error:
                tried.append(self.choice.specialist.name)
                other = self._other_with_room(error, tried)
                if other is None:
                    raise self._none_has_room(error) from None
            # The lease goes first: with room for one resident the other needs its place.
            await self._let_go()
            self.rules = rules_for(self.request, other.specialist, other.task)
            self.choice, self.answered_by = other, other.specialist

    def _other_with_room(self, error: PromptTooLongError, tried: Sequence[str]) -> Choice | None:
        if self.choice.decision is None or error.by_roster:
            return None
        written = f"{'at least ' if error.at_least else ''}{error.prompt_tokens}"
        return self._college.chooser.passing_over(self.request, self.choice, written, error.prompt_tokens, tried)

    def _none_has_room(self, error: PromptTooLongError) -> PromptTooLongError:
        """Of an automatic choice the largest context is what a client has to know."""
        most = self._college.chooser.largest_context(self.request)
        if self.choice.decision is None or error.by_roster or most <= error.limit_tokens:
            return error
        return PromptTooLongError(error.prompt_tokens, most, at_least=error.at_least)

    async def _let_go(self) -> None:
        """Give back what was opened."""
        for stream in self._streams:
            await stream.aclose()
        self._streams = []
        self._running = 0
        if self.lease is not None:
            self.lease.release()
            self.lease = None

    async def _open(self) -> None:
        self.lease = await self._college.lease(self.choice.specialist, self.choice.key)
        self.residency = self.lease.residency
        indices = range(self.request.n_made)
        if self.request.stream:
            self._running = len(indices)
            self._streams = [self._generate_streamed(self.lease, index) for index in indices]
        else:
            self._streams = [self._generate(self.lease, index) for index in indices]
        for stream in self._streams:
            self._unended += 1
            try:
                first = await anext(stream)
            except EngineError as error:
                self._unended -= 1  # rejected: it has never begun
                if isinstance(error, GrammarError):
                    raise self._named(error) from error
                raise
            assert isinstance(first, Accepted)
            self.prompt_tokens = first.prompt_tokens
            self._college.chooser.measured(self.choice.specialist.name, self.request, first.prompt_tokens)
            if first.swap and self.residency == "warm":  # the resident is another specialist just now
                self.residency = "swapped"
        bound_scores(self.n_scores)
        self._metrics.waited(self.choice.specialist.name, self.residency, self.lease.waited_s)

    @property
    def n_scores(self) -> int:
        """Log-probabilities of the prompt that will come, rivals counted; 0 before `open`."""
        return n_scores(self.request, self.prompt_tokens)

    def _generate(self, lease: Lease, index: int, *, seed: int | None = None) -> AsyncGenerator[Event, None]:
        return lease.generate(self._generate_request(self.answered_by, self.rules, index, seed=seed))

    def _generate_streamed(self, lease: Lease, index: int) -> AsyncGenerator[Event, None]:
        """A choice that is generated whether it is read or not; the lease ends with the last of them."""

        def end() -> None:
            self._running -= 1
            if not self._running:
                lease.release()

        request = self._generate_request(self.answered_by, self.rules, index)
        unread = self._college.unread
        if self.request.scores_prompt:  # it comes in pieces of many KB, however well the client keeps pace
            unread = unread.with_each(max(unread.each_bytes, _UNREAD_SCORES_BYTES))
        return lease.generate(request, on_end=end, unread=unread)

    def _generate_request(
        self, specialist: Specialist, rules: Rules, index: int, *, seed: int | None = None
    ) -> GenerateRequest:
        request = self.request
        if seed is None and request.seed is not None:
            seed = (request.seed + index) % 2**32
        messages = None
        if request.messages is not None:
            messages = with_system_prompt(request.messages, specialist.system_prompt)
            if rules.thinking.mode is ThinkingMode.OFF:  # nor did it think before
                messages = [{name: value for name, value in m.items() if name != "reasoning"} for m in messages]
        return GenerateRequest(
            # The answer's own id keeps events apart where clients give many requests one id.
            id=f"{REQUEST_ID.get()}/{self.id}-{index}-{self.retries}",
            specialist=specialist.name,
            messages=messages,
            prompt=request.prompt,
            prompt_ids=request.prompt_ids,
            suffix=request.suffix,
            snippets=request.snippets,
            tools=rules.tools,
            tool_use=rules.tool_use,
            raw_prompt=specialist.raw_prompts,
            thinking=rules.thinking,
            sampling=rules.sampling,
            max_tokens=rules.max_tokens,
            max_answer_tokens=rules.task.answer_tokens if rules.task is not None else None,
            max_prompt_tokens=self._college.roster.server.max_prompt_tokens,
            stop=request.stop,
            seed=seed,
            logit_bias=dict(request.logit_bias),
            response_format=request.response_format,
            top_logprobs=request.top_logprobs,
            echo=request.echo,
            ranked=request.n_made > request.n,
            loop_guard=rules.loop_guard,
            tells_reading=request.stream and self.tells_waiting,
        )

    # --- streamed -----------------------------------------------------------------------------------------------

    async def steps(self) -> AsyncGenerator[Step, None]:
        """Events of all choices as they come, each choice's Finished last. For streams: nothing is taken back.

        Raises SchemaViolationError where a choice ends that breaks its schema.
        """
        calls = Counter[int]()
        # One choice, as nearly all requests want, is read where it is sent: no task and no queue a token.
        merged = _numbered(self._streams[0]) if len(self._streams) == 1 else _merged(self._streams)
        async with aclosing(merged) as steps:
            try:
                async for step in steps:
                    if isinstance(step.event, Delta):
                        calls[step.index] += sum(piece.name is not None for piece in step.event.calls)
                    elif isinstance(step.event, Finished):
                        self._count(step.event, calls=calls[step.index])
                        self._require_valid(step.event)
                    yield step
            except Exception as error:
                self._record_failure(error)
                raise

    # --- whole --------------------------------------------------------------------------------------------------

    async def whole(self) -> list[Outcome]:
        """All choices, complete. One that looped is tried again with a fresh seed, then answered by the fallback. Of
        more answers than choices they are the likeliest.

        Raises SchemaViolationError when a choice breaks its schema each time.
        """
        assert self.lease is not None, "open comes first"
        try:
            outcomes = await self._collect(dict(enumerate(self._streams)))
            outcomes = await self._without_violations(self.lease, outcomes)
            outcomes = likeliest(await self._without_loops(self.lease, outcomes), self.request.n)
            for outcome in outcomes:
                self._require_valid(outcome.end)
            return outcomes
        except Exception as error:
            self._record_failure(error)
            raise

    async def _again(self, lease: Lease, outcomes: list[Outcome], indices: Sequence[int]) -> None:
        """Begin choices anew, each with a fresh seed, and put what comes in the place of what came."""
        self.retries += 1
        streams = {index: self._generate(lease, index, seed=secrets.randbelow(2**32 - 1)) for index in indices}
        for outcome in await self._collect(streams):
            outcomes[outcome.index] = outcome

    async def _without_violations(self, lease: Lease, outcomes: list[Outcome]) -> list[Outcome]:
        for _ in range(_SCHEMA_RETRIES):
            again = [outcome.index for outcome in outcomes if outcome.end.reason is Finish.INVALID]
            if not again:
                break
            self.rules = drawn(self.rules)
            await self._again(lease, outcomes, again)
        return outcomes

    async def _without_loops(self, lease: Lease, outcomes: list[Outcome]) -> list[Outcome]:
        again = _looped(outcomes)
        if again:
            self.rules = drawn(self.rules)
            await self._again(lease, outcomes, again)
        again = _looped(outcomes)
        fallback = self._college.chooser.fallback_for(self.choice.specialist.name, self.request)
        if again and fallback is not None:
            try:
                replacements = await self._from_fallback(lease, fallback, again)
            except (EngineError, RequestError) as error:
                # An answer that was cut is still more than an error.
                # Of a refused request the message may quote it.
                why = error if failure_of(error).status >= 500 else type(error).__name__
                _log.warning("%s cannot answer for %s: %s", fallback.name, self.choice.specialist.name, why)
            else:
                for outcome in replacements:
                    outcomes[outcome.index] = outcome
        return outcomes

    async def _from_fallback(self, lease: Lease, fallback: Specialist, indices: list[int]) -> list[Outcome]:
        """The looping specialist's lease goes first: with room for one resident the fallback needs its place."""
        rules = rules_for(self.request, fallback, self.choice.task)
        lease.release()
        self.lease = await self._college.lease(fallback, self.choice.key)
        self.retries += 1
        requests = {index: self._generate_request(fallback, rules, index) for index in indices}
        streams = {index: self.lease.generate(request) for index, request in requests.items()}
        outcomes = await self._collect(streams, fallback)
        self.answered_by = fallback
        self.rules = replace(rules, notes=tuple(dict.fromkeys((*self.rules.notes, *rules.notes))))
        self.residency = self.lease.residency
        return outcomes

    async def _collect(
        self, streams: Mapping[int, AsyncGenerator[Event, None]], by: Specialist | None = None
    ) -> list[Outcome]:
        """Read streams to their ends. streams: by the choice's index, the order of what is returned."""

        async def one(index: int, stream: AsyncGenerator[Event, None]) -> Outcome:
            text: list[str] = []
            reasoning: list[str] = []
            logprobs: list[TokenLogprob] = []
            calls = Calls()
            end: Finished | None = None
            async for event in stream:
                if isinstance(event, Accepted):
                    self._unended += 1
                elif isinstance(event, Delta):
                    text.append(event.text)
                    reasoning.append(event.reasoning)
                    logprobs.extend(event.logprobs)
                    calls.add(event.calls)
                elif isinstance(event, Finished):
                    end = event
                    self._count(event, by, calls=len(calls.whole()))
            assert end is not None, "a stream of events ends with Finished, or raises"
            return Outcome(index, "".join(text), end, "".join(reasoning), logprobs, calls.whole())

        tasks = [asyncio.create_task(one(index, stream)) for index, stream in streams.items()]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # --- the end ------------------------------------------------------------------------------------------------

    def _record_failure(self, error: Exception) -> None:
        self._failed = True
        if isinstance(error, SourceChangedError):
            self._college.catalog.files_changed(error)

    def _count(self, end: Finished, by: Specialist | None = None, *, calls: int = 0) -> None:
        specialist = by or self.answered_by
        self._unended -= 1
        self._metrics.finished(specialist.name, end, calls)
        _log.info(
            "%-12s %s | %s, waited %.0f ms | %d prompt (%d cached) + %d tokens in %.1f s | %s%s",
            specialist.name,
            self.choice.reason,
            self.residency or "-",
            1000 * ((self.lease.waited_s if self.lease else 0) + end.queued_s),
            end.prompt_tokens,
            end.cached_tokens,
            end.completion_tokens,
            perf_counter() - self._opened_s,
            end.reason.value,
            _told_of_calls(calls, end.malformed_calls),
        )

    def _require_valid(self, end: Finished) -> None:
        """Raises SchemaViolationError for an answer that breaks its schema: no success, whatever has gone out of it."""
        if end.reason is Finish.INVALID:
            what = "what it and its calls are held to" if self.rules.may_call else "its JSON schema"
            raise SchemaViolationError(
                f"The answer breaks {what}: {end.violation}.",
                "Ask again, with another seed or a higher temperature, or simplify the schema.",
            )

    def _named(self, error: GrammarError) -> Exception:
        """The error that names the field at fault: an engine does not know which of two schemas a client sent."""
        if not self.rules.may_call or (self.request.response_format is not None and "tool" not in error.message):
            return error
        message = str(error).replace(_FORMAT, "a tool's parameters")
        return RequestError(message, param=Part.TOOLS, code="invalid_schema")

    async def close(self) -> None:
        """End what still runs, then the lease. `steps` may not be read any more. A second call does nothing."""
        try:
            for stream in self._streams:
                await stream.aclose()
        finally:
            if self.lease is not None:
                self.lease.release()
        if self._unended:
            reason = "failed" if self._failed else "cancelled"
            self._metrics.unfinished(self.choice.specialist.name, reason, self._unended)
            self._unended = 0
            _log.info("%-12s %s | %s", self.choice.specialist.name, self.choice.reason, reason)


async def _numbered(stream: AsyncGenerator[Event, None]) -> AsyncGenerator[Step, None]:
    async for event in stream:
        yield Step(0, event)


async def _merged(streams: Sequence[AsyncGenerator[Event, None]]) -> AsyncGenerator[Step, None]:
    """Events of several streams as they come. Closing it leaves the streams themselves to their owner.

    What is not read yet stays in the streams, which bound it.
    """
    queue: asyncio.Queue[Step | Exception | None] = asyncio.Queue(maxsize=len(streams))

    async def pump(index: int, stream: AsyncIterator[Event]) -> None:
        try:
            async for event in stream:
                await queue.put(Step(index, event))
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    pumps = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(streams)]
    try:
        running = len(pumps)
        while running:
            item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


def n_scores(request: Request, prompt_tokens: int) -> int:
    """Log-probabilities that a request asks for of a prompt of so many tokens, rivals counted."""
    return prompt_tokens * (1 + (request.top_logprobs or 0)) * request.n_made if request.scores_prompt else 0


def bound_scores(asked: int) -> None:
    """Raises RequestError where one call asks for too many log-probabilities of prompts."""
    if asked > MAX_SCORES:
        raise RequestError(
            f"logprobs: echo asks for {asked:,} log-probabilities of prompts; a request may have {MAX_SCORES:,}. "
            "Send fewer or shorter prompts a request, or lower logprobs.",
            param="logprobs",
        )


def likeliest(outcomes: Sequence[Outcome], n: int) -> list[Outcome]:
    """The n outcomes of the highest log-probability a token, the likeliest first, numbered anew.

    One that says nothing of it is the last resort, as is one that breaks its schema.
    """
    if len(outcomes) <= n:
        return list(outcomes)

    def rank(outcome: Outcome) -> tuple[bool, float]:
        mean = outcome.end.mean_logprob
        return outcome.end.reason is not Finish.INVALID, -math.inf if mean is None else mean

    ordered = sorted(outcomes, key=rank, reverse=True)
    chosen = [replace(outcome, index=index) for index, outcome in enumerate(ordered[:n])]
    return [replace(chosen[0], discarded=[outcome.end for outcome in ordered[n:]]), *chosen[1:]]


def _looped(outcomes: Sequence[Outcome]) -> list[int]:
    """Indices of the choices that the loop guard ended."""
    return [outcome.index for outcome in outcomes if outcome.end.reason is Finish.LOOP]


def _told_of_calls(calls: int, malformed: int) -> str:
    """For the log."""
    told = f", {calls} {'call' if calls == 1 else 'calls'}" if calls else ""
    return f"{told}, {malformed} malformed" if malformed else told
