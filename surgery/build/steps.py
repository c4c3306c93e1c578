"""The eleven steps of a build: what each is made from, what it leaves behind, and what carries it out."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from coe.engine.files import share_like, shared_folder, written_beside
from coe.engine.spec import LoadSpec

from ..cut.cut import cut
from ..errors import CorpusError, SurgeryError
from ..judge import gate
from ..judge.answers import answer_questions
from ..judge.evaluate import EvaluationReport, evaluate, paired_sentence
from ..judge.generation import GenerationProgress, GenerationSettings
from ..judge.questions import records
from ..judge.values import Question, QuestionSet
from ..mask import Mask
from ..parent import Parent
from ..plan import super_experts
from ..plan.planning import plan
from ..profile.corpus import CorpusFile, read_corpus
from ..profile.fitting import profiling_load
from ..profile.profile import Profile
from ..profile.run import ProfileProgress, profile_corpus
from ..profile.summary import summary_line
from ..study.coherence import coherence
from ..study.document_counts import count_documents
from ..verify.verify import verify
from .job import BuildOrder, Job, Machine, StepRecord
from .preflight import is_jsonl, judged_by

# stage, how much of it is done, of how much, units a second where known
OnBuildStage = Callable[[str, float, float, float | None], None]

_COMPARED_DOCUMENTS: Final = 64  # whose masks are held against each other


@dataclass(frozen=True)
class BuildStep:
    """One step: what it is made from, what it must leave behind, and what does it.

    after:    finished steps whose results it reads. files: inputs from outside the build. settings: everything else.
    """

    name: str
    act: Callable[[OnBuildStage], Mapping[str, Any]]
    outputs: Sequence[Path] = ()
    after: Sequence[str] = ()
    files: Sequence[Path] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


class BuildSteps:
    """The steps of one build, in order; those that its order does not ask for are left out."""

    def __init__(
        self, job: Job, order: BuildOrder, machine: Machine, parent: Parent, records: Mapping[str, StepRecord]
    ) -> None:
        """records: the finished steps, as they stand when a step is taken from here or carried out."""
        self._job = job
        self._order = order
        self._load = LoadSpec(order.parent, **asdict(machine))
        self._parent = parent
        self._records = records

    def __iter__(self) -> Iterator[BuildStep]:
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
            settings={"norms": norms, "context": profiling_load(self._load).context_tokens},
        )
        if order.reasoning:
            yield BuildStep(
                "reasoning",
                self._reasoning,
                [job.path("reasoning.npz")],
                # What is left of them, not the split: another corpus leaves them as they are.
                files=[*parents, *self._without_questions("reasoning", traces)],
                settings={"norms": norms, "context": profiling_load(self._load).context_tokens},
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

    def _split(self, on_stage: OnBuildStage) -> Mapping[str, Any]:
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

    def _answer(self, on_stage: OnBuildStage) -> Mapping[str, Any]:
        settings = GenerationSettings(max_tokens=self._order.max_tokens, seed=self._order.seed)
        answered = answer_questions(
            self._order.parent,
            [self._job.path("corpus.jsonl")],
            self._job.path("answered.jsonl"),
            settings=settings,
            load=self._load,
            folder=self._job.path("answers"),
            progress=_generating(on_stage),
        )
        return answered.to_json()

    def _corpus_files(self) -> list[CorpusFile]:
        """What is profiled: all that asks none of the questions to judge by, or the parent's answers to it."""
        if self._order.answer:
            return [CorpusFile(self._job.path("answered.jsonl"))]
        return self._left("corpus", self._order.corpus)

    def _coherence(self, on_stage: OnBuildStage) -> Mapping[str, Any]:
        corpus = read_corpus(self._corpus_files())
        out = self._job.path("documents.npz")
        counts = count_documents(
            self._order.parent,
            corpus,
            out,
            limit=_COMPARED_DOCUMENTS,
            load=profiling_load(self._load),
            progress=_profiling(on_stage),
        )
        try:
            found = coherence(counts, self._order.experts)
        except SurgeryError as error:  # too little text; the gate decides anyway
            return {"coherent": None, "notes": [error.message]}
        return {
            "coherent": found.coherent,
            "warning": found.warning,
            "between": found.between,
            "random": found.random,
            "notes": list(found.notes),
            "domains": [asdict(domain) for domain in found.domains] if found.warning else [],
        }

    def _profile(self, on_stage: OnBuildStage) -> Mapping[str, Any]:
        return self._profiled(self._corpus_files(), "profile.npz", on_stage)

    def _reasoning(self, on_stage: OnBuildStage) -> Mapping[str, Any]:
        return self._profiled(self._left("reasoning", self._order.reasoning), "reasoning.npz", on_stage)

    def _profiled(self, files: Sequence[CorpusFile], name: str, on_stage: OnBuildStage) -> Mapping[str, Any]:
        profile = profile_corpus(
            self._order.parent,
            read_corpus(files),
            self._job.path(name),
            norms=self._order.recipe.needs_norms,
            load=profiling_load(self._load),
            progress=_profiling(on_stage),
        )
        return {"tokens": profile.n_tokens, "summary": summary_line(profile)}

    def _plan(self, on_stage: OnBuildStage) -> Mapping[str, Any]:
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

    def _cut(self, on_stage: OnBuildStage) -> Mapping[str, Any]:
        mask = Mask.load(self._job.path("mask.json"))
        out = self._job.path("specialist.gguf")
        report = cut(
            self._parent,
            mask,
            out,
            shared_scale=self._order.shared_scale,
            quantize=self._order.quantize,
            progress=_staged(on_stage),
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

    def _verify(self, on_stage: OnBuildStage) -> Mapping[str, Any]:
        mask = Mask.load(self._job.path("mask.json"))
        found = verify(self._order.parent, self._specialist(), mask, progress=_staged(on_stage))
        found.require()
        facts: dict[str, Any] = {"tensors": found.tensors, "notes": list(found.notes)}
        if found.agreement is not None:
            facts |= {"positions": found.agreement.positions, "flips": len(found.agreement.flips)}
        return facts

    def _evaluate(self, on_stage: OnBuildStage) -> Mapping[str, Any]:
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
            progress=_generating(on_stage),
        )
        report.save(out)
        facts: dict[str, Any] = {"questions": len(questions.questions), "accuracy": report.model.accuracy.value}
        if report.beside is not None and report.paired is not None:
            facts |= {"parent_accuracy": report.beside.accuracy.value, "difference": paired_sentence(report.paired)}
        return facts

    def _gate(self, on_stage: OnBuildStage) -> Mapping[str, Any]:
        job = self._job
        judged = bool(self._records["evaluate"].facts["questions"])
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
        order = self._order.to_json()
        del order["option"]  # it tells of this machine
        made = {"order": order, "parent": asdict(Mask.load(job.path("mask.json")).parent)}
        whole = {"verdict": verdict.to_json(), **made, "steps": steps, "evaluation": report and report.to_json()}
        _write_json(job.path("report.json"), whole)
        return {"verdict": verdict.to_json(), "released": verdict.released}

    def _publish(self, on_stage: OnBuildStage) -> Mapping[str, Any]:
        """Release: report and mask first, the model last, since it is what makes the specialist another one."""
        if not self._records["gate"].facts["released"]:
            return {"released": False}
        out = self._order.out
        shared_folder(out.parent)
        for name, target in (("report.json", ".report.json"), ("mask.json", ".mask.json")):
            # The report stays the user's alone: it quotes what was asked and answered.
            with written_beside(out.with_suffix(target), private=True) as beside:
                shutil.copyfile(self._job.path(name), beside)
                if target != ".report.json":
                    share_like(beside, self._order.parent)
        made = self._job.path("specialist.gguf")
        if made.exists():
            status = made.stat()
            self._job.remember("publishing", [status.st_ino, status.st_size, status.st_mtime_ns])
            share_like(made, self._order.parent)
            os.replace(made, out)
            folder = os.open(out.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        return {"released": True}


def _profiling(on_stage: OnBuildStage) -> Callable[[ProfileProgress], None]:
    """Passes the progress of profiling on."""
    return lambda p: on_stage(p.stage, p.done, p.total, p.per_second if p.stage == "profile" else None)


def _staged(on_stage: OnBuildStage) -> Callable[[str, int, int], None]:
    """Passes the progress of cutting and verifying on."""
    return lambda stage, done, total: on_stage(stage, done, total, None)


def _generating(on_stage: OnBuildStage) -> Callable[[GenerationProgress], None]:
    """Passes the progress of answering on, with the tokens a second since the first answer of each model."""
    began: dict[str, tuple[float, int]] = {}

    def reported(progress: GenerationProgress) -> None:
        rate = None
        if progress.step == "generate":
            start, tokens = began.setdefault(progress.model, (time.monotonic(), progress.tokens))
            rate = (progress.tokens - tokens) / max(time.monotonic() - start, 1e-9)
        on_stage(f"{progress.step} {progress.model}", progress.done, progress.total, rate or None)

    return reported


def _questions(path: Path) -> QuestionSet:
    """Questions as `_split` wrote them."""
    return QuestionSet(tuple(Question.from_content(one) for one in json.loads(path.read_text())))


def _write_json(path: Path, content: Any) -> None:
    with written_beside(path, private=True) as beside:
        beside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
