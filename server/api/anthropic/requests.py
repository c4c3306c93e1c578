"""Anthropic's request bodies, parsed into the internal request. Bad input is refused with the name of its field."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import FailFast, Field

from ...runtime.errors import RequestError
from ...runtime.request import Request
from ..common.fields import (
    Body,
    LoopGuard,
    MaxTokens,
    MinP,
    ModelName,
    RepeatPenalty,
    Seed,
    Stops,
    Temperature,
    TopK,
    TopP,
    validated,
)
from ..common.formats import Format, of_schema
from ..common.tools import MAX_TOOLS
from .messages import read_conversation
from .tools import read_tools

_MOST: Final = {"messages": 10_000, "system": 1000, "tools": MAX_TOOLS}
# What goes to the specialist's rules under its own name.
_SAMPLING: Final = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty")
# Fields of other APIs that change what an answer is, with what to write here.
_ELSEWHERE: Final[Mapping[str, str]] = {
    "stop": "Write stop_sequences.",
    "max_completion_tokens": "Write max_tokens.",
    "max_output_tokens": "Write max_tokens.",
    "max_tokens_to_sample": "Write max_tokens.",
    "response_format": 'Write output_config: {"format": {"type": "json_schema", "schema": ...}}.',
    "prompt": "Write messages.",
    "input": "Write messages.",
    "instructions": "Write system.",
    "functions": "Write tools.",
    "logprobs": "Use /v1/chat/completions.",
    "logit_bias": "Use /v1/chat/completions.",
}
# They ask for more than an answer: one without is still one, and a note says so.
_NOTED: Final = ("mcp_servers", "container")
# The older form of a user's id: user_HASH_account_ID_session_ID.
_SESSION: Final = re.compile(r"_session_([0-9a-f-]{36})\Z")
_MAX_ID_CHARS: Final = 1000
_OPEN: Final = ("adaptive", "between_tools")  # leave it to the specialist


class Thinking(Body):
    type: str
    budget_tokens: Annotated[int, Field(ge=0)] | None = None


class Metadata(Body):
    user_id: str | None = None


class MessagesBody(Body):
    model: ModelName = "auto"
    messages: Annotated[list[dict[str, Any]], Field(min_length=1), FailFast()]
    system: Any = None
    max_tokens: MaxTokens = None
    stream: bool | None = None
    stop_sequences: Stops = ()
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK = None
    min_p: MinP | None = None
    repeat_penalty: RepeatPenalty | None = None
    seed: Seed = None
    loop_guard: LoopGuard = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    thinking: Thinking | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None  # of older clients: the format in output_config
    metadata: Metadata | None = None


def parse_messages(body: Mapping[str, Any]) -> Request:
    """A body of POST /v1/messages, or of its count. Raises RequestError naming the field."""
    for name, remedy in _ELSEWHERE.items():
        if name not in MessagesBody.model_fields and body.get(name) not in (None, "", [], {}, False):
            raise RequestError(f"{name} is not a field of this API. {remedy}", param=name)
    parsed = validated(MessagesBody, body, _MOST)
    conversation = read_conversation(parsed.system, parsed.messages)
    wish = read_tools(parsed.tools, parsed.tool_choice, conversation.loaded)
    wants_thinking, most_thinking = _thinking(parsed.thinking)
    return Request(
        model=parsed.model,
        messages=conversation.messages,
        tools=wish.tools,
        tool_use=wish.use,
        stream=bool(parsed.stream),
        overrides={name: value for name in _SAMPLING if (value := getattr(parsed, name)) is not None},
        max_tokens=parsed.max_tokens,
        stop=parsed.stop_sequences,
        seed=parsed.seed,
        response_format=_format(parsed),
        loop_guard=parsed.loop_guard,
        wants_thinking=wants_thinking,
        max_thinking_tokens=most_thinking,
        notes=(*wish.notes, *conversation.notes, *_ignored(body)),
        session=_session(parsed.metadata),
    )


def _thinking(asked: Thinking | None) -> tuple[bool | None, int | None]:
    """Whether thinking is wanted, None where that is left to the specialist; and how many tokens of it at most.

    Without a word of it there is none: many clients take the first block of an answer for its text.
    """
    if asked is None or asked.type == "disabled":
        return False, None
    if asked.type in _OPEN:
        return None, None
    if asked.type != "enabled":
        raise RequestError(
            f"thinking.type: {asked.type[:60]!r} is not known. Give enabled, adaptive or disabled.",
            param="thinking.type",
        )
    return asked.budget_tokens != 0, asked.budget_tokens or None


def _format(body: MessagesBody) -> Format | None:
    asked, param = (body.output_config or {}).get("format"), "output_config.format"
    if asked is None:
        asked, param = body.output_format, "output_format"
    if asked is None:
        return None
    if not isinstance(asked, Mapping):
        raise RequestError(f"{param} must be an object with a type and a schema.", param=param)
    if asked.get("type") != "json_schema":
        said = f"{str(asked['type'])[:60]!r} is not served" if asked.get("type") is not None else "is missing"
        raise RequestError(f"{param}.type {said}: give json_schema.", param=f"{param}.type")
    if asked.get("schema") is None:
        raise RequestError(f"{param}.schema is missing: give a JSON schema.", param=f"{param}.schema")
    return of_schema(asked["schema"], f"{param}.schema")


def _session(metadata: Metadata | None) -> str | None:
    """What an agent calls its session; a user's id alone is that of many conversations."""
    user = metadata.user_id if metadata is not None else None
    if user is None or len(user) > _MAX_ID_CHARS:
        return None
    if (older := _SESSION.search(user)) is not None:
        return older[1]
    try:
        told = json.loads(user)
    except (ValueError, RecursionError):
        return None
    named = told.get("session_id") if isinstance(told, dict) else None
    return named if isinstance(named, str) and named else None


def _ignored(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Notes of what a body asks for in vain. What is no more than a hint (effort, caching, a tier) has none."""
    notes = [f"{name} is not served and was ignored" for name in _NOTED if body.get(name) not in (None, [], {}, "")]
    managed = body.get("context_management")
    edits = managed.get("edits") if isinstance(managed, Mapping) else None
    kinds = [edit.get("type") for edit in edits if isinstance(edit, Mapping)] if isinstance(edits, list) else []
    # Thinking of earlier turns is forgotten anyway.
    others = dict.fromkeys(k[:40] for k in kinds if isinstance(k, str) and not k.startswith("clear_thinking_"))
    if others:
        notes.append(f"context_management: {', '.join(list(others)[:5])} is not served and was ignored")
    return tuple(notes)
