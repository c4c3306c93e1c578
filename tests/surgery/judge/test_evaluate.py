"""Evaluations: what is counted, and that an interruption changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from coe.engine.request import Finish
from coe.engine.spec import LoadSpec, Thinking, ThinkingMode
from coe.surgery.errors import EvaluationError
from coe.surgery.judge.evaluate import EvaluationReport, evaluate, outcome, report_table
from coe.surgery.judge.gate import VerdictState, judge
from coe.surgery.judge.generation import Generated, GenerationSettings
from coe.surgery.judge.proportions import Lengths, Paired, Share
from coe.surgery.judge.questions import read_questions
from coe.surgery.judge.values import AnswerKind, Bound, Question, QuestionSet
from fakes import taught
from fakes.scripted_resident import Line, Script

QUESTIONS = QuestionSet(
    (
        Question("a", "first?", AnswerKind.CHOICE, ("A",), ("x", "y"), subdomain="optics"),
        Question("b", "second?", AnswerKind.CHOICE, ("B",), ("x", "y"), subdomain="optics"),
        Question("c", "third?", AnswerKind.NUMERIC, ("3",), subdomain="heat"),
        Question("d", "fourth?", AnswerKind.EXACT, ("four",)),
    )
)
RIGHT = {"first?": "Answer: A", "second?": "Answer: B", "third?": "Answer: 3", "fourth?": "Answer: four"}


@pytest.fixture
def parent(random_gemma4: Path, tmp_path: Path) -> Path:
    """Another file than the specialist's."""
    path = tmp_path / "parent.gguf"
    content = bytearray(random_gemma4.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return path


def run(model: Path, script: Script, **options: Any) -> EvaluationReport:
    return evaluate(model, QUESTIONS, start=script.start, **options)


def text_of(report: EvaluationReport) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(report_table(report))
    return capture.get()


class TestCounting:
    def test_accuracy_and_subdomains(self, random_gemma4: Path) -> None:
        report = run(random_gemma4, Script({**RIGHT, "second?": "Answer: A", "third?": "I cannot say."}))
        own = report.model
        assert own.accuracy == Share(2, 4)
        assert own.by_subdomain == {"optics": Share(1, 2), "heat": Share(0, 1), "": Share(1, 1)}
        assert own.unparsed == 1
        assert [o.extracted for o in own.outcomes] == ["A", "A", None, "four"]
        assert report.beside is None
        assert report.paired is None
        assert report.chance == pytest.approx(1 / 4)

    def test_beside_its_parent(self, random_gemma4: Path, parent: Path) -> None:
        script = Script({**RIGHT, "second?": "Answer: A"})
        run(random_gemma4, script)
        assert len(script.loads) == 1
        better = Script(RIGHT)

        report = run(random_gemma4, better, beside=parent)
        assert [spec.path for spec in better.loads] == [parent], "the specialist's own answers were there"
        assert report.beside is not None
        assert (report.model.name, report.beside.name) == (random_gemma4.stem, "parent")
        assert report.model.sha256 != report.beside.sha256
        assert report.paired == Paired(both=3, gained=0, lost=1, neither=0)

    def test_one_model_after_the_other(self, random_gemma4: Path, parent: Path) -> None:
        script = Script(RIGHT)
        running: list[int] = []
        run(random_gemma4, script, beside=parent, progress=lambda p: running.append(len(script.loads) - script.stopped))
        assert [spec.path for spec in script.loads] == [random_gemma4, parent]
        assert max(running) == 1

    def test_limits_and_rumination(self, random_gemma4: Path) -> None:
        script = Script(
            {
                "first?": Line("Answer: A", Finish.LENGTH, 50),
                "second?": Line("well, well", Finish.LENGTH, 50),
                "third?": Line("Answer: 3", tokens=10),
                "fourth?": Line("Answer: five", tokens=20),
            }
        )
        own = run(random_gemma4, script).model
        assert own.at_limit == Share(2, 4)
        assert own.rumination == Share(1, 2)
        assert own.lengths == Lengths(20, 50, 50)
        assert own.mean_tokens(correct=True) == 30
        assert own.mean_tokens(correct=False) == 35

    def test_a_thinking_budget_that_was_used_up_is_a_limit_too(self) -> None:
        settings = GenerationSettings(Thinking(ThinkingMode.BUDGET, 64))
        used, left = (Generated("Answer: A", reason="stop", reasoning_tokens=n) for n in (64, 63))
        assert outcome(QUESTIONS.questions[0], used, settings).at_limit
        assert not outcome(QUESTIONS.questions[0], left, settings).at_limit

    def test_loops_and_what_a_fresh_seed_recovered(self, random_gemma4: Path) -> None:
        loop = Line("Answer: A and so on and so on", Finish.LOOP, 700)
        script = Script({**RIGHT, "first?": (loop, Line("Answer: A")), "second?": (loop, Line("no")), "third?": loop})
        own = run(random_gemma4, script).model
        assert own.loops == Share(3, 4)
        assert own.recovered == Share(2, 3)
        assert [o.correct for o in own.outcomes] == [True, False, False, True]

    def test_an_answer_that_still_loops_is_wrong_whatever_it_says(self) -> None:
        looping = Generated("Answer: A", reason="loop", looped=True)
        judged = outcome(QUESTIONS.questions[0], looping, GenerationSettings())
        assert (judged.correct, judged.extracted) == (False, "A")

    def test_leaked_thinking_is_counted(self, random_gemma4: Path) -> None:
        own = run(random_gemma4, Script({**RIGHT, "first?": Line("Answer: A", leaked_blocks=2)})).model
        assert own.leaked == 1

    def test_a_question_that_fails_is_wrong_and_is_said_to_have_failed(self, random_gemma4: Path) -> None:
        own = run(random_gemma4, Script(RIGHT, too_long=frozenset({"first?"}))).model
        assert (own.accuracy, own.failed, own.unparsed) == (Share(3, 4), 1, 0)
        assert "999 tokens" in own.outcomes[0].error

    def test_what_the_parents_engine_failed_on_says_nothing_about_the_specialist(
        self, random_gemma4: Path, parent: Path
    ) -> None:
        run(random_gemma4, Script(RIGHT))
        report = run(random_gemma4, Script(RIGHT, too_long=frozenset({"first?"})), beside=parent)
        assert report.paired == Paired(both=3, gained=0, lost=0, neither=0)

    def test_a_model_that_answers_nothing_is_an_error(self, random_gemma4: Path) -> None:
        with pytest.raises(EvaluationError, match=r"none of the questions.*999 tokens"):
            run(random_gemma4, Script(RIGHT, too_long=frozenset(RIGHT)))

    def test_the_system_prompt_goes_with_every_question(self, random_gemma4: Path) -> None:
        script = Script(RIGHT)
        run(random_gemma4, script, system="You are a physicist.")
        messages = [request.messages or [] for request in script.requests]
        assert all(said[0] == {"role": "system", "content": "You are a physicist."} for said in messages)


class TestReport:
    @pytest.fixture
    def report(self, random_gemma4: Path, parent: Path) -> EvaluationReport:
        run(random_gemma4, Script({**RIGHT, "second?": Line("Answer: A", Finish.LENGTH)}))
        return run(random_gemma4, Script(RIGHT), beside=parent)

    def test_it_comes_back_from_disk_as_it_was(self, report: EvaluationReport, tmp_path: Path) -> None:
        path = tmp_path / "report.json"
        report.save(path)
        assert EvaluationReport.load(path) == report

    def test_the_file_says_what_people_look_for(self, report: EvaluationReport) -> None:
        data = json.loads(json.dumps(report.to_json()))
        figures = data["model"]["figures"]
        assert (figures["accuracy"], figures["correct"], figures["n"]) == (0.75, 3, 4)
        assert figures["standard_error"] == pytest.approx((0.75 * 0.25 / 4) ** 0.5)
        assert figures["at_limit"] == figures["at_limit_and_wrong"] == 1
        assert data["paired"]["difference"] == -0.25
        assert data["paired"]["p_value"] == 1.0
        assert data["settings"]["thinking"]["mode"] == "off"

    def test_the_table(self, report: EvaluationReport) -> None:
        text = text_of(report)
        assert "75.0% ± 21.7 (3 of 4)" in text
        assert "100.0% ± 0.0 (4 of 4)" in text
        assert "optics" in text
        assert "difference -25.0" in text
        assert "0 gained, 1 lost" in text

    def test_it_goes_through_the_gate(self, report: EvaluationReport) -> None:
        assert judge(report.paired, chance=report.chance).state is VerdictState.NEEDS_QUESTIONS
        assert judge(report.paired, Bound(min_questions=4), chance=report.chance).state is VerdictState.KEPT_ASIDE
        lenient = Bound(min_questions=4, loss=0.25)
        assert judge(report.paired, lenient, chance=report.chance).state is VerdictState.RELEASED

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"version": 99}', '{"version": 1}'])
    def test_what_is_no_report_is_refused(self, tmp_path: Path, content: str) -> None:
        path = tmp_path / "report.json"
        path.write_text(content)
        with pytest.raises(EvaluationError):
            EvaluationReport.load(path)


@pytest.mark.model
class TestARealSpecialist:
    """The chemistry specialist of the trained parent, which knows little of math, beside its parent, which does."""

    SETTINGS = GenerationSettings(max_tokens=taught.ANSWER_TOKENS)

    def test_the_gate_releases_it_at_home_and_would_keep_it_aside_elsewhere(
        self, specialists: dict[str, Path], tmp_path: Path
    ) -> None:
        asked = [*taught.exam("chemistry", 40), *taught.exam("math", 40)]
        report = evaluate(
            specialists["chemistry"],
            read_questions([taught.write_exam(tmp_path / "exam.jsonl", asked)]),
            beside=taught.PARENT,
            settings=replace(self.SETTINGS, loop_retries=0),
            load=taught.ANSWERING,
        )
        assert report.beside is not None
        own, parents = report.model.by_subdomain, report.beside.by_subdomain
        assert min(parents["chemistry"].value, parents["math"].value) >= 0.9
        assert own["chemistry"].value >= 0.9
        assert own["math"].value <= 0.3
        for domain, state in (("chemistry", VerdictState.RELEASED), ("math", VerdictState.KEPT_ASIDE)):
            right, beside = (
                [outcome.correct for outcome in answered.outcomes if outcome.subdomain == domain]
                for answered in (report.model, report.beside)
            )
            assert judge(Paired.of(right, beside)).state is state
        assert judge(report.paired).state is VerdictState.KEPT_ASIDE, "on average half of it is lost"

    def test_killed_and_gone_on_with_it_gives_the_same_report(
        self, specialists: dict[str, Path], tmp_path: Path
    ) -> None:
        specialist = specialists["chemistry"]
        questions = taught.write_exam(
            tmp_path / "questions.jsonl", [*taught.exam("chemistry", 3), *taught.exam("math", 3)]
        )
        program = """
import os, signal, sys
from pathlib import Path
from coe.engine.spec import LoadSpec
from coe.surgery.judge.evaluate import evaluate
from coe.surgery.judge.generation import GenerationSettings
from coe.surgery.judge.questions import read_questions
model, beside, questions, folder = map(Path, sys.argv[1:])
def progress(p):
    if p.model == beside.name and p.step == "generate" and p.done == 1:
        os.kill(os.getpid(), signal.SIGKILL)
load = LoadSpec(model, context_tokens=256, parallel=1, gpu_layers=0, threads=1)
evaluate(model, read_questions([questions]), beside=beside, settings=GenerationSettings(max_tokens=48), load=load,
         folder=folder, progress=progress)
"""
        folder = tmp_path / "killed"
        arguments = [str(path) for path in (specialist, taught.PARENT, questions, folder)]
        killed = subprocess.run([sys.executable, "-c", program, *arguments], check=False, timeout=120)
        assert killed.returncode == -9
        counts = sorted(len(path.read_text().splitlines()) for path in folder.glob("*.jsonl"))
        assert counts == [2, 7], "all of the specialist's answers, one of the parent's, and the heads"

        wanted = read_questions([questions])
        load = LoadSpec(specialist, context_tokens=256, parallel=1, gpu_layers=0, threads=1)
        options: dict[str, Any] = {"beside": taught.PARENT, "settings": self.SETTINGS, "load": load}
        resumed = evaluate(specialist, wanted, folder=folder, **options)
        straight = evaluate(specialist, wanted, folder=tmp_path / "straight", **options)
        assert resumed == straight
        assert resumed.paired is not None
        assert resumed.paired.lost >= 2, "the parent's answers are not taken for the specialist's, nor the other way"
        assert judge(resumed.paired).state is VerdictState.NEEDS_QUESTIONS
