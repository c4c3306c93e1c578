"""Texts written for this project, beside the English prompts: prompts in other languages, contests, tasks upon a text,
and wrappers, which is what programs and people put around a question.

`texts/` is for training. Others of the same kinds, by the same hands, are kept for measuring (benchmarks/router_texts).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from .questions import LabelledQuestion

TEXTS: Final = Path(__file__).parent / "texts"
_FIELD: Final = re.compile(r"\{(question|options|context|examples|subject)\}")
_MARK: Final = re.compile(r"[A-Za-z0-9]")


class Part(StrEnum):
    """What a stretch of a wrapped question is."""

    QUESTION = "question"
    OPTIONS = "options"
    CONTEXT = "context"  # a passage that was retrieved, of the subject or not
    FRAME = "frame"  # instructions, examples, markup


@dataclass(frozen=True)
class Stretch:
    """Characters from `start` to `end`, not with it, of a text."""

    start: int
    end: int
    part: Part


@dataclass(frozen=True)
class Wrapped:
    """A question in its wrapper. stretches: of the whole text, in order, without gaps."""

    text: str
    stretches: tuple[Stretch, ...]


@dataclass(frozen=True)
class Wrapper:
    """What is put around a question.

    kind:          what it imitates: `exam`, `retrieved`, `agent` ...
    template:      has {question} once, and may have {options}, {context}, {examples} and {subject}.
    option_style:  the mark of the first option, "A. "; the others count on from it.
    example_style: of one example, with {q} and {a}.
    """

    kind: str
    template: str
    option_style: str = ""
    example_style: str = ""

    def has(self, field: str) -> bool:
        """Whether the template has a field, such as `options`."""
        return f"{{{field}}}" in self.template

    def around(
        self,
        question: str,
        *,
        options: Sequence[str] = (),
        context: str = "",
        examples: Sequence[tuple[str, str]] = (),
        subject: str = "",
    ) -> Wrapped:
        """The wrapped question. options: needed where the template has them. examples: questions and their answers."""
        written = {
            "options": "\n".join(map(str.__add__, option_marks(self.option_style, len(options)), options)),
            "context": context,
            "examples": "".join(self.example_style.replace("{q}", q).replace("{a}", a) for q, a in examples),
            "subject": subject,
        }
        text, stretches = "", []
        for piece, is_field in _pieces(self.template):
            if is_field and piece == "question":
                value, part = _fitted(question, self.template, text), Part.QUESTION
            elif is_field:
                value = written[piece]
                part = {"options": Part.OPTIONS, "context": Part.CONTEXT}.get(piece, Part.FRAME)
            else:
                value, part = piece, Part.FRAME
            if value:
                stretches.append(Stretch(len(text), len(text) + len(value), part))
            text += value
        return Wrapped(text, tuple(stretches))


def option_marks(first: str, count: int) -> list[str]:
    """The marks of so many options: `(a) `, `(b) ` after `(a) `; `2) ` after `1) `."""
    mark = _MARK.search(first)
    if mark is None:
        return [first] * count
    start, end = first[: mark.start()], first[mark.end() :]
    one = mark.group()
    return [f"{start}{int(one) + n if one.isdecimal() else chr(ord(one) + n)}{end}" for n in range(count)]


def _pieces(template: str) -> Iterator[tuple[str, bool]]:
    """The template's texts and the names of its fields, in turn: (piece, whether it is a field)."""
    for number, piece in enumerate(_FIELD.split(template)):
        yield piece, number % 2 == 1


def _fitted(question: str, template: str, before: str) -> str:
    """The question as the place where it stands writes it: escaped within a JSON string, indented in a YAML block."""
    if before.endswith('"') and before.lstrip().startswith(("{", "[")):
        return json.dumps(question, ensure_ascii=False)[1:-1]
    line = before[before.rfind("\n") + 1 :]
    if line and not line.strip() and re.search(r":\s*[|>]-?\n\s+\{question\}", template):
        return question.replace("\n", f"\n{line}")
    return question


def read_texts(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of texts."""
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]


def prompts_by_language(folder: Path = TEXTS) -> Mapping[str, list[LabelledQuestion]]:
    """Prompts in other languages, by ISO 639-1 code."""
    return {path.stem: _labelled(path, path.stem) for path in sorted((folder / "languages").glob("*.jsonl"))}


def contests(folder: Path = TEXTS) -> list[LabelledQuestion]:
    """Problems of programming contests (coding, python), and questions of theory that are near to them."""
    return _labelled(folder / "contests.jsonl", "contests")


def tasks(folder: Path = TEXTS) -> list[tuple[LabelledQuestion, bool]]:
    """Tasks upon a text, labelled with the text's subject, and whether they need knowledge of it."""
    rows = read_texts(folder / "tasks.jsonl")
    return [(LabelledQuestion(row["label"], row["text"], "tasks"), row["needs_subject"]) for row in rows]


def easily_mistaken(folder: Path = TEXTS) -> list[LabelledQuestion]:
    """General prompts with the words of a domain in them."""
    return _labelled(folder / "general_kinds.jsonl", "general")


def wrappers(folder: Path = TEXTS) -> list[Wrapper]:
    """Wrappers of many kinds."""
    return [Wrapper(**row) for row in read_texts(folder / "wrappers.jsonl")]


def _labelled(path: Path, source: str) -> list[LabelledQuestion]:
    return [LabelledQuestion(row["label"], row["text"], source) for row in read_texts(path)]
