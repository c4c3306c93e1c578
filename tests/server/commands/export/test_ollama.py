"""Modelfiles, read back as Ollama's own parser reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.engine.spec import LoadSpec, Sampling, Thinking, ThinkingMode
from coe.server.commands.export.ollama import modelfile, quoted, shown
from coe.server.commands.export.values import Card, ExportError

FOLDER = Path("/models/law")
FILE = FOLDER / "law.gguf"
OFF, ON, BUDGET = Thinking(), Thinking(ThinkingMode.ON), Thinking(ThinkingMode.BUDGET, 512)
CARD = Card(
    name="law",
    file=FILE,
    load=LoadSpec(FILE, context_tokens=8192),
    sampling=Sampling(),
    thinking=OFF,
    architecture="gemma4",
    experts=True,
    gemma4=True,
    switch=True,
    system_prompt="You are an expert.\nAnswer.",
    max_tokens=1024,
    licence="Gemma Terms of Use",
    notice="Research only.",
)
LINE_BREAKS = "\n\r"


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """Instructions and their values, by the rules of Ollama's parser/parser.go: a value goes on to the first line break
    at which it is whole, in quotes of its own or without; what cannot be printed is dropped on the way."""
    found: list[tuple[str, str]] = []
    at = 0
    while at < len(text):
        if text[at] in f" \t{LINE_BREAKS}":
            at += 1
        elif text[at] == "#":
            at = line_end(text, at)
        else:
            name, at = word(text, at)
            if name.lower() == "parameter":
                name, at = word(text, at)
            value, at = value_at(text, at)
            found.append((name.lower(), value))
    return found


def word(text: str, at: int) -> tuple[str, int]:
    end = next(n for n in range(at, len(text)) if text[n] in " \t")
    assert text[at:end].replace("_", "").isalnum(), text[at:end]
    return text[at:end], end + 1


def line_end(text: str, at: int) -> int:
    return next((n for n in range(at, len(text)) if text[n] in LINE_BREAKS), len(text))


def value_at(text: str, begin: int) -> tuple[str, int]:
    at = begin
    while True:
        end = line_end(text, at)
        kept = "".join(c for c in text[begin:end] if c.isprintable() or c in f"\t{LINE_BREAKS}").strip()
        if (value := unquoted(kept)) is not None:
            return value, end
        assert end < len(text), f"never ends: {kept!r}"
        at = end + 1


def unquoted(value: str) -> str | None:
    for quote in ('"""', '"'):
        if value.startswith(quote):
            whole = len(value) >= 2 * len(quote) and value.endswith(quote)
            return value[len(quote) : -len(quote)] if whole else None
    return value


def instructions(card: Card, folder: Path = FOLDER) -> dict[str, str]:
    [text] = modelfile(card, folder).files.values()
    read = read_modelfile(text)
    assert len(dict(read)) == len(read), "each is said once"
    return dict(read)


def test_what_the_roster_says_stands_in_it() -> None:
    assert instructions(CARD) == {
        "from": "./law.gguf",
        "renderer": "gemma4-large",
        "parser": "gemma4-no-thinking",
        "system": "You are an expert.\nAnswer.",
        "temperature": "0.6",
        "top_k": "40",
        "top_p": "0.95",
        "min_p": "0.05",
        "repeat_penalty": "1.05",
        "repeat_last_n": "64",
        "presence_penalty": "0",
        "frequency_penalty": "0",
        "num_ctx": "8192",
        "num_predict": "1024",
        "license": "Gemma Terms of Use\n\nResearch only.",
    }
    sheet = modelfile(CARD, FOLDER)
    assert sheet.notes == ()
    assert sheet.then == ("ollama create law -f /models/law/Modelfile", "ollama run law")


def test_what_the_roster_does_not_say_is_left_to_ollama_but_for_an_end_of_answers() -> None:
    card = replace(CARD, system_prompt=None, max_tokens=None, licence=None, notice=None)
    found = instructions(card)
    assert not {"system", "license", "num_gpu", "num_thread"} & found.keys()
    assert found["num_predict"] == "8192"


def test_a_model_for_embeddings_has_a_context_and_draws_nothing() -> None:
    card = replace(CARD, load=LoadSpec(FILE, context_tokens=512, embeddings=True), system_prompt=None)
    assert instructions(card).keys() == {"from", "num_ctx", "license"}


def test_places_and_threads_are_told_where_the_roster_has_them() -> None:
    found = instructions(replace(CARD, load=LoadSpec(FILE, gpu_layers=0, threads=3)))
    assert (found["num_gpu"], found["num_thread"]) == ("0", "3")


@pytest.mark.parametrize(
    ("thinking", "parser", "noted"),
    [(OFF, "gemma4-no-thinking", ""), (ON, "gemma4", ""), (BUDGET, "gemma4", "without the roster's budget")],
)
def test_gemma_4_thinks_as_the_roster_says(thinking: Thinking, parser: str, noted: str) -> None:
    card = replace(CARD, thinking=thinking)
    assert instructions(card)["parser"] == parser
    assert instructions(card)["renderer"] == "gemma4-large"
    assert noted in " ".join(modelfile(card, FOLDER).notes)


def test_the_form_of_a_small_gemma_is_left_to_ollama() -> None:
    assert instructions(replace(CARD, experts=False))["renderer"] == "gemma4"


def test_other_models_keep_their_own_template_and_the_way_to_switch_thinking_off_is_told() -> None:
    card = replace(CARD, architecture="qwen3moe", gemma4=False)
    assert not {"renderer", "parser", "template"} & instructions(card).keys()
    assert "--think=false" in " ".join(modelfile(card, FOLDER).notes)
    assert modelfile(replace(card, switch=False), FOLDER).notes == ()


def test_what_a_modelfile_cannot_say_is_noted() -> None:
    card = replace(
        CARD,
        parts=3,
        thinking=Thinking(prefill="<think></think>"),
        load=LoadSpec(FILE, kv_type="q8_0", cpu_expert_layers=4),
    )
    notes = " ".join(modelfile(card, FOLDER).notes)
    for word_ in ("prefill", "OLLAMA_KV_CACHE_TYPE", "host memory", "llama-gguf-split --merge"):
        assert word_ in notes


@pytest.mark.parametrize(
    "file",
    ["/a b/c.gguf", "/elsewhere/law.gguf", '/"quoted"/x.gguf', "/models/law/s ub/l.gguf", "/a/ends \n with.gguf"],
)
def test_any_path_is_found_again(file: str) -> None:
    found = instructions(replace(CARD, file=Path(file)))["from"]
    assert (FOLDER / found) == Path(file)


def test_a_path_that_ollama_would_misread_is_refused_with_the_way_out() -> None:
    with pytest.raises(ExportError, match="--copy"):
        modelfile(replace(CARD, file=Path("/with\u00a0hard/space.gguf")), FOLDER)


PIECES = st.sampled_from(
    ['"""', '"', '""', "'''", "\n", "\r\n", "\r", " ", "\t", "a", "é", "#", "\n# no comment\n", "\nPARAMETER x 1\n",
     "\0", "\u200b", "\u00a0", "\u2028", "🙂", "SYSTEM ", "{{ .System }}", "\\"]
)  # fmt: skip
TEXTS = st.text(st.characters(codec="utf-8")) | st.lists(PIECES, max_size=12).map("".join)


@given(TEXTS.filter(bool))
def test_any_system_prompt_is_read_back(text: str) -> None:
    card = replace(CARD, system_prompt=text)
    read = instructions(card)
    notes = " ".join(modelfile(card, FOLDER).notes)
    kept = "".join(c for c in text if c.isprintable() or c in "\t\n\r")
    assert ("left out" in notes) == (kept != text)
    assert read["system"] in (kept, kept.replace('"""', "'''"))
    assert ("''' stands" in notes) == (read["system"] != kept)
    assert read["license"] == "Gemma Terms of Use\n\nResearch only.", "what follows is not swallowed"
    assert read["temperature"] == "0.6"


ONE_LINE = ('say """now""" please', '"""begins', 'ends"', 'ends"""', "no quotes", "", '"', '""')
LINES = ('a\n"b" is\n"c"', 'a""\nx "y" z', '"\n"', "\n", 'x\r"""y')


@pytest.mark.parametrize("text", ONE_LINE + LINES)
def test_quotes_within_a_text_stay_as_they_are_where_they_can(text: str) -> None:
    written = quoted(shown(text))
    assert written is not None
    assert read_modelfile(f"SYSTEM {written}\nFROM x\n") == [("system", text), ("from", "x")]


@pytest.mark.parametrize("text", ['a"""\nb', '"""\n', 'a"""  \r\nb'])
def test_a_line_that_ends_in_the_quotes_can_stand_in_none(text: str) -> None:
    assert quoted(text) is None
