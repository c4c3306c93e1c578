"""What the heads read of a text: hashed word 1- and 2-grams, and the excerpt that the sentence encoder gets.

Training and serving call the same functions, so a head never sees features it was not fitted on. Words are hashed
rather than looked up: the shipped head then carries coefficients only, and no vocabulary of anybody's questions.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

N_BUCKETS = 1 << 16
EXCERPT_CHARS = 480  # about 120 MiniLM tokens: beyond that latency grows and accuracy does not
NGRAM_CHARS = 1600

# LaTeX commands, words (with _ and inner apostrophes), numbers, then the signs that code and formulas are made of.
_TOKEN = re.compile(r"\\[a-zA-Z]+|[^\W\d][\w']*|\d+(?:[.,]\d+)*|[{}()\[\];=<>+*/^$#&|%@~:?!]+|->|==")
_SPACE = re.compile(r"\s+")


def scrub(text: str) -> str:
    """The text without lone surrogates and NUL, which tokenizers and UTF-8 refuse."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", " ")


def clip(text: str, n_chars: int) -> str:
    """At most about `n_chars` characters: the first 60 % and the last 40 %, since a question stands at either end."""
    if len(text) <= n_chars:
        return text
    head = n_chars * 6 // 10
    return f"{text[:head]} {text[len(text) - (n_chars - head) :]}"


def excerpt(text: str) -> str:
    """What the sentence encoder reads of a text: one line, clipped to about what 128 tokens hold."""
    return clip(_SPACE.sub(" ", clip(text, 4 * EXCERPT_CHARS)).strip(), EXCERPT_CHARS)


def tokens(text: str) -> list[str]:
    """Lower-cased words, LaTeX commands and code signs; a number is reduced to how long it is."""
    found = []
    for token in _TOKEN.findall(clip(text, NGRAM_CHARS)):
        found.append("0" * min(len(token), 4) if token[0].isdigit() else token.lower()[:40])
    return found


def ngrams(text: str) -> Counter[str]:
    """Counts of words, word pairs and, for long words, stems of five letters (they survive endings and typos)."""
    words = tokens(text)
    counts = Counter(words)
    counts.update(f"{a} {b}" for a, b in pairwise(words))
    counts.update(f"{word[:5]}*" for word in words if len(word) > 6)
    return counts


def bucket_counts(text: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Hashed n-grams of a text: distinct bucket numbers below N_BUCKETS and 1 + log(count) of each.

    CRC-32 is stable over machines, versions and processes, which `hash` is not.
    """
    by_bucket: Counter[int] = Counter()
    for gram, count in ngrams(text).items():
        by_bucket[zlib.crc32(gram.encode("utf-8", "replace")) & (N_BUCKETS - 1)] += count
    index = np.fromiter(by_bucket.keys(), dtype=np.int64, count=len(by_bucket))
    counts = np.fromiter(by_bucket.values(), dtype=np.float32, count=len(by_bucket))
    return index, np.log(counts) + np.float32(1)
