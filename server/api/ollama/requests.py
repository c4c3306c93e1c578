"""Ollama's request bodies, parsed into the internal request. Bad input is refused with the name of its field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import FailFast, Field

from ...runtime.errors import RequestError
from ...runtime.request import Message, Request
from ..common.fields import Alternatives, Body, ModelName, validated
from ..common.formats import Format, of_schema
from ..common.tools import MAX_TOOLS, tool_wish
from .durations import keep_alive_s
from .messages import read_messages, refuse_images
from .options import MAX_OPTIONS, Options, option_notes

_MOST: Final = {"messages": 10_000, "tools": MAX_TOOLS, "options": MAX_OPTIONS}
_THINKS: Final = ("minimal", "low", "medium", "high", "xhigh", "max", "true")
_THINKS_NOT: Final = ("none", "off", "false")


class Shared(Body):
    """What chat and generate have in common."""

    model: ModelName = "auto"
    stream: bool = True
    options: Options = Options()
    logprobs: bool = False
    top_logprobs: Alternatives = 0
    # Each read by a function of its own.
    format: Any = None
    think: Any = None
    keep_alive: Any = None


class ChatBody(Shared):
    messages: Annotated[list[dict[str, Any]], FailFast(), Field(default_factory=list)]
    tools: list[dict[str, Any]] | None = None


class GenerateBody(Shared):
    prompt: str = ""
    suffix: str = ""
    system: str = ""
    raw: bool = False


@dataclass(frozen=True)
class Parsed:
    """A body. name: the model as the client wrote it.

    instead: without a message or a prompt nothing is answered: the model is loaded, or unloaded.
    """

    request: Request
    name: str
    instead: Literal["load", "unload"] | None = None


def parse_chat(body: Mapping[str, Any]) -> Parsed:
    """A body of POST /api/chat. Raises RequestError naming the field."""
    parsed = validated(ChatBody, body, _MOST)
    if not parsed.messages and body.get("prompt"):
        raise RequestError("prompt: /api/chat takes messages. Write one, or use /api/generate.", param="prompt")
    wish = tool_wish(tools=parsed.tools, tool_choice=body.get("tool_choice"), parallel=None)
    return _parsed(
        parsed, body, messages=read_messages(parsed.messages), tools=wish.tools, tool_use=wish.use, notes=wish.notes
    )


def parse_generate(body: Mapping[str, Any]) -> Parsed:
    """A body of POST /api/generate. Raises RequestError naming the field."""
    parsed = validated(GenerateBody, body, _MOST)
    if body.get("messages"):
        raise RequestError("messages: /api/generate takes a prompt. Use /api/chat.", param="messages")
    refuse_images(body.get("images"), "images")
    for name, remedy in _NOT_SERVED.items():
        if body.get(name) not in (None, "", []):
            raise RequestError(f"{name} is not served. {remedy}", param=name)
    if parsed.suffix:  # the text around a gap, for a model that can fill it; no conversation
        if parsed.system:
            raise RequestError("system: not with suffix; write it into the prompt.", param="system")
        return _parsed(parsed, body, prompt=parsed.prompt, suffix=parsed.suffix)
    if not parsed.raw:
        said: list[Message] = [{"role": "user", "content": parsed.prompt}] if parsed.prompt else []
        if said and parsed.system:
            said.insert(0, {"role": "system", "content": parsed.system})
        return _parsed(parsed, body, messages=tuple(said))
    if parsed.system:
        raise RequestError("system: raw mode does not support it: write it into the prompt.", param="system")
    return _parsed(parsed, body, prompt=parsed.prompt)


# Fields of /api/generate that change what text comes.
_NOT_SERVED: Final[Mapping[str, str]] = {
    "template": "The model's own chat template is used; with raw: true a prompt is read as it stands.",
    "context": "Send the conversation to /api/chat: its beginning is found in the cache.",
}


def _parsed(body: Shared, wire: Mapping[str, Any], *, notes: tuple[str, ...] = (), **own: Any) -> Parsed:
    """The request of a body: what both paths share, and what is the path's own."""
    options = wire.get("options") or {}
    kept_s = keep_alive_s(body.keep_alive)
    empty = not any(own.get(name) for name in ("messages", "prompt", "suffix"))
    if kept_s == 0 and not empty:
        notes = (*notes, "keep_alive 0 was ignored: the model stays until its room is needed")
    request = Request(
        model=body.model,
        stream=body.stream,
        overrides=body.options.overrides,
        max_tokens=body.options.num_predict,
        stop=body.options.stop,
        seed=body.options.seed,
        wanted_context=body.options.num_ctx,
        response_format=_format(body.format),
        top_logprobs=body.top_logprobs if body.logprobs else None,
        wants_thinking=_thinking(body.think),
        notes=(*notes, *option_notes(options), *_misplaced(wire)),
        **own,
    )
    name = wire.get("model")
    instead: Literal["load", "unload"] | None = None
    if empty:
        instead = "unload" if kept_s == 0 else "load"
    return Parsed(request, name if isinstance(name, str) else body.model, instead)


# Fields of other APIs, with what they are here.
_ELSEWHERE: Final[Mapping[str, str]] = {
    "max_tokens": "options.num_predict",
    "max_completion_tokens": "options.num_predict",
    "response_format": "format",
    **{name: f"options.{name}" for name in ("stop", "seed", "temperature", "top_p", "top_k", "min_p")},
    **{name: f"options.{name}" for name in ("num_predict", "num_ctx", "repeat_penalty")},
    **{name: f"options.{name}" for name in ("presence_penalty", "frequency_penalty")},
    "n": "one request for each answer",
    "reasoning_effort": "think",
}


def _misplaced(wire: Mapping[str, Any]) -> tuple[str, ...]:
    """Notes of what was asked for as other APIs have it: Ollama passes over such, and clients rely on that."""
    asked = [name for name in _ELSEWHERE if wire.get(name) not in (None, [], "", {})]
    found = [f"{name} is no field here and was ignored: write {_ELSEWHERE[name]}" for name in asked]
    if wire.get("tools") and "prompt" in wire:
        found.append("tools were left out: /api/chat takes them")
    return tuple(found)


def _format(value: Any) -> Format | None:
    """`json` for any object, or a JSON schema."""
    if value in (None, ""):
        return None
    if value == "json":
        return {"type": "json_object"}
    if not isinstance(value, Mapping):
        raise RequestError('format: give "json", or a JSON schema, an object.', param="format")
    return of_schema(value, "format")


def _thinking(value: Any) -> bool | None:
    """A level is no more than a yes: a specialist's policy knows no levels."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in (*_THINKS, *_THINKS_NOT):
        return value.lower() in _THINKS
    raise RequestError('think: give true, false, or "low", "medium", "high" or "max".', param="think")
