"""Whether a specialist may go out. Pure: reports in, a verdict with its reason and its remedy out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

from .errors import BuildError
from .proportions import Paired
from .questions import Question

EVERY: Final = 10
OFFSET: Final = 5  # as in the cards' "off5" split


class State(StrEnum):
    """What becomes of a specialist."""

    RELEASED = "released"
    ACCEPTED = "accepted"  # by a person, without or against the evidence
    KEPT_ASIDE = "kept aside"  # it loses too much
    NEEDS_QUESTIONS = "needs questions"  # nothing can be said


@dataclass(frozen=True)
class Bound:
    """How much a specialist may lose against its parent.

    standard_errors: of the paired difference, the default.
    loss:            accuracy, 0..1, instead of that: 0.02 for two points.
    min_questions:   with fewer nothing is said.
    """

    standard_errors: float = 1.0
    loss: float | None = None
    min_questions: int = 30

    def __post_init__(self) -> None:
        """Raises BuildError for a bound that makes no sense."""
        if self.standard_errors < 0 or self.min_questions < 1 or not (self.loss is None or 0 <= self.loss <= 1):
            raise BuildError(
                f"The bound {self} makes no sense.",
                "Give standard_errors from 0, or loss between 0 and 1; min_questions from 1.",
            )

    def allowed(self, paired: Paired) -> float:
        """The largest loss of accuracy, 0..1.

        The error is the steadied one: with the plain one a single lost question, of however many, would be too much.
        """
        return self.loss if self.loss is not None else self.standard_errors * paired.steadied_standard_error


@dataclass(frozen=True)
class Verdict:
    """The gate's word. difference: accuracy of the specialist less the parent's; None when nothing was measured."""

    state: State
    reason: str
    remedy: str = ""
    difference: float | None = None
    allowed_loss: float | None = None
    n: int = 0

    @property
    def released(self) -> bool:
        """Whether the specialist may be served."""
        return self.state in (State.RELEASED, State.ACCEPTED)

    def to_json(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)


def hold_out(questions: Sequence[Question], every: int = EVERY, offset: int = OFFSET) -> tuple[int, ...]:
    """Positions of the questions to judge by: every tenth, the 6th, the 16th and so on.

    By position, as the cards do it, so that whoever knows the corpus knows the split; moving lines moves it. Whoever
    profiles the rest leaves out every line that asks the same (`scoring.normalised`), wherever it stands.
    """
    return tuple(range(offset, len(questions), every))


_MORE: Final = "Give more with --questions, or accept the specialist as it is."


def judge(paired: Paired | None, bound: Bound = Bound(), *, chance: float = 0.0) -> Verdict:
    """Release a specialist only if it loses no more than the bound.

    paired: the specialist beside its parent; None when the corpus has no questions to hold out.
    chance: what blind guessing reaches on these questions. Where the parent does no better, there is nothing to lose,
    and nothing that could be seen to be lost.
    """
    if paired is None or not paired.n:
        return Verdict(
            State.NEEDS_QUESTIONS, "The corpus holds no questions that an answer can be compared with.", _MORE
        )
    n, parent = paired.n, paired.second
    if n < bound.min_questions:
        return Verdict(
            State.NEEDS_QUESTIONS,
            f"{n} questions are too few for a judgement; it takes {bound.min_questions}.",
            _MORE,
            paired.difference,
            n=n,
        )
    if parent.value <= chance or parent.value - chance < parent.standard_error:
        return Verdict(
            State.NEEDS_QUESTIONS,
            f"The parent itself is right in {parent.count} of {n}, no better than guessing ({chance:.0%}).",
            "Look at its answers: are the questions fit for it, and is their form read as it is meant? Then give "
            "others with --questions, or accept the specialist as it is.",
            paired.difference,
            n=n,
        )
    allowed = bound.allowed(paired)
    figures = (
        f"{paired.first.value:.1%} beside the parent's {parent.value:.1%} on {n} questions: "
        f"{100 * paired.difference:+.1f} points, {100 * allowed:.1f} may be lost"
    )
    # A difference that equals the bound passes, rounding or not.
    if -paired.difference <= allowed + 1e-12:
        return Verdict(State.RELEASED, f"{figures}.", "", paired.difference, allowed, n)
    return Verdict(
        State.KEPT_ASIDE,
        f"{figures} (McNemar p = {paired.p_value:.2g}).",
        "Keep more experts, or split the corpus if it is several domains in one; or accept the specialist as it is.",
        paired.difference,
        allowed,
        n,
    )


def accept(verdict: Verdict, by: str) -> Verdict:
    """A person's decision to serve a specialist all the same. The figures stay, and what was said against it."""
    if verdict.released:
        return verdict
    return Verdict(
        State.ACCEPTED,
        f"Accepted by {by}, though: {verdict.reason}",
        "",
        verdict.difference,
        verdict.allowed_loss,
        verdict.n,
    )
