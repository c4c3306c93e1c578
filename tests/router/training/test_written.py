"""Texts written for the project: whole, of every label, and kept apart from those for measuring."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from coe.router.domains import DOMAINS
from coe.router.training.written import (
    TEXTS,
    Part,
    Wrapped,
    Wrapper,
    contests,
    easily_mistaken,
    option_marks,
    prompts_by_language,
    tasks,
    wrappers,
)

KEPT = Path(__file__).parents[3] / "benchmarks" / "router_texts"
MANY = {"de", "es", "fr", "zh"}  # languages with more prompts than the others
QUESTION = 'Why does "x" hold?\nShow each step.'


def all_texts(folder: Path) -> list[str]:
    found = [one.text for prompts in prompts_by_language(folder).values() for one in prompts]
    found += [one.text for one in contests(folder) + easily_mistaken(folder)] + [one.text for one, _ in tasks(folder)]
    return found + [wrapper.template for wrapper in wrappers(folder)]


def wrapped(wrapper: Wrapper, question: str = QUESTION) -> Wrapped:
    return wrapper.around(
        question,
        options=["one", "two", "three"],
        context="A passage.",
        examples=[("1 + 1?", "2"), ("2 + 2?", "4")],
        subject="arithmetic",
    )


@pytest.mark.parametrize("folder", [TEXTS, KEPT], ids=["training", "measuring"])
def test_every_language_has_prompts_of_every_domain(folder: Path) -> None:
    found = prompts_by_language(folder)
    assert found.keys() >= MANY | {"ar", "hi", "it", "ja", "ko", "nl", "pl", "pt", "ru"}
    for language, prompts in found.items():
        counts = Counter(one.label for one in prompts)
        assert counts.keys() == set(DOMAINS), language
        least = {(TEXTS, True): 15, (TEXTS, False): 7, (KEPT, True): 6, (KEPT, False): 3}
        assert min(counts.values()) >= least[folder, language in MANY], language


def test_what_is_kept_for_measuring_is_in_no_training() -> None:
    training, kept = (Counter(" ".join(text.lower().split()) for text in all_texts(folder)) for folder in (TEXTS, KEPT))
    assert not training.keys() & kept.keys()
    assert set((training + kept).values()) == {1}, "each stands there once"


@pytest.mark.parametrize("folder", [TEXTS, KEPT], ids=["training", "measuring"])
def test_labels_are_domains_and_tasks_of_each_subject_are_of_both_kinds(folder: Path) -> None:
    assert {one.label for one in contests(folder)} == {"coding", "python", "computer_science"}
    assert {one.label for one in easily_mistaken(folder)} == {"general"}
    kinds = {(one.label, needs) for one, needs in tasks(folder)}
    assert kinds == {(domain, needs) for domain in {*DOMAINS} - {"python", "general"} for needs in (True, False)} | {
        ("general", False)
    }


@pytest.mark.parametrize("folder", [TEXTS, KEPT], ids=["training", "measuring"])
def test_each_wrapper_holds_the_question_whole(folder: Path) -> None:
    for wrapper in wrappers(folder):
        assert wrapper.template.count("{question}") == 1, wrapper
        assert bool(wrapper.option_style) == wrapper.has("options"), wrapper
        assert bool(wrapper.example_style) == wrapper.has("examples"), wrapper
        found = wrapped(wrapper)
        assert found.stretches[0].start == 0
        assert found.stretches[-1].end == len(found.text)
        assert all(one.end == other.start for one, other in pairwise(found.stretches))
        (question,) = (one for one in found.stretches if one.part is Part.QUESTION)
        words = found.text[question.start : question.end].replace("\\n", " ").replace('\\"', '"').split()
        assert words == QUESTION.split(), wrapper
        assert not any(f"{{{field}}}" in found.text for field in ("options", "context", "examples", "subject"))


def test_a_question_within_json_or_yaml_leaves_it_json_or_yaml() -> None:
    read = Counter[str]()
    for wrapper in wrappers(TEXTS) + wrappers(KEPT):
        text = wrapped(wrapper).text
        if text.lstrip().startswith(("{", "[{")):
            assert QUESTION in str(json.loads(text)).encode().decode("unicode_escape")
            read["json"] += 1
        elif wrapper.kind == "yaml_json" and "question: |" in wrapper.template:
            assert yaml.safe_load(text)["question"].strip() == QUESTION
            read["yaml"] += 1
    assert read["json"] >= 2
    assert read["yaml"] == 1


def test_options_are_marked_as_the_first_one_is() -> None:
    assert option_marks("(a) ", 3) == ["(a) ", "(b) ", "(c) "]
    assert option_marks("1) ", 11)[-1] == "11) "
    assert option_marks("- ", 2) == ["- ", "- "]


@given(st.text(), st.text())
def test_a_wrapped_question_is_the_template_with_it_in_its_place(question: str, context: str) -> None:
    wrapper = Wrapper("any", "Passage: {context}\nQ: {question}\nA:")
    found = wrapper.around(question, context=context)
    assert found.text == f"Passage: {context}\nQ: {question}\nA:"
    parts = {one.part: found.text[one.start : one.end] for one in found.stretches if one.part is not Part.FRAME}
    assert parts == {part: text for part, text in ((Part.CONTEXT, context), (Part.QUESTION, question)) if text}
