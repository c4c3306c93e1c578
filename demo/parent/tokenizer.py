"""The tiny parent's tokenizer: pieces of words, single digits, bytes for whatever else comes.

It is llama.cpp's SentencePiece kind ("llama"), so that llama.cpp tokenizes exactly as the trainer does: of all
neighbours that together are a piece, the pair with the best score is joined first, the leftmost of equals.
Pieces never span a space, a digit or a sign, so a text can be cut into words before.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final

PAD, EOS, BOS = "<pad>", "<eos>", "<bos>"
TURN, END_OF_TURN = "<|turn>", "<turn|>"
CHANNEL, END_OF_CHANNEL, THINK = "<|channel>", "<channel|>", "<|think|>"
CONTROL: Final = (PAD, EOS, BOS, TURN, END_OF_TURN, CHANNEL, END_OF_CHANNEL, THINK)
UNKNOWN: Final = "<unk>"
SPACE: Final = "▁"  # how a SentencePiece vocabulary writes a space

FIRST_BYTE: Final = len(CONTROL) + 1
FIRST_PIECE: Final = FIRST_BYTE + 256

_CONTROL = re.compile("(" + "|".join(re.escape(token) for token in CONTROL) + ")")
_WORDS = re.compile(rf"{SPACE}?[^\W\d_{SPACE}]+|.", re.DOTALL)


class Tokenizer:
    """Text to tokens and back."""

    def __init__(self, pieces: Sequence[str]) -> None:
        """pieces: the ordinary tokens, the earlier the sooner joined; they follow control, unknown and byte tokens."""
        self.pieces = tuple(pieces)
        self._ids = {piece: FIRST_PIECE + rank for rank, piece in enumerate(pieces)}
        self._control = {token: index for index, token in enumerate(CONTROL)}
        self._cache: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return FIRST_PIECE + len(self.pieces)

    @property
    def tokens(self) -> list[str]:
        """All tokens in order, as a GGUF lists them."""
        return [*CONTROL, UNKNOWN, *(f"<0x{byte:02X}>" for byte in range(256)), *self.pieces]

    @classmethod
    def from_tokens(cls, tokens: Sequence[str]) -> Tokenizer:
        """The tokenizer of a GGUF's token list."""
        return cls(tokens[FIRST_PIECE:])

    def control(self, token: str) -> int:
        """The id of a control token."""
        return self._control[token]

    def encode(self, text: str) -> list[int]:
        """Tokens of a text; control tokens written out in it count as such. No <bos> is put in front."""
        ids: list[int] = []
        for part in _CONTROL.split(text):
            if part in self._control:
                ids.append(self._control[part])
            else:
                for word in _WORDS.findall(part.replace(" ", SPACE)):
                    ids += self._word(word)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of tokens; control tokens are written out."""
        data = b""
        for token in ids:
            if token >= FIRST_PIECE:
                data += self.pieces[token - FIRST_PIECE].replace(SPACE, " ").encode()
            elif token >= FIRST_BYTE:
                data += bytes([token - FIRST_BYTE])
            else:
                data += [*CONTROL, UNKNOWN][token].encode()
        return data.decode(errors="replace")

    def _word(self, word: str) -> list[int]:
        if word not in self._cache:
            self._cache[word] = self._join(word)
        return self._cache[word]

    def _join(self, word: str) -> list[int]:
        parts = list(word)
        while True:
            joins = [(self._ids.get(left + right, 0), at) for at, (left, right) in enumerate(pairwise(parts))]
            best = min((join for join in joins if join[0]), default=None)
            if best is None:
                break
            at = best[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids: list[int] = []
        for part in parts:
            ids += [self._ids[part]] if part in self._ids else [FIRST_BYTE + byte for byte in part.encode()]
        return ids


def learn_pieces(texts: Iterable[str], size: int) -> list[str]:
    """Pieces for a vocabulary of `size` tokens: joins by how often their halves meet, then the single characters.

    Texts without control tokens. Characters have to be pieces too, or else each would be spelt as bytes; they come
    last because nothing is joined to make them.
    """
    words: Counter[str] = Counter()
    for text in texts:
        words.update(_WORDS.findall(text.replace(" ", SPACE)))
    characters = sorted({*(chr(code) for code in range(33, 127)), SPACE})
    split: Mapping[str, list[str]] = {word: list(word) for word in words}
    joined: list[str] = []
    while FIRST_PIECE + len(joined) + len(characters) < size:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in split.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            break
        (left, right), _ = max(pairs.items(), key=lambda item: (item[1], item[0]))
        joined.append(left + right)
        for parts in split.values():
            _join_everywhere(parts, left, right)
    return [*dict.fromkeys(joined), *characters]


def _join_everywhere(parts: list[str], left: str, right: str) -> None:
    at = 0
    while at + 1 < len(parts):
        if parts[at] == left and parts[at + 1] == right:
            parts[at : at + 2] = [left + right]
        at += 1
