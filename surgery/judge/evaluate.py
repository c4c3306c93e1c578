"""Evaluation: accuracy of a model on questions, and a paired comparison with its parent on the same ones."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from rich.table import Table

from coe.engine.files import written_beside
from coe.engine.pool.resident import WorkerResident
from coe.engine.request import Finish
from coe.engine.spec import LoadSpec, ThinkingMode

from ..errors import EvaluationError
from ..files import read_json
from .generation import DEFAULT, BatchPrompt, Generated, GenerationSettings, OnProgress, Start, generate, model_sha256
from .proportions import Lengths, Paired, Share
from .scoring import score
from .values import Question, QuestionSet

_MOST_BYTES: Final = 2**28  # of a report

_VERSION: Final = 1


@dataclass(frozen=True)
class AnswerOutcome:
    """The outcome of one question.

    extracted: what the answer was read as; None for one that states nothing (unparsed).
    at_limit:  the completion was ended by `max_tokens` or the context, or its thinking by the budget.
    recovered: a fresh seed ended what had looped at first.
    error:     why there is no answer at all.
    """

    id: str
    subdomain: str
    correct: bool
    extracted: str | None
    tokens: int
    at_limit: bool = False
    looped: bool = False
    recovered: bool = False
    leaked: bool = False
    error: str = ""


@dataclass(frozen=True)
class Performance:
    """One model's outcomes, in the questions' order, and what they add up to."""

    name: str
    sha256: str
    outcomes: tuple[AnswerOutcome, ...]

    @property
    def accuracy(self) -> Share:
        """Right answers of all questions; unparsed, looping and failed ones are wrong."""
        return Share(sum(outcome.correct for outcome in self.outcomes), len(self.outcomes))

    @property
    def by_subdomain(self) -> dict[str, Share]:
        """Accuracy a subdomain, in the order of their first questions; {} where none is named."""
        names = dict.fromkeys(outcome.subdomain for outcome in self.outcomes)
        shares = {}
        for name in names if any(names) else ():
            rights = [outcome.correct for outcome in self.outcomes if outcome.subdomain == name]
            shares[name] = Share(sum(rights), len(rights))
        return shares

    @property
    def unparsed(self) -> int:
        """Answers that state nothing."""
        return sum(outcome.extracted is None and not outcome.error for outcome in self.outcomes)

    @property
    def failed(self) -> int:
        """Questions that the engine gave no answer to."""
        return sum(bool(outcome.error) for outcome in self.outcomes)

    @property
    def lengths(self) -> Lengths:
        """Of the completions, thinking included."""
        return Lengths.of([outcome.tokens for outcome in self.outcomes if not outcome.error])

    def mean_tokens(self, *, correct: bool) -> float | None:
        """Of the right, or of the wrong completions; None when there are none."""
        tokens = [o.tokens for o in self.outcomes if o.correct is correct and not o.error]
        return sum(tokens) / len(tokens) if tokens else None

    @property
    def at_limit(self) -> Share:
        """Completions that reached the token limit."""
        return Share(sum(outcome.at_limit for outcome in self.outcomes), len(self.outcomes))

    @property
    def rumination(self) -> Share:
        """Of those, the ones that are wrong all the same: tokens burned for nothing."""
        reached = [outcome for outcome in self.outcomes if outcome.at_limit]
        return Share(sum(not outcome.correct for outcome in reached), len(reached))

    @property
    def loops(self) -> Share:
        """Questions whose first attempt looped."""
        return Share(sum(outcome.looped for outcome in self.outcomes), len(self.outcomes))

    @property
    def recovered(self) -> Share:
        """Of those, the ones that a fresh seed ended."""
        looped = [outcome for outcome in self.outcomes if outcome.looped]
        return Share(sum(outcome.recovered for outcome in looped), len(looped))

    @property
    def leaked(self) -> int:
        """Think-off answers that had a thinking block stripped."""
        return sum(outcome.leaked for outcome in self.outcomes)

    def to_json(self) -> dict[str, Any]:
        """Outcomes, and the figures for a reader of the file."""
        low, high = self.accuracy.wilson()
        return {
            "name": self.name,
            "sha256": self.sha256,
            "figures": {
                "accuracy": self.accuracy.value,
                "standard_error": self.accuracy.standard_error,
                "wilson_95": [low, high],
                "correct": self.accuracy.count,
                "n": self.accuracy.n,
                "by_subdomain": {name: {"correct": s.count, "n": s.n} for name, s in self.by_subdomain.items()},
                "unparsed": self.unparsed,
                "failed": self.failed,
                "tokens": asdict(self.lengths),
                "mean_tokens_right": self.mean_tokens(correct=True),
                "mean_tokens_wrong": self.mean_tokens(correct=False),
                "at_limit": self.at_limit.count,
                "at_limit_and_wrong": self.rumination.count,
                "loops": self.loops.count,
                "loops_recovered": self.recovered.count,
                "leaked_think_blocks": self.leaked,
            },
            "outcomes": [asdict(outcome) for outcome in self.outcomes],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The figures are counted anew."""
        return cls(data["name"], data["sha256"], tuple(AnswerOutcome(**outcome) for outcome in data["outcomes"]))


@dataclass(frozen=True)
class EvaluationReport:
    """A model on a set of questions, and its parent beside it if there was one.

    chance: what blind guessing would reach on these questions, 0..1.
    """

    questions_sha256: str
    duplicates: int
    chance: float
    settings: Mapping[str, Any]
    model: Performance
    beside: Performance | None = None

    @property
    def paired(self) -> Paired | None:
        """Both on the same questions; those that the parent's engine failed on say nothing and are left out."""
        if self.beside is None:
            return None
        pairs = [
            (own.correct, its.correct)
            for own, its in zip(self.model.outcomes, self.beside.outcomes, strict=True)
            if not its.error
        ]
        return Paired.of([own for own, _ in pairs], [its for _, its in pairs])

    def to_json(self) -> dict[str, Any]:
        """JSON types."""
        paired = self.paired
        return {
            "version": _VERSION,
            "questions": {"sha256": self.questions_sha256, "duplicates": self.duplicates, "chance": self.chance},
            "settings": dict(self.settings),
            "model": self.model.to_json(),
            "beside": self.beside.to_json() if self.beside else None,
            "paired": paired
            and {
                **asdict(paired),
                "n": paired.n,
                "difference": paired.difference,
                "standard_error": paired.standard_error,
                "p_value": paired.p_value,
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Raises EvaluationError for what is no report, or one of another version."""
        if data.get("version") != _VERSION:
            raise EvaluationError(
                f"This report has version {data.get('version')}; this program reads {_VERSION}.",
                "Make it again with coe eval.",
            )
        try:
            asked = data["questions"]
            return cls(
                asked["sha256"],
                asked["duplicates"],
                asked["chance"],
                data["settings"],
                Performance.from_json(data["model"]),
                Performance.from_json(data["beside"]) if data["beside"] else None,
            )
        except (KeyError, TypeError) as error:
            raise EvaluationError(f"This is no report: {error!r}.", "Make it again with coe eval.") from error

    def save(self, path: Path) -> None:
        """Write as JSON, beside and renamed."""
        with written_beside(path) as beside:
            beside.write_text(json.dumps(self.to_json(), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read one. Raises EvaluationError."""
        try:
            data = read_json(path, _MOST_BYTES)
        except OSError as error:
            raise EvaluationError(f"{path} cannot be read: {error.strerror}.", "Make it with coe eval.") from error
        except ValueError as error:
            raise EvaluationError(f"{path} is no report: {error}.", "Make it again with coe eval.") from error
        if not isinstance(data, dict):
            raise EvaluationError(f"{path} is no report.", "Make it again with coe eval.")
        return cls.from_json(data)


def evaluate(
    model: Path,
    questions: QuestionSet,
    *,
    beside: Path | None = None,
    settings: GenerationSettings = DEFAULT,
    load: LoadSpec | None = None,
    system: str = "",
    folder: Path | None = None,
    progress: OnProgress = lambda progress: None,
    start: Start = WorkerResident.start,
) -> EvaluationReport:
    """Ask a model all questions, and its parent the same: one after the other, so that memory need hold only one.

    system: the system prompt of questions that have none. load, folder, progress: as in `generation.generate`.
    Interrupted, it goes on where it stopped, and what a parent has answered once it need not answer again.
    Raises EvaluationError when a model gives no answer at all, EngineError when one does not load.
    """
    ask = functools.partial(
        performance, settings=settings, load=load, system=system, folder=folder, progress=progress, start=start
    )
    own = ask(model, questions)
    other = ask(beside, questions) if beside is not None else None
    chances = [question.chance for question in questions.questions]
    return EvaluationReport(
        questions.sha256,
        questions.duplicates,
        sum(chances) / len(chances),
        {**settings.to_json(), "system": system},
        own,
        other,
    )


def performance(
    model: Path,
    questions: QuestionSet,
    *,
    settings: GenerationSettings = DEFAULT,
    load: LoadSpec | None = None,
    system: str = "",
    folder: Path | None = None,
    progress: OnProgress = lambda progress: None,
    start: Start = WorkerResident.start,
) -> Performance:
    """One model's part of `evaluate`."""
    prompts = [BatchPrompt(question.id, question.messages(system)) for question in questions.questions]
    answers = generate(model, prompts, settings, load=load, folder=folder, progress=progress, start=start)
    if answers and all(answer.error for answer in answers):
        raise EvaluationError(f"{model.name} answered none of the questions: {answers[0].error}")
    return Performance(
        model.stem,
        model_sha256(model),
        tuple(outcome(*pair, settings) for pair in zip(questions.questions, answers, strict=True)),
    )


def outcome(question: Question, answer: Generated, settings: GenerationSettings) -> AnswerOutcome:
    """Judge one answer. One that still loops is wrong, whatever it says on the way, as the model cards count it."""
    if answer.error:
        return AnswerOutcome(question.id, question.subdomain, False, None, 0, error=answer.error)
    verdict = score(question, answer.text)
    budget = settings.thinking.budget_tokens if settings.thinking.mode is ThinkingMode.BUDGET else None
    return AnswerOutcome(
        question.id,
        question.subdomain,
        verdict.correct and answer.reason != Finish.LOOP,
        verdict.extracted,
        answer.completion_tokens,
        at_limit=answer.reason == Finish.LENGTH or (budget is not None and answer.reasoning_tokens >= budget),
        looped=answer.looped,
        recovered=answer.looped and answer.reason != Finish.LOOP,
        leaked=answer.leaked_blocks > 0,
    )


# --- for people -----------------------------------------------------------------------------------------------------


def report_table(report: EvaluationReport) -> Table:
    """The figures, a column a model."""
    columns = [report.model, *([report.beside] if report.beside else [])]
    table = Table(title=f"{report.model.accuracy.n} questions")
    table.add_column("")
    for column in columns:
        table.add_column(column.name, justify="right")
    for title, cells in _rows(columns):
        table.add_row(title, *cells)
    subdomains = [column.by_subdomain for column in columns]
    if subdomains[0]:
        table.add_section()
        for name in subdomains[0]:
            table.add_row(name or "(none named)", *(str(shares[name]) for shares in subdomains))
    if report.paired is not None:
        table.caption = paired_sentence(report.paired)
    return table


def paired_sentence(paired: Paired) -> str:
    """The difference in one line."""
    return (
        f"difference {100 * paired.difference:+.1f} ± {100 * paired.standard_error:.1f} points on {paired.n}: "
        f"{paired.gained} gained, {paired.lost} lost; McNemar p = {paired.p_value:.3g}"
    )


def _rows(columns: Sequence[Performance]) -> list[tuple[str, list[str]]]:
    def interval(share: Share) -> str:
        low, high = share.wilson()
        return f"{low:.1%} to {high:.1%}"

    def of(part: Share) -> str:
        return f"{part.count} of {part.n}"

    def mean(tokens: float | None) -> str:
        return "-" if tokens is None else f"{tokens:.0f}"

    rows: list[tuple[str, list[str]]] = [
        ("accuracy ± standard error", [str(c.accuracy) for c in columns]),
        ("95 % interval (Wilson)", [interval(c.accuracy) for c in columns]),
        ("unparsed answers", [str(c.unparsed) for c in columns]),
        ("tokens p50 / p90 / max", [f"{c.lengths.p50} / {c.lengths.p90} / {c.lengths.max}" for c in columns]),
        (
            "mean tokens, right / wrong",
            [f"{mean(c.mean_tokens(correct=True))} / {mean(c.mean_tokens(correct=False))}" for c in columns],
        ),
        ("reached the token limit", [of(c.at_limit) for c in columns]),
        ("of those wrong (rumination)", [of(c.rumination) for c in columns]),
        ("loops", [of(c.loops) for c in columns]),
        ("of those recovered by a fresh seed", [of(c.recovered) for c in columns]),
    ]
    if any(c.failed for c in columns):
        rows.append(("no answer (engine)", [str(c.failed) for c in columns]))
    if any(c.leaked for c in columns):
        rows.append(("answers with leaked thinking", [str(c.leaked) for c in columns]))
    return rows
