"""The slots of a resident's KV cache (block manager): cells, prefix reuse, checkpoints, and offload to host memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..generate.sequence import ActiveSequence
from ..llama.context import Context
from ..logs import for_request
from ..spec import LoadSpec
from ..units import size_text
from .kv_offload import Cells, Checkpoint, OffloadedCache, OffloadedCaches
from .schedule import CacheView, Occupant, Placement

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class IdleSlot:
    """A sequence id of the KV cache that no request uses. Its cells are a conversation that may go on, or empty."""

    index: int
    cells: Cells
    last_used: int = 0


@dataclass(frozen=True)
class BusySlot:
    """A sequence id of the KV cache and the request that uses it."""

    index: int
    cells: Cells
    sequence: ActiveSequence


Slot = IdleSlot | BusySlot


class Slots:
    """Owns the cells of a context, and those that were offloaded from it.

    A slot's life; what leaves BUSY other than by its end goes back to the queue:

        IDLE -- place --> BUSY -- vacate --> IDLE, the conversation is kept
        BUSY -- offload --> IDLE and empty, the cells are in host memory and `place` restores them
        BUSY -- preempt --> IDLE and empty, the tokens are evaluated again
        IDLE -- let_go --> IDLE and empty, the conversation is offloaded where host memory has room
    """

    def __init__(self, context: Context, spec: LoadSpec, *, tick: Callable[[], int], now: Callable[[], float]) -> None:
        """tick: counts events, for the order of use. now: seconds."""
        self._context = context
        self._forgets = context.model.forgets
        # A recurrent state has no window: it is at its end and nowhere else.
        self._window = (context.model.sliding_window or 1) if self._forgets else 0
        self._tick = tick
        self._now = now
        self._slots: list[Slot] = [IdleSlot(index, Cells()) for index in range(context.n_seq)]
        self._offloaded = OffloadedCaches(spec.ram_budget_bytes)
        self.moved_s = 0.0  # spent on offload and restore since the last change of specialist

    @property
    def busy(self) -> list[BusySlot]:
        """Slots that requests use, by index."""
        return [slot for slot in self._slots if isinstance(slot, BusySlot)]

    @property
    def idle(self) -> list[IdleSlot]:
        """Slots that no request uses, by index."""
        return [slot for slot in self._slots if isinstance(slot, IdleSlot)]

    def busy_at(self, indices: Sequence[int]) -> list[BusySlot]:
        """The busy ones of some slots, in the order given."""
        return [slot for index in indices if isinstance(slot := self._slots[index], BusySlot)]

    def idle_at(self, indices: Sequence[int]) -> list[IdleSlot]:
        """The idle ones of some slots, in the order given."""
        return [slot for index in indices if isinstance(slot := self._slots[index], IdleSlot)]

    @property
    def n_busy(self) -> int:
        """How many slots requests use."""
        return sum(isinstance(slot, BusySlot) for slot in self._slots)

    @property
    def cells_used(self) -> int:
        """KV cells that hold tokens, shared ones counted once for each slot."""
        return sum(len(slot.cells.tokens) for slot in self._slots)

    @property
    def offloaded(self) -> OffloadedCaches:
        """The cells that are in host memory."""
        return self._offloaded

    # --- what planning looks at -------------------------------------------------------------------------------

    def views(self, specialist_id: int) -> list[CacheView]:
        """What each slot holds for a prompt of a specialist."""
        return [
            CacheView(
                slot.index,
                slot.cells.tokens,
                isinstance(slot, BusySlot),
                slot.last_used if isinstance(slot, IdleSlot) else 0,
                self._forgotten_before(slot),
                slot.cells.checkpoint.position if slot.cells.checkpoint else 0,
                self._window,
                usable=slot.cells.specialist_id == specialist_id,
            )
            for slot in self._slots
        ]

    def offloaded_views(self, specialist_id: int) -> list[CacheView]:
        """What each offloaded conversation holds for a prompt of a specialist."""
        return self._offloaded.views(specialist_id, self._window)

    def _forgotten_before(self, slot: Slot) -> int:
        return self._context.first_position(slot.index) if self._forgets and slot.cells.tokens else 0

    def occupants(self, specialist_id: int) -> list[Occupant]:
        """The cells of each slot, while a specialist has the time slice."""
        return [
            Occupant(
                slot.index,
                len(slot.sequence.tokens),
                busy=True,
                age=slot.sequence.started,
                resting=slot.sequence.specialist_id != specialist_id,
            )
            if isinstance(slot, BusySlot)
            else Occupant(slot.index, len(slot.cells.tokens), busy=False, age=slot.last_used)
            for slot in self._slots
        ]

    def offloadable(self, specialist_id: int) -> frozenset[int]:
        """Slots of sequences that rest while a specialist runs, and of which each could be offloaded."""
        return frozenset(
            slot.index
            for slot in self.busy
            if slot.sequence.specialist_id != specialist_id and self.can_offload(slot.index)
        )

    def can_offload(self, index: int) -> bool:
        """Whether host memory has room for the cells of a slot."""
        return self._offloaded.has_room(self._context.state_bytes(index))

    # --- from idle to busy and back ---------------------------------------------------------------------------

    def place(self, sequence: ActiveSequence, placement: Placement, restored: OffloadedCache | None) -> BusySlot:
        """Give a sequence its idle slot, and the slot the cells that the sequence can use.

        restored: the offloaded cache that the placement names. `sequence.evaluated` says how many tokens were reused.
        """
        index, reused = placement.slot, placement.reused
        slot = self._slots[index]
        assert isinstance(slot, IdleSlot), "a placement names an idle slot"
        if placement.copy_from is not None or restored is not None or not reused:
            self.let_go(slot)
        checkpoint = self._slots[index].cells.checkpoint
        if placement.copy_from is not None:
            self._context.copy_sequence(placement.copy_from, index, reused)
        elif restored is not None:
            back = self._restore(restored, index)
            reused, checkpoint = (reused, restored.cells.checkpoint) if back else (0, None)
        if placement.from_checkpoint and checkpoint is not None:
            back = self._context.restore(index, checkpoint.state, partial=True)
            reused = reused if back else 0
        # A cache that cannot drop a part of itself starts anew.
        if not reused or not self._context.forget(index, reused):
            self._context.forget(index)
            reused = 0
        if checkpoint is not None and checkpoint.position > reused:
            checkpoint = None
        busy = BusySlot(index, Cells(sequence.specialist_id, sequence.tokens[:reused], checkpoint), sequence)
        self._slots[index] = busy
        sequence.evaluated = reused
        return busy

    def book(self, slot: BusySlot, count: int) -> None:
        """`count` more tokens of a slot's sequence were evaluated; takes a checkpoint where its history ends."""
        sequence = slot.sequence
        end = sequence.evaluated + count
        slot.cells.tokens.extend(sequence.tokens[sequence.evaluated : end])
        sequence.evaluated = end
        if self._forgets and end == sequence.history_tokens:
            state = self._context.save(slot.index, partial=True)
            if state is not None:
                slot.cells.checkpoint = Checkpoint(end, state)

    def vacate(self, slot: BusySlot) -> None:
        """A slot's request has ended: the conversation stays."""
        self._slots[slot.index] = IdleSlot(slot.index, slot.cells, self._tick())

    def preempt(self, slot: BusySlot) -> None:
        """Take a slot from its request, which evaluates its tokens again when it is placed again."""
        slot.sequence.evaluated = 0
        self._empty(slot.index)

    def let_go(self, slot: IdleSlot) -> None:
        """Empty an idle slot, into host memory where there is room."""
        if slot.cells.tokens:
            if self.offload(slot):
                return
            _log.debug(
                "conversation of %d tokens dropped from slot %d: host memory has no room for it",
                len(slot.cells.tokens),
                slot.index,
            )
        self._empty(slot.index)

    def offload_conversations_of_others(self, specialist_id: int) -> None:
        """Bring idle conversations of all other specialists to host memory, as far as it has room."""
        for slot in self.idle:
            if slot.cells.tokens and slot.cells.specialist_id != specialist_id:
                self.offload(slot)

    def offload(self, slot: Slot) -> bool:
        """Bring a slot's cells to host memory and empty it; False when there is no room for them, and nothing is done.

        A sequence that uses them goes on from there when it is placed again.
        """
        cells = slot.cells
        size = self._context.state_bytes(slot.index) + (cells.checkpoint.state.nbytes if cells.checkpoint else 0)
        if not self._offloaded.has_room(size):
            return False
        started = self._moves_from()
        state = self._context.save(slot.index, partial=False)
        if state is None:
            return False
        forgotten = max(self._forgotten_before(slot), len(cells.tokens) - self._window) if self._window else 0
        sequence = slot.sequence if isinstance(slot, BusySlot) else None
        last_used = slot.last_used if isinstance(slot, IdleSlot) else 0
        cache = OffloadedCache(cells, state, forgotten, last_used, sequence)
        if not self._offloaded.add(cache):
            return False
        self._empty(slot.index)
        spent = self._now() - started
        self.moved_s += spent
        _log.debug(
            "%s offloaded from slot %d: %d tokens, %s in %.1f ms",
            "conversation" if sequence is None else "request",
            slot.index,
            len(cells.tokens),
            size_text(cache.n_bytes),
            1000 * spent,
            extra=for_request(sequence.request.id if sequence is not None else ""),
        )
        return True

    def _restore(self, cache: OffloadedCache, index: int) -> bool:
        """Bring offloaded cells back into an empty slot."""
        started = self._moves_from()
        restored = self._context.restore(index, cache.state, partial=False)
        self.moved_s += self._now() - started
        return restored

    def _moves_from(self) -> float:
        """When a move of cells begins, in seconds: the decodes that a GPU has yet to do are none of its time."""
        self._context.synchronize()
        return self._now()

    def _empty(self, index: int) -> None:
        self._context.forget(index)
        self._slots[index] = IdleSlot(index, Cells())
