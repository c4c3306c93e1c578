"""Spelling correction for the sentence encoder.

The encoder knows some 22,000 words whole. A wrong letter breaks such a word into pieces that mean something else, and
a question of which every fifth word is mistyped is filed elsewhere. N-grams need no correction, and do worse with one:
of a mistyped word most parts are still right.

A technical term that no dictionary has looks like an error as well, and is often all that tells what a question is
about. So a word stays that a dictionary of English, our own prompts, `words.txt` or the encoder itself knows, and words
of four letters stay whatever they are: too many abbreviations are that short.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from .training_prompts import shipped_prompts

TECHNICAL = Path(__file__).parent / "words.txt"
MOST_UNKNOWN = 0.6  # of a text's words: beyond that it is another language
MOST_CORRECTED = 12  # different words of a text: each takes up to 0.6 ms
TWICE = 2  # some prompts are mistyped on purpose, hardly two of them alike
REMEMBERED = 4096  # corrections

_WORD = re.compile(r"[^\W\d_]+")
# Words that may be replaced: no name, no part of an identifier, a path, an address, a LaTeX command or a call.
_REPLACED = re.compile(r"(?:(?<![\w\\.$@/#'’-])[a-z]|^[A-Z]|(?<=[.?!] )[A-Z])[a-z]{4,17}(?![\w(@/'’-]|[.:][\w/])")
# Soft hyphens, zero-width spaces and joiners: a reader does not see them, the encoder drops them.
_INVISIBLE = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))


class Speller:
    """Replaces an unknown word by the commonest English one at edit distance 1."""

    def __init__(self, vocabulary: Iterable[str] = ()) -> None:
        """vocabulary: words that are known as well, in lower case. Takes 0.2 s.

        Raises ImportError where pyspellchecker is not installed.
        """
        from spellchecker import SpellChecker

        self._checker = SpellChecker(distance=1)
        self._known = {*vocabulary, *TECHNICAL.read_text("utf-8").split()}
        found = Counter(word for _, text in shipped_prompts() for word in set(_WORD.findall(text.lower())))
        self._known.update(word for word, n_prompts in found.items() if n_prompts >= TWICE)
        self._nearest = lru_cache(REMEMBERED)(self._checker.correction)

    def corrected(self, text: str) -> str:
        """The text, its mistyped words replaced in lower case. A text of mostly unknown words stays as it is."""
        text = text.translate(_INVISIBLE)
        words = [word.lower() for word in _WORD.findall(text)]
        n_unknown = sum(self._is_unknown(word) for word in words)
        if not n_unknown or n_unknown > MOST_UNKNOWN * len(words):
            return text
        replaceable = dict.fromkeys(word for word in _REPLACED.findall(text) if self._is_unknown(word.lower()))
        corrections = {word: self._nearest(word.lower()) or word for word in list(replaceable)[:MOST_CORRECTED]}
        return _REPLACED.sub(lambda match: corrections.get(match.group(), match.group()), text)

    def _is_unknown(self, word: str) -> bool:
        return word not in self._known and word not in self._checker
