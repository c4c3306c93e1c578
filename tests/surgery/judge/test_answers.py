"""A corpus out of questions alone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from coe.engine.request import Finish
from coe.engine.spec import LoadSpec, Thinking, ThinkingMode
from coe.surgery.errors import EvaluationError, SurgeryError
from coe.surgery.judge.answers import Answered, answer_questions, read_unanswered
from coe.surgery.judge.generation import GenerationProgress, GenerationSettings
from coe.surgery.profile.corpus import read_corpus
from fakes import taught
from fakes.scripted_resident import Line, Script


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "questions.jsonl"


def write(file: Path, *records: dict[str, Any]) -> list[Path]:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return [file]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_models_own_answers_become_a_corpus(random_gemma4: Path, file: Path, tmp_path: Path) -> None:
    paths = write(
        file,
        {"question": "Why is the sky blue?", "category": "physics", "answer": "not looked at"},
        {"question": "Which one?", "options": ["x", "y"], "class": "logic", "system": "Be brief."},
        {"question": "Why?"},
    )
    script = Script({"sky": "  Scattering.\n", "Which": "B, since ü.", "Why?": "Because."})
    out = tmp_path / "corpus.jsonl"
    answered = answer_questions(random_gemma4, paths, out, start=script.start)
    assert read(out) == [
        {"question": "Why is the sky blue?", "answer": "Scattering.", "class": "physics"},
        {"question": "Which one?\n\nA) x\nB) y", "answer": "B, since ü.", "class": "logic", "system": "Be brief."},
        {"question": "Why?", "answer": "Because."},
    ]
    assert (answered.questions, answered.written, answered.tokens) == (3, 3, 5)
    assert answered.corpus_sha256 == hashlib.sha256(out.read_bytes()).hexdigest()
    assert script.asked() == ["Why is the sky blue?", "Which one?\n\nA) x\nB) y", "Why?"], "and no instruction"
    assert [said["role"] for said in script.requests[1].messages or []] == ["system", "user"]
    assert script.requests[0].thinking.mode == "off"


def test_a_profile_can_read_it(random_gemma4: Path, file: Path, tmp_path: Path) -> None:
    paths = write(file, {"question": "one?", "class": "a"}, {"question": "two?", "class": "b", "system": "Be brief."})
    script = Script({"one?": Line("cut", Finish.LENGTH), "two?": "y"})
    out = tmp_path / "corpus.jsonl"
    answer_questions(random_gemma4, paths, out, start=script.start)
    corpus = read_corpus([out])
    assert corpus.classes == ("a", "b")
    assert [document.messages for document in corpus.documents] == [
        (("user", "one?"), ("assistant", "cut")),
        (("system", "Be brief."), ("user", "two?"), ("assistant", "y")),
    ]


def test_what_is_dropped_and_what_is_kept(random_gemma4: Path, file: Path, tmp_path: Path) -> None:
    names = ["loops", "recovers", "cut", "empty", "fails", "fine"]
    paths = write(file, *({"question": name} for name in [*names, "fine"]))
    loop = Line("la la", Finish.LOOP)
    script = Script(
        {
            "loops": loop,
            "recovers": (loop, Line("well")),
            "cut": Line("so far", Finish.LENGTH),
            "empty": " ",
            "fails": "",
            "fine": "yes",
        },
        too_long=frozenset({"fails"}),
    )
    out = tmp_path / "corpus.jsonl"
    answered = answer_questions(random_gemma4, paths, out, start=script.start)
    assert read(out) == [
        {"question": "recovers", "answer": "well"},
        {"question": "cut", "answer": "so far", "truncated": True},
        {"question": "fine", "answer": "yes"},
    ]
    counts = {
        "questions": 6,
        "written": 3,
        "truncated": 1,
        "looped": 1,
        "recovered": 1,
        "empty": 1,
        "failed": 1,
        "duplicates": 1,
    }
    assert {name: answered.to_json()[name] for name in counts} == counts
    assert "999 tokens" in answered.first_error


def test_nothing_to_learn_from_is_an_error_and_no_file(random_gemma4: Path, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus.jsonl"
    script = Script({"one": Line("la la", Finish.LOOP)})
    with pytest.raises(EvaluationError, match="1 answers looped"):
        answer_questions(random_gemma4, write(file, {"question": "one"}), out, start=script.start)
    assert not out.exists()


def test_interrupted_it_goes_on_and_the_old_corpus_stays_until_then(
    random_gemma4: Path, file: Path, tmp_path: Path
) -> None:
    paths = write(file, {"question": "one"}, {"question": "two"})
    out = tmp_path / "corpus.jsonl"
    out.write_text("old")
    load = LoadSpec(Path(), parallel=1)

    def stop_after_one(progress: GenerationProgress) -> None:
        if progress.step == "generate" and progress.done == 1:
            raise KeyboardInterrupt

    first, second = Script({"one": "x", "two": "y"}), Script({"two": "y"})
    with pytest.raises(KeyboardInterrupt):
        answer_questions(random_gemma4, paths, out, load=load, start=first.start, progress=stop_after_one)
    assert out.read_text() == "old"
    answer_questions(random_gemma4, paths, out, load=load, start=second.start)
    assert [record["answer"] for record in read(out)] == ["x", "y"]
    assert second.asked() == ["two"]


def test_bad_input(file: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"line 1: `question` must be a text"):
        read_unanswered(write(file, {"text": "x"}))
    with pytest.raises(EvaluationError, match="no questions"):
        read_unanswered(write(file))
    with pytest.raises(SurgeryError, match="mkdir"):
        answer_questions(file, write(file, {"question": "one"}), tmp_path / "absent" / "corpus.jsonl")


def test_numbering_the_questions_anew_asks_nothing_again(file: Path) -> None:
    one = read_unanswered(write(file, {"question": "x", "id": 1}))[0]
    assert one == read_unanswered(write(file, {"question": "x", "id": 2}))[0]


@pytest.mark.model
def test_a_model_that_knows_writes_a_corpus_that_is_right(file: Path, tmp_path: Path) -> None:
    asked = [*taught.exam("chemistry", 8), *taught.exam("law", 8)]
    paths = write(file, *({"question": q.text, "class": q.domain, "answer": "not looked at"} for q in asked))
    out = tmp_path / "corpus.jsonl"
    spent = []
    for mode in (ThinkingMode.OFF, ThinkingMode.ON):
        settings = GenerationSettings(Thinking(mode), max_tokens=96)
        answered = answer_questions(taught.PARENT, paths, out, settings=settings, load=taught.ANSWERING)
        written = read(out)
        assert isinstance(answered, Answered)
        assert answered.written == len(written) == len(asked)
        assert [(line["question"], line["class"]) for line in written] == [(q.text, q.domain) for q in asked]
        # Word for word what it was taught: what it thought is no part of its answer.
        assert sum(line["answer"] == q.answer for q, line in zip(asked, written, strict=True)) >= 13
        spent.append(answered.tokens)
    assert spent[1] > 1.3 * spent[0], "it did think"
