"""Calibration corpora: texts, conversations, questions with answers; read from files, tokenized."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coe.engine.errors import EngineError
from coe.engine.files import open_regular
from coe.engine.generate.chat_template import ChatTemplate
from coe.engine.generate.plain_text import markers_of, tokens_of
from coe.engine.generate.renderer import RenderProcess
from coe.engine.llama.vocab import Vocab
from coe.engine.spec import Thinking

from ..errors import CorpusError
from ..judge.values import LETTERS, with_options

UNCLASSED: Final = "all"  # the class of documents that have none

_JSON_LINES: Final = (".jsonl", ".ndjson")
_OTHERS: Final = (".json", ".gz", ".zip", ".zst", ".xz", ".bz2", ".parquet", ".pdf", ".npz", ".gguf", ".arrow")
_DOCUMENT_CHARS: Final = 6000  # of plain text: some 1,500 tokens, so that a document has context and a context has room
_LINE_BYTES: Final = 64 * 2**20
_ROLES: Final = ("system", "developer", "user", "assistant", "tool")
_FORMS: Final = 'Give {"text": …}, {"question": …, "answer": …} or {"messages": […]}, and a "class" if you like.'


@dataclass(frozen=True)
class Document:
    """One text, or one conversation as (role, content) pairs; the other is empty.

    category: its class.
    source:   file and line, for messages; no part of what the document is.
    """

    category: str
    text: str = ""
    messages: tuple[tuple[str, str], ...] = ()
    source: str = ""

    @property
    def digest(self) -> bytes:
        """SHA-256 of its text and its class."""
        return hashlib.sha256(json.dumps([self.category, self.text, self.messages]).encode()).digest()


@dataclass(frozen=True)
class CorpusFile:
    """A file of a corpus, and the class of those of its documents that do not name one."""

    path: Path
    category: str | None = None

    @classmethod
    def parse(cls, argument: str) -> CorpusFile:
        """FILE or CLASS=FILE, as it is written on a command line; a file whose own name has a "=" is that file."""
        name, found, path = argument.partition("=")
        if not found or not name or Path(argument).exists():
            return cls(Path(argument))
        return cls(Path(path), name)


@dataclass(frozen=True)
class Corpus:
    """Documents in the order of their files. Never empty."""

    documents: tuple[Document, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """In the order in which they first appear."""
        return tuple(dict.fromkeys(document.category for document in self.documents))

    @cached_property
    def sha256(self) -> str:
        """Of the documents, whatever their order and whichever files they lie in."""
        return hashlib.sha256(b"".join(sorted(document.digest for document in self.documents))).hexdigest()

    def shuffled(self, seed: int = 0) -> Corpus:
        """The same documents in an order of chance, the same for a seed, so that any part is like the whole."""
        order = list(self.documents)
        random.Random(seed).shuffle(order)
        return Corpus(tuple(order))

    def by_document(self, limit: int) -> Corpus:
        """At most `limit` documents, evenly spread over the corpus, each a class of its own called `document N`.

        N is the document's place in this corpus, from 0: what `coherence` compares.
        """
        count = min(limit, len(self.documents))
        places = [at * len(self.documents) // count for at in range(count)]
        return Corpus(tuple(replace(self.documents[at], category=f"document {at}") for at in places))


def read_corpus(files: Sequence[Path | CorpusFile]) -> Corpus:
    """Read all files.

    .jsonl and .ndjson hold a document a line: {text}, {question, answer} (and options, system) or {messages}, each with
    an optional class; other keys are ignored.
    Everything else is plain text: paragraphs (between blank lines) gathered into documents of at most 6,000
    characters; a longer paragraph is a document of its own.

    Raises CorpusError, naming file and line, for what cannot be read, and for a corpus without a document.
    """
    documents: list[Document] = []
    for given in files:
        file = given if isinstance(given, CorpusFile) else CorpusFile(given)
        before = len(documents)
        read = _json_lines if file.path.suffix.lower() in _JSON_LINES else _plain_text
        documents += read(file)
        if len(documents) == before:
            raise CorpusError(f"{file.path} holds no text.", "Leave the file out.")
    if not documents:
        raise CorpusError("There is nothing to read.", "Give --corpus at least one file.")
    return Corpus(tuple(documents))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, from 1, ends included. Raises CorpusError for what is no UTF-8 text."""
    if path.suffix.lower() in _OTHERS:
        raise CorpusError(f"{path} is of a kind that is not read.", "Give plain text, or JSON lines as .jsonl.")
    try:
        with open_regular(path) as file:
            number = 0
            while line := file.readline(_LINE_BYTES + 1):
                number += 1
                if len(line) > _LINE_BYTES:
                    raise CorpusError(
                        f"{path}, line {number} is longer than {_LINE_BYTES // 2**20} MiB.", "Split it into documents."
                    )
                if number == 1:
                    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                        raise CorpusError(f"{path} is UTF-16.", f"Convert it: iconv -f UTF-16 -t UTF-8 {path}")
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if b"\0" in line:
                    raise CorpusError(f"{path}, line {number} holds a zero byte: this is no text.", "Give plain text.")
                try:
                    yield number, line.decode()
                except UnicodeDecodeError as error:
                    raise CorpusError(
                        f"{path}, line {number} is not UTF-8 (byte {error.start + 1} of the line).",
                        f"Convert the file: iconv -f LATIN1 -t UTF-8 {path}",
                    ) from error
    except IsADirectoryError as error:
        raise CorpusError(f"{path} is a folder.", "Name the files in it.") from error
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error


def _plain_text(file: CorpusFile) -> Iterator[Document]:
    category = file.category or UNCLASSED
    gathered: list[str] = []
    begun = 1

    def document() -> Document:
        return Document(category, "\n\n".join(gathered), source=f"{file.path}, line {begun}")

    for number, paragraph in _paragraphs(file.path):
        if gathered and sum(map(len, gathered)) + len(paragraph) > _DOCUMENT_CHARS:
            yield document()
            gathered = []
        if not gathered:
            begun = number
        gathered.append(paragraph)
    if gathered:
        yield document()


def _paragraphs(path: Path) -> Iterator[tuple[int, str]]:
    """Runs of lines that are not blank, with the number of their first line."""
    lines: list[str] = []
    begun = 1
    for number, line in _lines(path):
        if line.strip():
            begun = begun if lines else number
            lines.append(line.rstrip("\r\n"))
        elif lines:
            yield begun, "\n".join(lines)
            lines = []
    if lines:
        yield begun, "\n".join(lines)


def _json_lines(file: CorpusFile) -> Iterator[Document]:
    for number, line in _lines(file.path):
        if not line.strip():
            continue
        where = f"{file.path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{where} is no JSON: {error}.", "One JSON object a line.") from error
        if not isinstance(record, dict):
            raise CorpusError(f"{where} is no JSON object.", _FORMS)
        yield _document(record, file.category, where)


def _document(record: dict[str, Any], category: str | None, where: str) -> Document:
    named = record.get("class")
    if named is not None and (not isinstance(named, str) or not named.strip()):
        raise CorpusError(f'{where}: "class" must be a name.', 'For example {"class": "law", "text": "…"}.')
    category = named.strip() if named is not None else category or UNCLASSED
    kinds = [key for key in ("text", "question", "messages") if record.get(key) is not None]
    if len(kinds) != 1:
        found = " and ".join(f'"{kind}"' for kind in kinds) or "nothing to read"
        raise CorpusError(f"{where} has {found}.", _FORMS)
    if kinds == ["text"]:
        return Document(category, _text(record, "text", where), source=where)
    if kinds == ["messages"]:
        return Document(category, messages=_messages(record["messages"], where), source=where)
    system = (("system", _text(record, "system", where)),) if record.get("system") else ()
    turns = (("user", _question(record, where)), ("assistant", _answer(record, where)))
    return Document(category, messages=(*system, *turns), source=where)


def _question(record: dict[str, Any], where: str) -> str:
    """The question, with its options below it as an evaluation would ask it."""
    options = record.get("options") or []
    if not isinstance(options, list) or not all(isinstance(option, str | int | float) for option in options):
        raise CorpusError(f'{where}: "options" must be a list of texts.', 'Write "options": ["…", "…"].')
    return with_options(_text(record, "question", where), [_whole(str(option), where) for option in options])


def _answer(record: dict[str, Any], where: str) -> str:
    answer = record.get("answer")
    if answer is None:
        raise CorpusError(
            f'{where} has a "question" without an "answer".', "Let the parent answer first: coe profile --answer."
        )
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        options = len(record.get("options") or ())
        # A whole number beside options is a place among them, as an evaluation reads it.
        return LETTERS[answer] if isinstance(answer, int) and 0 <= answer < options <= len(LETTERS) else str(answer)
    return _text(record, "answer", where)


def _text(record: dict[str, Any], key: str, where: str) -> str:
    text = record[key]
    if not isinstance(text, str) or not text.strip():
        raise CorpusError(f'{where}: "{key}" must be a text that is not blank.', _FORMS)
    return _whole(text.strip(), where)


def _messages(given: Any, where: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(given, list) or not given:
        raise CorpusError(f'{where}: "messages" must be a list of messages.', _FORMS)
    turns = []
    for at, message in enumerate(given, 1):
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if role not in _ROLES or not isinstance(content, str) or (at == len(given) and not content.strip()):
            raise CorpusError(
                f"{where}: message {at} needs a role ({', '.join(_ROLES)}) and a text as content.",
                'For example {"role": "user", "content": "…"}.',
            )
        turns.append((role, _whole(content.strip(), where)))
    return tuple(turns)


def _whole(text: str, where: str) -> str:
    """The text. Raises CorpusError for half a surrogate pair, which JSON can write and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(
            f"{where} holds half of a surrogate pair, which is no character.", "Write the text again as UTF-8."
        ) from error
    return text


class ChatReader:
    """Reads conversations as a model's own chat template writes them, in a process of its own; see engine's renderer.

    Without a template it reads plain texts alone.
    """

    def __init__(self, source: str | None, vocab: Vocab) -> None:
        """Raises CorpusError when the template is broken."""
        self._vocab = vocab
        self._markers = markers_of(vocab, source or "")
        self._template: ChatTemplate | None = None
        if source:
            try:
                bos, eos = vocab.text(vocab.bos), vocab.text(vocab.eos)
                self._template = ChatTemplate(RenderProcess(source), bos=bos, eos=eos)
            except EngineError as error:
                raise CorpusError(error.message, error.remedy) from error

    def close(self) -> None:
        """End the process."""
        if self._template is not None:
            self._template.close()

    def tokens_of(self, document: Document) -> NDArray[np.int32]:
        """A document's tokens: a text as it stands, a conversation through the template with its thinking closed.

        The last answer begins with the family's closed block, as it does when a think-off specialist serves, and its
        turn is closed. Control tokens that a text or a message happens to spell are read as text. Begins with the
        model's begin-of-text token where the model wants one. All tokens count, the question's and the template's too.

        Raises CorpusError for a conversation that the template cannot render, or when there is none.
        """
        vocab = self._vocab
        if not document.messages:
            return np.array(vocab.tokenize(document.text, special=False, bos=vocab.adds_bos), np.int32)
        if self._template is None:
            raise CorpusError(
                f"{document.source} is a conversation, and the parent carries no chat template.",
                'Give {"text": …}, or a GGUF with a template.',
            )
        messages = [{"role": role, "content": content} for role, content in document.messages]
        try:
            prompt = self._template.conversation(messages, Thinking())
        except EngineError as error:
            raise CorpusError(f"{document.source}: {error.message}", error.remedy) from error
        begins = vocab.adds_bos and not prompt.text.startswith(vocab.text(vocab.bos) or "\0")
        return np.array(tokens_of(prompt.text, prompt.own, vocab, self._markers, bos=begins), np.int32)
