"""Answers that are kept for clients to go on from: in memory alone, bounded in bytes, number and age, each its key's.

What is kept of an answer is the response as it was sent, and the items of the whole conversation up to it. Items are
never changed, so answers of one conversation share them; their bytes are counted for each all the same.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ...runtime.errors import RequestError

MAX_RESPONSES: Final = 1000
MAX_AGE_S: Final = 24 * 3600.0

Item = Mapping[str, Any]


class UnknownResponseError(RequestError):
    """No response of this id is kept for this client."""

    status = 404


@dataclass(frozen=True)
class Stored:
    """An answer that is kept. items: of the conversation that it answered, without its own output; items_size: what
    `size_of` says of them."""

    response: Mapping[str, Any]
    items: Sequence[Item] = ()
    items_size: int = 0

    @property
    def conversation(self) -> tuple[list[Item], int]:
        """The items, and those of the answer; and their size."""
        output = self.response["output"]
        return [*self.items, *output], self.items_size + size_of(output)


@dataclass(frozen=True)
class _Entry:
    stored: Stored
    size: int
    at_s: float


_Key = tuple[bytes, str]  # an owner and an id


class ResponseStore:
    """Least recently used goes first. An owner sees what it has stored, and nothing else: an id is no secret.

    Threads may share it: large bodies are read outside the event loop.
    """

    def __init__(
        self,
        max_bytes: int,
        *,
        max_responses: int = MAX_RESPONSES,
        max_age_s: float = MAX_AGE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """max_bytes: of all that is kept together; 0 for a store that keeps nothing."""
        self._max_bytes = max_bytes
        self._max_responses = max_responses
        self._max_age_s = max_age_s
        self._clock = clock
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._items: dict[_Key, Item] = {}  # of the answers
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def n_bytes(self) -> int:
        """What is kept takes about as many."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, owner: bytes, stored: Stored) -> bool:
        """Keep an answer; False where it is larger than all that may be kept."""
        size = stored.items_size + size_of(stored.response)
        if size > self._max_bytes:
            return False
        with self._lock:
            self._expire()
            key = (owner, stored.response["id"])
            self._entries[key] = _Entry(stored, size, self._clock())
            self._items |= {(owner, item["id"]): item for item in stored.response["output"]}
            self._bytes += size
            while self._bytes > self._max_bytes or len(self._entries) > self._max_responses:
                self._drop(next(iter(self._entries)))
        return True

    def get(self, owner: bytes, name: str) -> Stored | None:
        """An answer by its id."""
        with self._lock:
            self._expire()
            entry = self._entries.get((owner, name))
            if entry is None:
                return None
            self._entries.move_to_end((owner, name))
            return entry.stored

    def item(self, owner: bytes, name: str) -> Item | None:
        """An item of an answer that is kept."""
        with self._lock:
            self._expire()
            return self._items.get((owner, name))

    def delete(self, owner: bytes, name: str) -> bool:
        """Forget an answer; False where it is not kept."""
        with self._lock:
            self._expire()
            if (owner, name) not in self._entries:
                return False
            self._drop((owner, name))
            return True

    def _expire(self) -> None:
        oldest_s = self._clock() - self._max_age_s
        for key in [key for key, entry in self._entries.items() if entry.at_s <= oldest_s]:
            self._drop(key)

    def _drop(self, key: _Key) -> None:
        entry = self._entries.pop(key)
        self._bytes -= entry.size
        for item in entry.stored.response["output"]:
            self._items.pop((key[0], item["id"]), None)


def size_of(value: Any) -> int:
    """About how many bytes a JSON value takes in memory."""
    total, todo = 0, [value]
    while todo:
        one = todo.pop()
        total += sys.getsizeof(one)
        if isinstance(one, Mapping):
            todo += one.values()
        elif isinstance(one, list | tuple):
            todo += one
    return total
