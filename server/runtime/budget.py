"""The memory that residents may take, and what of it the server itself holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from coe.engine.pool.memory import Budget, find_budget
from coe.engine.pool.places import HOST, Memory
from coe.router.encoder import EncoderError, find_encoder, memory_bytes

from ..roster.models import Roster

_ENCODER: Final = "the sentence encoder"


@dataclass(frozen=True)
class Room:
    """A roster's budget. held: what of it is no resident's, title -> memory."""

    budget: Budget
    held: Mapping[str, Memory]

    @property
    def residents(self) -> Memory:
        """What is left to residents."""
        return (self.budget.memory - Memory.total(self.held.values())).larger(Memory())


async def find_room(roster: Roster) -> Room:
    """The budget that a roster asks for.

    Where its host memory is what this machine has available, the sentence encoder, which the server has yet to load,
    will take a part. A budget that the roster sets is for residents alone.
    """
    pool = roster.pool
    asked, host_asked = (None if size == "auto" else size for size in (pool.vram_budget, pool.host_budget))
    devices = () if pool.devices == "auto" else pool.devices
    budget = await find_budget(asked, pool.vram_margin, host_asked, devices)
    if not budget.of_host:
        return Room(budget, {})
    try:
        source = find_encoder(encoder_of(roster))
    except EncoderError:
        source = None
    return Room(budget, {_ENCODER: Memory.at(HOST, memory_bytes(source))} if source is not None else {})


def encoder_of(roster: Roster) -> str:
    """The sentence encoder that a roster asks for: "auto", "none", or an absolute folder."""
    encoder = roster.router.encoder
    return encoder if encoder in ("auto", "none") else str(roster.resolve(encoder))
