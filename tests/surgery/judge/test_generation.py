"""Batches of prompts: each is asked once, whatever happens in between."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from coe.demo.curriculum import is_right
from coe.engine.errors import LoadError, WorkerDiedError
from coe.engine.pool.resident import WorkerResident
from coe.engine.request import Finish
from coe.engine.spec import LoadSpec, Sampling, Thinking, ThinkingMode
from coe.surgery.errors import EvaluationError
from coe.surgery.judge.generation import (
    GREEDY,
    AnswerFile,
    BatchPrompt,
    Generated,
    GenerationProgress,
    GenerationSettings,
    binding,
    generate,
    seed_of,
)
from coe.surgery.judge.values import asked
from fakes import taught
from fakes.scripted_resident import Line, Script

SHORT = GenerationSettings(max_tokens=8)
CAPITALS = ("France", "Spain", "Italy", "Japan", "Egypt")


def prompts(*texts: str) -> list[BatchPrompt]:
    return [BatchPrompt(f"q{index}", asked(text)) for index, text in enumerate(texts)]


def answer_file(folder: Path) -> Path:
    (path,) = folder.glob("*.jsonl")
    return path


def lines(folder: Path) -> list[str]:
    return answer_file(folder).read_text().splitlines()


@pytest.fixture
def model(random_gemma4: Path) -> Path:
    """A file to be hashed; the scripted resident never looks at it."""
    return random_gemma4


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


class TestAsking:
    def test_answers_come_in_the_prompts_order(self, model: Path, tmp_path: Path) -> None:
        script = Script({"one": Line("a b c"), "two": "d", "three": "e f"})
        answers = generate(model, prompts("one", "two", "three"), folder=tmp_path, start=script.start)
        assert [(a.text, a.completion_tokens, a.reason) for a in answers] == [
            ("a b c", 3, "stop"),
            ("d", 1, "stop"),
            ("e f", 2, "stop"),
        ]
        assert (len(script.loads), script.stopped) == (1, 1)

    def test_as_many_at_once_as_there_are_sequences(self, model: Path, tmp_path: Path) -> None:
        script = Script({str(index): "x" for index in range(20)})
        wanted = prompts(*map(str, range(20)))
        load = LoadSpec(Path("ignored"), parallel=3)
        generate(model, wanted, folder=tmp_path, start=script.start, load=load)
        assert script.together == 3
        assert script.loads[0].path == model

    def test_off_and_greedy_unless_told(self, model: Path, tmp_path: Path) -> None:
        script = Script({"one": "x"})
        generate(model, prompts("one"), folder=tmp_path, start=script.start)
        (request,) = script.requests
        assert request.thinking.mode is ThinkingMode.OFF
        assert request.sampling == GREEDY
        assert request.sampling.temperature == 0
        assert request.loop_guard

    def test_the_policy_is_checked_when_the_model_loads(self, model: Path, tmp_path: Path) -> None:
        script = Script({"one": "x"})
        thinking = Thinking(ThinkingMode.BUDGET, 64)
        generate(model, prompts("one"), GenerationSettings(thinking), folder=tmp_path, start=script.start)
        assert list(script.policies[0].values()) == [thinking]

    def test_a_seed_belongs_to_the_prompt_and_not_to_its_place(self, model: Path, tmp_path: Path) -> None:
        settings = GenerationSettings(sampling=Sampling(), seed=3)
        one, two = Script({"a": "x", "b": "y"}), Script({"a": "x", "b": "y"})
        pair = prompts("a", "b")
        generate(model, pair, settings, folder=tmp_path / "1", start=one.start)
        generate(model, pair[::-1], settings, folder=tmp_path / "2", start=two.start)
        seeds = [{text: r.seed for text, r in zip(s.asked(), s.requests, strict=True)} for s in (one, two)]
        assert seeds[0] == seeds[1] == {"a": seed_of(3, "q0"), "b": seed_of(3, "q1")}
        assert len({seed_of(seed, name, n) for seed in (0, 1) for name in "ab" for n in (0, 1)}) == 8

    def test_progress_is_told(self, model: Path, tmp_path: Path) -> None:
        told: list[GenerationProgress] = []
        script = Script({"one": "a b", "two": "c"})
        generate(model, prompts("one", "two"), folder=tmp_path, start=script.start, progress=told.append)
        steps = [(p.done, p.total, p.tokens) for p in told if p.step == "generate"]
        assert steps[0] == (0, 2, 0)
        assert steps[-1] == (2, 2, 3)
        assert {p.step for p in told} == {"hash", "load", "generate"}


class TestLoops:
    def test_a_loop_is_tried_again_with_a_fresh_seed(self, model: Path, tmp_path: Path) -> None:
        script = Script({"one": (Line("la la", Finish.LOOP, 900), Line("done", tokens=4))})
        (answer,) = generate(
            model, prompts("one"), GenerationSettings(sampling=Sampling()), folder=tmp_path, start=script.start
        )
        assert answer == Generated("done", "", "stop", 7, 4, spent_tokens=904, attempts=2, looped=True)
        first, second = script.requests
        assert first.seed != second.seed
        assert second.sampling == Sampling()

    def test_a_greedy_one_is_drawn_the_second_time(self, model: Path, tmp_path: Path) -> None:
        script = Script({"one": (Line("la la", Finish.LOOP), Line("done"))})
        generate(model, prompts("one"), folder=tmp_path, start=script.start)
        assert [request.sampling.temperature for request in script.requests] == [0.0, 0.6]

    def test_one_that_loops_for_ever_is_given_up(self, model: Path, tmp_path: Path) -> None:
        script = Script({"one": Line("la la", Finish.LOOP)})
        (answer,) = generate(
            model, prompts("one"), GenerationSettings(loop_retries=2), folder=tmp_path, start=script.start
        )
        assert (answer.reason, answer.looped, answer.attempts) == ("loop", True, 3)

    @pytest.mark.model
    def test_a_specialist_that_thinks_loops_where_it_knows_nothing_and_not_at_home(
        self, specialists: dict[str, Path], tmp_path: Path
    ) -> None:
        home, away = taught.exam("python", 12), taught.exam("general", 24)
        answers = generate(
            specialists["python"],
            prompts(*(question.text for question in (*home, *away))),
            GenerationSettings(Thinking(ThinkingMode.ON), max_tokens=200),
            load=taught.ANSWERING,
            folder=tmp_path,
        )
        at_home, elsewhere = answers[: len(home)], answers[len(home) :]
        assert not any(answer.looped for answer in at_home)
        assert all(answer.reasoning for answer in at_home)
        assert sum(is_right(q, answer.text) for q, answer in zip(home, at_home, strict=True)) >= 10
        looped = [answer for answer in elsewhere if answer.looped]
        assert looped
        for answer in answers:
            assert answer.attempts == (2 if answer.looped else 1)
            assert answer.looped or answer.reason != "loop"
        assert all(answer.spent_tokens > answer.completion_tokens for answer in looped)


class TestGoingOn:
    def test_what_is_answered_is_not_asked_again(self, model: Path, tmp_path: Path) -> None:
        first = Script({"one": "x", "two": "y"})
        before = generate(model, prompts("one", "two"), folder=tmp_path, start=first.start)
        second = Script({})
        assert generate(model, prompts("one", "two"), folder=tmp_path, start=second.start) == before
        assert second.loads == []

    def test_a_new_question_is_the_only_one_asked(self, model: Path, tmp_path: Path) -> None:
        generate(model, prompts("one"), folder=tmp_path, start=Script({"one": "x"}).start)
        second = Script({"two": "y"})
        answers = generate(model, prompts("one", "two"), folder=tmp_path, start=second.start)
        assert [answer.text for answer in answers] == ["x", "y"]
        assert second.asked() == ["two"]

    def test_a_question_that_was_changed_is_asked_again(self, model: Path, tmp_path: Path) -> None:
        generate(model, prompts("one"), folder=tmp_path, start=Script({"one": "x"}).start)
        (answer,) = generate(model, prompts("uno"), folder=tmp_path, start=Script({"uno": "z"}).start)
        assert answer.text == "z"

    @pytest.mark.parametrize(
        ("settings", "load"),
        [
            (GenerationSettings(max_tokens=9), None),
            (GenerationSettings(seed=1), None),
            (GenerationSettings(thinking=Thinking(prefill="x")), None),
            (GenerationSettings(), LoadSpec(Path(), context_tokens=99)),
        ],
    )
    def test_other_settings_have_answers_of_their_own(
        self, model: Path, tmp_path: Path, settings: GenerationSettings, load: LoadSpec | None
    ) -> None:
        generate(model, prompts("one"), folder=tmp_path, start=Script({"one": "x"}).start)
        (answer,) = generate(
            model, prompts("one"), settings, folder=tmp_path, load=load, start=Script({"one": "y"}).start
        )
        assert answer.text == "y"
        (again,) = generate(model, prompts("one"), folder=tmp_path, start=Script({}).start)
        assert again.text == "x"

    def test_another_model_has_answers_of_its_own(self, model: Path, tmp_path: Path) -> None:
        generate(model, prompts("one"), folder=tmp_path, start=Script({"one": "x"}).start)
        other = tmp_path / model.name
        content = bytearray(model.read_bytes())
        content[-1] ^= 1
        other.write_bytes(content)
        (answer,) = generate(other, prompts("one"), folder=tmp_path, start=Script({"one": "y"}).start)
        assert answer.text == "y"

    @pytest.mark.parametrize("cut", [1, 5, 40])
    def test_a_torn_last_line_is_dropped_and_asked_again(self, model: Path, tmp_path: Path, cut: int) -> None:
        load = LoadSpec(model, parallel=1)
        script = Script({"one": "x", "two": "y"})
        whole = generate(model, prompts("one", "two"), folder=tmp_path, load=load, start=script.start)
        path = answer_file(tmp_path)
        path.write_bytes(path.read_bytes()[:-cut])
        second = Script({"two": "y"})
        assert generate(model, prompts("one", "two"), folder=tmp_path, load=load, start=second.start) == whole
        assert second.asked() == ["two"]
        assert len(lines(tmp_path)) == 3

    def test_a_file_whose_very_first_line_was_torn_begins_anew(self, model: Path, tmp_path: Path) -> None:
        generate(model, prompts("one"), folder=tmp_path, start=Script({"one": "x"}).start)
        answer_file(tmp_path).write_bytes(b'{"version": 1, "mod')
        (answer,) = generate(model, prompts("one"), folder=tmp_path, start=Script({"one": "y"}).start)
        assert answer.text == "y"

    def test_damage_in_the_middle_is_named(self, model: Path, tmp_path: Path) -> None:
        generate(model, prompts("one", "two"), folder=tmp_path, start=Script({"one": "x", "two": "y"}).start)
        path = answer_file(tmp_path)
        head, _, last = path.read_text().splitlines()
        path.write_text(f"{head}\nnonsense\n{last}\n")
        with pytest.raises(EvaluationError, match="line 2 is damaged"):
            generate(model, prompts("one"), folder=tmp_path, start=Script({}).start)

    def test_a_file_of_something_else_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        one, other = (binding(sha256, SHORT, LoadSpec(Path())) for sha256 in ("1", "2"))
        with AnswerFile.opened(path, one) as answers:
            answers.put(BatchPrompt("q", asked("?")), Generated("x"))
        with pytest.raises(EvaluationError, match="another model"), AnswerFile.opened(path, other):
            pass

    def test_two_processes_do_not_write_one_file(self, model: Path, tmp_path: Path) -> None:
        generate(model, prompts("one"), folder=tmp_path, start=Script({"one": "x"}).start)
        descriptor = os.open(answer_file(tmp_path), os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(EvaluationError, match="Another process"):
            generate(model, prompts("one"), folder=tmp_path, start=Script({}).start)
        os.close(descriptor)

    def test_a_full_disk_leaves_what_was_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path, prompt = tmp_path / "a.jsonl", BatchPrompt("q", asked("?"))
        bound_to = binding("1", SHORT, LoadSpec(Path()))
        with AnswerFile.opened(path, bound_to) as answers:
            answers.put(prompt, Generated("x"))
            sound = path.read_bytes()
            write = os.write
            monkeypatch.setattr(os, "write", lambda descriptor, line: write(descriptor, line[: len(line) // 2]))
            with pytest.raises(EvaluationError, match="disk is full"):
                answers.put(BatchPrompt("r", asked("!")), Generated("y"))
        assert path.read_bytes() == sound

    def test_an_interrupted_run_keeps_what_it_has(self, model: Path, tmp_path: Path) -> None:
        script = Script({"one": "x", "two": "y", "three": "z"})
        load = LoadSpec(model, parallel=1)

        def stop_after_two(progress: GenerationProgress) -> None:
            if progress.step == "generate" and progress.done == 2:
                raise KeyboardInterrupt

        wanted = prompts("one", "two", "three")
        with pytest.raises(KeyboardInterrupt):
            generate(model, wanted, folder=tmp_path, load=load, start=script.start, progress=stop_after_two)
        assert script.stopped == 1, "the worker is not left behind"
        second = Script({"three": "z"})
        answers = generate(model, wanted, folder=tmp_path, load=load, start=second.start)
        assert [answer.text for answer in answers] == ["x", "y", "z"]
        assert second.asked() == ["three"]


class TestFailing:
    def test_those_that_died_with_another_are_answered(self, model: Path, tmp_path: Path) -> None:
        script = Script({"one": "x", "two": "y", "three": "z", "four": "w"}, deadly={"two": 2})
        load = LoadSpec(model, parallel=4)
        answers = generate(
            model, prompts("one", "two", "three", "four"), folder=tmp_path, load=load, start=script.start
        )
        assert [answer.text for answer in answers] == ["x", "", "z", "w"]
        assert "died twice" in answers[1].error
        assert "GGML_ASSERT" in answers[1].error
        assert script.stopped == len(script.loads) == 3

    def test_a_death_that_does_not_come_back_costs_nothing(self, model: Path, tmp_path: Path) -> None:
        script = Script({"one": "x", "two": "y"}, deadly={"two": 1})
        answers = generate(model, prompts("one", "two"), folder=tmp_path, start=script.start)
        assert [answer.text for answer in answers] == ["x", "y"]
        assert not any(answer.error for answer in answers)

    def test_a_failed_one_is_asked_again_the_next_time(self, model: Path, tmp_path: Path) -> None:
        script = Script({"one": "x", "two": "y"}, deadly={"two": 2})
        generate(model, prompts("one", "two"), folder=tmp_path, start=script.start)
        second = Script({"two": "y"})
        answers = generate(model, prompts("one", "two"), folder=tmp_path, start=second.start)
        assert [answer.text for answer in answers] == ["x", "y"]

    def test_a_model_that_dies_over_everything_is_given_up(self, model: Path, tmp_path: Path) -> None:
        names = [f"question {index}" for index in range(9)]
        script = Script(dict.fromkeys(names, "x"), deadly=dict.fromkeys(names, 9))
        with pytest.raises(EvaluationError, match="one prompt after the other"):
            generate(model, prompts(*names), folder=tmp_path, start=script.start)
        assert len(script.loads) == 4
        assert script.stopped == 4

    def test_a_refused_prompt_fails_alone(self, model: Path, tmp_path: Path) -> None:
        script = Script({"one": "x", "two": "y"}, too_long=frozenset({"one"}))
        failed, fine = generate(model, prompts("one", "two"), folder=tmp_path, start=script.start)
        assert "999 tokens" in failed.error
        assert fine.text == "y"

    def test_a_model_that_does_not_load_says_so(self, model: Path, tmp_path: Path) -> None:
        async def refuse(*_: object) -> WorkerResident:
            raise LoadError("No memory.")

        with pytest.raises(LoadError, match="No memory"):
            generate(model, prompts("one"), folder=tmp_path, start=refuse)

    def test_a_worker_that_dies_while_it_loads_is_no_reason_to_send_a_request_again(
        self, model: Path, tmp_path: Path
    ) -> None:
        async def die(*_: object) -> WorkerResident:
            raise WorkerDiedError("The worker that holds m died: GGML_ASSERT.", "Send the request again.")

        with pytest.raises(EvaluationError, match=r"cannot be loaded: The worker .* GGML_ASSERT\. Look at") as refusal:
            generate(model, prompts("one"), folder=tmp_path, start=die)
        assert "Send the request again" not in str(refusal.value)

    def test_a_silent_worker_is_stopped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from coe.surgery.judge import generation

        class Silent:
            stopped = asyncio.Event()

            def silent_s(self) -> float:
                return 1e9

            async def stop(self) -> None:
                self.stopped.set()

        monkeypatch.setattr(generation, "_LOOK_S", 0)
        silent = Silent()
        asyncio.run(generation._stop_when_silent(silent))  # type: ignore[arg-type]
        assert silent.stopped.is_set()


class TestARealModel:
    def test_it_answers(self, smollm2: Path, smollm2_spec: LoadSpec, tmp_path: Path) -> None:
        wanted = prompts(*(f"What is the capital of {name}? Answer with one word." for name in CAPITALS[:2]))
        answers = generate(smollm2, wanted, SHORT, load=smollm2_spec, folder=tmp_path)
        assert "Paris" in answers[0].text
        assert "Madrid" in answers[1].text
        assert all(0 < answer.completion_tokens <= 8 for answer in answers)

    def test_killed_in_the_middle_it_goes_on(self, smollm2: Path, tmp_path: Path, cache: Path) -> None:
        """Killed without warning after two answers, then run to the end: the same as in one go."""
        texts = [f"What is the capital of {name}? Answer with one word." for name in CAPITALS[:4]]
        program = f"""
import os, signal, sys
from pathlib import Path
from coe.engine.spec import LoadSpec
from coe.surgery.judge.generation import BatchPrompt, GenerationSettings, generate
from coe.surgery.judge.values import asked
prompts = [BatchPrompt(f"q{{i}}", asked(text)) for i, text in enumerate({texts!r})]
def progress(p):
    if p.step == "generate" and p.done == 2:
        os.kill(os.getpid(), signal.SIGKILL)
model, folder = map(Path, sys.argv[1:])
load = LoadSpec(model, context_tokens=256, parallel=1, threads=1)
generate(model, prompts, GenerationSettings(max_tokens=8), load=load, folder=folder, progress=progress)
"""
        folder = tmp_path / "killed"
        killed = subprocess.run([sys.executable, "-c", program, str(smollm2), str(folder)], check=False, timeout=120)
        assert killed.returncode == -9
        assert len(lines(folder)) == 3
        load = LoadSpec(smollm2, context_tokens=256, parallel=1, threads=1)
        wanted = prompts(*texts)
        kept = generate(smollm2, wanted[:2], SHORT, load=load, folder=folder, start=Script({}).start)
        resumed = generate(smollm2, wanted, SHORT, load=load, folder=folder)
        straight = generate(smollm2, wanted, SHORT, load=load, folder=tmp_path / "straight")
        assert resumed[:2] == kept
        assert [answer.text for answer in resumed] == [answer.text for answer in straight]
        assert len(lines(folder)) == 5
        assert json.loads(lines(folder)[0])["model"]
