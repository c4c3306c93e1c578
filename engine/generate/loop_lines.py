"""What a line of an answer is: running text, an item of a list, or data (code, tables, records, numbers)."""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

_SEEN_CHARS: Final = 4096  # of an endless line

_FENCE: Final = re.compile(r"[ \t>]*(`{3,}|~{3,})")
_ITEM: Final = re.compile(r"\s*(?:[-*•]|\(?\w{1,3}[.):])\s+(?:\[[ xX]\]\s+)?")
_MARK: Final = re.compile(r"\t| {4}|\s*(?:[|#%@$\\+=<{}\[\]]|//|--)")
_PLAIN_WORD: Final = re.compile(r"[\"'“‘(*_]*[^\W\d_]+(?:['’\-–][^\W\d_]+)*[\"'”’)*_]*[.,;:!?…]*[\"'”’)*_]*")


class Kind(Enum):
    """What a line is."""

    PROSE = "prose"
    ITEM = "item"
    DATA = "data"


class Fence:
    """Whether a text of whole lines ends inside a fenced code block."""

    def __init__(self) -> None:
        self._mark = ""

    @property
    def open(self) -> bool:
        return bool(self._mark)

    def read(self, line: str) -> None:
        """Go on by a line."""
        fence = _FENCE.match(line)
        if fence is None:
            return
        if not self._mark:
            self._mark = fence[1]
        elif fence[1].startswith(self._mark) and fence.end() == len(line.rstrip()):
            self._mark = ""


def kind_of(line: str) -> Kind:
    """Running text has four words at least, most of them plain, and no mark of structure around; an item of a list is
    such text after its marker."""
    item = _ITEM.match(line)
    if item:
        return Kind.ITEM if _reads_as_text(line[item.end() :]) else Kind.DATA
    return Kind.PROSE if not _MARK.match(line) and _reads_as_text(line) else Kind.DATA


def _reads_as_text(line: str) -> bool:
    if line.rstrip().endswith((";", "{", "}", "(")):
        return False
    words = line[-_SEEN_CHARS:].split()
    plain = sum(1 for word in words if _PLAIN_WORD.fullmatch(word))
    return len(words) >= 4 and plain >= 0.7 * len(words)


def ends_in_prose(text: str) -> bool:
    """Whether most of the end of a text is prose."""
    lines = text[-_SEEN_CHARS // 2 :].split("\n")
    lines = [line for line in (lines[1:] if len(lines) > 2 else lines) if line.strip()]
    prose = sum(len(line) for line in lines if kind_of(line) is Kind.PROSE)
    return prose >= 0.8 * sum(map(len, lines))
