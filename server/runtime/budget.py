"""The memory that residents may take, and what of it the server itself holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from coe.engine.pool.memory import Budget, find_budget
from coe.router.encoder import EncoderError, find_encoder, memory_bytes

from ..roster.models import Roster

_ENCODER: Final = "the sentence encoder"


@dataclass(frozen=True)
class Room:
    """A roster's budget. held: what of it is no resident's, title -> bytes."""

    budget: Budget
    held: Mapping[str, int]

    @property
    def resident_bytes(self) -> int:
        """What is left to residents."""
        return max(0, self.budget.bytes - sum(self.held.values()))


async def find_room(roster: Roster) -> Room:
    """The budget that a roster asks for.

    Where it is what this machine has free of host memory, the sentence encoder, which the server has yet to load, will
    take a part. A budget that the roster sets, or one of a GPU, is for residents alone.
    """
    asked = roster.pool.vram_budget
    budget = await find_budget(None if asked == "auto" else asked, roster.pool.vram_margin)
    if not budget.of_host:
        return Room(budget, {})
    try:
        source = find_encoder(encoder_of(roster))
    except EncoderError:
        source = None
    return Room(budget, {_ENCODER: memory_bytes(source)} if source is not None else {})


def encoder_of(roster: Roster) -> str:
    """The sentence encoder that a roster asks for: "auto", "none", or an absolute folder."""
    encoder = roster.router.encoder
    return encoder if encoder in ("auto", "none") else str(roster.resolve(encoder))
