"""Splits an answer, as it comes, into text and calls of tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from ...request import CallPiece, Tool
from ..output import Markdown
from .family import Family
from .source import MalformedCallError, Parser, Source, plain, spelling

_SPACE: Final = " \t\r\n"


@dataclass(frozen=True)
class Part:
    """A part of an answer: text or calls, in their order.

    text:   what goes out as text.
    taken:  characters of what was fed that became this part.
    alike:  whether these are the text's own; not of a broken call.
    pieces: what is new of calls.
    """

    text: str = ""
    taken: int = 0
    alike: bool = True
    pieces: tuple[CallPiece, ...] = ()


class CallSplitter:
    """Finds calls at their openings, and reads them by their family's parser.

        text ── an opening ──> call ── its end ──> text
                                 └── broken ──> all of it comes as text

    An opening that is a token of its own counts anywhere; one that is spelt counts where a line begins, outside of
    Markdown's fences: a text about calls is no call. What has gone out of a broken call cannot be taken back, so with
    live=False a call goes out when it is whole.
    """

    def __init__(
        self, family: Family, tools: Mapping[str, Tool], spelt: Mapping[str, str], *, live: bool = True
    ) -> None:
        """spelt: how each tag of the family comes: a sentinel where it is a token of its own, else its text."""
        self._family = family
        self._tools = tools
        self._spelt = spelt
        self.live = live
        self._openings = {spelling(tag, spelt): tag for tag in (*family.openings, *family.frames)}
        self._markdown = Markdown()
        self._held = ""
        self._began = False  # some text has come
        self._space = ""  # white space that is dropped when a call follows
        self._source: Source | None = None
        self._parser: Parser[None] | None = None
        self._pieces: list[CallPiece] = []  # of a call that is not live
        self._calls = 0
        self.malformed = 0

    @property
    def calls(self) -> int:
        """Whole calls so far."""
        return self._calls

    @property
    def opening(self) -> str | None:
        """The opening of the calls that are being read; None outside."""
        return self._source.opening if self._source is not None else None

    @property
    def since_opening(self) -> str:
        """What has come since then, sentinels as they are."""
        assert self._source is not None
        return self._source.raw + self._source.rest

    def feed(self, text: str) -> list[Part]:
        """What is decided now."""
        return self._split(text, final=False)

    def flush(self) -> list[Part]:
        """What was held back at the end of the text. A call that is cut short comes as far as it has come."""
        return self._split("", final=True)

    def _split(self, text: str, final: bool) -> list[Part]:
        parts: list[Part] = []
        self._held += text
        while True:
            if self._source is not None:
                part, over = self._read_call(final)
                parts += part
                if not over:
                    return parts
            elif not self._read_text(parts, final):
                return parts

    # --- text -----------------------------------------------------------------------------------------------------

    def _read_text(self, parts: list[Part], final: bool) -> bool:
        """Read up to the next opening. False when there is none yet."""
        text, at, out = self._held, 0, 0
        while at < len(text):
            found = self._opening_at(text, at, final)
            if found is None:
                break
            if found:
                self._text(parts, text[out:at])
                if self._space:
                    parts.append(Part(taken=len(self._space)))
                    self._space = ""
                parts.append(Part(taken=len(found)))
                self._held = text[at + len(found) :]
                if self._openings[found] in self._family.openings:
                    self._begin(found)
                return True
            self._markdown_reads(text[at])
            at += 1
        self._text(parts, text[out:at])
        self._held = text[at:]
        if final and self._space:
            parts.append(Part(self._space, len(self._space)))
            self._space = ""
        return False

    def _opening_at(self, text: str, at: int, final: bool) -> str | None:
        """The opening at a place as it is spelt, "" for none, None while the text to come decides."""
        for spelt, tag in self._openings.items():
            if text.startswith(spelt, at):
                if spelt != tag or self._counts_here():
                    return spelt
            elif (
                not final
                and len(text) - at < len(spelt)
                and spelt.startswith(text[at:])
                and (spelt != tag or self._counts_here())
            ):
                return None
        return ""

    def _counts_here(self) -> bool:
        if not self._family.certain and (self._began and not self._calls):
            return False
        return self._markdown.line_blank and not self._markdown.in_fence

    def _markdown_reads(self, char: str) -> None:
        self._markdown.is_code(char)
        self._markdown.read(char)
        self._began = self._began or char not in _SPACE

    def _text(self, parts: list[Part], text: str) -> None:
        """White space waits: between calls, and before one, it is no part of the text."""
        if not text:
            return
        whole = self._space + text
        kept = whole.rstrip(_SPACE)
        self._space = whole[len(kept) :]
        if not kept:
            return
        shown = plain(kept, self._spelt)
        parts.append(Part(shown, len(kept), alike=shown == kept))

    # --- calls ----------------------------------------------------------------------------------------------------

    def _begin(self, spelt: str) -> None:
        self._source = Source(self._openings[spelt], self._spelt, frozenset(self._tools), first=self._calls)
        self._parser = self._family.read(self._source, self._tools)
        self._pieces = []

    def _read_call(self, final: bool) -> tuple[list[Part], bool]:
        """Go on reading a call. Gives parts, and whether it is over."""
        source, parser = self._source, self._parser
        assert source is not None
        assert parser is not None
        fed, self._held = self._held, ""
        source.feed(fed)
        if final:
            source.end()
        before = source.taken
        try:
            next(parser)
            over = False
        except StopIteration:
            over = True
        except MalformedCallError:
            return self._broken(source, before, final)
        self._pieces += source.pieces()
        taken = source.taken - before
        ready = [piece for piece in self._pieces if self.live or over or piece.index < source.n_calls]
        self._pieces = self._pieces[len(ready) :]
        pieces = tuple(ready)
        self._calls = source.n_calls
        if over:
            self._end(source)
        return [Part(taken=taken, pieces=pieces)], over

    def _broken(self, source: Source, before: int, final: bool) -> tuple[list[Part], bool]:
        """All of the call comes as text; what was read beyond it is read again."""
        self._pieces += source.pieces()
        self._calls = source.n_calls
        whole_calls = tuple(piece for piece in self._pieces if piece.index < source.n_calls)
        cut = final and not source.rest and self.live
        if cut:  # of its arguments what has come has gone out; the beginning of one that has no name tells nothing
            pieces, self._pieces = tuple(self._pieces), []
            self._end(source)
            return [Part(taken=source.taken - before, pieces=pieces)], True
        named = source.is_open or source.n_calls > source.first
        if self._family.certain or named:
            self.malformed += 1
        text = ("" if source.n_calls > source.first else source.opening) + source.plain(source.raw)
        taken = source.taken - before
        self._end(source)
        self._markdown_after(text)
        return [Part(text, taken, alike=False, pieces=whole_calls)], True

    def _markdown_after(self, text: str) -> None:
        for char in text:
            self._markdown_reads(char)

    def _end(self, source: Source) -> None:
        self._held = source.rest
        self._source = self._parser = None
        self._pieces = []
