"""The ledger: what of the budget, place by place, residents and reservations hold.

Records that the pool owns and changes; admission sees frozen views of them.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from .admission import ResidentView, State
from .places import Memory
from .resident import Resident
from .status import COUNTED, ResidentStatus
from .types import Stop


@dataclass(eq=False)
class ResidentBooking:
    """A resident, from before its load until its memory is back.

    devices:    its cards, by name; () for those that llama.cpp takes by itself.
    title:      the file's name, or those of the specialists that share it.
    memory:     the prediction, or of each place what was measured where that is more.
    specialist: which it is, will be once it is loaded, or was last told to become.
    shares:     specialist -> leases.
    request_id: of the request that it was loaded for.
    """

    key: str
    group: str
    title: str
    predicted: Memory
    memory: Memory
    pinned: bool
    specialist: str
    is_shared: bool
    capacity: int
    request_id: str
    last_progress: float
    state: State = State.LOADING
    resident: Resident | None = None
    shares: Counter[str] = field(default_factory=Counter)
    last_used: float = 0.0
    progress: float = 0.0
    loaded_in_s: float | None = None
    warm_since: float = 0.0
    work: asyncio.Task[None] | None = None
    devices: tuple[str, ...] = ()
    displaced: tuple[str, ...] = ()  # specialists whose residents went for it

    @property
    def leases(self) -> int:
        """Leases of all its specialists."""
        return self.shares.total()

    @property
    def activity(self) -> Mapping[str, float]:
        """See Resident.activity."""
        return self.resident.activity if self.resident is not None else {}

    @property
    def label(self) -> str:
        """For the log: several residents may share a title."""
        return f"resident {self.key.rpartition(' ')[2]} ({self.title})"

    def view(self, *, is_served: bool) -> ResidentView:
        """For admission. A pin holds only while the resident's group is served."""
        return ResidentView(
            self.key,
            self.state,
            self.memory,
            self.leases,
            self.capacity,
            self.last_used,
            self.pinned and is_served,
            self.group,
            self.specialist,
            +self.shares if self.is_shared else {},
        )

    def trouble(self, now: float, stall_s: float) -> str | None:
        """Why the server is not ready on its account: a load without progress, a worker that seems to hang. It is told
        from half of the time on after which a worker is killed."""
        if self.state is State.LOADING:
            silent_s, how = now - self.last_progress, "shows no progress for {:.0f} s while loading"
        else:
            silent_s, how = (
                self.resident.silent_s() if self.resident is not None else 0.0,
                "shows no sign of life for {:.0f} s",
            )
        return f"{self.title} {how.format(silent_s)}" if silent_s > stall_s / 2 else None

    def status(self, specialists: tuple[str, ...], now: float) -> ResidentStatus:
        """For PoolStatus. specialists: all that it can become."""
        return ResidentStatus(
            specialists,
            self.specialist,
            self.title,
            self.state,
            self.memory,
            self.leases,
            self.capacity,
            now - self.last_used if self.state is State.WARM and not self.leases else 0.0,
            self.progress if self.state is State.LOADING else 1.0,
            self.loaded_in_s,
            self.pinned,
            self.activity,
        )

    async def stop(self) -> None:
        """Returns when the memory is back. A load is not stopped but cancelled."""
        if self.resident is not None:
            await self.resident.stop()


@dataclass(eq=False)
class ReservationBooking:
    """Room for something that is no resident. on_stop: makes its holder give the room back; None: it is kept."""

    title: str
    memory: Memory
    on_stop: Stop | None
    state: State = State.WARM
    work: asyncio.Task[None] | None = None

    @property
    def key(self) -> str:
        """It is alone in its group."""
        return reservation_group(self.title)

    @property
    def label(self) -> str:
        """For the log."""
        return f"the reservation of {self.title}"

    def view(self) -> ResidentView:
        """For admission: a reservation that may be stopped is idle since for ever, so it goes before any resident."""
        pinned = self.on_stop is None
        return ResidentView(self.key, self.state, self.memory, 0, 0, float("-inf"), pinned, self.key, self.title)

    def status(self) -> ResidentStatus:
        """For PoolStatus."""
        pinned = self.on_stop is None
        return ResidentStatus((), "", self.title, self.state, self.memory, 0, 1, 0.0, 1.0, None, pinned, {})

    async def stop(self) -> None:
        """Returns when the memory is back; at once for one that is kept."""
        if self.on_stop is not None:
            await self.on_stop()


Booking = ResidentBooking | ReservationBooking


class Bookings:
    """All bookings, by their keys, and what residents that are gone have done."""

    def __init__(self) -> None:
        self.residents: dict[str, ResidentBooking] = {}
        self.reservations: dict[str, ReservationBooking] = {}
        self._ended: defaultdict[tuple[str, str], float] = defaultdict(float)  # see PoolStatus.counted

    def all(self) -> list[Booking]:
        """Residents first."""
        return [*self.residents.values(), *self.reservations.values()]

    def find(self, key: str) -> Booking:
        """The resident or reservation with a key that a view had."""
        return self.residents.get(key) or self.reservations[key]

    def of_group(self, group: str) -> list[ResidentBooking]:
        """A group's residents, in whatever state."""
        return [booking for booking in self.residents.values() if booking.group == group]

    def warm(self, group: str) -> list[ResidentBooking]:
        """A group's residents that can serve."""
        return [booking for booking in self.of_group(group) if booking.state is State.WARM]

    def resident_views(self, served: Collection[str]) -> list[ResidentView]:
        """The residents, for admission. served: the groups that requests may ask for."""
        return [booking.view(is_served=booking.group in served) for booking in self.residents.values()]

    def views(self, served: Collection[str]) -> list[ResidentView]:
        """The residents, and reservations behind them."""
        return [*self.resident_views(served), *(booking.view() for booking in self.reservations.values())]

    @property
    def memory(self) -> Memory:
        """What all hold."""
        return Memory.total(booking.memory for booking in self.all())

    def memory_but(self, some: Collection[Booking]) -> Memory:
        """What all hold but some."""
        return Memory.total(booking.memory for booking in self.all() if booking not in some)

    @property
    def warm_since(self) -> float:
        """When the newest warm resident became warm; 0 without one."""
        return max((b.warm_since for b in self.residents.values() if b.state is State.WARM), default=0.0)

    @property
    def has_leases(self) -> bool:
        """Whether a request is being served."""
        return any(booking.leases for booking in self.residents.values())

    @property
    def is_loading(self) -> bool:
        """Whether a resident is on its way."""
        return any(booking.state is State.LOADING for booking in self.residents.values())

    def add(self, booking: Booking) -> None:
        """Book."""
        if isinstance(booking, ReservationBooking):
            self.reservations[booking.key] = booking
        else:
            self.residents[booking.key] = booking

    def remove(self, booking: Booking) -> None:
        """Forget a booking, but not what its resident has done; a second call does nothing."""
        if isinstance(booking, ReservationBooking):
            if self.reservations.get(booking.key) is booking:
                del self.reservations[booking.key]
        elif self.residents.pop(booking.key, None) is not None:
            _count(booking, self._ended)

    def counted(self) -> dict[tuple[str, str], float]:
        """See PoolStatus.counted."""
        totals = self._ended.copy()
        for booking in self.residents.values():
            _count(booking, totals)
        return dict(totals)


def _count(booking: ResidentBooking, totals: defaultdict[tuple[str, str], float]) -> None:
    """Add what a shared resident has done so far; of others nothing is counted."""
    for name in COUNTED if booking.is_shared else ():
        totals[booking.title, name] += booking.activity.get(name, 0)


def reservation_group(title: str) -> str:
    """The group of a reservation, which no specialist has."""
    return f"reserved: {title}"
