"""Feature hashing: words, word pairs and parts of words (character n-grams), and the excerpt that the encoder gets.

Training and serving call the same functions, so a head never sees features it was not fitted on. N-grams are hashed
rather than looked up: the shipped head then carries coefficients only, and no vocabulary of what it was fitted on.
Parts of words are there for typing errors and for endings: of a mistyped word most parts are still right.
"""

from __future__ import annotations

import random
import re
import string
import zlib
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

N_WORDS = 1 << 16  # buckets of words and word pairs
N_PARTS = 1 << 16  # buckets of parts of words; they come after the others
N_BUCKETS = N_WORDS + N_PARTS
PARTS_WEIGHT = 0.6  # of the parts' unit vector beside the words' unit vector
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


def words(text: str) -> Counter[str]:
    """Counts of words (tokens) and pairs of neighbours."""
    found = tokens(text)
    counts = Counter(found)
    counts.update(f"{a} {b}" for a, b in pairwise(found))
    return counts


def parts(text: str) -> Counter[str]:
    """Counts of the runs of three to five letters within each word of three letters or more, its ends marked."""
    counts: Counter[str] = Counter()
    for token, n in Counter(tokens(text)).items():
        if token[0].isalpha() and len(token) > 2:
            marked = f"<{token[:24]}>"
            for size in (3, 4, 5):
                for start in range(len(marked) - size + 1):
                    counts[marked[start : start + size]] += n
    return counts


def bucket_counts(text: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Hashed n-grams of a text: distinct bucket numbers below N_BUCKETS and 1 + log(count) of each."""
    index, counts = _hashed(words(text), N_WORDS)
    more, more_counts = _hashed(parts(text), N_PARTS)
    return np.concatenate([index, more + N_WORDS]), np.concatenate([counts, more_counts])


def _hashed(grams: Mapping[str, int], n_buckets: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """CRC-32 is stable over machines, versions and processes, which `hash` is not."""
    by_bucket: Counter[int] = Counter()
    for gram, count in grams.items():
        by_bucket[zlib.crc32(gram.encode("utf-8", "replace")) & (n_buckets - 1)] += count
    index = np.fromiter(by_bucket.keys(), dtype=np.int64, count=len(by_bucket))
    counts = np.fromiter(by_bucket.values(), dtype=np.float32, count=len(by_bucket))
    return index, np.log(counts) + np.float32(1)


def mistyped(text: str, seed: int, rate: float = 0.04) -> str:
    """The text with typing errors: of a hundred letters `rate` hundred are replaced, left out, followed by another
    one, or swapped with the next. The same text and seed give the same errors."""
    draw = random.Random(f"{seed}:{text}")
    typed: list[str] = []
    position = 0
    while position < len(text):
        letter = text[position]
        if letter.isalpha() and draw.random() < rate:
            kind = draw.randrange(4)
            if kind == 0:
                typed.append(draw.choice(string.ascii_lowercase))
            elif kind == 2:
                typed += [letter, draw.choice(string.ascii_lowercase)]
            elif kind == 3 and position + 1 < len(text) and text[position + 1].isalpha():
                typed += [text[position + 1], letter]
                position += 1
            elif kind == 3:
                typed.append(draw.choice(string.ascii_lowercase))
        else:
            typed.append(letter)
        position += 1
    return "".join(typed)
