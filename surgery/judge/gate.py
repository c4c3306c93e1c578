"""The quality gate: whether a specialist is released. Pure: reports in, a verdict with its reason and remedy out.

Also the hold-out split: which questions it is judged by, and what of a corpus must not be profiled because it asks
them (test-set contamination).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

from .proportions import Paired
from .scoring import normalised
from .values import USUAL_BOUND, Bound, Question

EVERY: Final = 10
OFFSET: Final = 5  # as in the cards' "off5" split


class VerdictState(StrEnum):
    """What becomes of a specialist."""

    RELEASED = "released"
    ACCEPTED = "accepted"  # by a person, without or against the evidence
    KEPT_ASIDE = "kept aside"  # it loses too much
    NEEDS_QUESTIONS = "needs questions"  # nothing can be said


@dataclass(frozen=True)
class Verdict:
    """The gate's word. difference: accuracy of the specialist less the parent's; None when nothing was measured."""

    state: VerdictState
    reason: str
    remedy: str = ""
    difference: float | None = None
    allowed_loss: float | None = None
    n: int = 0

    @property
    def released(self) -> bool:
        """Whether the specialist may be served."""
        return self.state in (VerdictState.RELEASED, VerdictState.ACCEPTED)

    def to_json(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)


def hold_out(questions: Sequence[Question], every: int = EVERY, offset: int = OFFSET) -> tuple[int, ...]:
    """Positions of the questions to judge by: every tenth, the 6th, the 16th and so on.

    By position, as the cards do it, so that a known corpus has a known split; moving lines moves it. What asks the same
    elsewhere in the corpus must be left out of profiling: see `Withheld`.
    """
    return tuple(range(offset, len(questions), every))


_FEWEST_WORDS: Final = 4  # a shorter question within a text is a phrase that any text may hold


class Withheld:
    """The questions that a specialist is judged by, as words, to keep what it is profiled over free of them.

    A text asks one when it holds all its words in a row (`scoring.normalised`); a question of fewer than four words
    only when the text holds nothing else.
    """

    def __init__(self, questions: Iterable[str]) -> None:
        self._questions = {normalised(question) for question in questions} - {""}
        # First words -> lengths of the questions that begin so: a text is read once, however many questions there are.
        self._lengths: dict[tuple[str, ...], set[int]] = {}
        for question in self._questions:
            words = question.split()
            if len(words) >= _FEWEST_WORDS:
                self._lengths.setdefault(tuple(words[:_FEWEST_WORDS]), set()).add(len(words))

    def is_asked_in(self, text: str) -> bool:
        """Whether a text asks one of them."""
        return bool(self.asked_in([text]))

    def is_asked_in_line(self, record: Mapping[str, Any]) -> bool:
        """Whether a line of a corpus does: in its question, its text, its answer, or a message of any role."""
        return any(self.is_asked_in(text) for text in _texts(record))

    def asked_in(self, paragraphs: Sequence[str]) -> Collection[int]:
        """Which of consecutive paragraphs ask one of them, or are part of one that goes over several."""
        found = {at for at, paragraph in enumerate(paragraphs) if normalised(paragraph) in self._questions}
        words: list[str] = []
        owners: list[int] = []
        for at, paragraph in enumerate(paragraphs):
            own = normalised(paragraph).split()
            words += own
            owners += [at] * len(own)
        for start in range(len(words) - _FEWEST_WORDS + 1):
            for length in self._lengths.get(tuple(words[start : start + _FEWEST_WORDS]), ()):
                if " ".join(words[start : start + length]) in self._questions:
                    found.update(owners[start : start + length])
        return found


def _texts(record: Mapping[str, Any]) -> Iterator[str]:
    messages = record.get("messages")
    turns = [turn.get("content") for turn in messages if isinstance(turn, dict)] if isinstance(messages, list) else []
    for text in (*(record.get(key) for key in ("question", "text", "answer", "system")), *turns):
        if isinstance(text, str):
            yield text


_MORE: Final = "Give more as `questions` of its build in the roster, or accept the specialist as it is."


def foresee(n: int, bound: Bound) -> str:
    """A warning for a build that will be judged by n questions; "" when they are enough."""
    if n >= bound.min_questions:
        return ""
    return (
        f"Only {n} questions will judge it, and it takes {bound.min_questions}: it will be made and kept aside. Give "
        "more as `questions` of its build in the roster, or a corpus with more short answers."
    )


def judge(paired: Paired | None, bound: Bound = USUAL_BOUND, *, chance: float = 0.0) -> Verdict:
    """Release a specialist only if it loses no more than the bound.

    paired: the specialist beside its parent; None when the corpus has no questions to hold out.
    chance: what blind guessing reaches on these questions. Where the parent does no better, there is nothing to lose,
    and nothing that could be seen to be lost.
    """
    if paired is None or not paired.n:
        return Verdict(
            VerdictState.NEEDS_QUESTIONS, "The corpus holds no questions that an answer can be compared with.", _MORE
        )
    n, parent = paired.n, paired.second
    if n < bound.min_questions:
        return Verdict(
            VerdictState.NEEDS_QUESTIONS,
            f"{n} questions are too few for a judgement; it takes {bound.min_questions}.",
            _MORE,
            paired.difference,
            n=n,
        )
    if parent.value <= chance or parent.value - chance < parent.standard_error:
        return Verdict(
            VerdictState.NEEDS_QUESTIONS,
            f"The parent itself is right in {parent.count} of {n}, no better than guessing ({chance:.0%}).",
            "Look at its answers: are the questions fit for it, and is their form read as it is meant? Then give "
            "others as `questions` of its build in the roster, or accept the specialist as it is.",
            paired.difference,
            n=n,
        )
    # Steadied: with the plain error a single lost question, of however many, would be too much.
    allowed = bound.allowed(paired.steadied_standard_error)
    figures = (
        f"{paired.first.value:.1%} beside the parent's {parent.value:.1%} on {n} questions: "
        f"{100 * paired.difference:+.1f} points, {100 * allowed:.1f} may be lost"
    )
    # A difference that equals the bound passes, rounding or not.
    if -paired.difference <= allowed + 1e-12:
        return Verdict(VerdictState.RELEASED, f"{figures}.", "", paired.difference, allowed, n)
    return Verdict(
        VerdictState.KEPT_ASIDE,
        f"{figures} (McNemar p = {paired.p_value:.2g}).",
        "Keep more experts, or split the corpus if it is several domains in one; or accept the specialist as it is.",
        paired.difference,
        allowed,
        n,
    )


def accept(verdict: Verdict, by: str) -> Verdict:
    """A person's decision to serve a specialist all the same. The figures stay, and the reason against it."""
    if verdict.released:
        return verdict
    return Verdict(
        VerdictState.ACCEPTED,
        f"Accepted by {by}, though: {verdict.reason}",
        "",
        verdict.difference,
        verdict.allowed_loss,
        verdict.n,
    )
