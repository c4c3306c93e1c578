"""gpt-oss: a call is a message of its own to a function, in the commentary channel (OpenAI's harmony format).

    <|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{...}<|call|>

The template writes the recipient before the channel, and the prompt ends within the header: so models begin in any of
these ways. Source: openai-harmony, docs/format.md, and the model's own chat template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ...request import Tool
from . import json_call
from .family import Family, Message, one_call_a_message
from .rules import CallRules
from .source import MalformedCallError, Parser, Source

_START: Final = "<|start|>"
_CHANNEL: Final = "<|channel|>"
_CONSTRAIN: Final = "<|constrain|>"
_MESSAGE: Final = "<|message|>"
_CALL: Final = "<|call|>"
_TO: Final = "to=functions."
_NEXT: Final = f"{_START}assistant"
_AFTER_CHANNEL: Final = (f"{_CHANNEL}commentary {_TO}", f"{_CHANNEL}analysis {_TO}")
_MAX_HEADER_CHARS: Final = 256


class Harmony(Family):
    """See Family."""

    name = "harmony"
    openings = (f" {_TO}", f"{_NEXT} {_TO}", *_AFTER_CHANNEL, *(f"{_NEXT}{opening}" for opening in _AFTER_CHANNEL))
    tags = (_START, _CHANNEL, _CONSTRAIN, _MESSAGE, _CALL)
    ends = (_CALL,)
    several = False
    frames = tuple(
        f"{begin}{_CHANNEL}{channel}{_MESSAGE}" for begin in ("", _NEXT) for channel in ("final", "commentary")
    )

    def writes(self, template: str) -> bool:
        """See Family."""
        return f"{_CHANNEL}commentary" in template and _CALL in template and "functions." in template

    def read(self, source: Source, tools: Mapping[str, Tool]) -> Parser[None]:
        """See Family."""
        header = ""
        while not (yield from source.passes(source.spelt[_MESSAGE])):
            header += yield from source.take()
            if len(header) > _MAX_HEADER_CHARS:
                raise MalformedCallError("its header has no end")
        # A name may be missing, before these tags as well as before what a call says.
        words = header.split(source.spelt[_CHANNEL])[0].split(source.spelt[_CONSTRAIN])[0].split()
        source.call(words[0] if words else "")
        yield from source.skip_space()
        yield from json_call.arguments(source, source.write)
        source.close()
        yield from source.skip_space()
        yield from source.passes(source.spelt[_CALL])

    def rule(self, rules: CallRules, tools: Sequence[Tool], opening: str) -> str:
        """See Family. What ends a call ends the answer."""
        before = f"{_CHANNEL}commentary json" if _CHANNEL not in opening else f" {_CONSTRAIN}json"
        head = rules.tag(f"{before}{_MESSAGE}")
        return " | ".join(f"{rules.text(tool.name)} {head} {rules.json(tool)}" for tool in tools)

    def messages(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[list[Message], list[Any] | None]:
        """See Family. What was thought before a call has a key of its own, and the template takes no text beside it."""
        found, given = super().messages(one_call_a_message(messages), tools)
        return [_as_written(message) for message in found], given


def _as_written(message: Message) -> Message:
    made = dict(message)
    thought = made.pop("reasoning", None)
    made.pop("reasoning_content", None)
    if made["role"] == "assistant" and thought:
        made["thinking"] = thought
    if made.get("tool_calls") and made.get("thinking") and made.get("content"):
        made["thinking"] = f"{made['thinking']}\n\n{made['content']}"
        made["content"] = ""
    return made
