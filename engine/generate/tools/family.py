"""What a family of models has to say of calls: how they begin, how they are read, and which tokens they are held to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ...request import Tool
from .rules import CallRules
from .source import Parser, Source

Message = Mapping[str, Any]


class Family(ABC):
    """How one family writes calls. A family holds no state.

    openings: what the calls of an answer begin with.
    tags:     texts that may be tokens of their own in a vocabulary made for the family, openings among them.
    frames:   what stands around an answer's text and is no part of it.
    ends:     tags after which no more is generated: the results are awaited.
    several:  whether an answer may have several calls.
    certain:  whether an opening is always a call. Of a family with one that may begin a plain answer as well, such as a
              brace, a call is what names a tool, and it counts at the beginning of an answer alone.
    is_json:  whether calls are written as JSON throughout.
    """

    name: ClassVar[str]
    openings: ClassVar[tuple[str, ...]]
    tags: ClassVar[tuple[str, ...]]
    frames: ClassVar[tuple[str, ...]] = ()
    ends: ClassVar[tuple[str, ...]] = ()
    several: ClassVar[bool] = True
    certain: ClassVar[bool] = True
    is_json: ClassVar[bool] = True

    @abstractmethod
    def writes(self, template: str) -> bool:
        """Whether a chat template's source is one of this family's."""

    @abstractmethod
    def read(self, source: Source, tools: Mapping[str, Tool]) -> Parser[None]:
        """Read what follows an opening, up to the end of what it opened. tools: by name.

        Raises MalformedCallError for what is no call.
        """

    @abstractmethod
    def rule(self, rules: CallRules, tools: Sequence[Tool], opening: str) -> str:
        """The body of a Lark rule for what follows an opening: calls of these tools, to the end of what it opened.

        Raises GrammarError for a tool whose arguments cannot be held to their schema.
        """

    def messages(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[list[Message], list[Any] | None]:
        """Messages and tools as the family's templates read them: OpenAI's form, with arguments as objects.

        messages: as GenerateRequest has them.
        """
        return [openai_message(message) for message in messages], [openai_tool(tool) for tool in tools] or None


def openai_tool(tool: Tool) -> dict[str, Any]:
    """A tool as OpenAI's API writes it, which most templates read."""
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}


def openai_message(message: Message) -> dict[str, Any]:
    """A message as most templates read it."""
    found = dict(message)
    if reasoning := found.get("reasoning"):
        found["reasoning_content"] = reasoning  # as Qwen's templates and others call it
    if calls := found.pop("tool_calls", None):
        found["tool_calls"] = [
            {"type": "function", "id": call["id"], "function": {"name": call["name"], "arguments": call["arguments"]}}
            for call in calls
        ]
    return found


def one_call_a_message(messages: Sequence[Message]) -> list[Message]:
    """Messages of several calls as several messages of one call, each followed by its results: for templates that take
    no more."""
    found: list[Message] = []
    at = 0
    while at < len(messages):
        message = messages[at]
        at += 1
        calls = message.get("tool_calls") or ()
        if len(calls) < 2:
            found.append(message)
            continue
        results = []
        while at < len(messages) and messages[at]["role"] == "tool":
            results.append(messages[at])
            at += 1
        for number, call in enumerate(calls):
            # What was said and thought before the calls stands before the first.
            bare = message if not number else {"role": "assistant", "content": ""}
            found.append({**bare, "tool_calls": [call]})
            found += [result for result in results if result.get("tool_call_id") == call["id"]]
            results = [result for result in results if result.get("tool_call_id") != call["id"]]
        found += results
    return found
