"""What a small model needs to do a thing by itself: a conversation in which it has done so before.

SmolLM2-135M calls no tool of its own accord and follows no description of a format, but it goes on as it began.
After some sums by `add` it adds the next two numbers so, and repeats the result; after some people as JSON it writes
the next one so. Greedily drawn that is the same each time, with no answer scripted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel

DONE: Final = ((1, 2), (4, 5), (11, 7))  # earlier in the conversation
ASKED: Final = (27, 35)


def question(a: int, b: int) -> str:
    """The user's words."""
    return f"{a} + {b}"


def sums() -> list[Any]:
    """Messages in which sums were done by the tool, as OpenAI's chats have them, and the one to do."""
    found: list[Any] = []
    for a, b in DONE:
        function = {"name": "add", "arguments": json.dumps({"a": a, "b": b})}
        call = {"id": f"call_{a}", "type": "function", "function": function}
        found += [
            {"role": "user", "content": question(a, b)},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": str(a + b)},
            {"role": "assistant", "content": str(a + b)},
        ]
    return [*found, {"role": "user", "content": question(*ASKED)}]


def sums_of_langchain() -> list[Any]:
    """The same as LangChain has them."""
    from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

    found: list[Any] = []
    for a, b in DONE:
        id_ = f"call_{a}"
        found += [
            HumanMessage(question(a, b)),
            AIMessage("", tool_calls=[{"name": "add", "args": {"a": a, "b": b}, "id": id_}]),
            ToolMessage(str(a + b), tool_call_id=id_),
            AIMessage(str(a + b)),
        ]
    return [*found, HumanMessage(question(*ASKED))]


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


KNOWN: Final = (Person(name="Bob", age=40), Person(name="Ann", age=23), Person(name="Tom", age=57))
EVE: Final = Person(name="Eve", age=31)


def described(person: Person) -> str:
    """The user's words."""
    return f"{person.name} is {person.age} years old."


def people() -> list[dict[str, str]]:
    """Messages in which people were described by JSON, and Eve is to be."""
    found = []
    for person in KNOWN:
        found.append({"role": "user", "content": described(person)})
        found.append({"role": "assistant", "content": person.model_dump_json()})
    return [*found, {"role": "user", "content": described(EVE)}]
