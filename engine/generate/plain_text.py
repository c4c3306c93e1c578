"""From a rendered prompt to tokens, with control tokens read in the template's own parts alone (prompt injection).

llama.cpp reads a text either with all control tokens that are spelt in it or with none. Two ways would go round that:
to read the template's parts with them and the others without, or to read the whole with them after each one that is
not the template's was cut in two. The first changes the tokens of every conversation, since words that cross a border
come apart. The second leaves a conversation in which nobody spells a control token exactly as it was, and it also
stops those that llama.cpp reads in any text: it calls them user-defined, and Gemma 4's thinking and Qwen's tool calls
are among them. So here texts are cut, each inside the control token that must not be one, at the border of the
template's part where it spans one.
"""

from __future__ import annotations

import bisect
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from ..llama.vocab import Vocab
from .chat_template import FAMILIES
from .origin import Spans

# User-defined tokens that are mere text: white space, letters, HTML's elements. A client may well write these.
_BRACKETED: Final = re.compile(r"[<\[【〈｜|].*[>\]】〉｜|]", re.DOTALL)
_ELEMENT: Final = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]*/?>")


class Markers:
    """The texts of a vocabulary's control tokens, found in a text in time that goes with its length."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = frozenset(text for text in texts if len(text) > 1)  # nothing shorter can be cut
        self._pattern = re.compile(_pattern(sorted(self._texts))) if self._texts else None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._texts))

    def at(self, text: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Where control tokens are spelt in a part of a text: the longest one at each place, overlapping ones too."""
        while self._pattern is not None and (found := self._pattern.search(text, begin, end)):
            yield found.span()
            begin = found.start() + 1


def _pattern(texts: Sequence[str]) -> str:
    """A pattern for the longest of these at a place, with each beginning that several have written once (a trie): a
    plain alternation would try hundreds at every bracket."""
    if texts == [""]:
        return ""
    by_first = itertools.groupby([text for text in texts if text], key=lambda text: text[0])
    branches = []
    for _, group in by_first:
        same = list(group)
        shared = os.path.commonprefix(same)  # noqa: RUF071 -- characters are what is wanted
        branches.append(re.escape(shared) + _pattern([text[len(shared) :] for text in same]))
    whole = branches[0] if len(branches) == 1 and "" not in texts else f"(?:{'|'.join(branches)})"
    return f"{whole}?" if "" in texts else whole


def markers_of(vocab: Vocab, template_source: str) -> Markers:
    """A vocabulary's control tokens, and of those that llama.cpp calls user-defined the ones that steer a model."""
    tags = {tag for family in FAMILIES for tag in (family.opening.strip(), family.closing)}
    texts = []
    for text, user_defined in vocab.special_texts():
        if user_defined and not (text in tags or _steers(text, template_source)):
            continue
        texts.append(text)
    return Markers(texts)


def _steers(text: str, template_source: str) -> bool:
    if not _BRACKETED.fullmatch(text):
        return False
    return not _ELEMENT.fullmatch(text) or text in template_source


def pieces(text: str, own: Spans, markers: Markers) -> list[str]:
    """The text in pieces, which together hold no control token but those within the spans of `own`.

    A text in which no other is spelt is one piece.
    """
    begins = [begin for begin, _ in own]

    def cut(found: tuple[int, int]) -> int | None:
        """Where a control token has to be cut; None where it is the template's."""
        begin, end = found
        at = bisect.bisect_right(begins, begin) - 1
        if at >= 0 and end <= own[at][1]:
            return None
        borders = (border for span in own[max(at, 0) : at + 2] for border in span if begin < border < end)
        return next(borders, (begin + end) // 2)

    whole: list[str] = []
    todo = [(0, len(text))]
    while todo:
        begin, end = todo.pop()
        place = next((at for found in markers.at(text, begin, end) if (at := cut(found)) is not None), None)
        if place is None:
            whole.append(text[begin:end])
        else:
            todo += [(place, end), (begin, place)]
    return whole


def tokens_of(
    text: str, own: Spans, vocab: Vocab, markers: Markers, *, bos: bool = False, goes_on: bool = False
) -> list[int]:
    """Tokens of a text in which the spans of `own` alone may hold control tokens. goes_on: other text stands before."""
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode()  # as llama.cpp will get it: half a surrogate pair is a "?"
    found = pieces(text, own, markers)
    tokens = vocab.tokenize_on(found[0]) if goes_on else vocab.tokenize(found[0], bos=bos)
    for piece in found[1:]:
        tokens += vocab.tokenize_on(piece)
    return tokens
