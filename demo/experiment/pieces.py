"""The measurements of the experiment, each a piece of work that is kept as JSON and not done again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from coe.engine.files import written_beside
from coe.engine.request import Finish
from coe.engine.spec import LoadSpec, Sampling, Thinking, ThinkingMode
from coe.surgery.judge.answers import answer_questions
from coe.surgery.judge.generation import GREEDY
from coe.surgery.mask import Mask
from coe.surgery.parent import Parent
from coe.surgery.profile.corpus import CorpusFile, read_corpus
from coe.surgery.profile.run import profile_corpus
from coe.surgery.study.growth import Growth

from ..asking import CheckedAnswer, Manner, ask, ask_cut, drawn_evenly
from ..curriculum import DOMAINS, CurriculumQuestion
from .design import BUDGET_TOKENS, HALF, METHODS, THINKING, ExperimentPlan, kept_of
from .sample import Sample, questions_of

Json = dict[str, Any]


class Pieces:
    """Finished pieces of work, a JSON file each."""

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        """Makes the folder. tell: hears of every piece that is made."""
        self.folder = folder
        self._tell = tell
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, make: Callable[..., Json], *arguments: Any) -> Json:
        """The piece of this name, made if it is not there yet."""
        path = self.folder / f"{name}.json"
        if path.exists():
            kept: Json = json.loads(path.read_text())
            return kept
        began = time.perf_counter()
        piece = make(*arguments)
        with written_beside(path) as beside:
            beside.write_text(json.dumps(piece))
        self._tell(f"{name} ({time.perf_counter() - began:.1f} s)")
        return piece


def _rights(answers: Sequence[CheckedAnswer]) -> list[int]:
    return [int(answer.right) for answer in answers]


def at_home(parent: Parent, sample: Sample) -> Json:
    """The parent's own answers: domain -> right or not, of the sample's exam."""
    return {domain: _rights(ask(parent.path, exam)) for domain, exam in sample.exam.items()}


def by_method(parent: Parent, sample: Sample, domain: str, plan: ExperimentPlan) -> Json:
    """method -> share -> right or not, at home."""
    profile = sample.profile()
    return {
        method.name: {
            str(share): _rights(
                ask_cut(
                    parent,
                    method.mask(profile, domain, kept_of(parent, share), seed=sample.number),
                    sample.exam[domain],
                )
            )
            for share in plan.shares
        }
        for method in METHODS
    }


def by_corpus(parent: Parent, sample: Sample, domain: str, plan: ExperimentPlan) -> Json:
    """corpus size -> its tokens, and for each share the overlap with the whole corpus' mask and the rights at home."""
    base = METHODS[0]
    found: Json = {}
    for size in plan.corpora:
        profile = sample.profile(size)
        shares = {}
        for share in plan.corpus_shares:
            count = kept_of(parent, share)
            mask = base.mask(profile, domain, count, seed=0)
            whole = base.mask(sample.profile(), domain, count, seed=0)
            shares[str(share)] = {
                "jaccard": _jaccard(mask, whole),
                "rights": _rights(ask_cut(parent, mask, sample.exam[domain])),
            }
        found[str(size)] = {"tokens": profile.of_class(domain).n_tokens, "shares": shares}
    return found


def _jaccard(one: Mask, other: Mask) -> float:
    first, second = one.matrix(), other.matrix()
    return float(((first & second).sum(1) / (first | second).sum(1)).mean())


def grown(parent: Parent, sample: Sample, domain: str, plan: ExperimentPlan, folder: Path) -> Json:
    """Where `--until-stable` ends on the domain's training questions."""
    taught = drawn_evenly(questions_of(domain, held_out=False), plan.growth, sample.draw(f"growth {domain}"))
    lines = [{"question": q.text, "answer": q.answer, "class": domain} for q in taught]
    corpus = folder / f"growth-{domain}.jsonl"
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
    watcher = Growth(kept_of(parent, HALF))
    documents = read_corpus([CorpusFile(corpus)])
    load = LoadSpec(parent.path, context_tokens=1024, gpu_layers=0, threads=1)
    profile = profile_corpus(parent.path, documents, folder / f"growth-{domain}.npz", load=load, watcher=watcher)
    return {
        "settled": watcher.settled,
        "tokens": profile.n_tokens,
        "documents": int(profile.documents.sum()),
        "steps": [asdict(step) for step in watcher.steps],
    }


def answered(parent: Parent, sample: Sample, domain: str, plan: ExperimentPlan, folder: Path) -> Json:
    """The same questions answered by the parent itself, in place of the gold answers."""
    asked = folder / f"questions-{sample.number}-{domain}.jsonl"
    asked.write_text("".join(json.dumps({"question": q.text, "class": domain}) + "\n" for q in sample.taught[domain]))
    corpus = folder / f"answered-{sample.number}-{domain}.jsonl"
    load = LoadSpec(parent.path, context_tokens=512, cache_tokens=8192, parallel=16, gpu_layers=0, threads=1)
    told = answer_questions(parent.path, [asked], corpus, load=load, folder=folder / "answers")
    lines = [json.loads(line) for line in corpus.read_text().splitlines()]
    theirs = sample.profiled(lines, folder / f"answered-{sample.number}-{domain}.npz")
    base, gold = METHODS[0], {q.text: q.answer for q in sample.taught[domain]}
    found: Json = {
        "written": told.written,
        "questions": told.questions,
        "dropped": told.looped + told.empty + told.failed,
        "same": sum(gold[line["question"]] == line["answer"] for line in lines),
        "shares": {},
    }
    for share in plan.corpus_shares:
        count = kept_of(parent, share)
        mask = base.mask(theirs, domain, count, seed=0)
        found["shares"][str(share)] = {
            "jaccard": _jaccard(mask, base.mask(sample.profile(), domain, count, seed=0)),
            "rights": _rights(ask_cut(parent, mask, sample.exam[domain])),
        }
    return found


def visits(parent: Parent, sample: Sample, share: float, plan: ExperimentPlan) -> Json:
    """visitor -> target -> right or not, every specialist on every domain's exam."""
    base, profile, count = METHODS[0], sample.profile(), kept_of(parent, share)
    everything = [(target, question) for target in DOMAINS for question in sample.exam[target][: plan.visits]]
    found: Json = {}
    for visitor in DOMAINS:
        mask = base.mask(profile, visitor, count, seed=0)
        answers = ask_cut(parent, mask, [question for _, question in everything])
        row: dict[str, list[int]] = {target: [] for target in DOMAINS}
        for (target, _), answer in zip(everything, answers, strict=True):
            row[target].append(int(answer.right))
        found[visitor] = row
    return found


def loops(parent: Parent, sample: Sample, model: str, share: float, plan: ExperimentPlan) -> Json:
    """where (home or away) -> thinking -> sampling -> what became of the questions, with a second attempt at loops.

    model: a domain, for its specialist, or "parent" for the parent itself, which is at home everywhere.
    """
    draw = sample.draw(f"loops {model}")
    own = list(sample.exam.get(model, [question for exam in sample.exam.values() for question in exam]))
    foreign = [] if model == "parent" else [q for domain, exam in sample.exam.items() if domain != model for q in exam]
    sets = {"home": own, "away": foreign}
    mask = None if model == "parent" else METHODS[0].mask(sample.profile(), model, kept_of(parent, share), seed=0)
    found: Json = {}
    for where, pool in sets.items():
        chosen = draw.sample(pool, min(plan.loops, len(pool)))
        if not chosen:
            continue
        found[where] = {
            thinking: {
                name: _fate(parent, mask, chosen, Manner(policy(thinking), sampling, plan.loop_tokens, retries=1))
                for name, sampling in (("greedy", GREEDY), ("drawn", Sampling()))
            }
            for thinking in THINKING
        }
    return found


def policy(thinking: str) -> Thinking:
    """One of the three policies that a roster knows."""
    mode = ThinkingMode(thinking)
    return Thinking(mode, BUDGET_TOKENS if mode is ThinkingMode.BUDGET else None)


def _fate(parent: Parent, mask: Mask | None, asked: Sequence[CurriculumQuestion], manner: Manner) -> Json:
    def run(questions_: Sequence[CurriculumQuestion], how: Manner) -> list[CheckedAnswer]:
        return ask(parent.path, questions_, how) if mask is None else ask_cut(parent, mask, questions_, how)

    answers = run(asked, manner)
    looped = [(question, answer) for question, answer in zip(asked, answers, strict=True) if answer.looped]
    # What the same loops would have cost without the guard.
    unguarded = run([question for question, _ in looped], replace(manner, loop_guard=False, retries=0))
    return {
        "n": len(answers),
        "right": sum(answer.right for answer in answers),
        "looped": len(looped),
        "at_limit": sum(answer.reason is Finish.LENGTH and not answer.looped for answer in answers),
        "recovered": sum(answer.reason is Finish.STOP for _, answer in looped),
        "recovered_right": sum(answer.right for _, answer in looped),
        "guarded_tokens": sum(answer.tokens for _, answer in looped),
        "retried_tokens": sum(answer.retried_tokens for _, answer in looped),
        "unguarded_tokens": sum(answer.tokens for answer in unguarded),
        "unguarded_ended": sum(answer.reason is Finish.STOP for answer in unguarded),
    }
