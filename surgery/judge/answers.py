"""A self-generated corpus (self-distillation): questions with the parent's own answers, think-off, in batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coe.engine.files import written_beside
from coe.engine.pool.resident import WorkerResident
from coe.engine.request import Finish
from coe.engine.spec import LoadSpec

from ..errors import EvaluationError
from ..files import require_output
from .generation import DEFAULT, BatchPrompt, GenerationSettings, OnProgress, Start, generate
from .questions import id_of, options_of, records, text_of
from .values import asked, with_options


@dataclass(frozen=True)
class Unanswered:
    """A question whose answer need not be known. question: with its options below it."""

    id: str
    question: str
    category: str = ""
    system: str = ""


@dataclass(frozen=True)
class Answered:
    """What became of the questions.

    written:   questions in the corpus, with the answers that were cut by the token limit (`truncated`) among them.
    looped:    dropped, since a loop's text would count the same few experts again and again.
    empty, failed: dropped; the model wrote nothing, or the engine gave no answer (`first_error`).
    duplicates: lines that repeated an earlier question.
    """

    path: str
    corpus_sha256: str
    questions: int
    written: int
    truncated: int = 0
    looped: int = 0
    recovered: int = 0
    empty: int = 0
    failed: int = 0
    duplicates: int = 0
    tokens: int = 0
    first_error: str = ""

    def to_json(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)


def read_unanswered(paths: Sequence[Path]) -> tuple[list[Unanswered], int]:
    """Questions of JSONL files, each once, and how many lines repeated one.

    A line has `question`, and may have `options`, `class` (else `subdomain`, else `category`), `system`, `id`. Answers
    that stand there are not looked at. Raises EvaluationError, naming file and line.
    """
    found: dict[str, Unanswered] = {}
    count = 0
    for path in paths:
        for where, record in records(path):
            count += 1
            text = text_of(record, "question", where, required=True)
            options = options_of(record, where)
            system = text_of(record, "system", where)
            category = next(
                (named for key in ("class", "subdomain", "category") if (named := text_of(record, key, where))), ""
            )
            # Its own id does not count: the seed goes with what is asked, and a file may number anew.
            own = id_of({}, where, text, options, system)
            found.setdefault(own, Unanswered(own, with_options(text, options), category, system))
    if not found:
        raise EvaluationError("There are no questions.", 'Write lines of {"question": ...}.')
    return list(found.values()), count - len(found)


def answer_questions(
    parent: Path,
    paths: Sequence[Path],
    out: Path,
    *,
    settings: GenerationSettings = DEFAULT,
    load: LoadSpec | None = None,
    folder: Path | None = None,
    progress: OnProgress = lambda progress: None,
    start: Start = WorkerResident.start,
) -> Answered:
    """Write a corpus of {question, answer, class} lines, in the questions' order, with the parent's own answers.

    The model is asked the question and its options and nothing else: no instruction that would be profiled with every
    question. An answer that the token limit cut is kept and marked `truncated`: what it says up to there is the
    model's own. One that loops, after a fresh seed too, is dropped.
    Interrupted, it goes on where it stopped; the corpus appears when all is answered.
    Raises EvaluationError when nothing is left to write, EngineError when the model does not load.
    """
    require_output(out, [parent, *paths])
    questions, duplicates = read_unanswered(paths)
    prompts = [BatchPrompt(question.id, asked(question.question, question.system)) for question in questions]
    answers = generate(parent, prompts, settings, load=load, folder=folder, progress=progress, start=start)
    lines = []
    truncated = looped = empty = 0
    for question, answer in zip(questions, answers, strict=True):
        if answer.error:
            continue
        if answer.reason == Finish.LOOP:
            looped += 1
        elif not answer.text.strip():
            empty += 1
        else:
            record: dict[str, Any] = {"question": question.question, "answer": answer.text.strip()}
            if question.category:
                record["class"] = question.category
            if question.system:
                record["system"] = question.system
            if answer.reason == Finish.LENGTH:
                record["truncated"] = True
                truncated += 1
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    errors = [answer.error for answer in answers if answer.error]
    if not lines:
        why = errors[0] if errors else f"{looped} answers looped, {empty} were empty."
        raise EvaluationError(f"{parent.name} gave no answer that could be learned from. {why}", "Look at its answers.")
    content = "".join(lines).encode()
    with written_beside(out) as beside:
        beside.write_bytes(content)
    return Answered(
        str(out),
        hashlib.sha256(content).hexdigest(),
        len(questions),
        len(lines),
        truncated,
        looped,
        sum(answer.looped and answer.reason != Finish.LOOP for answer in answers),
        empty,
        len(errors),
        duplicates,
        sum(answer.spent_tokens for answer in answers),
        errors[0] if errors else "",
    )
