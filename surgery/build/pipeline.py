"""A whole build, as one job that can be stopped and killed anywhere and goes on from there.

`run` carries out what the folder's job.json asks; process runs it in a child. Each finished step is recorded with a
fingerprint of all that went into it, and is not repeated as long as that is unchanged.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from coe.engine.errors import EngineError
from coe.engine.files import written_beside
from coe.engine.spec import LoadSpec

from ..cut.cut import cut
from ..errors import BuildError, CorpusError, SurgeryError
from ..files import sha256_of
from ..judge import gate
from ..judge.answers import answer_questions
from ..judge.evaluate import EvaluationReport, evaluate, paired_sentence
from ..judge.generation import GenerationSettings
from ..judge.questions import records
from ..judge.values import Question, QuestionSet
from ..mask import Mask
from ..parent import Parent
from ..plan import super_experts
from ..plan.planning import plan
from ..profile.corpus import Corpus, CorpusFile, read_corpus
from ..profile.profile import Profile
from ..profile.run import profile_corpus, summary_line
from ..study.coherence import DocumentCounts, coherence
from ..verify.verify import verify
from .job import MOST_BEGINNINGS, BuildOrder, BuildProgress, BuildState, Job, Machine, StepRecord
from .preflight import check, is_jsonl, judged_by, reading

# stage, how much of it is done, of how much, units a second where known
Tell = Callable[[str, float, float, float | None], None]

STEPS: Final = (
    "split", "answer", "coherence", "profile", "reasoning", "plan", "cut", "verify", "evaluate", "gate", "publish",
)  # fmt: skip

_NOTE_EVERY_S: Final = 0.5
_LOOKED_AT: Final = 64  # documents whose masks are held against each other


@dataclass(frozen=True)
class BuildStep:
    """One step: what it is made from, what it must leave behind, and what does it.

    after:    finished steps whose results it reads. files: inputs from outside the build. settings: everything else.
    """

    name: str
    act: Callable[[Tell], Mapping[str, Any]]
    outputs: Sequence[Path] = ()
    after: Sequence[str] = ()
    files: Sequence[Path] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


class Pipeline:
    """The steps of one build, in order."""

    def __init__(self, job: Job, order: BuildOrder, machine: Machine, note: Callable[[BuildProgress], None]) -> None:
        """note: told how far it is."""
        self._job = job
        self._order = order
        self._load = LoadSpec(order.parent, **asdict(machine))
        self._note = note
        self._parent = Parent.open(order.parent)
        self._records: dict[str, StepRecord] = {}
        self._now = BuildProgress(BuildState.RUNNING, started=time.time())
        self._noted = 0.0

    def run(self) -> BuildProgress:
        """Carry out what is not yet done; gives RELEASED or ASIDE. Raises SurgeryError or EngineError."""
        steps = list(self._steps())
        self._now = replace(self._now, steps=len(steps))
        self._records = self._job.records()
        for done, step in enumerate(steps):
            self._now = replace(
                self._now, step=step.name, steps_done=done, fraction=None, tokens_per_s=None, message=""
            )
            self._say(force=True)
            fingerprint = self._fingerprint(step)
            if self._is_done(step, fingerprint):
                continue
            if self._job.begin(step.name) >= MOST_BEGINNINGS:
                self._job.reset_attempts()
                raise BuildError(
                    f"The step {step.name} has ended without a word {MOST_BEGINNINGS} times.",
                    f"Look at {self._job.log}: it may lack memory. coe build {self._order.name} tries again.",
                )
            began = time.monotonic()
            facts = step.act(self._tell)
            record = StepRecord(fingerprint, dict(facts), time.monotonic() - began, time.time())
            self._job.record(step.name, record)
            self._records[step.name] = record
        verdict = self._facts("gate")["verdict"]
        released = self._facts("publish")["released"]
        state = BuildState.RELEASED if released else BuildState.ASIDE
        return replace(
            self._now,
            state=state,
            step="",
            steps_done=len(steps),
            message=verdict["reason"],
            remedy=""
            if released
            else f"{verdict['remedy']} To release it as it is: coe build {self._order.name} --accept",
        )

    # --- what is done, and how far ----------------------------------------------------------------------------

    def _fingerprint(self, step: BuildStep) -> str:
        files = [sha256_of((path,), self._hashing(path)) for path in step.files]
        # With the time: when a step was done again, what read its results is done again as well.
        before = {name: [self._records[name].fingerprint, self._records[name].ended] for name in step.after}
        text = json.dumps([step.name, dict(step.settings), files, before], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def _is_done(self, step: BuildStep, fingerprint: str) -> bool:
        record = self._records.get(step.name)
        return record is not None and record.fingerprint == fingerprint and all(path.exists() for path in step.outputs)

    def _facts(self, step: str) -> Mapping[str, Any]:
        return self._records[step].facts

    def _tell(self, stage: str, done: float, total: float, per_second: float | None) -> None:
        message = "" if stage == self._now.step else stage
        self._now = replace(
            self._now, fraction=done / total if total else None, tokens_per_s=per_second, message=message
        )
        self._say()

    def _hashing(self, path: Path) -> Callable[[int], None]:
        size, read = path.stat().st_size, 0

        def more(n_bytes: int) -> None:
            nonlocal read
            read += n_bytes
            self._tell(f"reading {path.name}", read, size, None)

        return more

    def _say(self, *, force: bool = False) -> None:
        if force or time.monotonic() - self._noted >= _NOTE_EVERY_S:
            self._noted = time.monotonic()
            self._note(self._now)

    # --- the steps --------------------------------------------------------------------------------------------

    def _steps(self) -> Iterator[BuildStep]:
        order, job = self._order, self._job
        parents = self._parent.paths
        corpus = [CorpusFile.parse(text) for text in order.corpus]
        traces = [CorpusFile.parse(text) for text in order.reasoning]
        documents = ["split", "answer"] if order.answer else ["split"]
        norms = order.recipe.needs_norms
        yield BuildStep(
            "split",
            self._split,
            [
                job.path("held.json"),
                *self._without_questions("corpus", corpus),
                *(self._without_questions("reasoning", traces) if traces else ()),
            ],
            files=[*(file.path for file in (*corpus, *traces)), *order.questions],
            settings={
                "classes": [file.category for file in corpus],
                "reasoning": [file.category for file in traces],
                "every": gate.EVERY,
                "offset": gate.OFFSET,
            },
        )
        if order.answer:
            asking = {"max_tokens": order.max_tokens, "seed": order.seed, "context": self._load.context_tokens}
            yield BuildStep(
                "answer", self._answer, [job.path("answered.jsonl")], after=["split"], files=parents, settings=asking
            )
        yield BuildStep(
            "coherence", self._coherence, after=documents, files=parents, settings={"experts": order.experts}
        )
        yield BuildStep(
            "profile",
            self._profile,
            [job.path("profile.npz")],
            after=documents,
            files=parents,
            settings={"norms": norms, "context": reading(self._load).context_tokens},
        )
        if order.reasoning:
            yield BuildStep(
                "reasoning",
                self._reasoning,
                [job.path("reasoning.npz")],
                # What is left of them, not the split: another corpus leaves them as they are.
                files=[*parents, *self._without_questions("reasoning", traces)],
                settings={"norms": norms, "context": reading(self._load).context_tokens},
            )
        yield BuildStep(
            "plan",
            self._plan,
            [job.path("mask.json")],
            after=["profile", *(["reasoning"] if order.reasoning else [])],
            settings={"experts": order.experts, "recipe": order.recipe.to_settings(), "seed": order.seed},
        )
        yield BuildStep(
            "cut",
            self._cut,
            # Once it is released the file lies there, and not here any more.
            [] if self._is_out() else [job.path("specialist.gguf")],
            after=["plan"],
            settings={"quantize": order.quantize, "shared_scale": order.shared_scale},
        )
        yield BuildStep("verify", self._verify, after=["cut"])
        yield BuildStep(
            "evaluate",
            self._evaluate,
            [job.path("evaluation.json")],
            after=["split", "cut", "verify"],
            settings={"max_tokens": order.max_tokens, "seed": order.seed, "system": order.system},
        )
        yield BuildStep(
            "gate",
            self._gate,
            [job.path("report.json")],
            after=["evaluate"],
            settings={"bound": asdict(order.bound), "accepted": job.recall("accepted")},
        )
        yield BuildStep(
            "publish", self._publish, after=["gate"], settings={"out": str(order.out), "there": self._is_out()}
        )

    def _split(self, tell: Tell) -> Mapping[str, Any]:
        """Every tenth question that can be graded is held out, and nothing that asks one of them is profiled."""
        judging = judged_by(self._order)
        withheld = gate.Withheld(question.question for question in judging.all)
        kept, left_out = self._sift("corpus", self._order.corpus, withheld)
        facts = {"lines": kept, "left_out": left_out}
        if self._order.reasoning:
            _, facts["reasoning_left_out"] = self._sift("reasoning", self._order.reasoning, withheld)
        _write_json(self._job.path("held.json"), [question.content() for question in judging.all])
        return {**facts, "held_out": len(judging.held), "judged_by": len(judging.all)}

    def _sift(self, name: str, texts: Sequence[str], withheld: gate.Withheld) -> tuple[int, int]:
        """Write what asks none of those questions; gives how many lines and paragraphs are kept, and left out."""
        files = [CorpusFile.parse(text) for text in texts]
        outs = self._without_questions(name, files)
        kept = left_out = 0
        with written_beside(outs[0]) as beside, beside.open("w") as out:
            for file in filter(is_jsonl, files):
                for _, record in records(file.path):
                    if withheld.is_asked_in_line(record):
                        left_out += 1
                        continue
                    if file.category is not None:
                        record.setdefault("class", file.category)
                    out.write(json.dumps(record, ensure_ascii=False) + "\n")
                    kept += 1
        plain = [file for file in files if not is_jsonl(file)]
        for file, path in zip(plain, outs[1:], strict=True):
            documents = read_corpus([file]).documents
            paragraphs = [paragraph for document in documents for paragraph in document.text.split("\n\n")]
            asking = withheld.asked_in(paragraphs)
            others = [paragraph for at, paragraph in enumerate(paragraphs) if at not in asking]
            with written_beside(path) as beside:
                beside.write_text("\n\n".join(others))
            kept += len(others)
            left_out += len(asking)
        if not kept:
            raise CorpusError(
                f"Nothing is left to profile of the {name}: all of it asks the questions to judge by.",
                "Give other questions, or more text.",
            )
        return kept, left_out

    def _without_questions(self, name: str, files: Sequence[CorpusFile]) -> list[Path]:
        """Where the lines and texts lie that may be profiled: all JSON lines in one file, then each plain text."""
        plain = sum(not is_jsonl(file) for file in files)
        return [self._job.path(f"{name}.jsonl"), *(self._job.path(f"{name}-{at}.txt") for at in range(plain))]

    def _left(self, name: str, texts: Sequence[str]) -> list[CorpusFile]:
        """What the split left of files, with their classes."""
        files = [CorpusFile.parse(text) for text in texts]
        plain = [file.category for file in files if not is_jsonl(file)]
        written = zip(self._without_questions(name, files), (None, *plain), strict=True)
        return [CorpusFile(path, category) for path, category in written if path.stat().st_size]

    def _answer(self, tell: Tell) -> Mapping[str, Any]:
        settings = GenerationSettings(max_tokens=self._order.max_tokens, seed=self._order.seed)
        answered = answer_questions(
            self._order.parent,
            [self._job.path("corpus.jsonl")],
            self._job.path("answered.jsonl"),
            settings=settings,
            load=self._load,
            folder=self._job.path("answers"),
            progress=_generating(tell),
        )
        return answered.to_json()

    def _corpus_files(self) -> list[CorpusFile]:
        """What is profiled: all that asks none of the questions to judge by, or the parent's answers to it."""
        if self._order.answer:
            return [CorpusFile(self._job.path("answered.jsonl"))]
        return self._left("corpus", self._order.corpus)

    def _coherence(self, tell: Tell) -> Mapping[str, Any]:
        corpus = read_corpus(self._corpus_files())
        out = self._job.path("documents.npz")
        counts = documents_apart(self._order.parent, corpus, out, limit=_LOOKED_AT, load=reading(self._load), tell=tell)
        try:
            found = coherence(counts, self._order.experts)
        except SurgeryError as error:  # too little text to say anything; the gate has the last word anyway
            return {"coherent": None, "notes": [error.message]}
        return {
            "coherent": found.coherent,
            "warning": found.warning,
            "between": found.between,
            "random": found.random,
            "notes": list(found.notes),
            "domains": [asdict(domain) for domain in found.domains] if found.warning else [],
        }

    def _profile(self, tell: Tell) -> Mapping[str, Any]:
        return self._profiled(self._corpus_files(), "profile.npz", tell)

    def _reasoning(self, tell: Tell) -> Mapping[str, Any]:
        return self._profiled(self._left("reasoning", self._order.reasoning), "reasoning.npz", tell)

    def _profiled(self, files: Sequence[CorpusFile], name: str, tell: Tell) -> Mapping[str, Any]:
        profile = profile_corpus(
            self._order.parent,
            read_corpus(files),
            self._job.path(name),
            norms=self._order.recipe.needs_norms,
            load=reading(self._load),
            progress=profiling(tell),
        )
        return {"tokens": profile.n_tokens, "summary": summary_line(profile)}

    def _plan(self, tell: Tell) -> Mapping[str, Any]:
        order = self._order
        profile = Profile.load(self._job.path("profile.npz"))
        second = Profile.load(self._job.path("reasoning.npz")) if order.reasoning else None
        found = super_experts.find(profile) if order.recipe.pin_super_experts else None
        mask = plan(
            profile,
            order.experts,
            order.recipe.method,
            criterion=order.recipe.criterion,
            second=second,
            pins=found.pins if found else (),
            seed=order.seed,
        )
        mask.save(self._job.path("mask.json"))
        facts: dict[str, Any] = {"swaps": len(mask.provenance.swaps), "pins": len(mask.provenance.pins)}
        return facts if found is None else {**facts, "super_experts": found.note}

    def _cut(self, tell: Tell) -> Mapping[str, Any]:
        mask = Mask.load(self._job.path("mask.json"))
        out = self._job.path("specialist.gguf")
        report = cut(
            self._parent,
            mask,
            out,
            shared_scale=self._order.shared_scale,
            quantize=self._order.quantize,
            progress=staged(tell),
        )
        return {"bytes": report.n_bytes, "mask_sha256": report.mask_sha256, "notes": list(report.notes)}

    def _specialist(self) -> Path:
        """Where the specialist's file is now."""
        return self._order.out if self._is_out() else self._job.path("specialist.gguf")

    def _is_out(self) -> bool:
        """Whether the file of this build lies where it is released to; a rename keeps the inode."""
        publishing = self._job.recall("publishing")
        try:
            status = self._order.out.stat()
        except OSError:
            return False
        there = [status.st_ino, status.st_size, status.st_mtime_ns]
        return bool(publishing == there) and not self._job.path("specialist.gguf").exists()

    def _verify(self, tell: Tell) -> Mapping[str, Any]:
        mask = Mask.load(self._job.path("mask.json"))
        found = verify(self._order.parent, self._specialist(), mask, progress=staged(tell))
        found.require()
        facts: dict[str, Any] = {"tensors": found.tensors, "notes": list(found.notes)}
        if found.agreement is not None:
            facts |= {"positions": found.agreement.positions, "flips": len(found.agreement.flips)}
        return facts

    def _evaluate(self, tell: Tell) -> Mapping[str, Any]:
        order = self._order
        questions = _questions(self._job.path("held.json"))
        out = self._job.path("evaluation.json")
        if not questions.questions:
            _write_json(out, None)
            return {"questions": 0}
        report = evaluate(
            self._specialist(),
            questions,
            beside=order.parent,
            settings=GenerationSettings(max_tokens=order.max_tokens, seed=order.seed),
            load=self._load,
            system=order.system,
            folder=self._job.path("answers"),
            progress=_generating(tell),
        )
        report.save(out)
        facts: dict[str, Any] = {"questions": len(questions.questions), "accuracy": report.model.accuracy.value}
        if report.beside is not None and report.paired is not None:
            facts |= {"parent_accuracy": report.beside.accuracy.value, "difference": paired_sentence(report.paired)}
        return facts

    def _gate(self, tell: Tell) -> Mapping[str, Any]:
        job = self._job
        judged = bool(self._facts("evaluate")["questions"])
        report = EvaluationReport.load(job.path("evaluation.json")) if judged else None
        verdict = gate.judge(
            report.paired if report else None, self._order.bound, chance=report.chance if report else 0.0
        )
        accepted = job.recall("accepted")
        if accepted is not None and accepted["specialist"] == self._records["cut"].fingerprint:
            verdict = gate.accept(verdict, str(accepted["by"]))
        steps = {
            name: {"seconds": round(record.seconds, 1), **record.facts}
            for name, record in self._records.items()
            if name not in ("gate", "publish")
        }
        told = {"order": self._order.to_json(), "parent": asdict(Mask.load(job.path("mask.json")).parent)}
        whole = {"verdict": verdict.to_json(), **told, "steps": steps, "evaluation": report and report.to_json()}
        _write_json(job.path("report.json"), whole)
        return {"verdict": verdict.to_json(), "released": verdict.released}

    def _publish(self, tell: Tell) -> Mapping[str, Any]:
        """Report and mask first, the model last: it is what makes the specialist another one."""
        if not self._facts("gate")["released"]:
            return {"released": False}
        out = self._order.out
        out.parent.mkdir(parents=True, exist_ok=True)
        for name, target in (("report.json", ".report.json"), ("mask.json", ".mask.json")):
            with written_beside(out.with_suffix(target)) as beside:
                shutil.copyfile(self._job.path(name), beside)
        made = self._job.path("specialist.gguf")
        if made.exists():
            status = made.stat()
            self._job.remember("publishing", [status.st_ino, status.st_size, status.st_mtime_ns])
            os.replace(made, out)
            folder = os.open(out.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        return {"released": True}


def documents_apart(
    parent: Path, corpus: Corpus, out: Path, *, limit: int, load: LoadSpec, tell: Tell
) -> DocumentCounts:
    """What the router does with each of at most `limit` documents, evenly spread over the corpus.

    out: where the counts lie while they are taken, and afterwards; an interrupted run goes on from there.
    """
    apart = corpus.apart(limit)
    found = profile_corpus(parent, apart, out, load=load, progress=profiling(tell))
    places = [int(name.removeprefix("document ")) for name in found.classes]
    counts = DocumentCounts(
        found.parent,
        found.classes,
        tuple(corpus.documents[place].category for place in places),
        found.tokens,
        found.weights.sum(3).astype(np.float32),
        corpus.sha256,
    )
    counts.save(out)
    return counts


def profiling(tell: Tell) -> Callable[[Any], None]:
    """Passes the progress of profiling on."""
    return lambda p: tell(p.stage, p.done, p.total, p.per_second if p.stage == "profile" else None)


def staged(tell: Tell) -> Callable[[str, int, int], None]:
    """Passes the progress of cutting and verifying on."""
    return lambda stage, done, total: tell(stage, done, total, None)


def _generating(tell: Tell) -> Callable[[Any], None]:
    """Passes the progress of answering on, with the tokens a second since the first answer of each model."""
    began: dict[str, tuple[float, int]] = {}

    def told(progress: Any) -> None:
        rate = None
        if progress.step == "generate":
            start, tokens = began.setdefault(progress.model, (time.monotonic(), progress.tokens))
            rate = (progress.tokens - tokens) / max(time.monotonic() - start, 1e-9)
        tell(f"{progress.step} {progress.model}", progress.done, progress.total, rate or None)

    return told


def _questions(path: Path) -> QuestionSet:
    """Questions as `_split` wrote them."""
    return QuestionSet(tuple(Question.from_content(one) for one in json.loads(path.read_text())))


def _write_json(path: Path, content: Any) -> None:
    with written_beside(path) as beside:
        beside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def run(
    job: Job, *, accept_by: str | None = None, note: Callable[[BuildProgress], None] | None = None
) -> BuildProgress:
    """Carry a build out, from wherever it is, and write down what it came to: released, kept aside, failed, stopped.

    accept_by: the person who releases it whatever the gate says.
    note:      told how far it is, in place of the build's own record.
    Raises Busy when another build is at work, and KeyboardInterrupt again after an orderly stop.
    """
    note = note or job.write_progress
    started = time.time()
    with job.worked_on():
        last = BuildProgress(BuildState.RUNNING, started=started)
        warning = ""

        def tell(progress: BuildProgress) -> None:
            nonlocal last
            last = replace(progress, started=started, warning=warning)
            # On a full disk the step itself fails, and says so.
            with contextlib.suppress(OSError):
                note(last)

        try:
            tell(last)
            order, machine = job.order()
            if accept_by is not None:
                _accept(job, accept_by)
            warning = check(order, job.folder)
            tell(Pipeline(job, order, machine, tell).run())
        except KeyboardInterrupt:
            job.reset_attempts()
            tell(replace(last, state=BuildState.STOPPED, fraction=None, tokens_per_s=None, message=""))
            raise
        except (SurgeryError, EngineError) as error:
            tell(_failed(last, error.message, error.remedy))
        except OSError as error:
            tell(_failed(last, f"{error}.", "Look at the disk, and at the rights of the models folder."))
        except Exception as error:
            traceback.print_exc()
            tell(_failed(last, f"Unforeseen: {error!r}.", f"Its log is {job.log}."))
        if last.state is BuildState.FAILED:
            print(last.message, last.remedy, file=sys.stderr, flush=True)
    return last


def _accept(job: Job, who: str) -> None:
    made = job.records().get("cut")
    if made is None:
        raise BuildError("There is nothing to accept yet: it has not been cut.", "Build it first, without --accept.")
    job.remember("accepted", {"by": who, "specialist": made.fingerprint})


def _failed(last: BuildProgress, message: str, remedy: str) -> BuildProgress:
    where = f"{last.step}: " if last.step else ""
    return replace(
        last, state=BuildState.FAILED, fraction=None, tokens_per_s=None, message=f"{where}{message}", remedy=remedy
    )
