"""Memory by place: what a ledger counts where a machine has more than one memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..cards import HOST
from ..units import size_text

__all__ = ["HOST", "Memory"]


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """Bytes by place. A place is a card, by the name that ggml gives it ("CUDA0"), or the host; one that is not named
    has 0. Of what is free, bytes may be negative: more is booked than there is.
    """

    bytes_by_place: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def at(cls, place: str, n_bytes: int) -> Memory:
        """Of one place."""
        return cls({place: n_bytes})

    @classmethod
    def total(cls, parts: Iterable[Memory]) -> Memory:
        """The sum of any number."""
        summed: dict[str, int] = {}
        for part in parts:
            for place, n_bytes in part.bytes_by_place.items():
                summed[place] = summed.get(place, 0) + n_bytes
        return cls(summed)

    def spread(self, n_bytes: int) -> Memory:
        """Of a budget: so many bytes of what pool.vram_budget counts, each card its share; of the host without a card.

        llama.cpp gives each card layers in proportion to what is free on it. Source: llama-model.cpp, load_tensors.
        """
        if not self.cards:
            return Memory.at(HOST, n_bytes)
        total = self.card_bytes
        parts = {card: n_bytes * self[card] // total if total else 0 for card in self.cards}
        parts[self.device] += n_bytes - sum(parts.values())
        return Memory(parts)

    def __bool__(self) -> bool:
        """Whether it names a place."""
        return bool(self.bytes_by_place)

    def __getitem__(self, place: str) -> int:
        return self.bytes_by_place.get(place, 0)

    def __add__(self, other: Memory) -> Memory:
        return Memory.total((self, other))

    def __sub__(self, other: Memory) -> Memory:
        left = dict(self.bytes_by_place)
        for place, n_bytes in other.bytes_by_place.items():
            left[place] = left.get(place, 0) - n_bytes
        return Memory(left)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Memory):
            return NotImplemented
        return self._counted() == other._counted()

    def __hash__(self) -> int:
        return hash(frozenset(self._counted().items()))

    def _counted(self) -> dict[str, int]:
        return {place: n_bytes for place, n_bytes in self.bytes_by_place.items() if n_bytes}

    def moved(self, card: str, other: str) -> Memory:
        """The same with what is of one card at another."""
        return Memory({(other if place == card else place): n_bytes for place, n_bytes in self.bytes_by_place.items()})

    def larger(self, other: Memory) -> Memory:
        """Of each place the larger of two figures."""
        return Memory({place: max(self[place], other[place]) for place in (*self.places, *other.places)})

    def smaller(self, other: Memory) -> Memory:
        """Of each place the smaller of two figures; places that one of them does not name are left out."""
        named = other.bytes_by_place
        return Memory({place: min(own, named[place]) for place, own in self.bytes_by_place.items() if place in named})

    def fits_in(self, room: Memory) -> bool:
        """Whether every place has room for it; a place that nothing is asked of needs none."""
        free = room.bytes_by_place
        return all(n_bytes <= free.get(place, 0) for place, n_bytes in self.bytes_by_place.items() if n_bytes > 0)

    def short_of(self, room: Memory) -> tuple[str, ...]:
        """The places that have too little room for it."""
        return tuple(place for place, n_bytes in self.bytes_by_place.items() if n_bytes > 0 and n_bytes > room[place])

    @property
    def places(self) -> tuple[str, ...]:
        """The places that are named, in the order in which they were."""
        return tuple(self.bytes_by_place)

    @property
    def overdrawn(self) -> tuple[str, ...]:
        """The places at which it is negative."""
        return tuple(place for place, n_bytes in self.bytes_by_place.items() if n_bytes < 0)

    @property
    def cards(self) -> tuple[str, ...]:
        """The places that are not the host."""
        return tuple(place for place in self.bytes_by_place if place != HOST)

    @property
    def device(self) -> str:
        """Of a budget, the first place that pool.vram_budget counts: a card, or the host where there is none."""
        return next(iter(self.cards), HOST)

    @property
    def vram_bytes(self) -> int:
        """Of a budget, what pool.vram_budget counts: that of the cards, or of the host where there is none."""
        return self.card_bytes if self.cards else self.host_bytes

    @property
    def card_bytes(self) -> int:
        """Of all cards together."""
        return sum(n_bytes for place, n_bytes in self.bytes_by_place.items() if place != HOST)

    @property
    def total_bytes(self) -> int:
        """Of all places together."""
        return sum(self.bytes_by_place.values())

    @property
    def host_bytes(self) -> int:
        """Of the host."""
        return self[HOST]

    def __str__(self) -> str:
        """`5.00 GiB of CUDA0 + 13.00 GiB of host`; without a card, `13.00 GiB`."""
        named = {place: n_bytes for place, n_bytes in self.bytes_by_place.items() if n_bytes}
        if not any(place != HOST for place in named):
            return size_text(self.host_bytes)
        return " + ".join(f"{size_text(n_bytes)} of {place}" for place, n_bytes in named.items())
