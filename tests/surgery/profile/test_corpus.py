"""Corpora are read as they are meant, and what cannot be read is named by file and line."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from coe.engine.llama.model import Model
from coe.surgery.errors import CorpusError
from coe.surgery.profile.corpus import UNCLASSED, ChatReader, Corpus, CorpusFile, Document, read_corpus


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def written(name: str, content: str | bytes | list[Any]) -> Path:
        path = tmp_path / name
        if isinstance(content, list):
            content = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return written


def test_a_text_file_is_split_between_paragraphs_into_documents_of_some_size(write: Any) -> None:
    paragraphs = [f"Paragraph {n}. " + "word " * 300 for n in range(12)]
    corpus = read_corpus([write("book.txt", "\n\n".join(paragraphs) + "\n")])
    assert "\n\n".join(document.text for document in corpus.documents) == "\n\n".join(paragraphs)
    assert len(corpus.documents) == 4
    assert all(len(document.text) <= 6000 + 20 for document in corpus.documents)
    assert corpus.documents[1].source.endswith("book.txt, line 7")


def test_a_long_paragraph_stays_whole(write: Any) -> None:
    corpus = read_corpus([write("long.md", "short\n\n" + "x" * 50_000 + "\n\nshort")])
    assert [len(document.text) for document in corpus.documents] == [5, 50_000, 5]


def test_lines_of_json_are_texts_questions_and_conversations(write: Any) -> None:
    path = write(
        "mixed.jsonl",
        [
            {"text": " A text. ", "id": 7},
            "",
            {"question": "Two and two?", "answer": 4, "class": "math"},
            {"question": "Which?", "options": ["red", "blue"], "answer": 1, "system": "Be brief."},
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]},
        ],
    )
    documents = read_corpus([CorpusFile(path, "chat")]).documents
    assert [document.category for document in documents] == ["chat", "math", "chat", "chat"]
    assert documents[0].text == "A text."
    assert documents[1].messages == (("user", "Two and two?"), ("assistant", "4"))
    assert documents[2].messages == (
        ("system", "Be brief."), ("user", "Which?\n\nA) red\nB) blue"), ("assistant", "B"),
    )  # fmt: skip
    assert documents[3].messages == (("user", "Hi"), ("assistant", "Hello."))
    assert documents[1].source.endswith("mixed.jsonl, line 3")


def test_classes_come_from_the_line_then_the_file_then_nowhere(write: Any) -> None:
    one = write("one.jsonl", [{"text": "a"}, {"text": "b", "class": "own"}])
    two = write("two.txt", "c")
    corpus = read_corpus([CorpusFile(one, "law"), two])
    assert corpus.classes == ("law", "own", UNCLASSED)


def test_a_class_is_written_before_its_file(write: Any, tmp_path: Path) -> None:
    odd = write("a=b.txt", "text")
    assert CorpusFile.parse("law=cases.txt") == CorpusFile(Path("cases.txt"), "law")
    assert CorpusFile.parse("cases.txt") == CorpusFile(Path("cases.txt"))
    assert CorpusFile.parse(str(odd)) == CorpusFile(odd)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{nonsense", "line 2 is no JSON"),
        ("[" * 100_000, "line 2 is no JSON"),
        ('["text"]', "line 2 is no JSON object"),
        ({"texts": "a"}, "line 2 has nothing to read"),
        ({"text": "a", "question": "b"}, 'line 2 has "text" and "question"'),
        ({"text": "  "}, 'line 2: "text" must be a text'),
        ({"text": 3}, 'line 2: "text" must be a text'),
        ({"text": "a", "class": 3}, 'line 2: "class" must be a name'),
        ({"question": "a"}, "line 2.*--answer"),
        ({"question": "a", "answer": " "}, 'line 2: "answer" must be'),
        ({"question": "a", "answer": True}, 'line 2: "answer" must be'),
        ({"question": "a", "answer": "A", "options": "AB"}, 'line 2: "options" must be'),
        ({"messages": []}, 'line 2: "messages" must be'),
        ({"messages": [{"role": "poet", "content": "a"}]}, "line 2: message 1 needs a role"),
        ({"messages": [{"role": "user", "content": None}]}, "line 2: message 1 needs a role"),
        ('{"text": "\\ud800"}', "line 2 holds half of a surrogate pair"),
    ],
)
def test_a_bad_line_is_named_with_its_remedy(write: Any, line: Any, complaint: str) -> None:
    path = write("bad.jsonl", [{"text": "fine"}, line])
    with pytest.raises(CorpusError, match=complaint) as caught:
        read_corpus([path])
    assert str(path) in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("latin.txt", "fine\ncaf\xe9\n".encode("latin-1"), r"line 2 is not UTF-8 \(byte 4"),
        ("wide.txt", "text".encode("utf-16"), "is UTF-16"),
        ("binary.txt", b"GGUF\0\0", "zero byte"),
        ("empty.txt", b"", "holds no text"),
        ("blank.jsonl", b"\n  \n", "holds no text"),
        ("records.json", b"[]", "of a kind that is not read"),
        ("packed.jsonl.gz", b"\x1f\x8b", "of a kind that is not read"),
    ],
)
def test_a_file_that_is_no_text_is_refused(write: Any, name: str, content: bytes, complaint: str) -> None:
    with pytest.raises(CorpusError, match=complaint):
        read_corpus([write(name, content)])


def test_missing_files_folders_and_nothing_at_all(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="cannot be read"):
        read_corpus([tmp_path / "absent.txt"])
    with pytest.raises(CorpusError, match="is a folder"):
        read_corpus([tmp_path])
    with pytest.raises(CorpusError, match="nothing to read"):
        read_corpus([])


def test_a_line_too_long_to_be_a_document_is_refused(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coe.surgery.profile.corpus._LINE_BYTES", 2**20)
    with pytest.raises(CorpusError, match="line 1 is longer than 1 MiB"):
        read_corpus([write("huge.txt", "x" * (2**20 + 1))])


def test_a_byte_order_mark_is_no_text(write: Any) -> None:
    marked = write("marked.jsonl", b"\xef\xbb\xbf" + b'{"text": "a"}')
    assert read_corpus([marked]).documents[0].text == "a"


def test_line_separators_within_a_json_text_do_not_end_the_line(write: Any) -> None:
    path = write("odd.jsonl", ['{"text": "one\u2028two"}'])
    assert read_corpus([path]).documents[0].text == "one\u2028two"


def test_the_hash_is_of_the_documents_and_not_of_their_files(write: Any) -> None:
    a, b = {"text": "a"}, {"text": "b"}
    whole = read_corpus([write("whole.jsonl", [a, b])])
    parts = read_corpus([write("b.jsonl", [b]), write("a.jsonl", [a])])
    assert whole.sha256 == parts.sha256 == whole.shuffled(3).sha256
    assert whole.sha256 != read_corpus([write("other.jsonl", [a, {"text": "b", "class": "c"}])]).sha256


def test_shuffling_loses_nothing_and_is_the_same_every_time() -> None:
    corpus = Corpus(tuple(Document("all", str(n)) for n in range(50)))
    assert corpus.shuffled() == corpus.shuffled()
    assert corpus.shuffled() != corpus
    assert set(corpus.shuffled().documents) == set(corpus.documents)


def test_documents_by_themselves_are_spread_over_the_corpus() -> None:
    corpus = Corpus(tuple(Document("all", str(n)) for n in range(10)))
    assert [document.text for document in corpus.by_document(4).documents] == ["0", "2", "5", "7"]
    assert corpus.by_document(4).classes == ("document 0", "document 2", "document 5", "document 7")
    assert len(corpus.by_document(99).documents) == 10


# --- tokens -----------------------------------------------------------------------------------------------------------


def rendered(model: Model, document: Document) -> str:
    with closing(ChatReader(model.chat_template(), model.vocab)) as reader:
        tokens = reader.tokens_of(document)
    return b"".join(model.vocab.piece(int(token), special=True) for token in tokens).decode()


def test_a_conversation_is_rendered_with_its_thinking_closed_and_its_turn_ended(gemma4_model: Model) -> None:
    document = Document("all", messages=(("user", "w1"), ("assistant", "w2"), ("user", "w3"), ("assistant", "w4")))
    assert rendered(gemma4_model, document) == (
        "<bos><|turn>user\nw1<turn|>\n<|turn>model\nw2<turn|>\n"
        "<|turn>user\nw3<turn|>\n<|turn>model\n<|channel>thought\n<channel|>w4<turn|>\n"
    )


def test_a_conversation_without_an_answer_ends_where_the_answer_would_begin(gemma4_model: Model) -> None:
    text = rendered(gemma4_model, Document("all", messages=(("user", "w1"),)))
    assert text.endswith("<|turn>model\n<|channel>thought\n<channel|>")


def test_a_real_models_template_closes_the_turn_too(smollm2_model: Model) -> None:
    text = rendered(smollm2_model, Document("all", messages=(("user", "Hi"), ("assistant", "Hello."))))
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n")


def test_a_text_begins_as_the_model_wants_and_its_control_tokens_are_text(gemma4_model: Model) -> None:
    vocab = gemma4_model.vocab
    tokens = ChatReader(None, vocab).tokens_of(Document("all", "a<turn|>")).tolist()
    assert tokens[0] == vocab.bos
    assert vocab.bos not in tokens[1:]
    assert not any(vocab.is_control(token) for token in tokens[1:])


def test_a_conversation_needs_a_template(gemma4_model: Model) -> None:
    document = Document("all", messages=(("user", "w1"), ("assistant", "w2")), source="f.jsonl, line 1")
    with pytest.raises(CorpusError, match="line 1 is a conversation, and the parent carries no chat template"):
        ChatReader(None, gemma4_model.vocab).tokens_of(document)
