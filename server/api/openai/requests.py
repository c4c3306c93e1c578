"""OpenAI's request bodies, parsed into the internal request. Bad input is refused with the name of its field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, FailFast, Field, model_validator

from ...runtime.errors import RequestError
from ...runtime.request import Request
from ..common.fields import Alternatives, Body, Choices, MaxTokens, validated
from ..common.sampling import MAX_BIASES, Sampled, sampled_request
from ..common.tools import MAX_TOOLS, tool_wish
from .extras import ignored, near, refuse_in_chat, refuse_in_completions
from .messages import read_messages
from .structure import STRUCTURED, response_format
from .thinking import thinking_wish

# Members of lists and objects: more than any client has a use for, and few enough to be checked in milliseconds.
_MOST: Final = {
    "messages": 10_000,
    "prompt": 10_000,
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


class CompletionBody(Shared):
    prompt: str | list[str]
    logprobs: Annotated[Alternatives | None, BeforeValidator(_no_logprobs)] = None


@dataclass(frozen=True)
class Parsed:
    """A body.

    include_usage: its stream ends with a chunk of token counts (stream_options.include_usage).
    legacy_calls:  its answer has a function_call in place of tool_calls.
    """

    request: Request
    include_usage: bool
    legacy_calls: bool = False


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
    prompts = [parsed.prompt] if isinstance(parsed.prompt, str) else parsed.prompt
    if len(prompts) != 1:
        raise RequestError("prompt: one text a request, please; send several requests at once.", param="prompt")
    return _parsed(
        parsed,
        prompt=prompts[0],
        notes=ignored(body),
        max_tokens=parsed.max_tokens,
        response_format=response_format(body),
        top_logprobs=parsed.logprobs,
    )


def _parsed(body: Shared, **own: Any) -> Parsed:
    """The request of a body: what both endpoints share, and what is the endpoint's own."""
    request = sampled_request(body, n=body.n or 1, **own)
    return Parsed(request, bool(body.stream_options and body.stream_options.include_usage))
