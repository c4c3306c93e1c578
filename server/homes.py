"""Which resident has a conversation in its cache, where several residents could go on with it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coe.router.choose import read_s
from coe.router.conversation import Conversation

from .wire import Ask

REMEMBERED = 4096


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
        self._residents: OrderedDict[tuple[str, bytes], str] = OrderedDict()

    def note(self, specialist: str, thread: Thread, resident: str) -> None:
        """The resident has, or will have when it has answered, all of the conversation in its cache."""
        if thread.here is None:
            return
        self._residents[specialist, thread.here] = resident
        self._residents.move_to_end((specialist, thread.here))
        while len(self._residents) > self._remembered:
            self._residents.popitem(last=False)

    def find(self, specialist: str, thread: Thread, tokens_per_s: float) -> tuple[str | None, float]:
        """The resident that has most of the conversation in its cache, and the seconds that another would read it.

        (None, 0.0) when nobody is known to have it. tokens_per_s: about how fast prompts are read here.
        """
        for key, n_chars in ((thread.here, thread.n_chars), (thread.before, thread.n_old_chars)):
            if key is not None and (resident := self._residents.get((specialist, key))) is not None:
                return resident, read_s(n_chars, tokens_per_s)
        return None, 0.0
