"""A model's vocabulary: tokenising and detokenising."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

import llama_cpp.llama_cpp as lib

from ..errors import LoadError


@dataclass(frozen=True)
class Infill:
    """The tokens of fill in the middle. file, repository: what a file and a project begin with; None for none."""

    before: int
    after: int
    middle: int
    file: int | None = None
    repository: int | None = None


class Vocab:
    """A model's vocabulary: text to tokens and back."""

    def __init__(self, model: Any) -> None:
        self._vocab = lib.llama_model_get_vocab(model)
        if not self._vocab:
            raise LoadError("The model has no vocabulary.")
        self.n_tokens: int = lib.llama_vocab_n_tokens(self._vocab)
        self.bos: int = lib.llama_vocab_bos(self._vocab)
        self.eos: int = lib.llama_vocab_eos(self._vocab)
        self.adds_bos: bool = lib.llama_vocab_get_add_bos(self._vocab)
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self._kept: list[object] = []

    @functools.cached_property
    def longest_piece_bytes(self) -> int:
        """Bytes of the longest token: no text of n bytes has fewer than n / this many tokens."""
        return max(map(len, self.pieces()), default=1) or 1

    @functools.cached_property
    def end(self) -> int:
        """A token that ends an answer."""
        if self.ends_generation(self.eos):
            return self.eos
        return next((token for token in range(self.n_tokens) if self.ends_generation(token)), self.eos)

    @functools.cached_property
    def infill(self) -> Infill | None:
        """The tokens of fill in the middle; None for a model that was not trained for it."""
        needed = [
            read(self._vocab) for read in (lib.llama_vocab_fim_pre, lib.llama_vocab_fim_suf, lib.llama_vocab_fim_mid)
        ]
        if min(needed) < 0:
            return None
        more = [read(self._vocab) for read in (lib.llama_vocab_fim_sep, lib.llama_vocab_fim_rep)]
        return Infill(*needed, *(token if token >= 0 else None for token in more))

    @property
    def handle(self) -> Any:
        """llama_vocab pointer."""
        return self._vocab

    def keep(self, made: object) -> None:
        """Keep an object alive for as long: one that code holds a pointer to which is not Python's."""
        self._kept.append(made)

    def tokenize(self, text: str, *, special: bool = True, bos: bool = False) -> list[int]:
        """Tokens of text. special: control tokens written in the text are recognised as such."""
        data = text.encode("utf-8", "replace")
        size = len(data) + 8
        buffer = (lib.llama_token * size)()
        count = lib.llama_tokenize(self._vocab, data, len(data), buffer, size, bos, special)
        if count < 0:
            buffer = (lib.llama_token * -count)()
            count = lib.llama_tokenize(self._vocab, data, len(data), buffer, -count, bos, special)
        return list(buffer[:count])

    def tokenize_on(self, text: str, *, special: bool = True) -> list[int]:
        """Tokens of text that goes on where another one ended. special: as `tokenize`.

        Some vocabularies begin each text with a space of their own, which has no place within one. Source:
        llama-vocab.cpp, llama_vocab::impl::tokenize, add_space_prefix.
        """
        if not self._adds_space:
            return self.tokenize(text, special=special)
        lead = self.tokenize("\n")
        tokens = self.tokenize(f"\n{text}", special=special)
        return tokens[len(lead) :] if tokens[: len(lead)] == lead else self.tokenize(text, special=special)

    @functools.cached_property
    def _adds_space(self) -> bool:
        tokens = self.tokenize("x")
        return bool(tokens) and self.piece(tokens[0]).startswith(b" ")

    def special_texts(self) -> list[tuple[str, bool]]:
        """The texts that `tokenize` looks for before all others, and whether it does so without `special` too.

        Those are user-defined. Source: llama-vocab.cpp, llama_vocab::impl::tokenizer_st_partition.
        """
        looked_for = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN | lib.LLAMA_TOKEN_ATTR_USER_DEFINED
        found = []
        for token in range(self.n_tokens):
            attributes = lib.llama_vocab_get_attr(self._vocab, token)
            if attributes & looked_for and (text := self.text(token)):
                always = not attributes & (lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN)
                found.append((text, always))
        return found

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes a token stands for; control tokens give nothing unless special."""
        key = (token, special)
        known = self._pieces.get(key)
        if known is None:
            known = self._pieces[key] = self._read_piece(token, special)
        return known

    def pieces(self) -> list[bytes]:
        """The bytes of all tokens, those of control tokens too; not kept."""
        return [self._read_piece(token, special=True) for token in range(self.n_tokens)]

    def _read_piece(self, token: int, special: bool) -> bytes:
        buffer = ctypes.create_string_buffer(64)
        length = lib.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = lib.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, special)
        return buffer.raw[:length]

    def text(self, token: int) -> str:
        """How the vocabulary file writes a token; for special tokens, its name."""
        if not 0 <= token < self.n_tokens:  # a vocabulary without this special token says -1; llama.cpp would abort
            return ""
        return (lib.llama_vocab_get_text(self._vocab, token) or b"").decode("utf-8", "replace")

    def ends_generation(self, token: int) -> bool:
        """Whether the token ends a turn or the text."""
        return bool(lib.llama_vocab_is_eog(self._vocab, token))

    def is_control(self, token: int) -> bool:
        """Whether the token is a control token, without text of its own."""
        return bool(lib.llama_vocab_is_control(self._vocab, token))
