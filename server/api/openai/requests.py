"""OpenAI's request bodies, parsed into the internal request. Bad input is refused with the name of its field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, FailFast, Field, PlainValidator, WithJsonSchema, model_validator

from ...roster.values import AUTO
from ...runtime.errors import RequestError
from ...runtime.request import Request
from ..common.fields import MAX_INT, Alternatives, Body, Choices, MaxTokens, validated
from ..common.sampling import MAX_BIASES, Sampled, sampled_request
from ..common.tools import MAX_TOOLS, tool_wish
from .extras import ignored, near, refuse_in_chat, refuse_in_completions
from .messages import read_messages
from .structure import STRUCTURED, response_format
from .thinking import thinking_wish

MAX_PROMPTS: Final = 256

# Members of lists and objects: more than any client has a use for, and few enough to be checked in milliseconds.
_MOST: Final = {
    "messages": 10_000,
    "logit_bias": MAX_BIASES,
    "modalities": 16,
    "chat_template_kwargs": 100,
    "tools": MAX_TOOLS,
    "functions": MAX_TOOLS,
}


class StreamOptions(Body):
    include_usage: bool = False
    continuous_usage_stats: Literal[False] = False

    @model_validator(mode="before")
    @classmethod
    def _spelled_right(cls, data: Any) -> Any:
        for name in data if isinstance(data, dict) else ():
            right = near(name, cls.model_fields)
            if right is not None and data[name] is not None:
                raise ValueError(f"{name[:60]} is not understood: write {right}")
        return data


def _no_logprobs(value: Any) -> Any:
    """false, as chat bodies have it, asks for none."""
    return None if value is False else value


class Shared(Sampled):
    """What chat and plain completions have in common."""

    stream_options: StreamOptions | None = None
    max_tokens: MaxTokens = None
    n: Choices | None = None


class ChatBody(Shared):
    messages: Annotated[list[dict[str, Any]], Field(min_length=1), FailFast()]
    max_completion_tokens: MaxTokens = None
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None
    modalities: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: Any = None
    # The ways in which clients ask for thinking, read by thinking_wish.
    think: Any = None
    enable_thinking: Any = None
    thinking: Any = None
    reasoning: Any = None
    reasoning_effort: Any = None
    chat_template_kwargs: dict[str, Any] | None = None


def _prompts(value: Any) -> tuple[str | tuple[int, ...], ...]:
    """The prompts of a completion: a text, token ids, or a list of either."""
    given = value if isinstance(value, list) and not _are_ids(value) else [value]
    if not given:
        raise ValueError("give a text, token ids, or a list of either")
    if len(given) > MAX_PROMPTS:
        raise ValueError(f"give at most {MAX_PROMPTS} prompts, not {len(given):,}")
    wrong = next((at for at, prompt in enumerate(given) if not (isinstance(prompt, str) or _are_ids(prompt))), None)
    if wrong is not None:
        place = f"[{wrong}]" if len(given) > 1 else ""
        raise ValueError(
            f"give a text, token ids (whole numbers, one at least), or a list of either; {place or 'it'} is neither"
        )
    return tuple(prompt if isinstance(prompt, str) else tuple(prompt) for prompt in given)


def _are_ids(value: Any) -> bool:
    return (
        isinstance(value, list) and bool(value) and all(type(token) is int and 0 <= token <= MAX_INT for token in value)
    )


_IDS: Final = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0, "maximum": MAX_INT}}
_PROMPT: Final = {
    "anyOf": [
        {"type": "string"},
        _IDS,
        {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS, "items": {"type": "string"}},
        {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS, "items": _IDS},
    ]
}


class CompletionBody(Shared):
    prompt: Annotated[tuple[str | tuple[int, ...], ...], PlainValidator(_prompts), WithJsonSchema(_PROMPT)]
    suffix: str | None = None
    echo: bool = False
    best_of: Choices | None = None
    logprobs: Annotated[Alternatives | None, BeforeValidator(_no_logprobs)] = None


@dataclass(frozen=True)
class Parsed:
    """A body.

    include_usage: its stream ends with a chunk of token counts (stream_options.include_usage).
    legacy_calls:  its answer has a function_call in place of tool_calls.
    others:        the same with the other prompts of a list.
    """

    request: Request
    include_usage: bool
    legacy_calls: bool = False
    others: tuple[Request, ...] = ()


def parse_chat(body: Mapping[str, Any]) -> Parsed:
    """A body of POST /v1/chat/completions. Raises RequestError naming the field."""
    refuse_in_chat(body, {*ChatBody.model_fields, *STRUCTURED})
    parsed = validated(ChatBody, body, _MOST)
    if parsed.modalities and parsed.modalities != ["text"]:
        raise RequestError("modalities: only text is served.", param="modalities")
    if parsed.top_logprobs and not parsed.logprobs:
        raise RequestError("top_logprobs needs logprobs: true.", param="top_logprobs")
    wish = tool_wish(
        tools=parsed.tools,
        tool_choice=parsed.tool_choice,
        parallel=parsed.parallel_tool_calls,
        functions=parsed.functions,
        function_call=parsed.function_call,
    )
    found = _parsed(
        parsed,
        messages=read_messages(parsed.messages),
        tools=wish.tools,
        tool_use=wish.use,
        notes=(*wish.notes, *ignored(body)),
        max_tokens=parsed.max_tokens if parsed.max_completion_tokens is None else parsed.max_completion_tokens,
        response_format=response_format(body),
        top_logprobs=(parsed.top_logprobs or 0) if parsed.logprobs else None,
        wants_thinking=thinking_wish(body),
    )
    return replace(found, legacy_calls=wish.legacy)


def parse_completion(body: Mapping[str, Any]) -> Parsed:
    """A body of POST /v1/completions. Raises RequestError naming the field."""
    refuse_in_completions(body, {*CompletionBody.model_fields, *STRUCTURED})
    parsed = validated(CompletionBody, body, _MOST)
    n, best_of = parsed.n or 1, parsed.best_of or 0
    if best_of and best_of < n:
        raise RequestError(f"best_of: {n} choices cannot be the best of {best_of}; give n at least.", param="best_of")
    if best_of > n and parsed.stream:
        raise RequestError(
            "best_of: which answer is the best is known at its end; ask without stream.", param="best_of"
        )
    suffix = parsed.suffix or None
    if suffix is not None and parsed.echo:
        raise RequestError("echo: not with suffix; the text before the gap is known to who sends it.", param="echo")
    if suffix is not None and not all(isinstance(prompt, str) for prompt in parsed.prompt):
        raise RequestError("prompt: with suffix give a text, not token ids.", param="prompt")
    notes = ignored(body)
    if len(parsed.prompt) > 1 and parsed.model == AUTO:
        notes = (*notes, "the specialist was chosen by the first prompt")
    found = _parsed(
        parsed,
        **_prompt(parsed.prompt[0]),
        suffix=suffix,
        echo=parsed.echo,
        best_of=best_of,
        notes=notes,
        max_tokens=parsed.max_tokens,
        response_format=response_format(body),
        top_logprobs=parsed.logprobs,
    )
    unset: dict[str, Any] = {"prompt": None, "prompt_ids": None}
    others = [replace(found.request, **{**unset, **_prompt(prompt)}) for prompt in parsed.prompt[1:]]
    return replace(found, others=tuple(others))


def _prompt(prompt: str | tuple[int, ...]) -> dict[str, Any]:
    """The field of a request that a prompt stands in."""
    return {"prompt": prompt} if isinstance(prompt, str) else {"prompt_ids": prompt}


def _parsed(body: Shared, **own: Any) -> Parsed:
    """The request of a body: what both endpoints share, and what is the endpoint's own."""
    request = sampled_request(body, n=body.n or 1, **own)
    return Parsed(request, bool(body.stream_options and body.stream_options.include_usage))
