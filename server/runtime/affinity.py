"""Session affinity: which resident has a conversation in its KV cache, where several could go on with it."""

from __future__ import annotations

from dataclasses import dataclass

from coe.router.choose import read_s
from coe.router.conversation import ConversationKey
from coe.router.memory import REMEMBERED, ConversationMemory


@dataclass(frozen=True)
class _Place:
    """Resident that has a conversation. n_chars: how much of it. paid_s: what swaps to answer it there have cost."""

    resident: str
    n_chars: int
    paid_s: float


class Affinity:
    """Remembers, of the last conversations of each specialist, the resident that answered. Keeps hashes, no texts."""

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._places: ConversationMemory[tuple[str, bytes], _Place] = ConversationMemory(remembered)

    def record(self, specialist: str, key: ConversationKey, resident: str, swap_s: float = 0.0) -> None:
        """The resident has, or will have when it has answered, all of the conversation in its cache.

        swap_s: what changing the resident took for this answer.
        """
        if key.here is None:
            return
        before = self._before(specialist, key)
        stays = before is not None and before.resident == resident
        paid_s = before.paid_s + swap_s if before is not None and stays else 0.0
        self._places.remember([(specialist, one) for one in key.now()], _Place(resident, key.n_chars, paid_s))

    def find(self, specialist: str, key: ConversationKey, tokens_per_s: float) -> tuple[str | None, float]:
        """Resident that has most of the conversation in its cache, and the seconds that going back there may cost.

        Those are what another would take to read it, less what swaps for it have cost so far: two conversations that
        turn one resident to and fro part once that has cost as much as reading one of them. (None, 0.0) when no
        resident is known to have it. tokens_per_s: about how fast prompts are read here.
        """
        place = self._before(specialist, key)
        if place is None:
            return None, 0.0
        # The same words may have been about another document: then the newest turn is read anew wherever it goes.
        same = place.n_chars == key.n_chars and (specialist, key.here) in self._places
        n_chars = key.n_chars if same else key.n_old_chars
        return place.resident, max(0.0, read_s(n_chars, tokens_per_s) - place.paid_s)

    def _before(self, specialist: str, key: ConversationKey) -> _Place | None:
        """Where it was answered at this very turn, else at the one before."""
        return self._places.recall((specialist, one) for one in key.earlier(same_turn=True))
