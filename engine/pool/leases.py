"""Requests that wait for a lease, and the leases and reservations that they get."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ..errors import EngineError
from ..request import Embedded, EmbedRequest, Event, GenerateRequest, ReadRequest, Told
from .bookings import ResidentBooking, reservation_group
from .decisions import WaitReason
from .inbox import Unread
from .placement import CacheAffinity
from .places import Memory
from .types import Stop


class Lease:
    """A request's hold on a resident: it is not evicted meanwhile. Release it as soon as the last of its requests
    has ended; what the requests' readers have not taken yet can still be taken.

    residency: warm; swapped, when the resident was another specialist; loaded, after a load.
    swap_s:    about what changing the resident takes; 0 for one that stays as it is.
    """

    def __init__(
        self,
        booking: ResidentBooking,
        specialist: str,
        on_release: Callable[[], None],
        *,
        residency: str,
        waited_s: float,
        swap_s: float = 0.0,
    ) -> None:
        self._booking: ResidentBooking | None = booking
        self._on_release = on_release
        self.specialist = specialist
        self.residency = residency
        self.waited_s = waited_s
        self.swap_s = swap_s

    @property
    def resident(self) -> str:
        """The resident's key, by which a later request of the conversation finds it: see Pool.lease."""
        assert self._booking is not None, "the lease was released"
        return self._booking.key

    def generate(
        self,
        request: GenerateRequest,
        *,
        on_end: Callable[[], None] | None = None,
        unread: Unread | None = None,
    ) -> AsyncGenerator[Event, None]:
        """See Resident.generate."""
        assert self._booking is not None, "the lease was released"
        assert self._booking.resident is not None
        return self._booking.resident.generate(request, on_end=on_end, unread=unread)

    async def read(self, request: ReadRequest) -> Told:
        """See Resident.read."""
        assert self._booking is not None, "the lease was released"
        assert self._booking.resident is not None
        return await self._booking.resident.read(request)

    async def embed(self, request: EmbedRequest) -> Embedded:
        """See Resident.embed."""
        assert self._booking is not None, "the lease was released"
        assert self._booking.resident is not None
        return await self._booking.resident.embed(request)

    def release(self) -> None:
        """End the hold; a second call does nothing."""
        if self._booking is not None:
            self._booking = None
            self._on_release()


class Reservation:
    """Room that is booked for something that is no resident, such as a build. Release it when its memory is back."""

    def __init__(self, on_release: Callable[[], None]) -> None:
        self._on_release: Callable[[], None] | None = on_release

    def release(self) -> None:
        """Give the room back; a second call does nothing."""
        if self._on_release is not None:
            on_release, self._on_release = self._on_release, None
            on_release()


Granted = TypeVar("Granted", Lease, Reservation)

# A waiter's life:
#
#   lease() ----> refused (queue full, never fits, back-off)
#      |
#      v
#   waiting ----> granted: a Lease, until it is released
#      |    ----> failed: its load failed, its specialist is served no more, the pool closes
#      +--------> given up: the client left, or max_wait_s passed
#
# reserve() is the same, but waits without an end, and may wait for idle time before it waits for room.


@dataclass(eq=False)
class Waiter(Generic[Granted]):
    """A request in the queue. name: its specialist, or what room is asked for. since: on the pool's clock.

    last_wait: why it waits, as it was last logged.
    """

    id: int
    name: str
    since: float
    request_id: str
    future: asyncio.Future[Granted] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    last_wait: WaitReason | None = field(default=None, init=False)

    def fail(self, error: EngineError) -> None:
        """End the waiting with an error."""
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # the client may have left, and never look at it

    def give_up(self) -> None:
        """End the waiting without a result."""
        if not self.future.done():
            self.future.cancel()
        elif not self.future.cancelled() and self.future.exception() is None:
            self.future.result().release()  # granted at the very moment it was given up


@dataclass(eq=False)
class LeaseWaiter(Waiter[Lease]):
    """A request that waits for a lease. found: keys of the residents of its group that were warm when it came."""

    found: frozenset[str] = frozenset()
    affinity: CacheAffinity | None = None


@dataclass(eq=False)
class ReservationWaiter(Waiter[Reservation]):
    """A build, say, that waits for room. on_stop: makes its holder give the room back; None: it is kept."""

    memory: Memory = field(default_factory=Memory)
    on_stop: Stop | None = None

    @property
    def group(self) -> str:
        """A reservation's group has no specialists."""
        return reservation_group(self.name)


AnyWaiter = LeaseWaiter | ReservationWaiter


class Queue:
    """Waiters, oldest first: first come, first served, but for what admission lets bypass.

    A reservation may wait for idle time before it joins them: until nothing was asked for `quiet_s`.
    """

    def __init__(self, quiet_s: float, now: float) -> None:
        self.waiters: list[AnyWaiter] = []
        self._for_idle: list[ReservationWaiter] = []
        self._quiet_s = quiet_s
        self._last_busy = now

    def add(self, waiter: AnyWaiter) -> None:
        """Behind all others."""
        self.waiters.append(waiter)

    def add_in_idle_time(self, waiter: ReservationWaiter) -> None:
        """Behind all others, once idle time has come: see `admit_in_idle_time`."""
        self._for_idle.append(waiter)

    def remove(self, waiter: Waiter[Any]) -> None:
        """Wherever it waits; nothing happens when it waits no more."""
        self.waiters = [other for other in self.waiters if other is not waiter]
        self._for_idle = [other for other in self._for_idle if other is not waiter]

    def fail(self, waiters: Iterable[Waiter[Any]], error: EngineError) -> None:
        """End the waiting of some with an error."""
        for waiter in list(waiters):
            self.remove(waiter)
            waiter.fail(error)

    def close(self, error: EngineError) -> None:
        """End the waiting of all with an error."""
        self.fail([*self.waiters, *self._for_idle], error)

    def be_busy(self, now: float) -> None:
        """Idle time begins quiet_s from now at the earliest."""
        self._last_busy = now

    def admit_in_idle_time(self, now: float) -> None:
        """Add the next that waits for idle time, when that has come."""
        if self._for_idle and now >= self._last_busy + self._quiet_s:
            self.waiters.append(self._for_idle.pop(0))

    @property
    def next_admission(self) -> float | None:
        """When idle time comes, if a waiter waits for it."""
        return self._last_busy + self._quiet_s if self._for_idle else None
