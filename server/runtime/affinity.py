"""Which resident has a conversation in its cache, where several residents could go on with it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coe.router.choose import read_s
from coe.router.conversation import Conversation

from ..api.openai.requests import Ask

REMEMBERED = 4096


@dataclass(frozen=True)
class _Home:
    """Where a conversation lies. n_chars: how much of it. paid_s: what swaps have cost to answer it there."""

    resident: str
    n_chars: int
    paid_s: float


@dataclass(frozen=True)
class Thread:
    """A conversation at its newest turn: how it is recognised now and at the turn before, and how long it is."""

    here: bytes | None
    before: bytes | None
    n_chars: int
    n_old_chars: int  # up to the last answer

    @classmethod
    def of(cls, conversation: Conversation) -> Thread:
        """What is kept of a conversation: no text."""
        n_old = conversation.n_chars - conversation.n_new_chars
        return cls(conversation.here, conversation.before, conversation.n_chars, n_old)


def messages_of(ask: Ask) -> Sequence[Mapping[str, Any]]:
    """The messages of a request; a bare prompt is a human's only one."""
    return ask.messages or [{"role": "user", "content": ask.prompt or ""}]


class Homes:
    """Remembers, of the last conversations of each specialist, the resident that answered. Keeps hashes, no texts."""

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._remembered = remembered
        self._noted: OrderedDict[tuple[str, bytes], _Home] = OrderedDict()

    def note(self, specialist: str, thread: Thread, resident: str, swap_s: float = 0.0) -> None:
        """The resident has, or will have when it has answered, all of the conversation in its cache.

        swap_s: what changing the resident took for this answer.
        """
        if thread.here is None:
            return
        before = self._before(specialist, thread)
        stays = before is not None and before.resident == resident
        paid_s = before.paid_s + swap_s if before is not None and stays else 0.0
        self._noted[specialist, thread.here] = _Home(resident, thread.n_chars, paid_s)
        self._noted.move_to_end((specialist, thread.here))
        while len(self._noted) > self._remembered:
            self._noted.popitem(last=False)

    def find(self, specialist: str, thread: Thread, tokens_per_s: float) -> tuple[str | None, float]:
        """The resident that has most of the conversation in its cache, and the seconds that going back there may cost.

        Those are what another would take to read it, less what swaps for it have cost so far: two conversations that
        turn one resident to and fro part once that has cost as much as reading one of them. (None, 0.0) when nobody is
        known to have it. tokens_per_s: about how fast prompts are read here.
        """
        home = self._before(specialist, thread)
        if home is None:
            return None, 0.0
        # The same words may have been about another document: then the newest turn is read anew wherever it goes.
        same = home.n_chars == thread.n_chars and (specialist, thread.here) in self._noted
        n_chars = thread.n_chars if same else thread.n_old_chars
        return home.resident, max(0.0, read_s(n_chars, tokens_per_s) - home.paid_s)

    def _before(self, specialist: str, thread: Thread) -> _Home | None:
        """Where it was answered at this very turn, else at the one before."""
        found = (self._noted.get((specialist, key)) for key in (thread.here, thread.before) if key is not None)
        return next((home for home in found if home is not None), None)
