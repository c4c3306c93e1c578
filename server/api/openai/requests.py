"""OpenAI's request bodies, parsed into the internal request. Bad input is refused with the name of its field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, ValidationError, model_validator

from coe.engine.request import Patience

from ...runtime.errors import RequestError
from ...runtime.request import Message, Request
from .extras import near, refuse_in_chat, refuse_in_completions
from .structure import STRUCTURED, response_format
from .thinking import thinking_wish

_MAX_CHOICES = 8
_MAX_STOPS = 16
_MAX_STOP_CHARS = 1000
# Members of lists and objects: more than any client has a use for, and few enough to be checked in milliseconds.
_MOST: Final = {"messages": 10_000, "prompt": 10_000, "logit_bias": 4096, "modalities": 16, "chat_template_kwargs": 100}
_MAX_PARTS = 1000  # of one message
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


MaxTokens = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_unlimited)]


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
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
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
    tool_choice: Any = None
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
    """A body: the request, and whether a stream ends with a chunk of token counts (stream_options.include_usage)."""

    request: Request
    include_usage: bool


def parse_chat(body: Mapping[str, Any]) -> Parsed:
    """A body of POST /v1/chat/completions. Raises RequestError naming the field."""
    refuse_in_chat(body, {*ChatBody.model_fields, *STRUCTURED})
    parsed = _parse(ChatBody, body)
    if parsed.modalities and parsed.modalities != ["text"]:
        raise RequestError("modalities: only text is served.", param="modalities")
    if parsed.tool_choice not in (None, "none", "auto"):
        raise RequestError("tool_choice is not supported yet. Remove it.", param="tool_choice")
    if parsed.top_logprobs and not parsed.logprobs:
        raise RequestError("top_logprobs needs logprobs: true.", param="top_logprobs")
    return _parsed(
        parsed,
        messages=tuple(_message(message, index) for index, message in enumerate(parsed.messages)),
        max_tokens=parsed.max_completion_tokens or parsed.max_tokens,
        response_format=response_format(body),
        top_logprobs=(parsed.top_logprobs or 0) if parsed.logprobs else None,
        wants_thinking=thinking_wish(body),
    )


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


def _message(message: Mapping[str, Any], index: int) -> Message:
    param = f"messages[{index}]"
    role = message.get("role")
    if role == "developer":  # OpenAI's newer name for it
        role = "system"
    if role not in ("system", "user", "assistant", "tool", "function"):
        raise RequestError(f"{param}.role: {role!r} is none of system, user, assistant.", param=f"{param}.role")
    if role in ("tool", "function") or message.get("tool_calls") or message.get("function_call"):
        raise RequestError(f"{param}: calls of tools and functions are not supported yet.", param=param)
    if "content" not in message and (other := near("content", message)) is not None:
        raise RequestError(f"{param}.{other[:60]} is not understood: write content.", param=f"{param}.{other[:60]}")
    return {"role": role, "content": _text(message.get("content"), f"{param}.content", optional=role == "assistant")}


def _text(content: Any, param: str, *, optional: bool) -> str:
    if isinstance(content, str):
        return content
    if content is None and optional:
        return ""
    if not isinstance(content, list):
        raise RequestError(f"{param} must be a text or a list of parts.", param=param)
    if len(content) > _MAX_PARTS:
        raise RequestError(f"{param}: give at most {_MAX_PARTS:,} parts, not {len(content):,}.", param=param)
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("image_url", "image", "input_image"):
            raise RequestError(
                f"{param}[{index}] is an image: vision is out of scope, the specialists read text only.",
                param=f"{param}[{index}]",
            )
        if kind != "text" or not isinstance(part.get("text"), str):
            raise RequestError(
                f"{param}[{index}] must be {{type: text, text: ...}}; other parts are not supported.",
                param=f"{param}[{index}]",
            )
        texts.append(part["text"])
    return "\n".join(texts)


def _biases(asked: Mapping[str, float]) -> dict[int, float]:
    if not all(token.isascii() and token.isdigit() and len(token) <= 10 for token in asked):
        raise RequestError("logit_bias: the keys are token ids, whole numbers.", param="logit_bias")
    # A number that no vocabulary reaches would come round to another token.
    return {int(token): bias for token, bias in asked.items() if int(token) <= _MAX_INT}
