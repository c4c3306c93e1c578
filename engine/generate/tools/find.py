"""Which family a model's calls are of, found from its chat template and tried out."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ...errors import EngineError, ModelTemplateError
from ...request import Tool
from ...spec import Thinking, ThinkingMode
from ..chat_template import ChatTemplate, Prompt
from .family import Family
from .gemma4 import Gemma4
from .generic import Generic
from .glm import Glm
from .harmony import Harmony
from .hermes import Hermes
from .json_list import Apriel, Nemotron
from .llama3 import Llama3
from .marked import DeepSeek, Kimi
from .minimax import MiniMax
from .mistral import Mistral, MistralList
from .qwen_xml import QwenXml, SeedOss
from .splitter import CallSplitter

FAMILIES: Final[tuple[Family, ...]] = (
    Gemma4(),
    SeedOss(),
    QwenXml(),
    Glm(),
    MiniMax(),
    Kimi(),
    DeepSeek(),
    Mistral(),
    MistralList(),
    Harmony(),
    Apriel(),
    Nemotron(),
    Llama3(),
    Hermes(),
)
GENERIC: Final = Generic()


@dataclass(frozen=True)
class ToolSupport:
    """How a model's calls are written and read.

    family: the template's own; None where it knows no tools, or in a way that cannot be read back, and
    fault:  why; "" where there is one.
    """

    family: Family | None
    fault: str = ""


def family_of(template: str) -> Family | None:
    """The family that a chat template's source is of, None when it knows no tools or is of none that is known."""
    return next((family for family in FAMILIES if family.writes(template)), None)


_TOOL: Final = Tool(
    "look_up",
    "Look a word up in a dictionary.",
    {
        "type": "object",
        "properties": {
            "word": {"type": "string", "description": "The word."},
            "languages": {"type": "array", "items": {"type": "string"}, "description": "Where to look."},
            "most": {"type": "integer", "description": "How many entries at most."},
        },
        "required": ["word"],
    },
)
_ARGUMENTS: Final[Mapping[str, Any]] = {"word": 'sea "and" {sky}\nline', "languages": ["en", "de"], "most": 3}
# An id that templates take which insist on nine letters and digits, as Mistral's do.
_ID: Final = "call00001"
_CONVERSATION: Final[tuple[Mapping[str, Any], ...]] = (
    {"role": "user", "content": "What does it mean?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": _ID, "name": _TOOL.name, "arguments": dict(_ARGUMENTS)}],
    },
    {"role": "tool", "tool_call_id": _ID, "name": _TOOL.name, "content": "a large body of water"},
)


def support_of(
    template: ChatTemplate,
    tags_of: Callable[[Family], Mapping[str, int]],
    reads_as_written: Callable[[Prompt], bool],
) -> ToolSupport:
    """The family of a template, once a call and its result have been rendered by it and read back.

    tags_of: the token of each tag that is one of the vocabulary's own. reads_as_written: whether all the control tokens
    that are spelt in a prompt are read as such.
    """
    family = family_of(template.source)
    if family is None:
        known = "tools" in template.source and "tool_calls" in template.source
        what = "has a form for calls that is not known here" if known else "knows no tools"
        return ToolSupport(None, f"the chat template {what}")
    try:
        fault = _tried_out(template, family, tags_of(family), reads_as_written)
    except ModelTemplateError:
        raise
    except EngineError as error:
        fault = error.message
    return ToolSupport(None if fault else family, fault)


def _tried_out(
    template: ChatTemplate, family: Family, tags: Mapping[str, int], reads_as_written: Callable[[Prompt], bool]
) -> str:
    """What is wrong with what a template makes of a call and a result, "" for nothing."""
    policy = Thinking(ThinkingMode.ON if template.family is not None else ThinkingMode.OFF)
    messages, tools = family.messages(_CONVERSATION, [_TOOL])
    prompt = template.prompt(messages, policy, tools)
    if "large body of water" not in prompt.text:
        return "the chat template leaves results of tools out"
    if _TOOL.name not in template.prompt(messages[:1], policy, tools).text:
        return "the chat template leaves the tools out"
    if not reads_as_written(prompt):
        return "the chat template makes control tokens of calls in a way that cannot be told from a user's text"
    asked = template.prompt(messages[:1], policy, tools)
    # Without what begins the answer's turn: a thinking block may begin like a call.
    before = asked.text[: asked.history_chars or None]
    written = prompt.text[len(os.path.commonprefix([before, prompt.text])) :]  # noqa: RUF071 -- of characters
    calls = read_calls(family, {_TOOL.name: _TOOL}, written)
    if [(name, arguments) for name, arguments in calls if name == _TOOL.name][:1] != [(_TOOL.name, dict(_ARGUMENTS))]:
        return f"a call that the chat template writes cannot be read back in the form of {family.name}"
    return ""


def read_calls(family: Family, tools: Mapping[str, Tool], text: str) -> list[tuple[str, Any]]:
    """The calls in a text, each as its tool's name and its arguments, wherever an opening stands."""
    found: dict[int, list[str]] = {}
    names: dict[int, str] = {}
    place = min((at for opening in family.openings if (at := text.find(opening)) >= 0), default=len(text))
    splitter = CallSplitter(family, tools, {tag: tag for tag in family.tags})
    for part in [*splitter.feed(text[place:]), *splitter.flush()]:
        for piece in part.pieces:
            if piece.name is not None:
                names[piece.index] = piece.name
            found.setdefault(piece.index, []).append(piece.arguments)
    calls: list[tuple[str, Any]] = []
    for index, name in names.items():
        try:
            calls.append((name, json.loads("".join(found[index]))))
        except ValueError:
            calls.append((name, None))
    return calls
