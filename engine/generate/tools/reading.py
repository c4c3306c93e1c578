"""The calls of one answer while it is drawn: what is read as a call, and what the next token is held to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ...request import CallPiece, Tool
from ..grammar import Grammar
from .constraint import CallConstraint
from .family import Family
from .source import FOREIGN_SENTINELS, SENTINELS, plain, spelling
from .splitter import CallSplitter, Part


@dataclass(frozen=True)
class Toolbox:
    """The tools of one request.

    tools:      those that may be called, by name.
    tags:       the token of each of the family's tags that is one of the vocabulary's own.
    ends:       tokens after which the results of calls are awaited.
    constraint: what the calls are held to.
    parallel:   whether an answer may have several.
    forbidden:  none may be made: those that come all the same are left out of the answer, and counted.
    """

    family: Family
    tools: Mapping[str, Tool]
    tags: Mapping[str, int]
    ends: frozenset[int]
    constraint: CallConstraint
    parallel: bool = True
    forbidden: bool = False


@dataclass
class _Call:
    name: str = ""
    arguments: list[str] = field(default_factory=list)


class CallReading:
    """Reads one answer.

    grammar: what the next token of the answer is held to; None for nothing.
    """

    def __init__(self, box: Toolbox) -> None:
        # An opening that may not be drawn as a token is one where its text is spelt, too.
        drawn = [tag for tag in sorted(box.tags) if not (box.forbidden and tag in box.family.openings)]
        spelt = {tag: SENTINELS[number] for number, tag in enumerate(drawn)}
        self._box = box
        self._texts = {box.tags[tag]: sentinel for tag, sentinel in spelt.items()}
        whole = box.constraint.whole
        self.grammar: Grammar | None = whole.copy() if whole is not None else None
        self._whole = self.grammar
        self._spelt = {tag: spelt.get(tag, tag) for tag in box.family.tags}
        self._splitter = CallSplitter(
            box.family,
            box.tools,
            self._spelt,
            live=self._whole is not None,
            forbidden=box.forbidden,
            calls_only=self._whole is not None and box.constraint.answer_conformity is None,
        )
        self._opening: str | None = None
        self._n_begun = 0
        self._calls: dict[int, _Call] = {}

    def spelling(self, text: str) -> str:
        """How a text with tags in it is fed."""
        return spelling(text, self._spelt)

    def plain(self, text: str) -> str:
        """A text that was fed, as it is shown."""
        return plain(text, self._spelt)

    def text_of(self, token: int) -> str | None:
        """How a tag that was drawn as one token stands in the text that is fed; None for any other token."""
        return self._texts.get(token)

    @staticmethod
    def foreign(text: str) -> str:
        """The text of other tokens, which cannot stand for a tag."""
        return FOREIGN_SENTINELS.sub("\ufffd", text) if not text.isascii() else text

    def ends(self, token: int) -> bool:
        """Whether nothing more is to be generated after the token: results of calls are awaited."""
        return token in self._box.ends and self._splitter.calls > 0

    @property
    def n_calls(self) -> int:
        """Whole calls so far."""
        return 0 if self._box.forbidden else self._splitter.calls

    @property
    def n_forbidden(self) -> int:
        """Whole calls that were left out."""
        return self._splitter.calls if self._box.forbidden else 0

    @property
    def n_malformed(self) -> int:
        """What began as a call and was none."""
        return self._splitter.malformed

    @property
    def in_call(self) -> bool:
        """Whether the text so far ends within a call: everything in it is the call's."""
        return self._opening is not None

    @property
    def is_last(self) -> bool:
        """Whether the answer has all the calls that it may have."""
        return not self._box.parallel and self.n_calls > 0 and not self.in_call

    def feed(self, text: str, held: str = "", *, at_boundary: bool = True) -> list[Part]:
        """Go on by a text of the answer. held: what was drawn and is not fed yet; at_boundary: no character is
        unfinished beyond it.

        Raises GrammarError when following it would cost too much.
        """
        parts = self._splitter.feed(text)
        before, now = (self._opening, self._n_begun), (self._splitter.opening, self._splitter.n_begun)
        self._opening, self._n_begun = now
        if self._whole is None and now != before:
            self.grammar = None
            if self._opening is not None and at_boundary and not self._splitter.on_trial:
                grammar = self._box.constraint.after(self._opening)
                if grammar is not None and grammar.take_text(self._splitter.since_opening + held):
                    self.grammar = grammar
            # What is held to its grammar cannot turn out to be none, and may go out as it comes.
            self._splitter.live = self.grammar is not None
        elif self._whole is None and self.grammar is not None and self.grammar.complete:
            self.grammar = None
        return self._noted(parts)

    def flush(self, *, cut: bool = False) -> list[Part]:
        """What is left at the end of the answer. cut: it would have gone on."""
        return self._noted(self._splitter.flush(cut=cut))

    def _noted(self, parts: list[Part]) -> list[Part]:
        if self._box.forbidden:
            return [replace(part, pieces=()) for part in parts]
        for part in parts:
            for piece in part.pieces:
                self._note(piece)
        return parts

    def _note(self, piece: CallPiece) -> None:
        call = self._calls.setdefault(piece.index, _Call())
        if piece.name is not None:
            call.name = piece.name
        call.arguments.append(piece.arguments)

    def violation(self, answer: str) -> str | None:
        """What a finished answer breaks: the schema of a tool, or its own where it calls none; None when it keeps to
        them. Raises GrammarError when finding that out would cost too much."""
        constraint = self._box.constraint
        for call in self._calls.values():
            fault = constraint.violation(call.name, "".join(call.arguments))
            if fault is not None:
                return f"in the call of {call.name}, {fault}"
        if not self._calls and constraint.answer_conformity is not None:
            return constraint.answer_conformity.violation(answer)
        if not self._calls and self._whole is not None:
            return "it calls no tool"
        return None
