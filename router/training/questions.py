"""Labelled questions as JSON lines: `label`, `text` and, where known, `source`."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ..domains import DOMAINS, canonical
from ..errors import RouterError
from ..files import read_file

_MOST_BYTES = 2**30  # of a file of questions


class QuestionsError(RouterError):
    """A line of a file of labelled questions cannot be used."""


@dataclass(frozen=True)
class LabelledQuestion:
    """A text, the label it belongs to, and where it comes from."""

    label: str
    text: str
    source: str = "?"


def read_questions(
    path: Path, labels: Collection[str] = DOMAINS, *, remedy: str = "write one of these"
) -> list[LabelledQuestion]:
    """The questions of a file, their labels as people write them. Raises QuestionsError naming file, line and remedy.

    remedy: what to do about a label that is none of the `labels`.
    """
    try:
        text = read_file(path, _MOST_BYTES).decode("utf-8-sig")  # Windows begins a file with a byte order mark
    except OSError as error:
        raise QuestionsError(f"{path} cannot be read: {error.strerror}; it should be JSON lines in UTF-8") from error
    except UnicodeDecodeError as error:
        raise QuestionsError(f"{path} is not UTF-8; it should be JSON lines in UTF-8") from error
    found = []
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() also cuts at U+2028
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise QuestionsError(f'{path}:{number}: no JSON ({error}); write {{"label": ..., "text": ...}}') from error
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("label", "text")):
            raise QuestionsError(f'{path}:{number}: "label" and "text" are wanted, both as strings')
        if not row["text"].strip():
            raise QuestionsError(f"{path}:{number}: the text is empty; remove the line")
        label = row["label"] if row["label"] in labels else canonical(row["label"])
        if label not in labels:
            raise QuestionsError(f"{path}:{number}: label {row['label']!r} is not one of {', '.join(labels)}; {remedy}")
        found.append(LabelledQuestion(label, row["text"], str(row.get("source") or "?")))
    if not found:
        raise QuestionsError(f'{path} holds no question; a line is {{"label": ..., "text": ...}}')
    return found
