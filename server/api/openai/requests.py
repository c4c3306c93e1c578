"""OpenAI's request bodies, parsed into the internal request. Bad input is refused with the name of its field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, ValidationError, model_validator

from coe.engine.request import Patience

from ...runtime.errors import RequestError
from ...runtime.request import Request
from .extras import ignored, near, refuse_in_chat, refuse_in_completions
from .messages import read_messages
from .structure import STRUCTURED, response_format
from .thinking import thinking_wish
from .tools import MAX_TOOLS, tool_wish

_MAX_CHOICES = 8
_MAX_STOPS = 16
_MAX_STOP_CHARS = 1000
# Members of lists and objects: more than any client has a use for, and few enough to be checked in milliseconds.
_MOST: Final = {
    "messages": 10_000,
    "prompt": 10_000,
    "logit_bias": 4096,
    "modalities": 16,
    "chat_template_kwargs": 100,
    "tools": MAX_TOOLS,
    "functions": MAX_TOOLS,
}
_MAX_INT = 2**31 - 1  # what llama.cpp takes


class _Body(BaseModel):
    """Extras that chat clients add are ignored; what we know is checked strictly."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, data: Any) -> Any:
        """null is as good as left out, for every field."""
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data


class StreamOptions(_Body):
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


def _unlimited(value: Any) -> Any:
    """-1 is what clients of llama.cpp write for no bound of their own."""
    return None if type(value) is int and value == -1 else value


# 0 reads the prompt, which is in the cache from then on, and answers nothing.
MaxTokens = Annotated[Annotated[int, Field(ge=0)] | None, BeforeValidator(_unlimited)]


def _stops(value: Any) -> tuple[str, ...]:
    texts = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("give a text or a list of texts")
    if len(texts) > _MAX_STOPS or any(len(text) > _MAX_STOP_CHARS for text in texts):
        raise ValueError(f"give at most {_MAX_STOPS} texts of at most {_MAX_STOP_CHARS} characters")
    return tuple(text for text in texts if text)


def _all_tokens(value: Any) -> Any:
    """-1 is vLLM's word for 0: no bound."""
    return 0 if type(value) is int and value == -1 else value


def _whole_context(value: Any) -> Any:
    """-1 is llama.cpp's word for all tokens of the context."""
    return _MAX_INT if type(value) is int and value == -1 else value


def _random_seed(value: Any) -> Any:
    """-1 is a random seed, as it is for llama.cpp, vLLM and others."""
    return None if type(value) is int and value == -1 else value


def _no_logprobs(value: Any) -> Any:
    """false, as chat bodies have it, asks for none."""
    return None if value is False else value


Stops = Annotated[tuple[str, ...], BeforeValidator(_stops)]


def _loop_guard(value: Any) -> Patience | Literal[False] | None:
    if value is None or value is True or value == "normal":
        return None  # the roster's
    if value is False:
        return False
    if value not in ("strict", "patient"):
        raise ValueError("give false, strict or patient; true leaves it as the roster has it")
    return Patience(value)


LoopGuard = Annotated[Patience | Literal[False] | None, BeforeValidator(_loop_guard)]


class Shared(_Body):
    """What chat and plain completions have in common."""

    model: Annotated[str, Field(min_length=1, max_length=200)] = "auto"
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: MaxTokens = None
    stop: Stops = ()
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None  # 0: the most probable token alone
    top_k: Annotated[Annotated[int, Field(ge=0, le=_MAX_INT)] | None, BeforeValidator(_all_tokens)] = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repeat_penalty: Annotated[float, Field(ge=0.1, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.1, le=2)] | None = None  # vLLM's name for it
    repeat_last_n: Annotated[Annotated[int, Field(ge=0, le=_MAX_INT)] | None, BeforeValidator(_whole_context)] = None
    seed: Annotated[int | None, BeforeValidator(_random_seed)] = None
    n: Annotated[int, Field(ge=1, le=_MAX_CHOICES)] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    user: str | None = None
    loop_guard: LoopGuard = None


class ChatBody(Shared):
    messages: Annotated[list[dict[str, Any]], Field(min_length=1), FailFast()]
    max_completion_tokens: MaxTokens = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
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
    logprobs: Annotated[Annotated[int, Field(ge=0, le=20)] | None, BeforeValidator(_no_logprobs)] = None


# What goes to the specialist's rules under its own name.
_SAMPLING: Final = (
    *("temperature", "top_p", "top_k", "min_p"),
    *("presence_penalty", "frequency_penalty", "repeat_penalty", "repeat_last_n"),
)

_B = TypeVar("_B", bound=Shared)


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
    parsed = _parse(ChatBody, body)
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
    parsed = _parse(CompletionBody, body)
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
    overrides = {name: value for name in _SAMPLING if (value := getattr(body, name)) is not None}
    if body.repetition_penalty is not None:
        overrides.setdefault("repeat_penalty", body.repetition_penalty)
    request = Request(
        model=body.model,
        stream=bool(body.stream),
        overrides=overrides,
        stop=body.stop,
        seed=body.seed,
        n=body.n or 1,
        loop_guard=body.loop_guard,
        logit_bias=_biases(body.logit_bias or {}),
        **own,
    )
    return Parsed(request, bool(body.stream_options and body.stream_options.include_usage))


def _refuse_too_many(body: Mapping[str, Any]) -> None:
    """Before anything is checked: a hundred thousand wrong members are a hundred thousand errors to write."""
    for name, most in _MOST.items():
        value = body.get(name)
        if isinstance(value, (list, dict)) and len(value) > most:
            raise RequestError(f"{name}: give at most {most:,}, not {len(value):,}.", param=name)


def _parse(kind: type[_B], body: Mapping[str, Any]) -> _B:
    _refuse_too_many(body)
    try:
        return kind.model_validate(dict(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        # A union names the alternative it tried after the field; a client knows nothing of these.
        path = [part for part in first["loc"] if isinstance(part, int) or part in _wire_names(kind)]
        param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        said = str(first["msg"]).removeprefix("Value error, ")
        # Without its cause: a log that prints it would write every one of its errors.
        raise RequestError(f"{param or 'The body'}: {said}.", param=param or None) from None


def _wire_names(kind: type[BaseModel]) -> set[str]:
    names: set[str] = set()
    for model in (kind, StreamOptions):
        names |= {field.alias or name for name, field in model.model_fields.items()}
    return names


def _biases(asked: Mapping[str, float]) -> dict[int, float]:
    if not all(token.isascii() and token.isdigit() and len(token) <= 10 for token in asked):
        raise RequestError("logit_bias: the keys are token ids, whole numbers.", param="logit_bias")
    # A number that no vocabulary reaches would come round to another token.
    return {int(token): bias for token, bias in asked.items() if int(token) <= _MAX_INT}
