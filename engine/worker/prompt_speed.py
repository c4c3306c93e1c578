"""Prefill speed: how fast a resident reads prompts, measured while it works."""

from __future__ import annotations

from collections import deque

_WORTH_TOKENS = 64  # fewer are over before their time says anything
_LAST = 8


class PromptSpeed:
    """The speed of the last prompts. Only a step whose result was looked at is known to have ended: a GPU works on
    meanwhile."""

    def __init__(self) -> None:
        self._last: deque[tuple[int, float]] = deque(maxlen=_LAST)
        self._n_tokens, self._seconds = 0, 0.0

    def add(self, n_tokens: int, seconds: float, *, ended: bool) -> None:
        """A step evaluated n_tokens of prompts. ended: its result was looked at."""
        if not n_tokens and not self._n_tokens:
            return
        self._n_tokens += n_tokens
        self._seconds += seconds
        if not ended:
            return
        if self._n_tokens >= _WORTH_TOKENS:
            self._last.append((self._n_tokens, self._seconds))
        self._n_tokens, self._seconds = 0, 0.0

    def forget_unended(self) -> None:
        """Nothing is left to do: when a prompt that was given up would have been read will not be known."""
        self._n_tokens, self._seconds = 0, 0.0

    @property
    def tokens_per_s(self) -> float:
        """0 before anything was measured."""
        seconds = sum(seconds for _, seconds in self._last)
        return sum(n_tokens for n_tokens, _ in self._last) / seconds if seconds else 0.0
