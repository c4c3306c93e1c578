"""What a specialist is judged by, as values: questions with known answers, and the loss that is allowed (tolerance)."""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from ..errors import BuildError

LETTERS: Final = string.ascii_uppercase

_FORM: Final = "Work it out as briefly as you can, and end with a line of the form"


class AnswerKind(StrEnum):
    """How an answer is compared with the reference."""

    CHOICE = "choice"  # the letter of one of the options
    EXACT = "exact"  # the same words
    NUMERIC = "numeric"  # a number within a tolerance


# What follows the question. Fixed, because a figure is worth nothing beside one that was asked for in other words.
INSTRUCTIONS: Final = {
    AnswerKind.CHOICE: f'{_FORM} "Answer: X", where X is the letter of the right option.',
    AnswerKind.EXACT: f'{_FORM} "Answer: X", where X is the answer alone, in as few words as possible.',
    AnswerKind.NUMERIC: f'{_FORM} "Answer: X", where X is the number alone.',
}


@dataclass(frozen=True)
class Question:
    """One question and what counts as right.

    answers:   of a choice its letter; else every text that counts as right.
    tolerance: of a number, the largest distance from each of `answers` that is still right, as given; None for the
               distance that the reference's own digits imply (`scoring.implied_tolerance`).
    source:    file and line, for messages; no part of what the question is.
    """

    id: str
    question: str
    kind: AnswerKind
    answers: tuple[str, ...]
    options: tuple[str, ...] = ()
    tolerance: float | None = None
    subdomain: str = ""
    system: str = ""
    source: tuple[str, int] = ("", 0)

    @property
    def chance(self) -> float:
        """The probability that a blind guess is right; 0 where there are no options."""
        return 1 / len(self.options) if self.kind is AnswerKind.CHOICE else 0.0

    def messages(self, system: str = "") -> list[dict[str, str]]:
        """The conversation that asks it. system: the system prompt of a question that has none of its own."""
        return asked(f"{with_options(self.question, self.options)}\n\n{INSTRUCTIONS[self.kind]}", self.system or system)

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> Question:
        """The question that content() describes."""
        kind, answers, options = AnswerKind(content["kind"]), tuple(content["answers"]), tuple(content["options"])
        return cls(**{**content, "kind": kind, "answers": answers, "options": options})

    def content(self) -> dict[str, Any]:
        """All that makes it this question, as JSON types."""
        return {
            "id": self.id,
            "question": self.question,
            "kind": self.kind.value,
            "answers": list(self.answers),
            "options": list(self.options),
            "tolerance": self.tolerance,
            "subdomain": self.subdomain,
            "system": self.system,
        }


@dataclass(frozen=True)
class QuestionSet:
    """Questions in their files' order, each once. duplicates: how many lines repeated an earlier one."""

    questions: tuple[Question, ...]
    duplicates: int = 0

    @property
    def sha256(self) -> str:
        """Of the questions' content, wherever they stand on disk."""
        return digest([question.content() for question in self.questions])


def asked(text: str, system: str = "") -> list[dict[str, str]]:
    """A conversation of one turn."""
    start = [{"role": "system", "content": system}] if system else []
    return [*start, {"role": "user", "content": text}]


def with_options(question: str, options: Sequence[str]) -> str:
    """A question with its options below it, one a line, lettered: `A) ...`."""
    lines = [f"{letter}) {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n\n".join([question.strip(), "\n".join(lines)]) if lines else question.strip()


@dataclass(frozen=True)
class Bound:
    """How much a specialist may lose against its parent.

    standard_errors: of the paired difference, the default.
    loss:            accuracy, 0..1, instead of that: 0.02 for two points.
    min_questions:   with fewer there is no verdict.
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

    def allowed(self, standard_error: float) -> float:
        """The largest loss of accuracy, 0..1. standard_error: of the paired difference."""
        return self.loss if self.loss is not None else self.standard_errors * standard_error


USUAL_BOUND: Final = Bound()


def digest(content: object) -> str:
    """SHA-256 of JSON types."""
    return hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).hexdigest()
