"""Continuous batching: one decode a step over every active sequence of one resident model."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ..errors import EngineError, ModelTemplateError, OutOfMemoryError, SourceChangedError, SwapError
from ..generate.chat_template import ChatTemplate, Prompt
from ..generate.grammar import Grammar
from ..generate.prompt import PromptReader
from ..generate.sequence import ActiveSequence
from ..generate.tools.find import ToolSupport
from ..generate.tools.reading import Toolbox
from ..llama.context import Context
from ..llama.model import Model
from ..logs import for_request
from ..request import Accepted, Delta, Event, Finish, GenerateRequest, ReadRequest, Rejected, TokenLogprob, Told
from ..spec import LoadSpec
from ..swap.swapper import Swapper
from .prompt_speed import PromptSpeed
from .request_queue import RequestQueue
from .schedule import Work, plan_step
from .slots import BusySlot, Slots
from .time_slices import OneSpecialist, TimeSlices

# From this vocabulary on, sampling costs enough beside a decode that sequences sample on several threads
# (llama.cpp's samplers release the GIL).
_WIDE_VOCABULARY = 100_000

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchStatus:
    """What a batch loop does and has done.

    active: sequences in slots. waiting: requests that wait for one. cells: KV cells that hold tokens.
    change_s: seconds that a change of specialist takes. offloaded_bytes: host memory of cells outside the cache.
    worst_wait_s: longest wait for a time slice, as things are now. prompt_tokens_per_s: 0 before it was measured.
    """

    active: int
    waiting: int
    cells: int
    steps: int
    swaps: int
    swapped_bytes: int
    change_s: float
    offloaded_bytes: int
    worst_wait_s: float
    prompt_tokens_per_s: float


class BatchLoop:
    """Owns a context. `submit` and `cancel` between steps, `step` until it says that nothing is left to do.

    With a swapper the resident is one of several specialists at a time, in time slices.
    """

    def __init__(
        self,
        model: Model,
        context: Context,
        spec: LoadSpec,
        emit: Callable[[Event], None],
        *,
        swapper: Swapper | None = None,
        now: Callable[[], float] = time.monotonic,
        prompts: PromptReader | None = None,
    ) -> None:
        """emit: receives every event, in order. now: seconds, for waits and the length of time slices.
        prompts: what reads requests; made here when left out, and closed with the loop."""
        self._context = context
        self._emit = emit
        self._now = now
        self._checkpoints = model.forgets
        tick = itertools.count(1).__next__
        self._slots = Slots(context, spec, tick=tick, now=now)
        self._queue = RequestQueue(self._slots, spec, tick=tick, now=now)
        self._slices: TimeSlices | OneSpecialist = OneSpecialist()
        if swapper is not None and spec.sharing is not None:
            self._slices = TimeSlices(swapper, spec.sharing, context, self._slots, self._queue, now)
        self._prompt_speed = PromptSpeed()
        self._samplers = (
            ThreadPoolExecutor(spec.threads or min(4, context.n_seq), "sample")
            if model.vocab.n_tokens >= _WIDE_VOCABULARY
            else None
        )
        self._prompts = prompts or PromptReader(model, spec)
        self.steps = 0  # decodes so far

    # --- requests ---------------------------------------------------------------------------------------------

    @property
    def template(self) -> ChatTemplate | None:
        """The model's own; None when it cannot answer chats."""
        return self._prompts.template

    @property
    def chat_fault(self) -> ModelTemplateError | None:
        """Why the model cannot answer chats; None when it can."""
        return self._prompts.chat_fault

    @property
    def tool_support(self) -> ToolSupport:
        """How calls of tools are written for the model."""
        return self._prompts.tool_support

    @property
    def renderer_bytes(self) -> int:
        """Resident memory of the process that renders the chat template; 0 where none runs."""
        return self._prompts.renderer_bytes

    def prompt_of(self, request: GenerateRequest) -> Prompt:
        """See PromptReader.prompt_of. Takes as long as the chat template may, and may run on another thread."""
        return self._prompts.prompt_of(request)

    def told(self, request: ReadRequest) -> Told:
        """See PromptReader.told. Takes as long as `prompt_of`, and may run on another thread."""
        return self._prompts.told(request)

    def held_to(self, request: GenerateRequest) -> Grammar | Toolbox | None:
        """See PromptReader.held_to. Takes up to seconds, and may run on another thread."""
        return self._prompts.held_to(request)

    def submit(
        self, request: GenerateRequest, held_to: Grammar | Toolbox | None = None, prompt: Prompt | None = None
    ) -> None:
        """Queue a request: Accepted or Rejected is emitted at once.

        held_to, prompt: what `held_to` and `prompt_of` made of it beforehand; made here when left out.
        """
        try:
            specialist_id = self._slices.id_of(request.specialist)
            sequence = self._prompts.read(request, held_to or self.held_to(request), specialist_id, prompt)
        except EngineError as error:
            self.reject(request.id, error)
            return
        except BaseException as error:  # one request of an unforeseen kind must not take the others' worker down
            self.reject(request.id, unforeseen("The request cannot be prepared", request.id, error))
            return
        swap = specialist_id != self._slices.current
        self._emit(Accepted(request.id, sequence.n_prompt, swap=swap))
        _log.debug(
            "accepted for %s: %d prompt tokens, %d at most for the answer%s; %d running, %d waiting",
            request.specialist,
            sequence.n_prompt,
            sequence.limit,
            ", after a swap" if swap else "",
            self.active,
            self.waiting,
            extra=for_request(request.id),
        )
        if swap and not self._queue.waits(specialist_id):
            self._slices.prefetch(specialist_id)
        self._queue.add(sequence)

    def reject(self, request_id: str, error: EngineError) -> None:
        """Answer a request with an error."""
        self._emit(rejected(request_id, error))
        _log.debug("refused: %s", type(error).__name__, extra=for_request(request_id))

    def cancel(self, request_id: str) -> None:
        """End a request; nothing is emitted for it but a Finished with reason cancelled."""
        waiting = self._queue.find(request_id)
        if waiting is not None:
            self._finish(waiting, Finish.CANCELLED)
            self._queue.remove(waiting)
            return
        for slot in self._slots.busy:
            if slot.sequence.request.id == request_id:
                self._finish(slot.sequence, Finish.CANCELLED)
                self._queue.release(slot)
                return

    @property
    def active(self) -> int:
        """Sequences that are in slots."""
        return self._slots.n_busy

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._queue)

    @property
    def specialist_id(self) -> int:
        """The specialist that the resident is now."""
        return self._slices.current

    @property
    def status(self) -> BatchStatus:
        """How things are now."""
        return BatchStatus(
            active=self.active,
            waiting=self.waiting,
            cells=self._slots.cells_used,
            steps=self.steps,
            swaps=self._slices.swaps,
            swapped_bytes=self._slices.swapped_bytes,
            change_s=self._slices.change_s,
            offloaded_bytes=self._slots.offloaded.n_bytes,
            worst_wait_s=self._slices.worst_wait_s,
            prompt_tokens_per_s=self._prompt_speed.tokens_per_s,
        )

    # --- the loop ---------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Start what can start, evaluate one batch, sample, emit. False when there is nothing to do.

        Raises SwapError, after refusing all requests, when changing the specialist broke the resident, and
        OutOfMemoryError when there is too little memory for a batch: then nothing more can be decoded.
        """
        self._change_specialist()
        self._queue.start_waiting(self._slices.current)
        plan = self._plan_batch()
        if not plan:
            self._prompt_speed.forget_unended()
            # The specialist of this time slice could not start after all: the next step chooses one that can.
            return bool(self._queue.unfinished)
        started = self._now()
        outputs = self._evaluate(plan)
        if outputs is None:
            return True
        self._sample(outputs)
        seconds = self._now() - started
        self._slices.add_step(seconds)
        # Scoring says nothing of how fast prompts are read.
        read = sum(n for slot, n in plan if n > 1 and not slot.sequence.request.scores_prompt)
        self._prompt_speed.add(read, seconds, ended=bool(outputs))
        return True

    def _change_specialist(self) -> None:
        """Go on to another specialist when its time slice is due; refuse the requests of one whose files changed."""
        slices = self._slices
        while isinstance(slices, TimeSlices) and (choice := slices.due()) is not None:
            try:
                slices.change_to(choice)
            except SourceChangedError as error:
                self._refuse([s for s in self._queue.unfinished if s.specialist_id == choice.specialist_id], error)
            except SwapError as error:
                self._refuse(self._queue.unfinished, error)
                raise
            else:
                return

    def _plan_batch(self) -> list[tuple[BusySlot, int]]:
        """The tokens of the next decode, slot by slot."""
        specialist_id = self._slices.current
        self._queue.fit(specialist_id)
        running = [slot for slot in self._slots.busy if slot.sequence.specialist_id == specialist_id]
        running.sort(key=lambda slot: slot.sequence.started)
        works = [
            Work(
                at,
                slot.sequence.pending,
                slot.sequence.pending_unscored or (slot.sequence.pending_history if self._checkpoints else 0),
                scored=slot.sequence.scores,
            )
            for at, slot in enumerate(running)
        ]
        planned = plan_step(works, self._context.n_batch, self._context.n_outputs)
        return [(running[at], count) for at, count in planned]

    def _evaluate(self, plan: Sequence[tuple[BusySlot, int]]) -> list[tuple[BusySlot, int]] | None:
        """Decode the planned tokens, and emit what is known of the prompts; gives (slot, batch index) of those whose
        next token can be drawn.

        None when nothing was decoded, because a sequence had to give way.
        """
        entries: list[tuple[int, int, int, bool]] = []
        outputs: list[tuple[BusySlot, int]] = []
        for slot, count in plan:
            sequence = slot.sequence
            start = sequence.evaluated
            last = start + count == len(sequence.tokens)
            for position in range(start, start + count):
                entries.append((sequence.tokens[position], position, slot.index, sequence.wants_logits(position)))
            if last:
                outputs.append((slot, len(entries) - 1))
        try:
            while (result := self._context.decode(entries)) == 1:
                if not self._queue.make_way(self._slices.current):
                    return None
        except OutOfMemoryError as error:
            self._refuse(self._queue.unfinished, error)
            raise
        if result:
            raise EngineError(f"llama_decode failed with {result}.")
        self.steps += 1
        now = self._now()
        first = 0  # the slot's first entry in the batch
        for slot, count in plan:
            start = slot.sequence.evaluated
            self._slots.book(slot, count)
            if (echoed := slot.sequence.echoed(self._context, first - start, self._each)) is not None:
                self._emit(echoed)
            first += count
            slot.sequence.decoded(now)
            if (reading := slot.sequence.reading(now)) is not None:
                self._emit(reading)
        return outputs

    def _each(self, score: Callable[[int], TokenLogprob], positions: Sequence[int]) -> Iterable[TokenLogprob]:
        """Look at the logits of several outputs, on several threads where they are long."""
        if self._samplers is None or len(positions) < 2:
            return map(score, positions)
        first = score(positions[0])  # puts the outputs in order, which no two threads may do
        return [first, *self._samplers.map(score, positions[1:])]

    def _sample(self, outputs: Sequence[tuple[BusySlot, int]]) -> None:
        """Draw the next token of each output, emit the text, end what has ended."""

        def advance(output: tuple[BusySlot, int]) -> Delta | EngineError | None:
            slot, index = output
            try:
                return slot.sequence.advance(self._context, index)
            except EngineError as error:  # one request's trouble is not the others'
                return error
            except BaseException as error:  # nor is a fault of ours
                return unforeseen("The answer cannot be gone on with", slot.sequence.request.id, error)

        results: Iterable[Delta | EngineError | None] = map(advance, outputs)  # each goes out before the next is drawn
        if self._samplers is not None and len(outputs) > 1:
            self._context.logits(outputs[0][1])  # the first look puts the outputs in order, which no two threads may do
            results = list(self._samplers.map(advance, outputs))
        for (slot, _), result in zip(outputs, results, strict=True):
            if isinstance(result, EngineError):
                self.reject(slot.sequence.request.id, result)
                self._queue.release(slot)
                continue
            if result is not None:
                self._emit(result)
            if slot.sequence.finish is not None:
                self._finish(slot.sequence, slot.sequence.finish)
                self._queue.release(slot)

    def _finish(self, sequence: ActiveSequence, reason: Finish) -> None:
        """Emit a sequence's closing event."""
        finished = sequence.finished(reason, self._now())
        self._emit(finished)
        _log.debug(
            "ends: %s, %d tokens, %d of %d prompt tokens from the cache",
            finished.reason,
            finished.completion_tokens,
            finished.cached_tokens,
            finished.prompt_tokens,
            extra=for_request(finished.id),
        )

    def _refuse(self, sequences: Sequence[ActiveSequence], error: EngineError) -> None:
        """End requests with an error, wherever they are."""
        for sequence in sequences:
            self.reject(sequence.request.id, error)
            if self._queue.find(sequence.request.id) is sequence:
                self._queue.remove(sequence)
        for slot in self._slots.busy:
            if slot.sequence in sequences:
                self._queue.release(slot)

    def close(self) -> None:
        """Let the threads go, and the process that renders."""
        self._slices.close()
        self._prompts.close()
        if self._samplers is not None:
            self._samplers.shutdown()


def rejected(request_id: str, error: EngineError) -> Rejected:
    """An error as the answer to a request."""
    facts = {name: value for name, value in vars(error).items() if isinstance(value, int)}
    return Rejected(request_id, type(error).__name__, error.message, error.remedy, facts)


def unforeseen(what: str, request_id: str, error: BaseException) -> EngineError:
    """What a client is told of a bug of ours: its kind alone, since an error's own text may quote anybody.

    A panic of a library that is written in Rust is no Exception; what ends a process is given on.
    """
    if isinstance(error, SystemExit | KeyboardInterrupt):
        raise error
    _log.error("request %s: %s", request_id, what, exc_info=error, extra=for_request(request_id))
    return EngineError(f"{what}: {type(error).__name__}.", "It is a fault of the server, whose log tells more.")
