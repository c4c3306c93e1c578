"""Splits an answer, as it comes, into text and calls of tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from ...request import CallPiece, Tool
from ..output import Markdown
from .family import Family
from .source import FOREIGN_SENTINELS, MalformedCallError, Parser, Source, overlap, plain, spelling

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


class Counts(Enum):
    """Whether an opening counts where it stands."""

    YES = auto()
    IF_WHOLE = auto()  # what follows decides: it does where a whole call of a known tool follows
    NO = auto()


class CallSplitter:
    """Finds calls at their openings, and reads them by their family's parser.

        text ── an opening ──> call ── its end ──> text
                                 └── broken ──> all of it comes as text

    An opening that is a token of its own counts anywhere; one that is spelt counts outside of Markdown's code: where a
    line begins, and behind text on a line if a whole call follows, for a text about calls is no call. What has gone out
    of a broken call cannot be taken back, so with live=False a call goes out when it is whole.

    With calls_only=True there is no text: what is cut before a call has its name is dropped, not shown.
    """

    def __init__(
        self,
        family: Family,
        tools: Mapping[str, Tool],
        spelt: Mapping[str, str],
        *,
        live: bool = True,
        calls_only: bool = False,
        forbidden: bool = False,
    ) -> None:
        """spelt: how each tag of the family comes: a sentinel where it is a token of its own, else its text.
        forbidden: calls are left out by whoever reads the parts; then one that is cut is no text either.
        """
        self._calls_only = calls_only
        self._forbidden = forbidden
        self._family = family
        self._tools = tools
        self._spelt = spelt
        self.live = live
        self._openings = {spelling(tag, spelt): tag for tag in (*family.openings, *family.frames)}
        self._markdown = Markdown()
        self._held = ""
        self._cut = False  # the text has ended where it would have gone on
        self._began = False  # some text has come
        self._text_since_call = True  # some has since the last call, or there was none
        self._trial = False  # the call that is being read counts only if it is whole
        self._space = ""  # white space that is dropped when a call follows
        self._source: Source | None = None
        self._parser: Parser[None] | None = None
        self._pieces: list[CallPiece] = []  # of a call that is not live
        self._calls = 0
        self.malformed = 0
        self.n_begun = 0  # openings that were read on

    @property
    def calls(self) -> int:
        """Whole calls so far."""
        return self._calls

    @property
    def opening(self) -> str | None:
        """The opening of the calls that are being read; None outside."""
        return self._source.opening if self._source is not None else None

    @property
    def on_trial(self) -> bool:
        """Whether the call that is being read may yet turn out to be a text about calls."""
        return self._trial

    @property
    def since_opening(self) -> str:
        """What has come since then, sentinels as they are."""
        assert self._source is not None
        return self._source.raw + self._source.rest

    def feed(self, text: str) -> list[Part]:
        """What is decided now."""
        return self._split(text, final=False)

    def flush(self, *, cut: bool = False) -> list[Part]:
        """What was held back at the end of the text. A call that is cut short comes as far as it has come.

        cut: the text would have gone on, as when its tokens are spent.
        """
        self._cut = cut
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
            found, counts = self._opening_at(text, at)
            if found is None:
                if not final:
                    break
                if self._is_cut_call(text[at:]):
                    self._text(parts, text[out:at])
                    self._drop(parts, text[at:])
                    out = at = len(text)
                    break
            elif found:
                self._text(parts, text[out:at])
                self._trial = counts is Counts.IF_WHOLE
                if not self._trial:
                    self._pass_opening(parts, found)
                self._held = text[at + len(found) :]
                if self._openings[found] in self._family.openings:
                    self._begin(found)
                return True
            self._markdown_reads(text[at])
            at += 1
        self._text(parts, text[out:at])
        self._held = text[at:]
        if final and self._space:
            # Behind calls it is no text either.
            is_text = self._text_since_call and not self._calls_only
            parts.append(Part(self._space if is_text else "", len(self._space)))
            self._space = ""
        return False

    def _pass_opening(self, parts: list[Part], opening: str) -> None:
        """White space before a call is dropped with its opening."""
        parts.append(Part(taken=len(self._space) + len(opening)))
        self._space = ""

    def _opening_at(self, text: str, at: int) -> tuple[str | None, Counts]:
        """The opening at a place as it is spelt, "" for none, None while the text to come decides; how it counts."""
        for spelt, tag in self._openings.items():
            whole = text.startswith(spelt, at)
            if not whole and not (len(text) - at < len(spelt) and spelt.startswith(text[at:])):
                continue
            counts = self._counts(text[at], spelt, tag)
            if counts is not Counts.NO:
                return (spelt if whole else None), counts
        return "", Counts.NO

    def _counts(self, char: str, spelt: str, tag: str) -> Counts:
        if spelt != tag:
            return Counts.YES
        if not self._family.certain:
            first = not self._began or bool(self._calls)
            return Counts.YES if first and self._markdown.line_blank and not self._markdown.in_fence else Counts.NO
        if self._markdown.line_blank:
            return Counts.NO if self._markdown.in_fence else Counts.YES
        if tag not in self._family.openings or self._markdown.is_code(char):
            return Counts.NO
        return Counts.IF_WHOLE

    def _is_cut_call(self, begun: str) -> bool:
        """Whether the beginning of an opening, with which an answer ends, is surely no text: nothing but calls may
        come, it has a token that stands for none, or it follows a call."""
        is_markup = bool(FOREIGN_SENTINELS.search(begun)) or not self._text_since_call
        return self._calls_only or (self._cut and is_markup)

    def _drop(self, parts: list[Part], begun: str) -> None:
        parts.append(Part(taken=len(self._space) + len(begun)))
        self._space = ""
        self.malformed += 1

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
        if self._calls_only:
            parts.append(Part(taken=len(kept)))
            return
        self._text_since_call = True
        shown = plain(kept, self._spelt)
        parts.append(Part(shown, len(kept), alike=shown == kept))

    # --- calls ----------------------------------------------------------------------------------------------------

    def _begin(self, spelt: str) -> None:
        self._source = Source(self._openings[spelt], self._spelt, frozenset(self._tools), first=self._calls)
        self._parser = self._family.read(self._source, self._tools)
        self._pieces = []
        self.n_begun += 1

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
        if over and source.n_calls == source.first:  # an empty list of calls
            return self._broken(source, before, final)
        self._pieces += source.pieces()
        taken = source.taken - before
        live = self.live and not self._trial
        ready = [piece for piece in self._pieces if live or over or piece.index < source.n_calls]
        self._pieces = self._pieces[len(ready) :]
        pieces = tuple(ready)
        self._calls = source.n_calls
        parts: list[Part] = []
        if self._trial:
            if source.n_calls == source.first:
                return [], False
            self._trial, taken = False, source.taken
            self._pass_opening(parts, spelling(source.opening, self._spelt))
        if source.n_calls > source.first:
            self._text_since_call = False
        if over:
            self._end(source)
        return [*parts, Part(taken=taken, pieces=pieces)], over

    def _broken(self, source: Source, before: int, final: bool) -> tuple[list[Part], bool]:
        """All of the call comes as text; what was read beyond it is read again."""
        named = source.is_open or source.n_calls > source.first
        is_no_text = final and self._is_no_text(source, named=named)
        parts: list[Part] = []
        taken = source.taken - before
        if self._trial:
            if source.n_calls == source.first and not is_no_text:
                return self._was_text(source), True
            taken = source.taken
            self._pass_opening(parts, spelling(source.opening, self._spelt))
        live = self.live and not self._trial
        self._pieces += source.pieces()
        self._calls = source.n_calls
        whole_calls = tuple(piece for piece in self._pieces if piece.index < source.n_calls)
        if is_no_text:
            # Of its arguments what has come has gone out; the beginning of one that has no name tells nothing.
            pieces = tuple(self._pieces) if live else whole_calls
            self.malformed += not (live and named)
            taken += len(source.rest)
            self._end(source)
            self._held = ""
            return [*parts, Part(taken=taken, pieces=pieces)], True
        if self._family.certain or named:
            self.malformed += 1
        text = ("" if source.n_calls > source.first else source.opening) + source.plain(source.raw)
        self._end(source)
        self._markdown_after(text)
        self._text_since_call = True
        return [*parts, Part(text, taken, alike=False, pieces=whole_calls)], True

    def _is_no_text(self, source: Source, *, named: bool) -> bool:
        """Whether a call that the answer's end has cut is surely one: it was held to a grammar that lets nothing else
        follow, or began with a token that stands for no text. A forbidden one is never shown."""
        drawn = spelling(source.opening, self._spelt) != source.opening
        if self._calls_only or (self._cut and (drawn or (self._forbidden and named))):
            return True
        # Of an uncertain family it may be an answer of a schema of its own.
        return self.live and not self._trial and (self._family.certain or named)

    def _was_text(self, source: Source) -> list[Part]:
        """It was a text about calls, or none of them: read as any other. Counted where it went on as a call does."""
        self.malformed += source.is_open or len(source.raw.strip(_SPACE)) > 1
        # With its last characters the next opening may begin.
        again = max(overlap(source.raw, 0, spelt) for spelt in self._openings)
        text, rest = source.opening + source.raw[: len(source.raw) - again], source.raw[len(source.raw) - again :]
        parts: list[Part] = []
        self._end(source)
        self._held = rest + self._held
        self._markdown_after(text)
        self._text(parts, text)
        return parts

    def _markdown_after(self, text: str) -> None:
        for char in text:
            self._markdown_reads(char)

    def _end(self, source: Source) -> None:
        self._held = source.rest
        self._source = self._parser = None
        self._pieces = []
        self._trial = False
