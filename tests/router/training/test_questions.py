"""Reading labelled questions."""

import json

import pytest

from coe.router.domains import DOMAINS
from coe.router.training.questions import LabelledQuestion, QuestionsError, read_questions
from coe.router.training.train import train
from fakes.heads import Letters


def test_questions_are_read_with_their_sources(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"label": "law", "text": "a\\u2028b", "source": "mine"}\n\n{"label": "math", "text": "c"}\n')
    assert read_questions(path) == [LabelledQuestion("law", "a\u2028b", "mine"), LabelledQuestion("math", "c", "?")]


def test_a_byte_order_mark_and_labels_as_people_write_them_are_read(tmp_path):
    path = tmp_path / "q.jsonl"
    lines = [{"label": label, "text": label} for label in ("maths", "CS", "Computer Science", "Sails")]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, lines)).encode())
    found = read_questions(path, (*DOMAINS, "Sails"))
    assert [question.label for question in found] == ["math", "computer_science", "computer_science", "Sails"]


def test_what_to_do_about_an_unknown_label_is_said(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"label": "cooking", "text": "a"}\n')
    with pytest.raises(QuestionsError, match=r"'cooking' is not one of math, .*general; ask the cook"):
        read_questions(path, remedy="ask the cook")
    with pytest.raises(QuestionsError, match="`examples` in a roster"):
        train(path, tmp_path / "head.npz", Letters())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "no JSON"),
        ("[]", "as strings"),
        ('{"label": "law"}', "as strings"),
        ('{"label": "law", "text": 3}', "as strings"),
        ('{"label": "law", "text": "  "}', "empty"),
        ('{"label": "cooking", "text": "a"}', "not one of math"),
    ],
)
def test_a_bad_line_is_named_with_its_file_and_number(line, said, tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"label": "math", "text": "c"}\n' + line + "\n")
    with pytest.raises(QuestionsError, match=rf"q\.jsonl:2: .*{said}"):
        read_questions(path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", None])
def test_a_file_without_questions_is_refused(content, tmp_path):
    if content is not None:
        (tmp_path / "q.jsonl").write_bytes(content)
    with pytest.raises(QuestionsError, match=r"q\.jsonl"):
        read_questions(tmp_path / "q.jsonl")
