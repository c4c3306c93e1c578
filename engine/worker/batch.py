"""Continuous batching: one decode a step over every active sequence of one resident model."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from ..errors import EngineError, SourceChangedError, SwapError
from ..generate.chat_template import ChatTemplate
from ..generate.grammar import Structure
from ..generate.prompt import Intake
from ..generate.sequence import ActiveSequence
from ..llama.context import Context
from ..llama.model import Model
from ..request import Accepted, Delta, Event, Finish, GenerateRequest, Rejected
from ..spec import LoadSpec
from ..swap.swapper import Swapper
from ..swap.timeslice import next_turn, quantum_s, worst_wait_s
from .kv_offload import ParkedCache, ParkedCaches
from .prompt_speed import PromptSpeed
from .schedule import CacheView, Occupant, Placement, Room, Work, choose_slot, make_room, plan_step

# From this vocabulary on, sampling costs enough beside a decode that sequences sample on several threads
# (llama.cpp's samplers release the GIL).
_WIDE_VOCABULARY = 100_000

# Cells a newcomer must find free beside its prompt while others run, lest the next token already preempts somebody.
_HEADROOM_CELLS = 64

_log = logging.getLogger(__name__)


@dataclass
class Slot:
    """A sequence id of the KV cache: the tokens whose cells it holds, which specialist wrote them, and who uses it."""

    index: int
    owner: int = 0
    tokens: list[int] = field(default_factory=list)
    sequence: ActiveSequence | None = None
    last_used: int = 0
    checkpoint: tuple[int, NDArray[Any]] | None = None  # position, state of the layers that forget


@dataclass(frozen=True)
class _Start:
    """How a waiting request gets its slot: who is parked for it, and where it goes."""

    rest: Slot | None
    placement: Placement
    room: Room


class BatchLoop:
    """Owns a context. `submit` and `cancel` between steps, `step` until it says that nothing is left to do.

    With a swapper the resident is one of several specialists at a time. Those with something to do take turns; the
    sequences of the others rest, in their slots or parked in host memory, and nobody reads what another wrote.
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
    ) -> None:
        """emit: receives every event, in order. now: seconds, for the length of turns."""
        self._model = model
        self._context = context
        self._spec = spec
        self._emit = emit
        self._slots = [Slot(index) for index in range(context.n_seq)]
        self._waiting: deque[ActiveSequence] = deque()
        self._clock = 0
        self._swapper = swapper
        self._now = now
        self._turn = swapper.current if swapper is not None else 0
        self._turn_started = now()
        self._turn_ended: dict[int, int] = {}  # specialist -> when its last turn ended, by the clock that counts
        self._changes: deque[float] = deque(maxlen=8)  # seconds that the last changes took
        self._moving_s = 0.0  # of this turn: conversations brought out of the way and back
        self._steps_s: deque[float] = deque(maxlen=32)
        self._prompt_speed = PromptSpeed()
        self._parked = ParkedCaches(spec.ram_budget_bytes)
        self._crowded = False  # llama.cpp found no cells: nobody starts before somebody has ended
        self._samplers = (
            ThreadPoolExecutor(spec.threads or min(4, context.n_seq), "sample")
            if model.vocab.n_tokens >= _WIDE_VOCABULARY
            else None
        )
        self._intake = Intake(model, spec)
        self.steps = 0
        self.swaps = 0
        self.swapped_bytes = 0

    # --- requests ---------------------------------------------------------------------------------------------

    @property
    def template(self) -> ChatTemplate | None:
        """The model's own; None when its file has none."""
        return self._intake.template

    def structure_of(self, request: GenerateRequest) -> Structure | None:
        """See Intake.structure_of. Takes up to seconds, and may run on another thread."""
        return self._intake.structure_of(request)

    def submit(self, request: GenerateRequest, structure: Structure | None = None) -> None:
        """Queue a request: Accepted or Rejected is emitted at once.

        structure: what `structure_of` made of it beforehand; made here when left out.
        """
        try:
            owner = self._swapper.owner_of(request.specialist) if self._swapper is not None else 0
            sequence = self._intake.read(request, structure or self.structure_of(request), owner)
        except EngineError as error:
            self._emit(_rejection(request.id, error))
            return
        except Exception as error:  # one request that nobody foresaw must not take the others' worker down
            _log.exception("preparing request %s", request.id)
            self._emit(Rejected(request.id, EngineError.__name__, f"The request cannot be prepared: {error!r}."))
            return
        self._emit(Accepted(request.id, sequence.n_prompt, swap=sequence.owner != self._turn))
        if self._swapper is not None and sequence.owner not in (self._turn, *(s.owner for s in self._waiting)):
            self._swapper.prefetch(sequence.owner)
        self._clock += 1
        sequence.arrived, sequence.submitted_s = self._clock, self._now()
        self._waiting.append(sequence)

    def reject(self, request: GenerateRequest, error: EngineError) -> None:
        """Answer a request that never got as far as `submit`."""
        self._emit(_rejection(request.id, error))

    def cancel(self, request_id: str) -> None:
        """End a request; nothing is emitted for it but a Finished with reason cancelled."""
        for sequence in self._waiting:
            if sequence.request.id == request_id:
                self._waiting.remove(sequence)
                self._leave_parked(sequence)
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

    @property
    def parked_bytes(self) -> int:
        """Host memory that conversations outside the cache take."""
        return self._parked.n_bytes

    @property
    def prompt_tokens_per_s(self) -> float:
        """How fast prompts were read lately; 0 before the first of some length."""
        return self._prompt_speed.tokens_per_s

    @property
    def turn(self) -> int:
        """The specialist that the resident is now."""
        return self._turn

    @property
    def worst_wait_s(self) -> float:
        """The longest that a specialist with something to do waits for its turn, as things are now."""
        if self._swapper is None:
            return 0.0
        n_ready = len({sequence.owner for sequence in self._sequences()})
        return worst_wait_s(n_ready, self.change_s, self._quantum_s(n_ready), max(self._steps_s, default=0.0))

    def _sequences(self) -> list[ActiveSequence]:
        """Everything that has not ended."""
        return [*self._waiting, *(slot.sequence for slot in self._slots if slot.sequence is not None)]

    # --- turns ------------------------------------------------------------------------------------------------

    @property
    def change_s(self) -> float:
        """Seconds that changes of specialist take: the mean of the last ones; 0 before the first."""
        mean = sum(self._changes) / len(self._changes) if self._changes else 0.0
        return max(mean, self._moving_s)

    def _quantum_s(self, n_ready: int) -> float:
        sharing = self._spec.sharing
        assert sharing is not None
        step_s = max(self._steps_s, default=0.0)
        return quantum_s(self.change_s, sharing.swap_share, n_ready, step_s, sharing.max_wait_s)

    def _take_turns(self) -> None:
        """Go on to another specialist when it is its turn."""
        while self._swapper is not None:
            quantum = self._quantum_s(len({sequence.owner for sequence in self._sequences()}))
            elapsed = self._now() - self._turn_started
            runs = any(slot.sequence is not None and slot.sequence.owner == self._turn for slot in self._slots)
            if runs and elapsed < quantum:
                return
            chosen = next_turn(self._turn, self._ready(), elapsed, quantum)
            if chosen == self._turn or self._change_to(chosen):
                return

    def _ready(self) -> dict[int, int]:
        """Specialists that could evaluate something now -> since when they wait for a turn."""
        arrived: dict[int, int] = {}
        for sequence in self._sequences():
            arrived[sequence.owner] = min(arrived.get(sequence.owner, sequence.arrived), sequence.arrived)
        running = {slot.sequence.owner for slot in self._slots if slot.sequence is not None}
        first = {sequence.owner: sequence for sequence in reversed(self._waiting)}
        return {
            owner: max(since, self._turn_ended.get(owner, 0))
            for owner, since in arrived.items()
            if owner in running or self._plan_start(first[owner]) is not None
        }

    def _change_to(self, owner: int) -> bool:
        """Make the resident another specialist. False when its files are not what they were: its requests are refused.

        Raises SwapError, after refusing all requests, when the resident is of no more use.
        """
        assert self._swapper is not None
        started = self._now()
        self._context.synchronize()
        try:
            report = self._swapper.swap(owner)
        except SourceChangedError as error:
            self._refuse([sequence for sequence in self._sequences() if sequence.owner == owner], error)
            return False
        except SwapError as error:
            self._refuse(self._sequences(), error)
            raise
        self._clock += 1
        self._turn_ended[self._turn] = self._clock
        self._turn = owner
        self.swaps += 1
        self.swapped_bytes += report.moved_bytes
        moved_s, self._moving_s = self._moving_s, 0.0
        # Cells that nobody uses slow every step: attention goes over all of them.
        for slot in self._slots:
            if slot.sequence is None and slot.tokens and slot.owner != owner:
                self._park(slot)
        self._turn_started = self._now()
        self._changes.append(self._turn_started - started + moved_s)
        self._moving_s = 0.0
        for other in {sequence.owner for sequence in self._sequences()} - {owner}:
            self._swapper.prefetch(other)
        return True

    def _refuse(self, sequences: list[ActiveSequence], error: EngineError) -> None:
        """End requests with an error."""
        for sequence in sequences:
            self._emit(_rejection(sequence.request.id, error))
            if sequence in self._waiting:
                self._waiting.remove(sequence)
                self._leave_parked(sequence)
                sequence.close()
        for slot in self._slots:
            if slot.sequence in sequences:
                self._vacate(slot)

    # --- out of the way and back ------------------------------------------------------------------------------

    def _park(self, slot: Slot) -> bool:
        """Bring a slot's cells to host memory and empty it; False when there is no room for them, and nothing is done.

        A sequence that uses them goes back to those that wait, and will go on from there.
        """
        started = self._now()
        size = self._context.state_bytes(slot.index) + (slot.checkpoint[1].nbytes if slot.checkpoint else 0)
        if not self._parked.has_room(size):
            return False
        state = self._context.save(slot.index, partial=False)
        if state is None:
            return False
        view = self._view(slot, slot.owner)
        forgotten = max(view.forgotten_before, len(slot.tokens) - view.window) if view.window else 0
        cache = ParkedCache(slot.owner, slot.tokens, state, forgotten, slot.checkpoint, slot.last_used, slot.sequence)
        if not self._parked.add(cache):
            return False
        if slot.sequence is not None:
            self._waiting.appendleft(slot.sequence)
            slot.sequence = None
        self._clear(slot)
        self._moving_s += self._now() - started
        return True

    def _unpark(self, cache: ParkedCache, slot: Slot) -> bool:
        """Bring parked cells back into an empty slot."""
        started = self._now()
        if not self._context.restore(slot.index, cache.state, partial=False):
            return False
        slot.checkpoint = cache.checkpoint
        self._moving_s += self._now() - started
        return True

    def _leave_parked(self, sequence: ActiveSequence) -> None:
        """What a request that ends had parked is a conversation that may come back."""
        number = self._parked.number_of(sequence)
        if number is not None:
            self._clock += 1
            self._parked.add(replace(self._parked.take(number), sequence=None, last_used=self._clock))

    def _let_go(self, slot: Slot) -> None:
        """Empty an idle slot, into host memory where there is room."""
        if not (slot.tokens and self._park(slot)):
            self._clear(slot)

    def _parkable(self, owner: int) -> frozenset[int]:
        """Slots of sequences that rest while `owner` runs, and of which each could be parked."""
        return frozenset(
            slot.index
            for slot in self._slots
            if slot.sequence is not None
            and slot.sequence.owner != owner
            and self._parked.has_room(self._context.state_bytes(slot.index))
        )

    # --- the loop ---------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Start what can start, evaluate one batch, sample, emit. False when there is nothing to do.

        Raises SwapError, after refusing all requests, when changing the specialist broke the resident.
        """
        self._take_turns()
        self._start_waiting()
        plan = self._schedule()
        if not plan:
            self._prompt_speed.forget_unended()
            # Whose turn it was could not start after all: the next step gives the turn to somebody who can.
            return bool(self._sequences())
        started = self._now()
        outputs = self._evaluate(plan)
        if outputs is None:
            return True
        self._sample(outputs)
        self._steps_s.append(self._now() - started)
        self._prompt_speed.note(sum(n for _, n in plan if n > 1), self._steps_s[-1], ended=bool(outputs))
        return True

    def _start_waiting(self) -> None:
        for sequence in [sequence for sequence in self._waiting if sequence.owner == self._turn]:
            start = self._plan_start(sequence)
            if start is None or not self._start(sequence, start):
                return

    def _plan_start(self, sequence: ActiveSequence) -> _Start | None:
        """How a waiting request could start now; None when it has to wait for others to end."""
        if self._crowded and self.active:
            return None
        owner = sequence.owner
        views = [self._view(slot, owner) for slot in self._slots]
        rest = None
        if all(view.busy for view in views):
            rest = self._rests_longest(owner)
            if rest is None or not self._parked.has_room(self._context.state_bytes(rest.index)):
                return None
            views[rest.index] = CacheView(rest.index, (), False, 0)
        number = self._parked.number_of(sequence)
        if number is not None:
            target = min(
                (view for view in views if not view.busy), key=lambda view: (len(view.tokens) > 0, view.last_used)
            )
            placement: Placement | None = Placement(target.slot, sequence.evaluated, unpark=number)
        else:
            parked = self._parked.views(owner, views[0].window)
            placement = choose_slot(sequence.tokens, views, share=sequence.shares, parked=parked)
        assert placement is not None, "a slot is idle, or will be"
        others = [occupant for occupant in self._occupants(owner) if occupant.slot != placement.slot]
        need = len(sequence.tokens) + (min(_HEADROOM_CELLS, sequence.left) if self.active else 0)
        tight = need + sum(occupant.cells for occupant in others) > self._spec.cells
        parkable = self._parkable(owner) if tight else frozenset()
        room = make_room(need, others, self._spec.cells, preempt=False, parkable=parkable)
        return _Start(rest, placement, room) if room is not None else None

    def _rests_longest(self, owner: int) -> Slot | None:
        """The slot of the sequence that waits longest for its next turn while `owner` has its own."""
        resting = [
            (self._turn_ended.get(slot.owner, 0), slot.sequence.started, slot.index)
            for slot in self._slots
            if slot.sequence is not None and slot.sequence.owner != owner
        ]
        return self._slots[max(resting)[2]] if resting else None

    def _start(self, sequence: ActiveSequence, start: _Start) -> bool:
        """Give a request its slot. False when somebody could not be parked after all: it waits on."""
        placement = start.placement
        slot = self._slots[placement.slot]
        # Out of the budget first: what is parked now must not push out what comes back.
        cache = self._parked.take(placement.unpark) if placement.unpark is not None else None
        parks = [*([start.rest] if start.rest is not None else []), *(self._slots[i] for i in start.room.park)]
        if not all(self._park(resting) for resting in parks):
            if cache is not None and not self._parked.add(cache):
                sequence.evaluated = 0
            return False
        self._waiting.remove(sequence)
        dropped = [self._slots[index] for index in start.room.drop]
        if cache is not None:
            for other in dropped:
                self._let_go(other)
        self._place(sequence, placement, cache)
        if cache is None:
            # Only now: what is dropped may be the cache whose beginning was copied.
            for other in dropped:
                self._let_go(other)
        slot.owner = sequence.owner
        return True

    def _place(self, sequence: ActiveSequence, placement: Placement, cache: ParkedCache | None) -> None:
        """Give a sequence its slot, and the slot the cells that the sequence can use."""
        slot = self._slots[placement.slot]
        reused = placement.reused
        if placement.copy_from is not None or cache is not None or not reused:
            self._let_go(slot)
        if placement.copy_from is not None:
            self._context.copy_sequence(placement.copy_from, slot.index, reused)
        elif cache is not None and not self._unpark(cache, slot):
            reused = 0
        if placement.restore and slot.checkpoint is not None:
            back = self._context.restore(slot.index, slot.checkpoint[1], partial=True)
            reused = reused if back else 0
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
            sequence.queued_s = self._now() - sequence.submitted_s

    def _view(self, slot: Slot, owner: int) -> CacheView:
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
            usable=slot.owner == owner,
        )

    def _schedule(self) -> list[tuple[Slot, int]]:
        occupants = self._occupants(self._turn)
        tight = sum(occupant.cells for occupant in occupants) > self._spec.cells
        parkable = self._parkable(self._turn) if tight else frozenset()
        room = make_room(0, occupants, self._spec.cells, parkable=parkable)
        assert room is not None, "one sequence never outgrows the cache: its limit is context_tokens"
        for index in room.drop:
            self._let_go(self._slots[index])
        for index in room.park:
            if not self._park(self._slots[index]):
                self._preempt(self._slots[index])
        for index in room.preempt:
            self._preempt(self._slots[index])
        works = [
            Work(slot.index, sequence.pending, sequence.until_turn if self._model.forgets else 0)
            for slot in sorted(self._slots, key=lambda s: s.sequence.started if s.sequence else 0)
            if (sequence := slot.sequence) is not None and sequence.owner == self._turn
        ]
        return [(self._slots[index], count) for index, count in plan_step(works, self._context.n_batch)]

    def _occupants(self, owner: int) -> list[Occupant]:
        """Who has cells, seen from the turn of a specialist."""
        return [
            Occupant(
                slot.index,
                len(slot.sequence.tokens),
                busy=True,
                age=slot.sequence.started,
                resting=slot.sequence.owner != owner,
            )
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

    def _evaluate(self, plan: list[tuple[Slot, int]]) -> list[tuple[Slot, int]] | None:
        """Decode the planned tokens; gives (slot, batch index) of those whose next token can be drawn.

        None when nothing was decoded, because somebody had to go first.
        """
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
                self._let_go(min(idle, key=lambda slot: slot.last_used))
                continue
            running = [slot for slot in self._slots if slot.sequence is not None]
            resting = self._rests_longest(self._turn)
            if resting is not None:
                if not self._park(resting):
                    self._preempt(resting)
                continue
            if len(running) < 2:
                raise EngineError("The KV cache is full.", "Raise cache_tokens or lower parallel in the roster.")
            youngest = max(running, key=lambda slot: slot.sequence.started if slot.sequence else 0)
            assert youngest.sequence is not None
            youngest.sequence.shares = False
            self._crowded = True
            self._preempt(youngest)
            return None
        if result:
            raise EngineError(f"llama_decode failed with {result}.")
        self.steps += 1
        for slot, count in plan:
            sequence = slot.sequence
            assert sequence is not None
            end = sequence.evaluated + count
            slot.tokens.extend(sequence.tokens[sequence.evaluated : end])
            sequence.evaluated = end
            if self._model.forgets and end == sequence.turn_tokens:
                state = self._context.save(slot.index, partial=True)
                slot.checkpoint = (end, state) if state is not None else slot.checkpoint
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
        """Let the threads go."""
        if self._swapper is not None:
            self._swapper.close()
        if self._samplers is not None:
            self._samplers.shutdown()


def _rejection(request_id: str, error: EngineError) -> Rejected:
    facts = {name: value for name, value in vars(error).items() if isinstance(value, int)}
    return Rejected(request_id, type(error).__name__, error.message, error.remedy, facts)
