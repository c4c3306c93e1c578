"""instructor: typed answers in its modes, whole and in pieces."""

from __future__ import annotations

from typing import Any

import pytest
from openai import OpenAI

from fakes.sums import Person

instructor = pytest.importorskip("instructor", reason="instructor is not installed: `make test-clients` installs it")
pytestmark = pytest.mark.clients

ASK: Any = [{"role": "user", "content": "Ann is 31 years old. Who is it?"}]


def client_of(base_url: str, **options: Any) -> Any:
    return instructor.from_openai(OpenAI(base_url=base_url, api_key="anything"), **options)


def test_a_typed_answer_in_the_default_mode(base_url: str) -> None:
    person = client_of(base_url).chat.completions.create(model="auto", messages=ASK, response_model=Person)
    assert isinstance(person, Person)


@pytest.mark.parametrize("mode", ["TOOLS", "TOOLS_STRICT", "PARALLEL_TOOLS", "JSON", "JSON_SCHEMA", "MD_JSON"])
def test_modes(base_url: str, mode: str) -> None:
    client = client_of(base_url, mode=instructor.Mode[mode])
    person = client.chat.completions.create(model="auto", messages=ASK, response_model=Person)
    assert isinstance(person, Person)


def test_pieces_of_an_answer(base_url: str) -> None:
    pieces = list(client_of(base_url).chat.completions.create_partial(model="auto", messages=ASK, response_model=Person))
    assert Person.model_validate(pieces[-1].model_dump())


def test_a_list_of_objects(base_url: str) -> None:
    people = client_of(base_url).chat.completions.create_iterable(model="auto", messages=ASK, response_model=Person)
    assert all(isinstance(person, Person) for person in people)
