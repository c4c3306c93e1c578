"""Continuous batching: one decode a step over every active sequence of one resident model."""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from llguidance import LLTokenizer

from .chat_template import ChatTemplate, Prompt
from .errors import EngineError, PromptTooLongError, TemplateError
from .llama import Context, Model
from .request import Accepted, Delta, Event, Finish, GenerateRequest, Rejected
from .schedule import CacheView, Occupant, Placement, Work, choose_slot, make_room, plan_step
from .sequence import ActiveSequence
from .spec import LoadSpec
from .structured import Structure, schema_of, tokenizer_of

# From this vocabulary on, sampling costs enough beside a decode that sequences sample on several threads
# (llama.cpp's samplers release the GIL).
_WIDE_VOCABULARY = 100_000

# Cells a newcomer must find free beside its prompt while others run, lest the next token already preempts somebody.
_HEADROOM_CELLS = 64

# From here on a prompt is worth a look at its length before it is read into tokens.
_LONG_PROMPT_CHARS = 100_000

_log = logging.getLogger(__name__)


@dataclass
class Slot:
    """A sequence id of the KV cache: the tokens whose cells it holds, and who uses it."""

    index: int
    tokens: list[int] = field(default_factory=list)
    sequence: ActiveSequence | None = None
    last_used: int = 0
    checkpoint: tuple[int, bytes] | None = None  # position, state of the layers that forget


class BatchLoop:
    """Owns a context. `submit` and `cancel` between steps, `step` until it says that nothing is left to do."""

    def __init__(self, model: Model, context: Context, spec: LoadSpec, emit: Callable[[Event], None]) -> None:
        """emit: receives every event, in order."""
        self._model = model
        self._context = context
        self._spec = spec
        self._emit = emit
        self._slots = [Slot(index) for index in range(context.n_seq)]
        self._waiting: deque[ActiveSequence] = deque()
        self._clock = 0
        self._crowded = False  # llama.cpp found no cells: nobody starts before somebody has ended
        self._samplers = (
            ThreadPoolExecutor(spec.threads or min(4, context.n_seq), "sample")
            if model.vocab.n_tokens >= _WIDE_VOCABULARY
            else None
        )
        source = model.chat_template()
        text = model.vocab.text
        self.template = ChatTemplate(source, bos=text(model.vocab.bos), eos=text(model.vocab.eos)) if source else None
        self.steps = 0

    # --- requests ---------------------------------------------------------------------------------------------

    def structure_of(self, request: GenerateRequest) -> Structure | None:
        """What the answer has to keep to, None for plain text. Takes up to seconds, and may run on another thread.

        Raises GrammarError.
        """
        schema = schema_of(request.response_format)
        return Structure(self._structures, schema) if schema is not None else None

    def submit(self, request: GenerateRequest, structure: Structure | None = None) -> None:
        """Queue a request: Accepted or Rejected is emitted at once.

        structure: what `structure_of` made of it beforehand; made here when left out.
        """
        try:
            sequence = self._prepare(request, structure or self.structure_of(request))
        except EngineError as error:
            self._emit(_rejection(request.id, error))
            return
        except Exception as error:  # one request that nobody foresaw must not take the others' worker down
            _log.exception("preparing request %s", request.id)
            self._emit(Rejected(request.id, EngineError.__name__, f"The request cannot be prepared: {error!r}."))
            return
        self._emit(Accepted(request.id, sequence.n_prompt))
        self._waiting.append(sequence)

    def reject(self, request: GenerateRequest, error: EngineError) -> None:
        """Answer a request that never got as far as `submit`."""
        self._emit(_rejection(request.id, error))

    def _prepare(self, request: GenerateRequest, structure: Structure | None) -> ActiveSequence:
        prompt = self._prompt(request)
        vocab = self._model.vocab
        bos = vocab.adds_bos and not prompt.text.startswith(vocab.text(vocab.bos) or "\0")
        context_tokens = self._spec.context_tokens
        # Reading megabytes into tokens takes seconds in which nobody else's answer goes on: refuse what cannot fit.
        if len(prompt.text) > _LONG_PROMPT_CHARS:
            at_least = len(prompt.text.encode("utf-8", "replace")) // vocab.longest_piece_bytes
            if at_least >= context_tokens:
                raise PromptTooLongError(at_least, context_tokens, at_least=True)
        history = vocab.tokenize(prompt.text[: prompt.history_chars], bos=bos) if prompt.history_chars else []
        tokens = vocab.tokenize(prompt.text, bos=bos)
        if not tokens:
            tokens = [vocab.bos if vocab.bos >= 0 else max(vocab.eos, 0)]
        if request.max_prompt_tokens is not None and len(tokens) > request.max_prompt_tokens:
            raise PromptTooLongError(len(tokens), request.max_prompt_tokens, by_roster=True)
        if len(tokens) >= context_tokens:
            raise PromptTooLongError(len(tokens), context_tokens)
        room = context_tokens - len(tokens)
        return ActiveSequence(
            request,
            tokens,
            vocab,
            limit=min(room, request.max_tokens) if request.max_tokens is not None else room,
            # Only where the text splits between tokens: tokenizing a part may join what the whole keeps apart.
            turn_tokens=len(history) if tokens[: len(history)] == history else 0,
            tags=prompt.tags,
            thinking_open=prompt.thinking_open,
            structure=structure,
        )

    @functools.cached_property
    def _structures(self) -> LLTokenizer:
        return tokenizer_of(self._model.vocab)

    def _prompt(self, request: GenerateRequest) -> Prompt:
        if request.prompt is not None:
            return Prompt(request.prompt, 0, self.template.tags if self.template else ())
        if self.template is None:
            raise TemplateError("The model file carries no chat template.", "Use /v1/completions, or another GGUF.")
        return self.template.prompt(request.messages or [], request.thinking)

    def cancel(self, request_id: str) -> None:
        """End a request; nothing is emitted for it but a Finished with reason cancelled."""
        for sequence in self._waiting:
            if sequence.request.id == request_id:
                self._waiting.remove(sequence)
                sequence.finish = Finish.CANCELLED
                self._emit(sequence.finished())
                sequence.close()
                return
        for slot in self._slots:
            if slot.sequence is not None and slot.sequence.request.id == request_id:
                self._release(slot, Finish.CANCELLED)
                return

    @property
    def active(self) -> int:
        """Sequences that are being decoded."""
        return sum(slot.sequence is not None for slot in self._slots)

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting)

    @property
    def cells_used(self) -> int:
        """KV cells that hold tokens, shared ones counted once for each slot."""
        return sum(len(slot.tokens) for slot in self._slots)

    # --- the loop ---------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Start what can start, evaluate one batch, sample, emit. False when there is nothing to do."""
        self._start_waiting()
        plan = self._schedule()
        if not plan:
            return False
        outputs = self._evaluate(plan)
        self._sample(outputs)
        return True

    def _start_waiting(self) -> None:
        while self._waiting and not (self._crowded and self.active):
            sequence = self._waiting[0]
            placement = choose_slot(sequence.tokens, [self._view(slot) for slot in self._slots], share=sequence.shares)
            if placement is None:
                return
            others = [occupant for occupant in self._occupants() if occupant.slot != placement.slot]
            need = len(sequence.tokens) + (min(_HEADROOM_CELLS, sequence.left) if self.active else 0)
            room = make_room(need, others, self._spec.cells, preempt=False)
            if room is None:
                return
            self._waiting.popleft()
            self._place(sequence, placement)
            # Only now: what is dropped may be the cache whose beginning was copied.
            for index in room.drop:
                self._clear(self._slots[index])

    def _place(self, sequence: ActiveSequence, placement: Placement) -> None:
        """Give a sequence its slot, and the slot the cells that the sequence can use."""
        slot = self._slots[placement.slot]
        reused = placement.reused
        if placement.copy_from is not None:
            self._clear(slot)
            self._context.copy_sequence(placement.copy_from, slot.index, reused)
        elif placement.restore and slot.checkpoint is not None:
            reused = reused if self._context.restore(slot.index, slot.checkpoint[1]) else 0
        # A cache that cannot drop a part of itself starts anew.
        if not reused or not self._context.forget(slot.index, reused):
            self._clear(slot)
            reused = 0
        slot.tokens = sequence.tokens[:reused]
        if slot.checkpoint is not None and slot.checkpoint[0] > reused:
            slot.checkpoint = None
        slot.sequence = sequence
        sequence.evaluated = reused
        if not sequence.started:
            sequence.cached = reused
            self._clock += 1
            sequence.started = self._clock

    def _view(self, slot: Slot) -> CacheView:
        window = self._model.sliding_window
        forgotten = 0
        if self._model.forgets and slot.tokens:
            # A recurrent state has no window: it is at its end and nowhere else.
            window = window or 1
            forgotten = self._context.first_position(slot.index)
        return CacheView(
            slot.index,
            slot.tokens,
            slot.sequence is not None,
            slot.last_used,
            forgotten,
            slot.checkpoint[0] if slot.checkpoint else 0,
            window if self._model.forgets else 0,
        )

    def _schedule(self) -> list[tuple[Slot, int]]:
        room = make_room(0, self._occupants(), self._spec.cells)
        assert room is not None, "one sequence never outgrows the cache: its limit is context_tokens"
        for index in room.drop:
            self._clear(self._slots[index])
        for index in room.preempt:
            self._preempt(self._slots[index])
        works = [
            Work(slot.index, sequence.pending, sequence.until_turn if self._model.forgets else 0)
            for slot in sorted(self._slots, key=lambda s: s.sequence.started if s.sequence else 0)
            if (sequence := slot.sequence) is not None
        ]
        return [(self._slots[index], count) for index, count in plan_step(works, self._context.n_batch)]

    def _occupants(self) -> list[Occupant]:
        return [
            Occupant(slot.index, len(slot.sequence.tokens), busy=True, age=slot.sequence.started)
            if slot.sequence is not None
            else Occupant(slot.index, len(slot.tokens), busy=False, age=slot.last_used)
            for slot in self._slots
        ]

    def _preempt(self, slot: Slot) -> None:
        sequence = slot.sequence
        assert sequence is not None
        sequence.evaluated = 0
        slot.sequence = None
        self._clear(slot)
        self._waiting.appendleft(sequence)

    def _clear(self, slot: Slot) -> None:
        self._context.forget(slot.index)
        slot.tokens = []
        slot.checkpoint = None

    def _evaluate(self, plan: list[tuple[Slot, int]]) -> list[tuple[Slot, int]]:
        """Decode the planned tokens; gives (slot, batch index) of those whose next token can be drawn."""
        entries: list[tuple[int, int, int, bool]] = []
        outputs: list[tuple[Slot, int]] = []
        for slot, count in plan:
            sequence = slot.sequence
            assert sequence is not None
            start = sequence.evaluated
            last = start + count == len(sequence.tokens)
            for position in range(start, start + count):
                wanted = last and position == start + count - 1
                entries.append((sequence.tokens[position], position, slot.index, wanted))
            if last:
                outputs.append((slot, len(entries) - 1))
        while (result := self._context.decode(entries)) == 1:
            # Full in a way our count did not see (cells of a sliding window, which shared prompts keep alive): let a
            # cached conversation go, or else the youngest sequence, which starts again without sharing cells.
            idle = [slot for slot in self._slots if slot.sequence is None and slot.tokens]
            if idle:
                self._clear(min(idle, key=lambda slot: slot.last_used))
                continue
            running = [slot for slot in self._slots if slot.sequence is not None]
            if len(running) < 2:
                raise EngineError("The KV cache is full.", "Raise cache_tokens or lower parallel in the roster.")
            youngest = max(running, key=lambda slot: slot.sequence.started if slot.sequence else 0)
            assert youngest.sequence is not None
            youngest.sequence.shares = False
            self._crowded = True
            self._preempt(youngest)
            return []
        if result:
            raise EngineError(f"llama_decode failed with {result}.")
        self.steps += 1
        for slot, count in plan:
            sequence = slot.sequence
            assert sequence is not None
            end = sequence.evaluated + count
            slot.tokens.extend(sequence.tokens[sequence.evaluated : end])
            sequence.evaluated = end
            if self._model.forgets and end == sequence.turn_tokens and (state := self._context.snapshot(slot.index)):
                slot.checkpoint = (end, state)
        return outputs

    def _sample(self, outputs: list[tuple[Slot, int]]) -> None:
        def advance(output: tuple[Slot, int]) -> Delta | EngineError | None:
            slot, index = output
            assert slot.sequence is not None
            try:
                return slot.sequence.advance(self._context, index)
            except EngineError as error:  # one request's trouble is not the others'
                return error

        spread = self._samplers is not None and len(outputs) > 1
        if spread:
            self._context.logits(outputs[0][1])  # the first look puts the outputs in order, which no two threads may do
        results = list(self._samplers.map(advance, outputs)) if spread and self._samplers else map(advance, outputs)
        for (slot, _), result in zip(outputs, results, strict=True):
            assert slot.sequence is not None
            if isinstance(result, EngineError):
                self._emit(_rejection(slot.sequence.request.id, result))
                self._vacate(slot)
                continue
            if result is not None:
                self._emit(result)
            if slot.sequence.finish is not None:
                self._release(slot, slot.sequence.finish)

    def _release(self, slot: Slot, reason: Finish) -> None:
        sequence = slot.sequence
        assert sequence is not None
        sequence.finish = reason
        self._emit(sequence.finished())
        self._vacate(slot)

    def _vacate(self, slot: Slot) -> None:
        assert slot.sequence is not None
        slot.sequence.close()
        slot.sequence = None
        self._crowded = False
        self._clock += 1
        slot.last_used = self._clock

    def close(self) -> None:
        """Let the sampling threads go."""
        if self._samplers is not None:
            self._samplers.shutdown()


def _rejection(request_id: str, error: EngineError) -> Rejected:
    facts = {name: value for name, value in vars(error).items() if isinstance(value, int)}
    return Rejected(request_id, type(error).__name__, error.message, error.remedy, facts)
