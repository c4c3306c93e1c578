"""Loading residents: a time limit, measured memory, and exponential back-off after failures."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from ..errors import EngineError, LoadError, WorkerDiedError
from ..logs import for_request
from ..spec import LoadSpec, Thinking
from .bookings import ResidentBooking
from .estimates import Estimates
from .places import Memory
from .resident import Resident
from .types import PoolLimits, Starter

_log = logging.getLogger(__name__)
_LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True)
class LoadFailure:
    """The last load of a group failed. until: when the next may be tried. count: failures since the last success."""

    error: EngineError
    until: float
    count: int


class Loader:
    """Loads residents, side by side where they fit, and corrects the estimates by what it finds."""

    def __init__(
        self,
        start: Starter,
        limits: PoolLimits,
        estimates: Estimates,
        clock: Callable[[], float],
        free_memory: Callable[[], Awaitable[Memory | None]] | None,
    ) -> None:
        self._start = start
        self._limits = limits
        self._estimates = estimates
        self._clock = clock
        self._free_memory = free_memory
        self._under_way: set[str] = set()
        self._disturbed: set[str] = set()  # of those, the loads beside which other memory was taken
        self._failures: dict[str, LoadFailure] = {}

    def failure(self, group: str) -> LoadFailure | None:
        """The failure after which no load of a group is to be tried yet."""
        failure = self._failures.get(group)
        return failure if failure is not None and self._clock() < failure.until else None

    def forget_failure(self, group: str) -> None:
        """Try the next load of a group at once."""
        self._failures.pop(group, None)

    def disturb(self) -> None:
        """Other memory is taken beside the loads under way: free memory does not tell what one of them takes."""
        self._disturbed |= self._under_way

    async def load(
        self, booking: ResidentBooking, spec: LoadSpec, policies: Mapping[str, Thinking], *, disturbed: bool
    ) -> None:
        """Start the booking's resident, and book what it takes where that is more than predicted.

        disturbed: memory may be taken by other things meanwhile.
        Raises EngineError when the load fails; the next one of its group then has to wait, unless the process was lost
        for the first time: see `failure`.
        """
        self._under_way.add(booking.key)
        if disturbed or len(self._under_way) > 1:
            self.disturb()
        started = self._clock()
        try:
            before = None if self._estimates.knows_device(booking) else await self._free_now()
            booking.resident = await self._start_in_time(booking, spec, policies)
            booking.loaded_in_s = self._clock() - started
            after = None if before is None else await self._free_now()
            self._measure(booking, before, after)
        except EngineError as error:
            self.count_failure(booking.group, error)
            raise
        finally:
            self._under_way.discard(booking.key)
            self._disturbed.discard(booking.key)
        self._failures.pop(booking.group, None)
        self._estimates.loaded(booking.group, booking.loaded_in_s)

    async def _start_in_time(
        self, booking: ResidentBooking, spec: LoadSpec, policies: Mapping[str, Thinking]
    ) -> Resident:
        def report(fraction: float) -> None:
            booking.progress, booking.last_progress = fraction, self._clock()

        limit_s = self._limits.load_timeout_s
        try:
            return await asyncio.wait_for(self._start(spec, policies, report), limit_s)
        except TimeoutError:
            raise LoadError(
                f"{booking.title} did not load within {limit_s:.0f} s.",
                "Raise pool.load_timeout_s if the disk is slow.",
            ) from None
        except EngineError:
            raise
        except Exception as error:
            _log.exception("loading %s", booking.title, extra=for_request(booking.request_id))
            raise LoadError(f"{booking.title} did not load: {error!r}.") from error

    def _measure(self, booking: ResidentBooking, before: Memory | None, after: Memory | None) -> None:
        """Book what the cards lost, and what the worker says. before, after: free memory of the cards."""
        assert booking.resident is not None
        measured = booking.resident.memory or Memory()
        if before is not None and after is not None and booking.key not in self._disturbed:
            lost = before - after
            if booking.devices:  # what others lost is not its doing
                lost = Memory({card: lost[card] for card in booking.devices})
            excess = self._estimates.book_device_loss(booking, lost, measured)
        else:
            excess = self._estimates.book_measured(booking, measured)
        if excess != Memory():
            extra = for_request(booking.request_id)
            _log.warning(
                "%s took %s more than predicted; %s are booked", booking.title, excess, booking.memory, extra=extra
            )

    async def _free_now(self) -> Memory | None:
        """Free memory of the cards; None when it cannot be told, which is no reason to fail a load."""
        if self._free_memory is None:
            return None
        try:
            free = await self._free_memory()
        except Exception as error:
            _log.warning("free memory cannot be measured: %s", error)
            return None
        if free is None:  # there is no card, and none will come
            self._free_memory = None
        return free

    def count_failure(self, group: str, error: EngineError) -> None:
        """A load of a group has failed, or was in vain: the next one waits for a while that doubles."""
        last = self._failures.get(group)
        count = last.count + 1 if last is not None else 1
        # One lost process says nothing of the model: whoever was killed for memory need not be who took it.
        n_pauses = count - 1 if isinstance(error, WorkerDiedError) else count
        pause_s = min(_LONGEST_PAUSE_S, self._limits.load_backoff_s * 2 ** (n_pauses - 1)) if n_pauses else 0.0
        self._failures[group] = LoadFailure(error, self._clock() + pause_s, count)
