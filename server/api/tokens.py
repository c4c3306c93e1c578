"""What a model makes of a text, without an answer: its tokens, the text of tokens, the prompt of a chat.

The paths and fields are llama-server's; those by which vLLM says the same are read and written as well.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any, Final

from fastapi import FastAPI, Request

from coe.engine.logs import REQUEST_ID
from coe.engine.request import GenerateRequest, ReadRequest, Told

from ..roster.models import Specialist
from ..roster.values import AUTO, asked_name
from ..runtime.choice import Choice
from ..runtime.college import College
from ..runtime.errors import RequestError
from ..runtime.policy import rules_for
from ..runtime.request import Request as InternalRequest
from ..runtime.request import with_system_prompt
from .body import read_json
from .journal import about
from .openai.described import ERROR
from .openai.requests import parse_chat
from .openapi import gives, takes
from .sse import until_gone

TOKEN_PATHS: Final = ("/tokenize", "/detokenize", "/apply-template", "/props", "/tokenizer_info")
_MAX_CHARS: Final = 1_000_000
_MAX_TOKENS: Final = 1_000_000
_TEXT: Final = {"type": "string"}
_NAME: Final = {"type": ["string", "null"]}
_FLAG: Final = {"type": ["boolean", "null"]}
_TOKENS: Final = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_MESSAGES: Final = {"type": "array", "minItems": 1, "items": {"type": "object"}}
_TOOLS: Final = {"type": ["array", "null"], "items": {"type": "object"}}
_TOKENIZE: Final[Mapping[str, Any]] = {
    "type": "object",
    "anyOf": [{"required": ["content"]}, {"required": ["prompt"]}, {"required": ["messages"]}],
    "properties": {
        "model": _NAME,
        "content": _TEXT,
        "prompt": _TEXT,
        "messages": _MESSAGES,
        "tools": _TOOLS,
        "add_special": _FLAG,
        "add_special_tokens": _FLAG,
        "parse_special": _FLAG,
        "with_pieces": _FLAG,
    },
}
_DETOKENIZE: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["tokens"],
    "properties": {"model": _NAME, "tokens": _TOKENS},
}
_TEMPLATE: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["messages"],
    "properties": {"model": _NAME, "messages": _MESSAGES, "tools": _TOOLS},
}
_OBJECT: Final = {"type": "object"}
# What of a chat's body its prompt depends on, or would if it were served.
_OF_CHATS: Final = (
    *("model", "messages", "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"),
    *("chat_template", "chat_template_kwargs", "add_generation_prompt", "continue_final_message", "documents"),
)

_Parsed = tuple[InternalRequest, Callable[[str, GenerateRequest], ReadRequest], Callable[[Told, Specialist], Any]]


def add_tokens(app: FastAPI, college: College) -> None:
    """Serve the paths."""
    settings = college.roster.server

    async def told(request: Request, parse: Callable[[dict[str, Any]], _Parsed]) -> Any:
        wanted, reading, written = await read_json(request, settings, parse)
        choice = await college.chooser.unasked(wanted)
        about(request.scope, model=choice.specialist.name, specialist=choice.specialist.name)

        def asked(name: str) -> ReadRequest:
            return reading(name, prompt_of(wanted, choice.specialist))

        return written(await until_gone(request, told_of(college, choice, asked)), choice.specialist)

    @app.post("/tokenize", openapi_extra=takes(_TOKENIZE), responses=gives(_OBJECT, ERROR))
    async def tokenize(request: Request) -> Any:
        """A text's tokens, or a chat's."""
        return await told(request, _to_tokenize)

    @app.post("/detokenize", openapi_extra=takes(_DETOKENIZE), responses=gives(_OBJECT, ERROR))
    async def detokenize(request: Request) -> Any:
        """The text of tokens."""
        return await told(request, _to_detokenize)

    @app.post("/apply-template", openapi_extra=takes(_TEMPLATE), responses=gives(_OBJECT, ERROR))
    async def apply_template(request: Request) -> Any:
        """The prompt that a chat becomes."""
        return await told(request, _to_template)

    @app.get("/tokenizer_info", responses=gives(_OBJECT, ERROR))
    async def tokenizer_info(request: Request, model: str = AUTO) -> Any:
        """What clients of vLLM ask before they make token ids of texts themselves."""
        choice = await college.chooser.unasked(InternalRequest(model, prompt=""))
        about(request.scope, model=choice.specialist.name, specialist=choice.specialist.name)
        told = await until_gone(request, told_of(college, choice, _facts_wanted))
        return {
            "tokenizer_class": "GGUF",
            "model_max_length": choice.specialist.context_tokens,
            "model": choice.specialist.name,
            **(told.vocabulary or {}),
        }

    @app.get("/props", responses=gives(_OBJECT, ERROR))
    async def props(model: str = AUTO) -> Any:
        """What clients of llama-server ask before they chat: the context, and how many at once."""
        specialist = (await college.chooser.unasked(InternalRequest(asked_name(model), prompt=""))).specialist
        return _props(specialist)


async def prompt_tokens(college: College, request: Request, wanted: InternalRequest) -> int:
    """How many tokens the prompt of a request has, which nobody answers."""
    choice = await college.chooser.choose(_counting(college, wanted), None, begin=False)
    about(request.scope, model=choice.specialist.name, specialist=choice.specialist.name)

    def asked(name: str) -> ReadRequest:
        return ReadRequest(name, prompt_of(wanted, choice.specialist))

    told = await until_gone(request, told_of(college, choice, asked))
    return len(told.tokens)


def _counting(college: College, wanted: InternalRequest) -> InternalRequest:
    """The request, naming who counts.

    Of `auto` nothing is asked: the fallback does, which any question may go to. While that is not warm, one that is
    counts in its place: nobody gives way to a count.
    """
    if college.roster.called(wanted.model) != AUTO:
        return wanted
    there = college.catalog.answering(chats=True)
    fallback = college.roster.fallback
    order = [*([fallback] if fallback in there else []), *there]
    warm = college.catalog.warm
    name = next((one for one in order if one in warm), next(iter(order), AUTO))
    return replace(wanted, model=name)


async def told_of(college: College, choice: Choice, asked: Callable[[str], ReadRequest]) -> Told:
    """What the specialist says. asked: by a name for the request."""
    lease = await college.lease(choice.specialist)
    try:
        return await lease.read(asked(f"{REQUEST_ID.get()}/{uuid.uuid4().hex}-0-0"))
    finally:
        lease.release()


def _facts_wanted(name: str) -> ReadRequest:
    return ReadRequest(name, GenerateRequest("", "", prompt=""), vocabulary=True)


def prompt_of(wanted: InternalRequest, specialist: Specialist) -> GenerateRequest:
    """What an answer to the request would be continued from."""
    messages = None
    if wanted.messages is not None:
        messages = with_system_prompt(wanted.messages, specialist.system_prompt)
    rules = rules_for(wanted, specialist)
    return GenerateRequest(
        "",
        specialist.name,
        messages=messages,
        prompt=wanted.prompt,
        thinking=rules.thinking,
        tools=rules.tools,
        tool_use=rules.tool_use,
    )


def _to_tokenize(body: dict[str, Any]) -> _Parsed:
    flags = {name: _flag(body, name) for name in ("add_special", "parse_special", "with_pieces")}
    if flags["add_special"] is None:
        flags["add_special"] = _flag(body, "add_special_tokens")  # vLLM's name for it
    if body.get("messages") is not None:
        wanted, bos = _chat(body), True
    else:
        name = "content" if body.get("content") is not None else "prompt"
        text = body.get(name)
        if not isinstance(text, str):
            raise RequestError("Give `content`, a text, or `messages` as a chat has them.", param=name)
        _refuse_long(text, name)
        wanted = InternalRequest(_model(body), prompt=text)
        # llama-server adds nothing unless it is asked to, vLLM does.
        bos = flags["add_special"] if flags["add_special"] is not None else name == "prompt"
    raw = flags["parse_special"] is not False
    pieces = bool(flags["with_pieces"])

    def reading(name: str, prompt: GenerateRequest) -> ReadRequest:
        made = GenerateRequest(**{**vars(prompt), "raw_prompt": raw})
        return ReadRequest(name, made, bos=bos, pieces=pieces)

    def written(told: Told, specialist: Specialist) -> dict[str, Any]:
        tokens: list[Any] = told.tokens
        if told.pieces is not None:
            tokens = [
                {"id": token, "piece": _piece(piece)} for token, piece in zip(told.tokens, told.pieces, strict=True)
            ]
        return {
            "tokens": tokens,
            "count": len(tokens),
            "max_model_len": specialist.context_tokens,
            "model": specialist.name,
        }

    return wanted, reading, written


def _to_detokenize(body: dict[str, Any]) -> _Parsed:
    tokens = body.get("tokens")
    if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token < 2**31 for token in tokens):
        raise RequestError("tokens: give a list of token ids, whole numbers.", param="tokens")
    if len(tokens) > _MAX_TOKENS:
        raise RequestError(f"tokens: give at most {_MAX_TOKENS:,}, not {len(tokens):,}.", param="tokens")
    wanted = InternalRequest(_model(body), prompt="")
    return (
        wanted,
        lambda name, prompt: ReadRequest(name, prompt, tokens=tokens),
        lambda told, specialist: {"content": told.text, "prompt": told.text, "model": specialist.name},
    )


def _to_template(body: dict[str, Any]) -> _Parsed:
    return (
        _chat(body),
        lambda name, prompt: ReadRequest(name, prompt),
        lambda told, specialist: {"prompt": told.text, "model": specialist.name},
    )


def _chat(body: dict[str, Any]) -> InternalRequest:
    chat = {name: body[name] for name in _OF_CHATS if body.get(name) is not None}
    wanted = parse_chat(chat).request
    refuse_long_messages(wanted)
    return wanted


def refuse_long_messages(wanted: InternalRequest) -> None:
    """Raises RequestError for a message that takes too long to read for an answer of numbers."""
    for index, message in enumerate(wanted.messages or ()):
        _refuse_long(str(message["content"]), f"messages[{index}]")


def _refuse_long(text: str, param: str) -> None:
    if len(text) > _MAX_CHARS:
        raise RequestError(f"{param}: give at most {_MAX_CHARS:,} characters, not {len(text):,}.", param=param)


def _model(body: Mapping[str, Any]) -> str:
    model = body.get("model")
    if model is not None and not (isinstance(model, str) and model):
        raise RequestError("model: give a name, a text.", param="model")
    return asked_name(model or AUTO)


def _flag(body: Mapping[str, Any], name: str) -> bool | None:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"{name}: give true or false.", param=name)
    return value


def _piece(piece: list[int]) -> str | list[int]:
    """A token's text; its bytes where they are none, as llama-server has it."""
    try:
        return bytes(piece).decode()
    except UnicodeDecodeError:
        return piece


def _props(specialist: Specialist) -> dict[str, Any]:
    sampling = specialist.default_sampling()
    return {
        "default_generation_settings": {
            "n_ctx": specialist.context_tokens,
            "params": {
                "temperature": sampling.temperature,
                "top_k": sampling.top_k,
                "top_p": sampling.top_p,
                "min_p": sampling.min_p,
                "max_tokens": specialist.max_tokens if specialist.max_tokens is not None else -1,
            },
        },
        "total_slots": specialist.parallel,
        "model_alias": specialist.name,
        "modalities": {"vision": False, "audio": False},
        "build_info": f"coe {version('coe-runtime')}",
    }
