"""Time slices of one resident: which specialist its weights are now, and the swaps to the next (round robin).

The sequences of the other specialists rest meanwhile, in their slots or offloaded; no specialist reads cells that
another wrote.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from ..llama.context import Context
from ..logs import for_request
from ..spec import Sharing
from ..swap.quantum import SliceChoice, next_slice, quantum_s, worst_wait_s
from ..swap.swapper import Swapper
from ..units import size_text
from .request_queue import RequestQueue
from .slots import Slots

_log = logging.getLogger(__name__)


class TimeSlices:
    """Owns which specialist a shared resident is.

    RUNS -- quantum over, another is ready --> swap --> RUNS, the next specialist
    RUNS -- nothing to run, another is ready --> swap --> RUNS, the next specialist
    swap -- its files changed --> its requests are refused, the specialist before goes on
    swap -- failed half-way --> the resident is broken, the worker ends
    """

    def __init__(
        self,
        swapper: Swapper,
        sharing: Sharing,
        context: Context,
        slots: Slots,
        queue: RequestQueue,
        now: Callable[[], float],
    ) -> None:
        """now: seconds."""
        self._swapper = swapper
        self._sharing = sharing
        self._context = context
        self._slots = slots
        self._queue = queue
        self._now = now
        self.current = swapper.current
        self._began_s = self._ran_until_s = now()
        self._changes_s: deque[float] = deque(maxlen=8)  # that the last changes took
        self._steps_s: deque[float] = deque(maxlen=32)  # that the last decodes took
        self.swaps = 0
        self.swapped_bytes = 0

    def id_of(self, specialist: str) -> int:
        """The number of a specialist. Raises EngineError for a name that the resident was not given."""
        return self._swapper.id_of(specialist)

    def prefetch(self, specialist_id: int) -> None:
        """Have the files of a specialist that waits ready; returns at once."""
        self._swapper.prefetch(specialist_id)

    def add_step(self, seconds: float) -> None:
        """A decode took so long."""
        self._steps_s.append(seconds)
        self._ran_until_s = self._now()

    @property
    def change_s(self) -> float:
        """Seconds that changes of specialist take: the mean of the last ones; 0 before the first."""
        mean = sum(self._changes_s) / len(self._changes_s) if self._changes_s else 0.0
        return max(mean, self._slots.moved_s)

    @property
    def worst_wait_s(self) -> float:
        """The longest that a specialist with something to do waits for its time slice, as things are now."""
        n_active = len(self._queue.active_specialists)
        return worst_wait_s(n_active, self.change_s, self._quantum_s(n_active), max(self._steps_s, default=0.0))

    def _quantum_s(self, n_active: int) -> float:
        step_s = max(self._steps_s, default=0.0)
        return quantum_s(self.change_s, self._sharing.swap_share, n_active, step_s, self._sharing.max_wait_s)

    def due(self) -> SliceChoice | None:
        """The specialist whose time slice begins now, None while the current one goes on."""
        quantum = self._quantum_s(len(self._queue.active_specialists))
        elapsed = self._now() - self._began_s
        if elapsed < quantum and self._queue.runs(self.current):
            return None
        choice = next_slice(self.current, self._queue.ready(), elapsed, quantum)
        return choice if choice.specialist_id != self.current else None

    def change_to(self, choice: SliceChoice) -> None:
        """Make the resident the chosen specialist.

        Raises SourceChangedError, and nothing is changed, when its files are not what they were; SwapError when the
        resident is of no more use.
        """
        # A decode that nobody reads the logits of has only been handed to a GPU. Its time is the slice's: slices would
        # grow longer than `swap_share` asks if it counted as the change's.
        self._context.synchronize()
        began, before = self._now(), self.current
        # Up to its last decode: what had nothing to run since was idle.
        ran_s, quantum = (
            max(0.0, self._ran_until_s - self._began_s),
            self._quantum_s(len(self._queue.active_specialists)),
        )
        report = self._swapper.swap(choice.specialist_id)
        self._queue.end_slice(before)
        self.current = choice.specialist_id
        self.swaps += 1
        self.swapped_bytes += report.moved_bytes
        moved_s = self._slots.moved_s
        # Cells that no request uses slow every step: attention goes over all of them.
        self._slots.offload_conversations_of_others(self.current)
        self._began_s = self._now()
        self._changes_s.append(self._began_s - began + moved_s)
        self._slots.moved_s = 0.0
        others = self._queue.active_specialists - {self.current}
        _log.debug(
            "time slice of %s ends, it ran for %.3f s (quantum %.3f s), %s; swap to %s: %s copied in %.1f ms; %s",
            self._swapper.names_of(before),
            ran_s,
            quantum,
            choice.reason,
            self._swapper.names_of(self.current),
            size_text(report.moved_bytes),
            1000 * report.seconds,
            f"{', '.join(sorted(map(self._swapper.names_of, others)))} wait" if others else "no other waits",
            extra=for_request(self._queue.oldest_of(self.current)),
        )
        for other in others:
            self._swapper.prefetch(other)

    def close(self) -> None:
        """Let the swapper's threads and buffers go."""
        self._swapper.close()


class OneSpecialist:
    """In place of TimeSlices where a resident stays what it is."""

    current = 0
    change_s = worst_wait_s = 0.0
    swaps = swapped_bytes = 0

    def id_of(self, specialist: str) -> int:
        """See TimeSlices.id_of: the resident answers to every name."""
        return self.current

    def prefetch(self, specialist_id: int) -> None:
        """See TimeSlices.prefetch: there is nothing to read."""

    def add_step(self, seconds: float) -> None:
        """See TimeSlices.add_step: no quantum depends on it."""

    def close(self) -> None:
        """See TimeSlices.close."""
