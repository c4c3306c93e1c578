"""Where the characters of a rendered prompt come from: the template's own literals, or anything else (taint tracking).

A rendered prompt is one text, and a control token that a client wrote looks in it like one that the template wrote. So
the literals of a template are `Own` texts, and every operation that keeps them whole keeps track of them. It is the
template that is trusted and not the client that is distrusted: what an operation unknown here makes is a plain `str`,
and counts as a client's. An oversight thus costs a control token, which the check at load finds, and never lets one in.
And a template sees contents as they are: it may trim, split, search, compare or encode them as it likes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, SupportsIndex

Spans = tuple[tuple[int, int], ...]  # [begin, end) in characters, ascending, neither touching nor empty


class Own(str):
    """A text of which some parts, its spans, are the template's own."""

    _spans: Spans

    def __new__(cls, text: object = "", spans: Spans = ()) -> Own:
        """Without spans it is as foreign as any other text."""
        made = super().__new__(cls, text)
        made._spans = spans
        return made

    @classmethod
    def literal(cls, text: str) -> Own:
        """A text that is the template's from end to end."""
        return cls(text, ((0, len(text)),) if text else ())

    def _whole(self) -> bool:
        return spans_of(self) == (((0, len(self)),) if self else ())

    def _like(self, text: str) -> str:
        """A text made of this one alone: the template's where this one is."""
        return Own.literal(text) if self._whole() else text

    def _part(self, begin: int, end: int) -> Own:
        return Own(str.__getitem__(self, slice(begin, end)), within(self._spans, begin, end))

    def __str__(self) -> str:  # what `str()` and a template's output call: it would forget the spans
        return self

    def __getnewargs__(self) -> tuple[str, Spans]:  # type: ignore[override]
        return str.__str__(self), self._spans

    def __add__(self, other: str) -> str:
        return joined((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return joined((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: SupportsIndex) -> str:
        return self._like(str.__mul__(self, times))

    __rmul__ = __mul__

    def __getitem__(self, key: Any) -> str:
        if isinstance(key, slice):
            begin, end, step = key.indices(len(self))
            return self._part(begin, max(begin, end)) if step == 1 else self._like(str.__getitem__(self, key))
        return self._like(str.__getitem__(self, key))

    def strip(self, chars: str | None = None, /) -> str:
        left = len(self) - len(str.lstrip(self, chars))
        return self._part(left, left + len(str.strip(self, chars)))

    def lstrip(self, chars: str | None = None, /) -> str:
        return self._part(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> str:
        return self._part(0, len(str.rstrip(self, chars)))

    def removeprefix(self, prefix: str, /) -> str:
        return self._part(len(prefix), len(self)) if prefix and self.startswith(prefix) else self

    def removesuffix(self, suffix: str, /) -> str:
        return self._part(0, len(self) - len(suffix)) if suffix and self.endswith(suffix) else self

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(str.split(self, sep, maxsplit))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(str.rsplit(self, sep, maxsplit))

    def splitlines(self, keepends: bool = False) -> list[str]:
        return self._located(str.splitlines(self, keepends))

    def _located(self, parts: Iterable[str]) -> list[str]:
        """Parts in their order, each again with its spans. Where parts are equal the earlier place is taken: what
        lies between them is the separator, which no part holds."""
        found: list[str] = []
        at = 0
        for part in parts:
            at = self.index(part, at)
            found.append(self._part(at, at + len(part)))
            at += len(part)
        return found

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        if not old:
            return str.replace(self, old, new, count)
        return Own.join(as_own(new), self.split(old, count))

    def join(self, parts: Iterable[str], /) -> str:
        return joined(between(self, parts))

    def upper(self) -> str:
        return self._like(str.upper(self))

    def lower(self) -> str:
        return self._like(str.lower(self))

    def title(self) -> str:
        return self._like(str.title(self))

    def capitalize(self) -> str:
        return self._like(str.capitalize(self))

    def __mod__(self, values: Any) -> str:
        made = str.__mod__(self, values)
        return (
            made
            if isinstance(values, dict)
            else self.filled("%s", values if isinstance(values, tuple) else (values,), made)
        )

    def filled(self, gap: str, values: Sequence[object], made: str) -> str:
        """What formatting made of this text and values, with spans where the format has plain gaps alone."""
        parts = self.split(gap)
        if len(parts) != len(values) + 1 or any(mark in part for part in parts for mark in "%{}"):
            return made
        filled = joined(piece for pair in zip(parts, (*values, ""), strict=True) for piece in pair)
        return filled if str.__eq__(filled, made) else made


def as_own(text: str) -> Own:
    """The same text as an Own, foreign where it was no Own."""
    return text if isinstance(text, Own) else Own(text)


def spans_of(text: str) -> Spans:
    """The parts of a text that are the template's own."""
    return text._spans if isinstance(text, Own) else ()


def is_own(text: str, begin: int, end: int) -> bool:
    """Whether a part of a text is the template's throughout."""
    return any(first <= begin and end <= last for first, last in spans_of(text))


def joined(parts: Iterable[object]) -> str:
    """One text of all parts, each with its spans. What is no text is written out, as a template's output is."""
    texts: list[str] = []
    spans: list[tuple[int, int]] = []
    at = 0
    for part in parts:
        text = part if isinstance(part, str) else str(part)
        texts.append(text)
        for begin, end in spans_of(text):
            if spans and spans[-1][1] == at + begin:
                spans[-1] = (spans[-1][0], at + end)
            else:
                spans.append((at + begin, at + end))
        at += len(text)
    whole: Final = "".join(texts)
    return Own(whole, tuple(spans)) if spans else whole


def within(spans: Spans, begin: int, end: int) -> Spans:
    """The spans of a part of a text, counted from where the part begins."""
    cut = ((max(first, begin) - begin, min(last, end) - begin) for first, last in spans)
    return tuple((first, last) for first, last in cut if first < last)


def between(separator: str, parts: Iterable[object]) -> Iterator[object]:
    """The parts, and the separator between each two."""
    for at, part in enumerate(parts):
        if at:
            yield separator
        yield part
