"""Mistyped words, corrected for the sentence encoder.

The encoder knows some 22,000 words whole. A wrong letter breaks such a word into pieces that mean something else, and
a question of which every fifth word is mistyped is filed elsewhere. N-grams need no correction, and do worse with one:
of a mistyped word most parts are still right.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from spellchecker import SpellChecker

MOST_UNKNOWN = 0.4  # of a text's words: beyond that it is another language
TWICE = 2  # a word of one prompt alone may be a mistyped one

# Words that stand for themselves, not too short, which have too many neighbours: no name, no part of an identifier, a
# path, an address, a LaTeX command or a call.
_WORD = re.compile(r"(?:(?<![\w\\.$@/#'’-])[a-z]|^[A-Z]|(?<=[.?!] )[A-Z])[a-z]{3,23}(?![\w(@/'’-]|[.:][\w/])")
_LETTERS = re.compile(r"[a-z]+")


class Speller:
    """Replaces a word that nobody knows by the commonest English one that is one typing error away from it."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        """texts: the words that several of them have are known too. Takes 0.2 s."""
        self._checker = SpellChecker(distance=1)
        found = Counter(word for text in texts for word in set(_LETTERS.findall(text.lower())))
        self._checker.word_frequency.load_words([word for word, count in found.items() if count >= TWICE])

    def corrected(self, text: str) -> str:
        """The text, its mistyped words replaced in lower case. A text of mostly unknown words stays as it is."""
        found = [match.group() for match in _WORD.finditer(text)]
        unknown = {word for word in found if word.lower() not in self._checker}
        if sum(word in unknown for word in found) > MOST_UNKNOWN * len(found) + 1:
            return text
        corrections = {word: self._checker.correction(word.lower()) or word for word in unknown}
        return _WORD.sub(lambda match: corrections.get(match.group(), match.group()), text)
