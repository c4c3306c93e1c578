"""The cards' claims put to the tiny parent: `python -m coe.demo.experiment [--quick] [--folder F] [--parent GGUF ...]`.

Every piece of the work is kept as JSON in the folder as soon as it is there, and not done again: interrupt it as you
like. In the end docs/experiments.md and its plots are written anew from the pieces; `report` says how.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from coe.engine.files import cache_folder, written_beside
from coe.engine.request import Finish
from coe.engine.spec import LoadSpec, Sampling, Thinking, ThinkingMode
from coe.surgery.judge.answers import answer_questions
from coe.surgery.judge.generation import GREEDY
from coe.surgery.mask import Mask
from coe.surgery.parent import Parent
from coe.surgery.plan import planning
from coe.surgery.plan.criteria import CRITERIA
from coe.surgery.plan.methods import DropMap, SelectionMethod, ThreePass, TopK
from coe.surgery.profile.corpus import CorpusFile, read_corpus
from coe.surgery.profile.profile import Profile, combine
from coe.surgery.profile.run import profile_corpus
from coe.surgery.study.growth import Growth

from .asking import Answer, Manner, ask, ask_cut, drawn_evenly
from .curriculum import DOMAINS, Question, questions

SHIPPED: Final = Path(__file__).with_name("college-parent.gguf")

REASONING: Final = "reasoning"  # the class of the thoughts that the third pass reads
HALF: Final = 0.5
THINKING: Final = ("off", "budget", "on")
BUDGET_TOKENS: Final = 12

Json = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """How much is done.

    samples:   corpora, and question sets to go with each, drawn independently of each other.
    corpus:    training questions of a domain that its profile is made of, and the smaller corpora beside it.
    exam:      held-out questions of a domain, of one sample.
    shares:    of the experts that are kept.
    loops:     questions of a specialist's own domain, and of all others, for the loop rates.
    """

    samples: int = 4
    corpora: tuple[int, ...] = (1, 3, 10, 30, 100, 300)
    exam: int = 60
    shares: tuple[float, ...] = (0.75, 0.5, 0.375, 0.25)
    corpus_shares: tuple[float, ...] = (0.5, 0.25)
    visits: int = 60
    loops: int = 24
    loop_tokens: int = 700
    thoughts: int = 60  # of each domain
    growth: int = 2000  # training questions of a domain, for the question when a profile settles

    @property
    def corpus(self) -> int:
        """Questions of a whole corpus."""
        return self.corpora[-1]


FULL: Final = Plan()
QUICK: Final = Plan(
    samples=2,
    corpora=(3, 30, 100),
    exam=24,
    shares=(0.5, 0.25),
    corpus_shares=(0.5,),
    visits=16,
    loops=8,
    loop_tokens=700,
    thoughts=10,
    growth=150,
)


@dataclass(frozen=True)
class Method:
    """One way to choose experts. recipe: of `coe plan`; own: only the domain's own class is read."""

    name: str
    recipe: SelectionMethod
    criterion: str | None = None
    reasoning: bool = False
    own: bool = True

    def mask(self, profile: Profile, domain: str, n_keep: int, seed: int) -> Mask:
        """The domain's mask out of a profile with a class a domain and one of reasoning."""
        recipe = self.recipe
        read = profile.of_class(domain)
        if not self.own and isinstance(recipe, DropMap):
            read = combine([profile.of_class(one) for one in DOMAINS])
            recipe = replace(recipe, weights={one: 1.0 if one == domain else _OTHERS_WEIGH for one in DOMAINS})
        second = profile.of_class(REASONING) if self.reasoning else None
        return planning.plan(read, n_keep, recipe, criterion=self.criterion, second=second, seed=seed)


_OTHERS_WEIGH: Final = 0.2
BASE: Final = "top-k, gate-mass"
RANDOM: Final = "top-k, random"
METHODS: Final = (
    *(Method(f"top-k, {name}", TopK(), name) for name in CRITERIA),
    Method("three-pass", ThreePass()),
    Method("three-pass with reasoning", ThreePass(), reasoning=True),
    Method("drop-map, own class", DropMap()),
    Method("drop-map, all classes", DropMap(), own=False),
)


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


class Sample:
    """One draw of corpora and exams for a parent: everything in it follows from the sample's number."""

    def __init__(self, number: int, plan: Plan, parent: Parent, folder: Path) -> None:
        self.number, self._plan, self._parent, self._folder = number, plan, parent, folder

    def draw(self, what: str) -> random.Random:
        """Chance that depends on the sample and on what it is for, and on nothing that was drawn before."""
        return random.Random(f"{self.number} {what}")

    @cached_property
    def taught(self) -> dict[str, list[Question]]:
        """Domain -> its corpus: training questions in mixed order."""
        return {
            domain: drawn_evenly(_questions(domain, held_out=False), self._plan.corpus, self.draw(f"corpus {domain}"))
            for domain in DOMAINS
        }

    @cached_property
    def exam(self) -> dict[str, list[Question]]:
        """Domain -> held-out questions."""
        return {
            domain: drawn_evenly(_questions(domain, held_out=True), self._plan.exam, self.draw(f"exam {domain}"))
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
                _questions(domain, held_out=False), self._plan.thoughts, self.draw(f"thoughts {domain}")
            )
            yield from (question.thought for question in chosen)

    def profiled(self, lines: Sequence[Json], out: Path) -> Profile:
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


def _band(plan: Plan, at: int) -> int:
    return next(size for size in plan.corpora if at < size)


def _questions(domain: str, *, held_out: bool) -> list[Question]:
    return [question for question in questions(domain) if question.held_out is held_out]


def kept_of(parent: Parent, share: float) -> int:
    """Experts a layer that a share of them comes to."""
    return max(round(share * parent.experts.n_expert), parent.experts.n_used)


def _rights(answers: Sequence[Answer]) -> list[int]:
    return [int(answer.right) for answer in answers]


# --- the pieces -------------------------------------------------------------------------------------------------------


def at_home(parent: Parent, sample: Sample) -> Json:
    """The parent's own answers: domain -> right or not, of the sample's exam."""
    return {domain: _rights(ask(parent.path, exam)) for domain, exam in sample.exam.items()}


def by_method(parent: Parent, sample: Sample, domain: str, plan: Plan) -> Json:
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


def by_corpus(parent: Parent, sample: Sample, domain: str, plan: Plan) -> Json:
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


def grown(parent: Parent, sample: Sample, domain: str, plan: Plan, folder: Path) -> Json:
    """Where `--until-stable` ends on the domain's training questions."""
    taught = drawn_evenly(_questions(domain, held_out=False), plan.growth, sample.draw(f"growth {domain}"))
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


def answered(parent: Parent, sample: Sample, domain: str, plan: Plan, folder: Path) -> Json:
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


def visits(parent: Parent, sample: Sample, share: float, plan: Plan) -> Json:
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


def loops(parent: Parent, sample: Sample, who: str, share: float, plan: Plan) -> Json:
    """where (home or away) -> thinking -> sampling -> what became of the questions, with a second attempt at loops.

    who: a domain, or "parent" for the parent itself, which is at home everywhere.
    """
    draw = sample.draw(f"loops {who}")
    own = list(sample.exam.get(who, [question for exam in sample.exam.values() for question in exam]))
    foreign = [] if who == "parent" else [q for domain, exam in sample.exam.items() if domain != who for q in exam]
    sets = {"home": own, "away": foreign}
    mask = None if who == "parent" else METHODS[0].mask(sample.profile(), who, kept_of(parent, share), seed=0)
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


def _fate(parent: Parent, mask: Mask | None, asked: Sequence[Question], manner: Manner) -> Json:
    def run(questions_: Sequence[Question], how: Manner) -> list[Answer]:
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


# --- all of it --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Results:
    """All pieces of one parent. Every list has an entry a sample; see the functions above for what is in one."""

    parent: Parent
    samples: Sequence[Sample]
    home: Sequence[Json]
    methods: Sequence[Mapping[str, Json]]
    corpora: Sequence[Mapping[str, Json]]
    answered: Mapping[str, Json]
    growth: Mapping[str, Json]
    visits: Mapping[float, Sequence[Json]]
    loops: Mapping[float, Mapping[str, Json]]  # 1.0: of the parent


def run(path: Path, plan: Plan, folder: Path, tell: Callable[[str], None] = lambda line: None) -> Results:
    """Do what is not done yet for one parent. Raises SurgeryError, EngineError."""
    parent = Parent.open(path)
    own = folder / f"{parent.identity().sha256[:12]}-{_digest(plan)}"
    pieces = Pieces(own, tell)
    samples = [Sample(number, plan, parent, own) for number in range(plan.samples)]
    get, first = pieces.get, samples[0]
    home = [get(f"home-{one.number}", at_home, parent, one) for one in samples]
    methods = [
        {domain: get(f"methods-{one.number}-{domain}", by_method, parent, one, domain, plan) for domain in DOMAINS}
        for one in samples
    ]
    corpora = [
        {domain: get(f"corpora-{one.number}-{domain}", by_corpus, parent, one, domain, plan) for domain in DOMAINS}
        for one in samples
    ]
    growth = {domain: get(f"growth-{domain}", grown, parent, first, domain, plan, own) for domain in DOMAINS}
    theirs = {domain: get(f"answered-{domain}", answered, parent, first, domain, plan, own) for domain in DOMAINS}
    away = {
        share: [get(f"visits-{one.number}-{share}", visits, parent, one, share, plan) for one in samples]
        for share in plan.corpus_shares
    }
    rates = {1.0: {"parent": get("loops-parent", loops, parent, first, "parent", 1.0, plan)}} | {
        share: {domain: get(f"loops-{share}-{domain}", loops, parent, first, domain, share, plan) for domain in DOMAINS}
        for share in plan.corpus_shares
    }
    return Results(parent, samples, home, methods, corpora, theirs, growth, away, rates)


def _digest(plan: Plan) -> str:
    """Of what is done with which questions."""
    held_out = [q.text for domain in DOMAINS for q in _questions(domain, held_out=True)]
    return hashlib.sha256(json.dumps([asdict(plan), held_out]).encode()).hexdigest()[:8]


def main() -> None:
    """Entry point."""
    from .report import write

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small part of it, in a minute or two")
    parser.add_argument("--folder", type=Path, default=cache_folder() / "experiment", help="where pieces are kept")
    parser.add_argument("--parent", type=Path, nargs="+", default=[SHIPPED], help="parents of other training seeds")
    docs = Path(__file__).resolve().parents[1] / "docs"
    parser.add_argument("--docs", type=Path, default=docs, help="where experiments.md is written")
    given = parser.parse_args()
    console = Console(highlight=False, emoji=False)
    began = time.perf_counter()
    plan = QUICK if given.quick else FULL
    results = [run(path, plan, given.folder, lambda line: console.print(line, markup=False)) for path in given.parent]
    path = write(results, plan, given.docs)
    console.print(f"{path} ({time.perf_counter() - began:.0f} s)", markup=False)


if __name__ == "__main__":
    main()
