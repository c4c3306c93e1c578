"""What a small model needs to use a tool by itself: a conversation in which it has done so before.

SmolLM2-135M calls no tool of its own accord, but it goes on as it began: after some sums by `add` it adds the next one so
too, and repeats the result. Greedily drawn that is the same each time, with no answer scripted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from pydantic import BaseModel

DONE: Final = ((1, 2), (4, 5), (11, 7))  # earlier in the conversation
ASKED: Final = (27, 35)
GREEDY: Final = {"temperature": 0, "top_k": 0, "top_p": 1, "min_p": 0, "repeat_penalty": 1}


def question(a: int, b: int) -> str:
    """The user's words."""
    return f"{a} + {b}"


@dataclass
class Adder:
    """The tool, which remembers what it was called with."""

    calls: list[tuple[int, int]] = field(default_factory=list)

    def add(self, a: int, b: int) -> int:
        """Add two numbers."""
        self.calls.append((a, b))
        return a + b


class Person(BaseModel):
    """A person, as tests want one described."""

    name: str
    age: int


def tell(person: Person) -> None:
    """Fail unless it is a person and no blank form: small models may write nonsense, but keep to the schema."""
    assert isinstance(person, Person)
    assert isinstance(person.name, str)
    assert isinstance(person.age, int)
