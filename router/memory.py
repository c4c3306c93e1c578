"""A bounded memory of conversations: LRU eviction over the hashes that recognise them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

REMEMBERED = 4096


class ConversationMemory(Generic[K, V]):
    """What is known of conversations, by their keys. The key unused for longest is forgotten first."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        """limit: keys that are kept; a conversation may have two, its session's and its turn's."""
        self._limit = limit
        self._values: OrderedDict[K, V] = OrderedDict()

    def remember(self, keys: Iterable[K], value: V) -> None:
        """Keep the value under each of the keys, in place of what was kept there."""
        for key in keys:
            self._values[key] = value
            self._values.move_to_end(key)
        while len(self._values) > self._limit:
            self._values.popitem(last=False)

    def recall(self, keys: Iterable[K]) -> V | None:
        """The value of the first key that is known, which counts as a use of it; None when none is."""
        for key in keys:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        return None

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[K]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
