"""instructor: typed answers in its modes, whole and in pieces."""

from __future__ import annotations

from typing import Any

import pytest
from openai import OpenAI

from fakes.habits import Person, people

instructor = pytest.importorskip("instructor", reason="instructor is not installed: `make test-clients` installs it")
pytestmark = pytest.mark.clients


def client_of(base_url: str, **options: Any) -> Any:
    return instructor.from_openai(OpenAI(base_url=base_url, api_key="anything"), **options)


def test_a_typed_answer_in_the_default_mode(base_url: str) -> None:
    messages: Any = [{"role": "user", "content": "Eve is 31 years old. Who is it?"}]
    person = client_of(base_url).chat.completions.create(model="auto", messages=messages, response_model=Person)
    assert isinstance(person, Person)


@pytest.mark.filterwarnings("ignore:Mode.TOOLS_STRICT is deprecated")
@pytest.mark.parametrize("mode", ["TOOLS", "TOOLS_STRICT", "JSON_SCHEMA", "JSON"])
def test_modes(base_url: str, mode: str) -> None:
    """In the mode JSON the schema stands in the prompt alone."""
    client = client_of(base_url, mode=instructor.Mode[mode])
    person = client.chat.completions.create(model="auto", messages=people(), response_model=Person)
    assert isinstance(person, Person)


def test_pieces_of_an_answer(base_url: str) -> None:
    client = client_of(base_url)
    pieces = list(client.chat.completions.create_partial(model="auto", messages=people(), response_model=Person))
    assert len(pieces) > 1
    assert Person.model_validate(pieces[-1].model_dump())


def test_a_list_of_objects(base_url: str) -> None:
    client = client_of(base_url)
    found = list(client.chat.completions.create_iterable(model="auto", messages=people(), response_model=Person))
    assert all(isinstance(person, Person) for person in found)
