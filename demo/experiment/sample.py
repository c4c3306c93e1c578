"""A sample of the experiment: corpora and held-out exams drawn by seed, and their profiles."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from coe.engine.spec import LoadSpec
from coe.surgery.parent import Parent
from coe.surgery.profile.corpus import CorpusFile, read_corpus
from coe.surgery.profile.profile import Profile, combine
from coe.surgery.profile.run import profile_corpus

from ..asking import drawn_evenly
from ..curriculum import DOMAINS, CurriculumQuestion, questions
from .design import REASONING, ExperimentPlan


class Sample:
    """One draw of corpora and exams for a parent: everything in it follows from the sample's number."""

    def __init__(self, number: int, plan: ExperimentPlan, parent: Parent, folder: Path) -> None:
        self.number, self._plan, self._parent, self._folder = number, plan, parent, folder

    def draw(self, what: str) -> random.Random:
        """Chance that depends on the sample and on what it is for, and on nothing that was drawn before."""
        return random.Random(f"{self.number} {what}")

    @cached_property
    def taught(self) -> dict[str, list[CurriculumQuestion]]:
        """Domain -> its corpus: training questions in mixed order."""
        return {
            domain: drawn_evenly(questions_of(domain, held_out=False), self._plan.corpus, self.draw(f"corpus {domain}"))
            for domain in DOMAINS
        }

    @cached_property
    def exam(self) -> dict[str, list[CurriculumQuestion]]:
        """Domain -> held-out questions."""
        return {
            domain: drawn_evenly(questions_of(domain, held_out=True), self._plan.exam, self.draw(f"exam {domain}"))
            for domain in DOMAINS
        }

    @cached_property
    def banded(self) -> Profile:
        """The profile of all corpora and of the thoughts; a class `domain N` is what makes a corpus one of N."""
        out = self._folder / f"profile-{self.number}.npz"
        if out.exists():
            return Profile.load(out)
        lines = [
            {"question": question.text, "answer": question.answer, "class": f"{domain} {_band(self._plan, at)}"}
            for domain, corpus in self.taught.items()
            for at, question in enumerate(corpus)
        ]
        lines += [{"text": thought, "class": REASONING} for thought in self._thoughts()]
        return self.profiled(lines, out)

    def _thoughts(self) -> Iterator[str]:
        for domain in DOMAINS:
            chosen = drawn_evenly(
                questions_of(domain, held_out=False), self._plan.thoughts, self.draw(f"thoughts {domain}")
            )
            yield from (question.thought for question in chosen)

    def profiled(self, lines: Sequence[Mapping[str, Any]], out: Path) -> Profile:
        """What the parent's router does with documents."""
        corpus = out.with_suffix(".jsonl")
        corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
        load = LoadSpec(self._parent.path, context_tokens=1024, gpu_layers=0, threads=1)
        return profile_corpus(self._parent.path, read_corpus([CorpusFile(corpus)]), out, norms=True, load=load)

    def profile(self, size: int | None = None) -> Profile:
        """A class a domain, each of the first `size` questions of its corpus, and the class of reasoning."""
        size = size or self._plan.corpus
        parts = [
            replace(self.banded.of_class(name), classes=(domain,), corpus_sha256=f"{self.banded.corpus_sha256} {name}")
            for domain in DOMAINS
            for name in (f"{domain} {band}" for band in self._plan.corpora if band <= size)
        ]
        return combine([*parts, self.banded.of_class(REASONING)])


def _band(plan: ExperimentPlan, at: int) -> int:
    return next(size for size in plan.corpora if at < size)


def questions_of(domain: str, *, held_out: bool) -> list[CurriculumQuestion]:
    """A domain's questions that are kept for testing, or the others."""
    return [question for question in questions(domain) if question.held_out is held_out]
