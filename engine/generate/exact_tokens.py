"""Tokens that spell a text byte for byte, which constrained decoding needs of a tokenizer.

llama.cpp's own reading of a text need not give it back: a vocabulary without a token for the space turns a blank into
the three bytes of U+2581, and every SentencePiece vocabulary takes a U+2581 of the text for a blank. Where a grammar
leaves one text alone, such tokens would be asked for, and refused when they come.
Source: llama-vocab.cpp, llama_escape_whitespace and llm_tokenizer_spm_session::resegment.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final

from ..llama.vocab import Vocab

# As llama_tokenize: vocabulary, text, its length, room for tokens, how many, add_special, parse_special.
_TOKENIZE: Final = ctypes.CFUNCTYPE(
    ctypes.c_int32,
    ctypes.c_void_p,
    ctypes.POINTER(ctypes.c_char),
    ctypes.c_int32,
    ctypes.POINTER(ctypes.c_int32),
    ctypes.c_int32,
    ctypes.c_bool,
    ctypes.c_bool,
)


class ExactTokens:
    """Reads texts into tokens of a vocabulary whose bytes are the text's."""

    def __init__(self, vocab: Vocab, texts: Sequence[bytes]) -> None:
        """texts: the bytes that each token stands for in a text; of one that stands for none, something else."""
        self._vocab = vocab
        self._texts = texts
        self._tokens: dict[bytes, int] | None = None  # made for the first text that needs it
        self._longest = max(map(len, texts), default=0)
        self._callback = _TOKENIZE(self._tokenize)

    @property
    def address(self) -> int | None:
        """A function that may stand in for llama_tokenize, as long as this object lives."""
        return ctypes.cast(self._callback, ctypes.c_void_p).value

    def of(self, text: bytes) -> list[int]:
        """The tokens of a text: llama.cpp's where they are exact, else the longest first. It ends early where no token
        spells what comes next."""
        tokens = self._vocab.tokenize_on(text.decode("utf-8", "replace"), special=False)
        if b"".join(self._texts[token] for token in tokens) == text:
            return tokens
        return self._longest_first(text)

    def _longest_first(self, text: bytes) -> list[int]:
        if self._tokens is None:
            # The lowest of several of the same bytes: those that a vocabulary adds come behind its own.
            self._tokens = {written: token for token, written in reversed(list(enumerate(self._texts))) if written}
        found: list[int] = []
        at = 0
        while at < len(text):
            most = min(self._longest, len(text) - at)
            token = next(
                (t for n in range(most, 0, -1) if (t := self._tokens.get(text[at : at + n])) is not None), None
            )
            if token is None:
                break
            found.append(token)
            at += len(self._texts[token])
        return found

    def _tokenize(self, _vocab: int, text: Any, size: int, room: Any, most: int, _bos: bool, _special: bool) -> int:
        tokens = self.of(text[:size])
        if len(tokens) > most:
            return -len(tokens)
        for at, token in enumerate(tokens):
            room[at] = token
        return len(tokens)
