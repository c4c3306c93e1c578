"""Requests are read beforehand and off the batch: what cannot fit costs neither a rendering nor its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from random_model import write_random_model

from coe.engine.errors import PromptTooLongError
from coe.engine.generate.prompt import PromptReader
from coe.engine.llama.model import Model
from coe.engine.request import GenerateRequest
from coe.engine.spec import LoadSpec

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PromptReader]:
    path: Path = tmp_path_factory.mktemp("reader") / "m.gguf"
    write_random_model(path)
    spec = LoadSpec(path, context_tokens=512)
    with closing(Model(spec, dry_run=True)) as model, closing(PromptReader(model, spec)) as found:
        yield found


def chat(*contents: str) -> GenerateRequest:
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]
    return GenerateRequest("r", "s", messages=messages)


def test_what_was_read_beforehand_is_the_sequence(reader: PromptReader) -> None:
    prompt = reader.prompt_of(chat("What is 27 + 35?"))
    assert prompt.tokens
    assert list(prompt.tokens) == reader.read(chat("What is 27 + 35?"), None, 0, prompt).tokens
    assert prompt.tokens[: len(prompt.history_tokens)] == prompt.history_tokens


def test_megabytes_that_cannot_fit_are_refused_before_the_template_sees_them(
    reader: PromptReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "template", None)  # nobody asks it
    monkeypatch.setattr(reader, "chat_fault", RuntimeError("asked"))
    with pytest.raises(PromptTooLongError, match="at least"):
        reader.prompt_of(chat(*["a b c "] * 20_001))
    with pytest.raises(RuntimeError, match="asked"):
        reader.prompt_of(chat(" " * 2_000_000, "x" * 2_000_000, "And?"))  # templates may leave margins and answers out


@pytest.mark.parametrize("text", ["\u0e01" * 30_000, "\n" * 90_000 + "?"])
def test_a_text_that_cannot_fit_is_not_read_into_tokens(
    reader: PromptReader, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    def read(*_: object) -> list[int]:
        raise AssertionError("read")

    monkeypatch.setattr(reader, "_tokens", read)
    with pytest.raises(PromptTooLongError, match="at least"):
        reader.prompt_of(GenerateRequest("r", "s", prompt=text))
