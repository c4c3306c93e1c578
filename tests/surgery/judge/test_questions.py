"""Files of questions: what may stand in them, and what is said about what may not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from coe.surgery.errors import EvaluationError
from coe.surgery.judge.questions import gradable_questions, read_questions
from coe.surgery.judge.values import AnswerKind, Question

CITIES = ["London", "Berlin", "Paris"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "questions.jsonl"


def write(file: Path, *records: dict[str, Any] | str) -> list[Path]:
    file.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return [file]


def one(file: Path, **record: Any) -> Question:
    (question,) = read_questions(write(file, {"question": "Which one?", **record})).questions
    return question


class TestReading:
    @pytest.mark.parametrize("answer", ["C", "c", "(C)", "C.", 2, "Paris", "paris"])
    def test_a_choice_by_letter_position_or_words(self, file: Path, answer: str | int) -> None:
        question = one(file, options=CITIES, answer=answer)
        assert (question.kind, question.answers) == (AnswerKind.CHOICE, ("C",))
        assert question.chance == pytest.approx(1 / 3)

    @pytest.mark.parametrize(
        ("record", "kind", "answers"),
        [
            ({"answer": "Paris"}, AnswerKind.EXACT, ("Paris",)),
            ({"answer": "Paris", "answers": ["the capital"]}, AnswerKind.EXACT, ("Paris", "the capital")),
            ({"answers": ["Paris", "Lutetia"]}, AnswerKind.EXACT, ("Paris", "Lutetia")),
            ({"answer": 42}, AnswerKind.NUMERIC, ("42",)),
            ({"answer": 2.50}, AnswerKind.NUMERIC, ("2.5",)),
            ({"answer": "1,234.5"}, AnswerKind.NUMERIC, ("1,234.5",)),
            ({"answer": "25%"}, AnswerKind.NUMERIC, ("25%",)),
            ({"answer": "3/4"}, AnswerKind.NUMERIC, ("3/4",)),
            ({"answer": "5 kg"}, AnswerKind.EXACT, ("5 kg",)),
            ({"answer": "1984", "kind": "exact"}, AnswerKind.EXACT, ("1984",)),
            ({"answer": 7, "kind": "exact"}, AnswerKind.EXACT, ("7",)),
        ],
    )
    def test_the_kind_is_told_by_the_answer(
        self, file: Path, record: dict[str, Any], kind: AnswerKind, answers: tuple[str, ...]
    ) -> None:
        question = one(file, **record)
        assert (question.kind, question.answers, question.chance) == (kind, answers, 0.0)

    @pytest.mark.parametrize(("given", "distance"), [(0.5, 0.5), ("0.5", 0.5), ("1%", 2.0), (0, 0.0)])
    def test_tolerances(self, file: Path, given: Any, distance: float) -> None:
        assert one(file, answer=-200, tolerance=given).tolerance == pytest.approx(distance)

    def test_numbers_as_options(self, file: Path) -> None:
        assert one(file, options=[10, 20, 30], answer="20").answers == ("B",)
        assert one(file, options=[10, 20, 30], answer=2).answers == ("C",)

    def test_the_rest_of_a_line(self, file: Path) -> None:
        question = one(file, answer="x", subdomain="optics", id=7, system="Be brief.", category="ignored")
        assert (question.subdomain, question.id, question.system) == ("optics", "7", "Be brief.")
        assert question.source == (str(file), 1)
        assert one(file, answer="x", **{"class": "optics"}).subdomain == "optics"
        assert one(file, answer="x", question_id=11).id == "11"

    def test_an_id_belongs_to_the_content_and_not_to_the_line(self, file: Path) -> None:
        records = [{"question": text, "answer": "x"} for text in ("one?", "two?")]
        there = {q.question: q.id for q in read_questions(write(file, *records)).questions}
        back = {q.question: q.id for q in read_questions(write(file, *records[::-1])).questions}
        assert there == back
        assert len(set(there.values())) == 2

    def test_blank_lines_a_mark_and_odd_line_ends_do_no_harm(self, file: Path) -> None:
        file.write_bytes(
            b"\xef\xbb\xbf"
            + json.dumps({"question": "a\u2028b?", "answer": "x"}, ensure_ascii=False).encode()
            + b"\r\n\n   \n"
            + b'{"question": "c?", "answer": "y"}'
        )
        assert [q.question for q in read_questions([file]).questions] == ["a\u2028b?", "c?"]

    def test_several_files(self, file: Path, tmp_path: Path) -> None:
        write(file, {"question": "a?", "answer": "x"})
        other = write(tmp_path / "other.jsonl", {"question": "b?", "answer": "y"})
        assert len(read_questions([file, *other]).questions) == 2

    def test_a_repeated_line_counts_once_and_is_noted(self, file: Path) -> None:
        line = {"question": "Which one?", "options": CITIES, "answer": "C"}
        found = read_questions(
            write(file, line, {**line, "answer": 2}, {**line, "options": CITIES[::-1], "answer": "A"})
        )
        assert (len(found.questions), found.duplicates) == (2, 1)

    def test_the_hash_is_of_the_content(self, file: Path) -> None:
        line = {"question": "Which one?", "answer": "x"}
        plain = read_questions(write(file, line))
        assert plain.sha256 == read_questions(write(file, "", {**line, "note": "ignored"})).sha256
        assert plain.sha256 != read_questions(write(file, {**line, "answer": "y"})).sha256
        assert plain.sha256 != read_questions(write(file, {**line, "subdomain": "y"})).sha256


class TestRefusing:
    @pytest.mark.parametrize(
        ("line", "what"),
        [
            ("{", "no JSON"),
            ("[1]", "no JSON object"),
            ({"answer": "x"}, "`question` must be a text"),
            ({"question": "  ", "answer": "x"}, "`question` must be a text"),
            ({"question": 5, "answer": "x"}, "`question` must be a text"),
            ({"question": "?a"}, "no answer"),
            ({"question": "?a", "answer": None}, "no answer"),
            ({"question": "?a", "answer": True}, "text or a number"),
            ({"question": "?a", "answer": ["x"]}, "text or a number"),
            ({"question": "?a", "answer": "?!"}, "can equal"),
            ({"question": "?a", "answers": "x"}, "must be a list"),
            ({"question": "?a", "answer": "x", "kind": "essay"}, "no kind 'essay'"),
            ({"question": "?a", "answer": "x", "kind": "choice"}, "0 options"),
            ({"question": "?a", "answer": "A", "options": CITIES, "kind": "exact"}, "3 options"),
            ({"question": "?a", "answer": "x", "kind": "numeric"}, "can equal"),
            ({"question": "?a", "answer": "5 kg", "kind": "numeric"}, "can equal"),
            ({"question": "?a", "answer": "x", "tolerance": 1}, "tolerance"),
            ({"question": "?a", "answer": 1, "tolerance": -1}, "tolerance"),
            ({"question": "?a", "answer": 1, "tolerance": "wide"}, "tolerance"),
            ({"question": "?a", "answer": 1, "tolerance": True}, "tolerance"),
            ({"question": "?a", "answer": 1, "tolerance": "inf"}, "tolerance"),
            ({"question": "?a", "answer": "D", "options": CITIES}, "none of the options"),
            ({"question": "?a", "answer": 3, "options": CITIES}, "none of the options"),
            ({"question": "?a", "answer": -1, "options": CITIES}, "none of the options"),
            ({"question": "?a", "answer": "Rome", "options": CITIES}, "none of the options"),
            ({"question": "?a", "answer": 2, "options": [1, 2, 3]}, "either of two"),
            ({"question": "?a", "answer": "A", "options": ["B", "A"]}, "either of two"),
            ({"question": "?a", "answers": ["A", "B"], "options": CITIES}, "several answers"),
            ({"question": "?a", "answer": "A", "options": ["x"]}, "1 options"),
            ({"question": "?a", "answer": "A", "options": ["x"] * 3}, "twice"),
            ({"question": "?a", "answer": "A", "options": ["x", " "]}, "empty"),
            ({"question": "?a", "answer": "A", "options": "xyz"}, "list of texts"),
            ({"question": "?a", "answer": "A", "options": [str(n) for n in range(27)]}, "27 options"),
            ({"question": "?a", "answer": "A", "option": CITIES}, "Did you mean `options`"),
            ({"question": "?a", "answer": 1, "Tolerance": 1}, "Did you mean `tolerance`"),
            ({"question": "?a", "answer": "x", "system": 5}, "`system` must be a text"),
        ],
    )
    def test_a_bad_line_is_named_with_a_remedy(self, file: Path, line: dict[str, Any] | str, what: str) -> None:
        paths = write(file, {"question": "fine?", "answer": "x"}, "", line)
        with pytest.raises(EvaluationError) as caught:
            read_questions(paths)
        assert f"{file}, line 3" in caught.value.message
        assert what in str(caught.value)
        assert caught.value.remedy

    def test_the_same_question_with_another_answer(self, file: Path) -> None:
        paths = write(file, {"question": "?a", "answer": "x"}, {"question": "?a", "answer": "y"})
        with pytest.raises(EvaluationError, match=r"line 2: the same question with another answer stands in line 1"):
            read_questions(paths)

    def test_one_id_for_two_questions(self, file: Path) -> None:
        paths = write(file, {"question": "?a", "answer": "x", "id": 1}, {"question": "?b", "answer": "x", "id": "1"})
        with pytest.raises(EvaluationError, match="id '1' of another question"):
            read_questions(paths)

    def test_files_that_are_none(self, file: Path, tmp_path: Path) -> None:
        with pytest.raises(EvaluationError, match="cannot be read"):
            read_questions([tmp_path / "absent.jsonl"])
        file.write_bytes(b"\xff\xfe\xff")
        with pytest.raises(EvaluationError, match="UTF-8"):
            read_questions([file])
        with pytest.raises(EvaluationError, match="no questions"):
            read_questions(write(file, ""))


class TestGradable:
    def test_only_lines_that_an_answer_can_be_compared_with(self, file: Path) -> None:
        long = "It is a long story, which begins in the year of the comet."
        paths = write(
            file,
            {"text": "Nothing is asked here."},
            {"messages": [{"role": "user", "content": "Hello"}]},
            {"question": "long?", "answer": long},
            {"question": "short?", "answer": "the speed of light"},
            {"question": "number?", "answer": 5},
            {"question": "choice?", "options": CITIES, "answer": "A"},
            {"question": "long but said to be one?", "answer": long, "kind": "exact"},
            {"question": "unanswered?"},
            {"question": "lines?", "answer": "a\nb"},
        )
        found = gradable_questions(paths).questions
        assert [q.question for q in found] == ["short?", "number?", "choice?", "long but said to be one?"]
        assert [q.source[1] for q in found] == [4, 5, 6, 7]

    def test_a_corpus_without_any(self, file: Path, tmp_path: Path) -> None:
        text = tmp_path / "corpus.txt"
        text.write_text("Plain text.")
        assert gradable_questions([*write(file, {"text": "x"}), text]).questions == ()


class TestAsking:
    def test_a_choice_is_lettered_and_followed_by_the_instruction(self, file: Path) -> None:
        (message,) = one(file, options=CITIES, answer="C").messages()
        assert message["role"] == "user"
        assert message["content"].startswith("Which one?\n\nA) London\nB) Berlin\nC) Paris\n\n")
        assert message["content"].endswith('"Answer: X", where X is the letter of the right option.')

    @pytest.mark.parametrize(("answer", "words"), [("Paris", "as few words"), (5, "the number alone")])
    def test_the_other_kinds(self, file: Path, answer: Any, words: str) -> None:
        assert words in one(file, answer=answer).messages()[0]["content"]

    def test_a_questions_own_system_prompt_comes_before_the_models(self, file: Path) -> None:
        assert one(file, answer="x").messages("General.")[0] == {"role": "system", "content": "General."}
        assert one(file, answer="x", system="Own.").messages("General.")[0]["content"] == "Own."
        assert len(one(file, answer="x").messages()) == 1
