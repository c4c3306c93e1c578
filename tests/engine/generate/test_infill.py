"""Fill in the middle: the order of its parts, and a model whose vocabulary has the tokens for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from random_model import Shape, write_random_model

from coe.engine.errors import InfillError
from coe.engine.generate.infill import infill_tokens
from coe.engine.llama.model import Model
from coe.engine.llama.vocab import Infill
from coe.engine.spec import LoadSpec
from fakes.local_engine import LocalEngine
from fakes.weight import brings

MARKS = Infill(before=1, after=2, middle=3, file=4, repository=5)
TOKENS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_sep|>", "<|repo_name|>")
FILES = [{"filename": "a.py", "text": "first"}, {"filename": "b.py", "text": "second"}]


def letters(text: str) -> list[int]:
    return [100 + ord(letter) for letter in text]


def made(marks: Infill | None = MARKS, room: int = 1000, **fields: list[dict[str, str]]) -> list[int]:
    return infill_tokens("be", "af", fields.get("snippets", []), marks, letters, bos=[9], room=room)


class TestTokens:
    def test_before_after_and_then_the_middle(self) -> None:
        assert made(Infill(1, 2, 3)) == [9, 1, *letters("be"), 2, *letters("af"), 3]

    def test_other_files_come_first_each_with_its_name(self) -> None:
        assert made(snippets=FILES) == [
            5, *letters("myproject\n"),
            4, *letters("a.py\n"), *letters("first"), 4, *letters("b.py\n"), *letters("second"),
            4, *letters("filename\n"), *made(Infill(1, 2, 3)),
        ]  # fmt: skip

    def test_without_a_token_for_files_a_line_parts_them(self) -> None:
        plain = made(Infill(1, 2, 3), snippets=FILES[:1])
        assert plain == [*letters("\n\n--- snippet ---\n\n"), *letters("first"), *made(Infill(1, 2, 3))]

    def test_what_does_not_fit_is_left_out_the_first_file_first(self) -> None:
        whole = len(made(snippets=FILES))
        assert made(snippets=FILES, room=whole) == made(snippets=FILES)
        assert made(snippets=FILES, room=whole - 1) == made(snippets=FILES[1:])
        assert made(snippets=FILES, room=3) == made(Infill(1, 2, 3)), "the gap's own sides are whole"

    def test_a_vocabulary_without_the_tokens_cannot(self) -> None:
        with pytest.raises(InfillError, match="vocabulary"):
            made(None)


@pytest.fixture(scope="module")
@brings("model")
def infilling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A random model with the tokens of code models."""
    path = tmp_path_factory.mktemp("infill") / "code.gguf"
    model = Model(LoadSpec(write_random_model(path, Shape(experts_used=4), more_control=TOKENS)))
    yield model
    model.close()


class TestModel:
    def test_llama_cpp_finds_the_tokens(self, infilling: Model, smollm2_model: Model) -> None:
        found = infilling.vocab.infill
        assert found is not None
        marks = (found.before, found.after, found.middle, found.file, found.repository)
        assert [infilling.vocab.text(mark or 0) for mark in marks] == list(TOKENS)
        assert smollm2_model.vocab.infill is None

    def test_the_prompt_has_them_and_a_clients_text_does_not(
        self, infilling: Model, new_engine: Callable[..., LocalEngine]
    ) -> None:
        engine = new_engine(infilling)
        answer = engine.ask("def f(", suffix="): <|fim_middle|>", max_tokens=3)
        tokens = engine.loop._slots.idle[0].cells.tokens[: answer.finished.prompt_tokens]
        marks = infilling.vocab.infill
        assert marks is not None
        assert [tokens.count(mark) for mark in (marks.before, marks.after, marks.middle)] == [1, 1, 1]
        assert tokens[-1] == marks.middle
        assert answer.finished.completion_tokens > 0

    def test_one_without_them_says_so(self, smollm2_model: Model, new_engine: Callable[..., LocalEngine]) -> None:
        engine = new_engine(smollm2_model)
        assert engine.rejection(engine.submit("def f(", suffix="):")).error == "InfillError"

    def test_it_may_be_too_long(self, infilling: Model, new_engine: Callable[..., LocalEngine]) -> None:
        engine = new_engine(infilling)
        assert engine.rejection(engine.submit("x " * 300, suffix="y " * 300)).error == "PromptTooLongError"
