"""Decodes that a GPU has been handed and has yet to do: their time is not that of a change."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from coe.engine.spec import LoadSpec, Member, Sharing
from coe.engine.swap.quantum import SliceChoice
from coe.engine.swap.swapper import SwapReport
from coe.engine.worker.kv_offload import Cells
from coe.engine.worker.slots import IdleSlot, Slots
from coe.engine.worker.time_slices import TimeSlices

SWAP_S, SAVE_S, BACKLOG_S = 2.0, 1.0, 100.0


class Clock:
    """Time that passes by what is done."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class BusyGpu:
    """A context, with the model that it is of, on a GPU that has a backlog: whatever moves bytes waits for it first."""

    forgets = False
    sliding_window = 0
    n_seq = 2

    def __init__(self, clock: Clock) -> None:
        self.model = self
        self._clock = clock
        self.backlog_s = BACKLOG_S

    def synchronize(self) -> None:
        self._clock.now_s += self.backlog_s
        self.backlog_s = 0.0

    def state_bytes(self, sequence: int) -> int:
        return 100

    def save(self, sequence: int, *, partial: bool) -> Any:
        self.synchronize()
        self._clock.now_s += SAVE_S
        return np.zeros(100, np.uint8)

    def restore(self, sequence: int, state: Any, *, partial: bool) -> bool:
        self.synchronize()
        self._clock.now_s += SAVE_S
        return True

    def forget(self, sequence: int, start: int = 0) -> bool:
        return True


class Resident:
    """Swapper and queue of a resident of two specialists."""

    current = 0
    active_specialists = frozenset({0, 1})

    def __init__(self, clock: Clock, gpu: BusyGpu) -> None:
        self._clock = clock
        self._gpu = gpu

    def swap(self, specialist_id: int) -> SwapReport:
        self._gpu.synchronize()
        self._clock.now_s += SWAP_S
        return SwapReport(10, 10, SWAP_S)

    def names_of(self, specialist_id: int) -> str:
        return str(specialist_id)

    def prefetch(self, specialist_id: int) -> None:
        """Nothing to read."""

    def end_slice(self, specialist_id: int) -> None:
        """Nothing to note."""

    def oldest_of(self, specialist_id: int) -> str:
        return ""


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gpu(clock: Clock) -> BusyGpu:
    return BusyGpu(clock)


@pytest.fixture
def slots(clock: Clock, gpu: BusyGpu) -> Slots:
    return Slots(cast(Any, gpu), LoadSpec(Path("m"), ram_budget_bytes=1000), tick=lambda: 0, now=clock)


def test_a_change_takes_as_long_as_its_bytes_move(clock: Clock, gpu: BusyGpu, slots: Slots) -> None:
    resident = cast(Any, Resident(clock, gpu))
    sharing = Sharing((Member("a", Path("a")), Member("b", Path("b"))), swap_share=0.1)
    slices = TimeSlices(resident, sharing, cast(Any, gpu), slots, resident, clock)
    slices.change_to(SliceChoice(1, "its quantum is over"))
    assert clock() == BACKLOG_S + SWAP_S, "it did wait for the GPU"
    assert slices.change_s == SWAP_S


def test_so_do_conversations_that_go_and_come_back(clock: Clock, gpu: BusyGpu, slots: Slots) -> None:
    assert slots.offload(IdleSlot(0, Cells(0, [1, 2, 3])))
    assert slots.moved_s == SAVE_S
    gpu.backlog_s = BACKLOG_S
    number = slots.offloaded.views(0, 0)[0].slot
    assert slots._restore(slots.offloaded.take(number), 0)
    assert slots.moved_s == 2 * SAVE_S


def test_what_finds_no_room_waits_for_nothing(clock: Clock, gpu: BusyGpu) -> None:
    full = Slots(cast(Any, gpu), LoadSpec(Path("m"), ram_budget_bytes=50), tick=lambda: 0, now=clock)
    assert not full.offload(IdleSlot(0, Cells(0, [1, 2, 3])))
    assert (clock(), full.moved_s) == (0.0, 0.0)
