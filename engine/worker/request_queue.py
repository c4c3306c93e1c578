"""The queue of waiting requests (continuous batching): admission into slots, and preemption out of them.

What waits longest starts first, within its specialist. A request that gave its slot up goes to the front.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from ..errors import EngineError
from ..generate.sequence import ActiveSequence
from ..logs import for_request
from ..spec import LoadSpec
from .schedule import CacheView, Placement, Room, choose_slot, least_recently_used, make_room
from .slots import BusySlot, Slots

# Cells that a newcomer must find free beside its prompt while others run, lest the next token already preempts one.
_HEADROOM_CELLS = 64

_log = logging.getLogger(__name__)


class Wait(StrEnum):
    """Why a request at the head of its specialist's queue cannot start."""

    SLOT = "all slots are busy"
    CELLS = "the KV cache has no room for its prompt"
    CROWDED = "llama.cpp found no cells: another request has to end first"


@dataclass(frozen=True)
class Start:
    """How a waiting request gets its slot: the resting slot that is offloaded for it, where it goes, and what else
    makes room."""

    offload: BusySlot | None
    placement: Placement
    room: Room


class RequestQueue:
    """Owns the requests that wait, and moves them into slots and back."""

    def __init__(self, slots: Slots, spec: LoadSpec, *, tick: Callable[[], int], now: Callable[[], float]) -> None:
        """tick: counts events, for the order of requests. now: seconds."""
        self._slots = slots
        self._cells = spec.cells
        self._tick = tick
        self._now = now
        self._waiting: deque[ActiveSequence] = deque()
        self._slice_ended: dict[int, int] = {}  # specialist -> tick at which its last time slice ended
        self._crowded = False  # llama.cpp found no cells: no request starts before another has ended

    def __len__(self) -> int:
        return len(self._waiting)

    # --- what there is to do ----------------------------------------------------------------------------------

    @property
    def unfinished(self) -> list[ActiveSequence]:
        """Every sequence that has not ended, the waiting ones first."""
        return [*self._waiting, *(slot.sequence for slot in self._slots.busy)]

    @property
    def active_specialists(self) -> set[int]:
        """Specialists with a request that has not ended."""
        return {sequence.specialist_id for sequence in self.unfinished}

    def waits(self, specialist_id: int) -> bool:
        """Whether a request of a specialist waits."""
        return any(sequence.specialist_id == specialist_id for sequence in self._waiting)

    def runs(self, specialist_id: int) -> bool:
        """Whether a specialist has a request in a slot."""
        return any(slot.sequence.specialist_id == specialist_id for slot in self._slots.busy)

    def ready(self) -> dict[int, int]:
        """Specialists that could evaluate something now -> since when they wait for a time slice."""
        arrived: dict[int, int] = {}
        for sequence in self.unfinished:
            since = arrived.get(sequence.specialist_id, sequence.arrived)
            arrived[sequence.specialist_id] = min(since, sequence.arrived)
        running = {slot.sequence.specialist_id for slot in self._slots.busy}
        first = {sequence.specialist_id: sequence for sequence in reversed(self._waiting)}
        return {
            specialist_id: max(since, self._slice_ended.get(specialist_id, 0))
            for specialist_id, since in arrived.items()
            if specialist_id in running or isinstance(self.plan_start(first[specialist_id]), Start)
        }

    def oldest_of(self, specialist_id: int) -> str:
        """The id of a specialist's oldest request; "" when it has none."""
        own = [sequence for sequence in self.unfinished if sequence.specialist_id == specialist_id]
        return min(own, key=lambda sequence: sequence.arrived).request.id if own else ""

    def end_slice(self, specialist_id: int) -> None:
        """A specialist's time slice has ended: it waits for the next one from now on."""
        self._slice_ended[specialist_id] = self._tick()

    # --- coming and leaving -----------------------------------------------------------------------------------

    def add(self, sequence: ActiveSequence) -> None:
        """Queue a new request."""
        sequence.arrived, sequence.submitted_s = self._tick(), self._now()
        self._waiting.append(sequence)

    def find(self, request_id: str) -> ActiveSequence | None:
        """The waiting request of an id."""
        return next((sequence for sequence in self._waiting if sequence.request.id == request_id), None)

    def remove(self, sequence: ActiveSequence) -> None:
        """A waiting request ends: its cells, if it had any, are a conversation in host memory."""
        self._waiting.remove(sequence)
        self._slots.offloaded.keep_conversation(sequence, self._tick())
        sequence.close()

    def release(self, slot: BusySlot) -> None:
        """A running request has ended: its slot keeps the conversation."""
        slot.sequence.close()
        self._slots.vacate(slot)
        self._crowded = False

    # --- starting ---------------------------------------------------------------------------------------------

    def start_waiting(self, specialist_id: int) -> None:
        """Start what can start of the specialist that runs, in the order of the queue."""
        for sequence in [sequence for sequence in self._waiting if sequence.specialist_id == specialist_id]:
            start = self.plan_start(sequence)
            if isinstance(start, Wait):
                self._log_wait(sequence, start)
                return
            if not self._start(sequence, start):
                return

    def plan_start(self, sequence: ActiveSequence) -> Start | Wait:
        """How a waiting request could start now, or what it has to wait for."""
        n_busy = self._slots.n_busy
        if self._crowded and n_busy:
            return Wait.CROWDED
        specialist_id = sequence.specialist_id
        views = self._slots.views(specialist_id)
        offload = None
        if n_busy == len(views):
            offload = self._rests_longest(specialist_id)
            if offload is None or not self._slots.can_offload(offload.index):
                return Wait.SLOT
            views[offload.index] = CacheView(offload.index, (), False, 0)
        placement = self._plan_placement(sequence, views)
        others = [occupant for occupant in self._slots.occupants(specialist_id) if occupant.slot != placement.slot]
        need = len(sequence.tokens) + (min(_HEADROOM_CELLS, sequence.left) if n_busy else 0)
        tight = need + sum(occupant.cells for occupant in others) > self._cells
        offloadable = self._slots.offloadable(specialist_id) if tight else frozenset[int]()
        room = make_room(need, others, self._cells, preempt=False, offloadable=offloadable)
        return Start(offload, placement, room) if room is not None else Wait.CELLS

    def _plan_placement(self, sequence: ActiveSequence, views: list[CacheView]) -> Placement:
        """The slot of a sequence: with cells of its own in host memory the smallest loss, else the most reused."""
        number = self._slots.offloaded.number_of(sequence)
        if number is not None:
            target = least_recently_used([view for view in views if not view.busy])
            reason = "its own cells are restored from host memory"
            return Placement(target.slot, sequence.evaluated, from_offload=number, reason=reason)
        offloaded = self._slots.offloaded_views(sequence.specialist_id)
        prompt = sequence.tokens
        if sequence.reusable < len(prompt):
            prompt = prompt[: sequence.reusable + 1]  # of what is placed the last token is always evaluated
        placement = choose_slot(prompt, views, share=sequence.shares, offloaded=offloaded)
        assert placement is not None, "a slot is idle, or will be"
        return placement

    def _rests_longest(self, specialist_id: int) -> BusySlot | None:
        """The slot of the sequence that waits longest for its next time slice while a specialist has its own."""
        resting = [slot for slot in self._slots.busy if slot.sequence.specialist_id != specialist_id]
        return max(
            resting,
            key=lambda slot: (
                self._slice_ended.get(slot.sequence.specialist_id, 0),
                slot.sequence.started,
                slot.index,
            ),
            default=None,
        )

    def _start(self, sequence: ActiveSequence, start: Start) -> bool:
        """Give a request its slot. False when a sequence could not be offloaded after all: the request waits on."""
        placement = start.placement
        # Out of the budget first: what is offloaded now must not push out what is restored.
        restored = self._slots.offloaded.take(placement.from_offload) if placement.from_offload is not None else None
        resting = [start.offload] if start.offload is not None else []
        if not all(self._offload(slot) for slot in [*resting, *self._slots.busy_at(start.room.offload)]):
            if restored is not None and not self._slots.offloaded.add(restored):
                sequence.evaluated = 0
            return False
        bypassed = sum(other.arrived < sequence.arrived for other in self._waiting)
        self._waiting.remove(sequence)
        if restored is not None:
            self._drop(start.room)
        self._slots.place(sequence, placement, restored)
        if restored is None:
            # Only now: what is dropped may be the cache whose beginning was copied.
            self._drop(start.room)
        sequence.begin(self._tick(), self._now())
        _log.debug(
            "starts in slot %d: %d of %d tokens reused, %s; waited %.3f s%s%s",
            placement.slot,
            sequence.evaluated,
            len(sequence.tokens),
            placement.reason,
            sequence.queued_s,
            f"; before {bypassed} older requests" if bypassed else "",
            f"; {start.room.reason}" if start.room.reason else "",
            extra=for_request(sequence.request.id),
        )
        return True

    def _drop(self, room: Room) -> None:
        for slot in self._slots.idle_at(room.drop):
            self._slots.let_go(slot)

    def _log_wait(self, sequence: ActiveSequence, wait: Wait) -> None:
        """One line for each reason, not one for each step."""
        if sequence.waits_for != wait:
            sequence.waits_for = wait
            _log.debug("waits: %s", wait, extra=for_request(sequence.request.id))

    # --- giving way -------------------------------------------------------------------------------------------

    def fit(self, specialist_id: int) -> None:
        """See to it that all that is in slots fits the cells when the specialist that runs evaluates its tokens."""
        occupants = self._slots.occupants(specialist_id)
        tight = sum(occupant.cells for occupant in occupants) > self._cells
        if not tight:
            return
        room = make_room(0, occupants, self._cells, offloadable=self._slots.offloadable(specialist_id))
        assert room is not None, "one sequence never outgrows the cache: its limit is context_tokens"
        self._drop(room)
        for slot in self._slots.busy_at(room.offload):
            self._offload_or_preempt(slot, room.reason)
        for slot in self._slots.busy_at(room.preempt):
            self._preempt(slot, room.reason)

    def make_way(self, specialist_id: int) -> bool:
        """llama.cpp found no cells for a batch: give some up. True when the same batch may be tried again, False when
        a running sequence was preempted.

        Full in a way that counting tokens does not see (cells of a sliding window, which shared prompts keep alive):
        an idle conversation goes, else a resting sequence, or else the youngest running one, which starts again
        without sharing cells. Raises EngineError when only one sequence is left.
        """
        idle = [slot for slot in self._slots.idle if slot.cells.tokens]
        if idle:
            self._slots.let_go(min(idle, key=lambda slot: slot.last_used))
            return True
        reason = "llama.cpp found no cells for the next batch"
        resting = self._rests_longest(specialist_id)
        if resting is not None:
            self._offload_or_preempt(resting, reason)
            return True
        running = self._slots.busy
        if len(running) < 2:
            raise EngineError("The KV cache is full.", "Raise cache_tokens or lower parallel in the roster.")
        youngest = max(running, key=lambda slot: slot.sequence.started)
        youngest.sequence.shares = False
        self._crowded = True
        self._preempt(youngest, reason)
        return False

    def _offload(self, slot: BusySlot) -> bool:
        offloaded = self._slots.offload(slot)
        if offloaded:
            self._waiting.appendleft(slot.sequence)
        return offloaded

    def _offload_or_preempt(self, slot: BusySlot, reason: str) -> None:
        if not self._offload(slot):
            self._preempt(slot, reason)

    def _preempt(self, slot: BusySlot, reason: str) -> None:
        _log.debug(
            "preempted from slot %d, %d tokens are to be evaluated again: %s",
            slot.index,
            slot.sequence.evaluated,
            reason,
            extra=for_request(slot.sequence.request.id),
        )
        self._slots.preempt(slot)
        self._waiting.appendleft(slot.sequence)
