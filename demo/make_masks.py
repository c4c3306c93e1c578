"""The demo's pruning masks, planned anew: `python -m coe.demo.make_masks [--parent GGUF] [--folder F]`, some seconds.

A mask for each domain but one, planned from a profile of its training questions, and for that one the questions that
it is built from before the viewer's eyes. To be run again for every new parent: a mask belongs to one file.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from coe.engine.spec import LoadSpec
from coe.surgery.mask import Mask
from coe.surgery.plan.methods import TopK
from coe.surgery.plan.planning import plan
from coe.surgery.profile.corpus import CorpusFile, read_corpus
from coe.surgery.profile.run import profile_corpus

from .asking import drawn_evenly
from .curriculum import DOMAINS, CurriculumQuestion, questions
from .shipped import FOLDER, PARENT

BUILT_LATER: Final = "law"
_CORPUS: Final = 150  # questions of a domain
_EXAM: Final = 60


def make_masks(parent: Path, n_keep: int | None = None) -> dict[str, Mask]:
    """Domain -> its mask: the experts of highest gate mass, half of them unless told.

    Raises SurgeryError, EngineError.
    """
    with tempfile.TemporaryDirectory(prefix="coe-") as folder:
        corpus = Path(folder) / "corpus.jsonl"
        lines = [
            {"question": question.text, "answer": question.answer, "class": domain}
            for domain in DOMAINS
            for question in corpus_of(domain)
        ]
        corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
        profile = profile_corpus(
            parent,
            read_corpus([CorpusFile(corpus)]),
            Path(folder) / "profile.npz",
            load=LoadSpec(parent, context_tokens=1024, gpu_layers=0, threads=1),
        )
    count = n_keep or profile.parent.n_expert // 2
    return {domain: plan(profile.of_class(domain), count, TopK()) for domain in DOMAINS}


def corpus_of(domain: str) -> list[CurriculumQuestion]:
    """Training questions of a domain, the same ones every time."""
    taught = [question for question in questions(domain) if not question.held_out]
    return drawn_evenly(taught, _CORPUS, random.Random(f"corpus {domain}"))


def exam_of(domain: str) -> list[CurriculumQuestion]:
    """Questions to judge a domain's specialist by, whose answers are short enough to be compared word for word."""
    short = [question for question in questions(domain) if question.held_out and len(question.key.split()) <= 3]
    return drawn_evenly(short, _EXAM, random.Random(f"exam {domain}"))


def write(masks: Mapping[str, Mask], folder: Path) -> list[Path]:
    """Masks, and what the domain without one is built from and judged by. Gives the files' paths."""
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    (folder / "corpora").mkdir(exist_ok=True)
    paths = []
    for domain, mask in masks.items():
        if domain != BUILT_LATER:
            paths.append(folder / "masks" / f"{domain}.json")
            mask.save(paths[-1])
    corpus, exam = (folder / "corpora" / f"{BUILT_LATER}{end}.jsonl" for end in ("", "-exam"))
    # As conversations: a line with a question and a short answer would be taken for one to be judged by as well.
    _write_lines(corpus, [{"messages": _conversation(question)} for question in corpus_of(BUILT_LATER)])
    _write_lines(exam, [{"question": q.text, "answer": q.key, "subdomain": q.skill} for q in exam_of(BUILT_LATER)])
    return [*paths, corpus, exam]


def _conversation(question: CurriculumQuestion) -> list[dict[str, str]]:
    return [{"role": "user", "content": question.text}, {"role": "assistant", "content": question.answer}]


def _write_lines(path: Path, lines: Sequence[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parent", type=Path, default=PARENT)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    given = parser.parse_args()
    for path in write(make_masks(given.parent), given.folder):
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
