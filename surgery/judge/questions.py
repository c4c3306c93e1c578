"""Questions with known answers, read from JSONL files (a benchmark's test set)."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from coe.engine.files import read_bounded

from ..errors import EvaluationError
from .scoring import normalised, number
from .values import LETTERS, AnswerKind, Question, QuestionSet, digest

_MOST_BYTES: Final = 2**30  # of a file of questions

KEYS: Final = (
    "question",
    "answer",
    "answers",
    "options",
    "kind",
    "tolerance",
    "subdomain",
    "id",
    "question_id",
    "system",
)
# A reference longer than this many words is a text to learn from, not one that an answer can be compared with.
_SHORT_WORDS: Final = 5


def read_questions(paths: Sequence[Path]) -> QuestionSet:
    """Read JSONL files of questions with answers.

    A line is an object: `question`; `answer` (of a choice its letter, its text, or its position counted from 0) or
    `answers`, several that all count; `options`; `kind` (choice, exact, numeric; else inferred); `tolerance` of a
    number, as a distance or as "1%" of the reference; `subdomain` (else `class`); `id`; `system`. Other
    keys are ignored, except those that look like a slip of the pen. A line that repeats an earlier one counts once.
    Raises EvaluationError, naming file, line and remedy.
    """
    return _unique(_question(record, where) for path in paths for where, record in records(path))


def gradable_questions(paths: Sequence[Path]) -> QuestionSet:
    """Those lines of a corpus that an answer can be compared with; the others are left out.

    Such a line has a question, and options, a kind, a number, or an answer of at most five words. Raises
    EvaluationError for a line that says it is one and contradicts itself.
    """
    found = (
        _question(record, where)
        for path in paths
        if path.suffix.lower() in (".jsonl", ".ndjson")
        for where, record in records(path)
        if _is_gradable(record)
    )
    questions = list(found)
    return _unique(iter(questions)) if questions else QuestionSet(())


def records(path: Path) -> Iterator[tuple[tuple[str, int], dict[str, Any]]]:
    """The objects of a JSONL file, each with (file, line). Blank lines are skipped.

    Raises EvaluationError for a file that cannot be read, or a line that is no object.
    """
    try:
        # Not splitlines(): that cuts at U+2028 and its like, which JSON strings may hold.
        lines = read_bounded(path, _MOST_BYTES).decode("utf-8-sig").split("\n")
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror}.", "Give a JSONL file in UTF-8.") from error
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path} is not UTF-8.", "Give a JSONL file in UTF-8.") from error
    for at, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = (str(path), at)
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _bad(where, f"this is no JSON ({error})", "Write one JSON object a line.") from error
        if not isinstance(record, dict):
            raise _bad(where, "this is no JSON object", 'Write {"question": ..., "answer": ...}.')
        yield where, record


def text_of(record: Mapping[str, Any], key: str, where: tuple[str, int], *, required: bool = False) -> str:
    """A record's text under a key, "" when there is none. Raises EvaluationError when it is no text, or is missing."""
    value = record.get(key)
    if value is None and not required:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool) and key in ("id", "question_id"):
        return str(value)
    if not isinstance(value, str) or (required and not value.strip()):
        raise _bad(where, f"`{key}` must be a text", f'Write "{key}": "...".')
    return value


def options_of(record: Mapping[str, Any], where: tuple[str, int]) -> tuple[str, ...]:
    """A record's options as texts. Raises EvaluationError unless they are 2 to 26, all different."""
    given = record.get("options")
    if given is None:
        return ()
    if not isinstance(given, list) or not all(isinstance(option, str | int | float) for option in given):
        raise _bad(where, "`options` must be a list of texts", 'Write "options": ["...", "..."].')
    options = tuple(_as_text(option).strip() for option in given)
    if not 2 <= len(options) <= len(LETTERS):
        raise _bad(where, f"{len(options)} options", f"Give 2 to {len(LETTERS)}, or none at all.")
    if "" in options or len(set(options)) < len(options):
        raise _bad(where, "an option is empty or stands twice", "Give each option once: only one can be right.")
    return options


def id_of(record: Mapping[str, Any], where: tuple[str, int], *content: object) -> str:
    """The record's own id, else one made of its content, so that moving a line changes nothing."""
    own = text_of(record, "id", where) or text_of(record, "question_id", where)
    return own or digest(content)[:16]


def _question(record: Mapping[str, Any], where: tuple[str, int]) -> Question:
    _check_keys(record, where)
    text = text_of(record, "question", where, required=True)
    options = options_of(record, where)
    given = _references(record, where)
    kind = _kind(record, options, given, where)
    system = text_of(record, "system", where)
    answers: tuple[str, ...]
    if kind is AnswerKind.CHOICE:
        if len(given) > 1:
            raise _bad(where, "a choice with several answers", "Give one `answer`: the right option's letter.")
        answers = (_letter(given[0], options, where),)
    else:
        answers = tuple(_as_text(answer).strip() for answer in given)
        wrong = next((answer for answer in answers if not _comparable(answer, kind)), None)
        if wrong is not None:
            raise _bad(where, f"no {kind.value} answer can equal {wrong!r}", "Correct `answer`, or the `kind`.")
    return Question(
        id_of(record, where, text, options, system),
        text,
        kind,
        answers,
        options,
        _tolerance(record, kind, answers, where),
        text_of(record, "subdomain", where) or text_of(record, "class", where),
        system,
        where,
    )


def _references(record: Mapping[str, Any], where: tuple[str, int]) -> list[Any]:
    several = record.get("answers", [])
    given = [*([record["answer"]] if record.get("answer") is not None else []), *_listed(several, where)]
    if not given:
        raise _bad(where, "there is no answer", 'Write "answer": what is right.')
    if not all(isinstance(answer, str | int | float) and not isinstance(answer, bool) for answer in given):
        raise _bad(where, "an answer must be a text or a number", 'Write "answer": "...".')
    return given


def _listed(several: object, where: tuple[str, int]) -> list[Any]:
    if not isinstance(several, list):
        raise _bad(where, "`answers` must be a list", 'Write "answers": ["...", "..."], or one "answer".')
    return several


def _kind(
    record: Mapping[str, Any], options: Sequence[str], given: Sequence[Any], where: tuple[str, int]
) -> AnswerKind:
    written = record.get("kind")
    if written is None:
        if options:
            return AnswerKind.CHOICE
        numbers = all(number(_as_text(answer)) is not None for answer in given)
        return AnswerKind.NUMERIC if numbers else AnswerKind.EXACT
    if written not in list(AnswerKind):
        raise _bad(where, f"there is no kind {written!r}", f"Write one of: {', '.join(AnswerKind)}.")
    kind = AnswerKind(written)
    if (kind is AnswerKind.CHOICE) != bool(options):
        raise _bad(
            where, f"kind {kind.value} and {len(options)} options", "Options go with kind choice, and only with it."
        )
    return kind


def _letter(answer: Any, options: Sequence[str], where: tuple[str, int]) -> str:
    """The letter of the right option. An answer that two options could be meant by is refused, not guessed."""
    meant: set[int] = set()
    if isinstance(answer, int) and 0 <= answer < len(options):
        meant.add(answer)
    text = _as_text(answer).strip()
    meant.update(index for index, option in enumerate(options) if option == text)
    if not meant:
        meant.update(index for index, option in enumerate(options) if normalised(option) == normalised(text) != "")
    bare = text.strip("(). ").upper()
    if isinstance(answer, str) and len(bare) == 1 and bare in LETTERS[: len(options)]:
        meant.add(LETTERS.index(bare))
    if len(meant) != 1:
        how = "names none of the options" if not meant else "may mean either of two options"
        raise _bad(where, f"the answer {answer!r} {how}", f"Give its letter, A to {LETTERS[len(options) - 1]}.")
    return LETTERS[meant.pop()]


def _comparable(answer: str, kind: AnswerKind) -> bool:
    return number(answer) is not None if kind is AnswerKind.NUMERIC else normalised(answer) != ""


def _tolerance(
    record: Mapping[str, Any], kind: AnswerKind, answers: Sequence[str], where: tuple[str, int]
) -> float | None:
    given = record.get("tolerance")
    if given is None:
        return None
    if kind is not AnswerKind.NUMERIC:
        raise _bad(where, f"a tolerance and kind {kind.value}", 'Leave it out, or write "kind": "numeric".')
    share = given[:-1] if isinstance(given, str) and given.endswith("%") else None
    try:
        if isinstance(given, bool):
            raise ValueError
        value = float(given if share is None else share)
    except (TypeError, ValueError):
        value = -1.0
    if not 0 <= value < float("inf"):
        raise _bad(where, f"the tolerance {given!r}", 'Write a distance, as 0.01, or a share of the answer, as "1%".')
    if share is None:
        return value
    sizes = [abs(found.value) for answer in answers if (found := number(answer)) is not None]
    return value / 100 * min(sizes)


def _is_gradable(record: Mapping[str, Any]) -> bool:
    if not isinstance(record.get("question"), str) or ("answer" not in record and "answers" not in record):
        return False
    if record.get("options") is not None or record.get("kind") is not None:
        return True
    answer = record.get("answer")
    if isinstance(answer, str):
        short = len(answer.split()) <= _SHORT_WORDS and "\n" not in answer.strip()
        return short and (number(answer) is not None or normalised(answer) != "")
    return isinstance(answer, int | float) and not isinstance(answer, bool)


def _unique(questions: Iterator[Question]) -> QuestionSet:
    kept: dict[str, Question] = {}
    ids: dict[str, Question] = {}
    duplicates = 0
    for question in questions:
        key = digest([question.question, question.options, question.system])
        earlier = kept.get(key)
        if earlier is not None and earlier.answers == question.answers:
            duplicates += 1
            continue
        other = earlier or ids.get(question.id)
        if other is not None:
            what = "the same question with another answer" if earlier else f"the id {question.id!r} of another question"
            raise _bad(question.source, f"{what} stands in line {other.source[1]} of {other.source[0]}", "Correct one.")
        kept[key] = ids[question.id] = question
    if not kept:
        raise EvaluationError("There are no questions.", 'Write lines of {"question": ..., "answer": ...}.')
    return QuestionSet(tuple(kept.values()), duplicates)


def _check_keys(record: Mapping[str, Any], where: tuple[str, int]) -> None:
    for key in record:
        near = difflib.get_close_matches(key.lower(), KEYS, 1, 0.85) if key not in KEYS else []
        if near and near[0] not in record:
            raise _bad(where, f"`{key}` is no key", f"Did you mean `{near[0]}`?")


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _bad(where: tuple[str, int], what: str, remedy: str) -> EvaluationError:
    return EvaluationError(f"{where[0]}, line {where[1]}: {what}.", remedy)
