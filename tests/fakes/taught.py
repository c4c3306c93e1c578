"""The demo's trained parent for tests of surgery: what it was taught and what it was not, in the forms tools read.

A random router routes every text alike and a random model is right by luck. This one knows six domains, answers in
milliseconds, and has a mask for each of five of them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from coe.demo import shipped
from coe.demo.asking import drawn_evenly
from coe.demo.curriculum import CurriculumQuestion, questions
from coe.engine.spec import LoadSpec
from coe.surgery.mask import Mask
from coe.surgery.profile.corpus import Document
from coe.surgery.study.compare import compare

PARENT: Final = shipped.PARENT
HALF: Final = 32  # of its experts a layer
WITH_MASKS: Final = ("math", "chemistry", "physics", "python", "general")
ANSWER_TOKENS: Final = 48  # for any answer that is not thought about, and the line that `coe eval` asks for

READING: Final = LoadSpec(PARENT, context_tokens=1024, gpu_layers=0, threads=1)
ANSWERING: Final = LoadSpec(PARENT, context_tokens=256, cache_tokens=2048, parallel=8, gpu_layers=0, threads=1)


def corpus(domain: str, count: int, seed: int = 0) -> list[CurriculumQuestion]:
    """Questions that the parent was trained on."""
    return drawn_evenly([q for q in questions(domain) if not q.held_out], count, random.Random(seed))


def exam(domain: str, count: int, seed: int = 0) -> list[CurriculumQuestion]:
    """Questions that it was not trained on, with answers short enough for `coe eval` to compare."""
    short = [q for q in questions(domain) if q.held_out and len(q.key.split()) <= 3]
    return drawn_evenly(short, count, random.Random(seed))


def conversation(question: CurriculumQuestion, category: str | None = None) -> Document:
    """A question and its answer, as the parent was taught them; of its domain's class unless told."""
    return Document(category or question.domain, messages=(("user", question.text), ("assistant", question.answer)))


def write_corpus(path: Path, asked: Sequence[CurriculumQuestion]) -> Path:
    """Conversations as JSON lines; nothing in them is taken for a question to judge by."""
    lines = []
    for question in asked:
        turns = [{"role": role, "content": content} for role, content in conversation(question).messages]
        lines.append(json.dumps({"messages": turns}) + "\n")
    path.write_text("".join(lines))
    return path


def write_exam(path: Path, asked: Sequence[CurriculumQuestion]) -> Path:
    """Questions as JSON lines, each with the right answer and, as subdomain, its domain."""
    lines = [json.dumps({"question": q.text, "answer": q.key, "subdomain": q.domain}) + "\n" for q in asked]
    path.write_text("".join(lines))
    return path


def mask_of(domain: str) -> Mask:
    """The mask that the demo ships."""
    return Mask.load(PARENT.parent / "masks" / f"{domain}.json")


def nearest(mask: Mask) -> str:
    """The domain whose mask has most in common with this one."""
    return max(WITH_MASKS, key=lambda domain: overlap(mask, domain))


def overlap(mask: Mask, domain: str) -> float:
    """Jaccard index of a mask and a domain's own, mean over the layers."""
    return float(compare({"given": mask, domain: mask_of(domain)}).jaccard[0, 1])
