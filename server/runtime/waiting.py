"""What a request waits for, in words for its user: from what the pool shows of itself and what a worker reads."""

from __future__ import annotations

from coe.engine.pool.admission import State
from coe.engine.pool.status import PoolStatus
from coe.engine.request import Reading


def lease_wait(status: PoolStatus, specialist: str) -> str:
    """What a request for a lease of a specialist waits for."""
    for resident in status.residents:
        if specialist in resident.specialists and resident.state is State.LOADING:
            return f"Loading {specialist}: {100 * resident.progress:.0f} %"
    if any(specialist in resident.specialists for resident in status.residents):
        return f"Waiting for {specialist}"
    return f"Waiting for room to load {specialist}"


def reading_wait(reading: Reading) -> str:
    """How far a prompt has been read."""
    return f"Reading the prompt: {100 * reading.tokens / max(reading.prompt_tokens, 1):.0f} %"
