"""Bodies of POST /v1/responses, parsed into the internal request. Bad input is refused with the name of its field."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from ...runtime.errors import RequestError
from ...runtime.request import Request
from ..common.fields import Alternatives, MaxTokens, validated
from ..common.formats import Format, format_of, object_of
from ..common.sampling import MAX_BIASES, Sampled, sampled_request
from ..common.tools import MAX_TOOLS
from ..openai.extras import ignored, refuse_in_responses
from ..openai.thinking import thinking_wish
from .items import Reader, as_items
from .store import Item, Stored, size_of
from .tools import Tools, read_tools

_MAX_ITEMS: Final = 10_000
_MOST: Final = {
    "input": _MAX_ITEMS,
    "include": 32,
    "metadata": 16,
    "tools": MAX_TOOLS,
    "logit_bias": MAX_BIASES,
}
_LOGPROBS: Final = "message.output_text.logprobs"
WRITE: Final = 'Write text: {"format": {"type": "json_schema", "name": ..., "schema": ...}}.'


class ResponseBody(Sampled):
    input: str | list[Any]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    max_output_tokens: MaxTokens = None
    max_tool_calls: Annotated[int, Field(ge=0)] | None = None
    top_logprobs: Alternatives | None = None
    include: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, Annotated[str, Field(max_length=512)]] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    # Chat's ways of asking for thinking, read by thinking_wish.
    think: Any = None
    enable_thinking: Any = None
    thinking: Any = None
    reasoning_effort: Any = None
    chat_template_kwargs: dict[str, Any] | None = None


@dataclass(frozen=True)
class Parsed:
    """A body.

    items: of the conversation, those of the answers before it among them; items_size: `store.size_of` them.
    stores: the client wants the answer kept.
    echo: what a response repeats of its request.
    """

    request: Request
    tools: Tools
    items: Sequence[Item]
    items_size: int
    stores: bool
    echo: Mapping[str, Any] = field(default_factory=dict)


def parse_response(
    body: Mapping[str, Any],
    past: Callable[[str], Stored | None] = lambda name: None,
    known: Callable[[str], Item | None] = lambda name: None,
) -> Parsed:
    """A body. past: a stored response by its id. known: an item of one. Raises RequestError naming the field."""
    refuse_in_responses(body, ResponseBody.model_fields)
    parsed = validated(ResponseBody, body, _MOST)
    wants_logprobs = _LOGPROBS in (parsed.include or ())
    if parsed.top_logprobs and not wants_logprobs:
        raise RequestError(f'top_logprobs needs include: ["{_LOGPROBS}"].', param="top_logprobs")
    text = object_of(parsed.text or {}, "text", write=WRITE)
    tools = read_tools(parsed.tools or (), parsed.tool_choice, parsed.parallel_tool_calls)
    reader = Reader(known)
    if parsed.instructions:
        reader.instruct(parsed.instructions)
    before, size = _before(parsed.previous_response_id, past)
    for item in before:
        reader.read(item, "previous_response_id")
    given = [reader.read(item, f"input[{index}]") for index, item in enumerate(as_items(parsed.input))]
    messages = reader.messages()
    request = sampled_request(
        parsed,
        messages=messages,
        tools=tools.wish.tools,
        tool_use=tools.wish.use,
        notes=(*tools.wish.notes, *reader.notes, *_notes(body, text)),
        max_tokens=parsed.max_output_tokens,
        response_format=_format(text),
        top_logprobs=(parsed.top_logprobs or 0) if wants_logprobs else None,
        wants_thinking=thinking_wish(body),
    )
    echo = _echo(parsed, text, tools)
    return Parsed(request, tools, [*before, *given], size + size_of(given), parsed.store is not False, echo)


def _before(name: str | None, past: Callable[[str], Stored | None]) -> tuple[Sequence[Item], int]:
    """The conversation that a response is the last of, and its size; its instructions are not carried over."""
    if name is None:
        return (), 0
    stored = past(name)
    if stored is None:
        raise RequestError(
            f"Previous response with id '{name[:80]}' not found. Responses are kept in memory, for a while, unless "
            "store is false: send the whole conversation in input.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    return stored.conversation


def _format(text: Mapping[str, Any]) -> Format | None:
    return format_of(text["format"], "text.format", write=WRITE) if "format" in text else None


def _notes(body: Mapping[str, Any], text: Mapping[str, Any]) -> tuple[str, ...]:
    verbose = text.get("verbosity") not in (None, "medium")
    return (*ignored(body), *(("text.verbosity is not served and was ignored",) if verbose else ()))


# --- what a response repeats ----------------------------------------------------------------------------------------


def _echo(body: ResponseBody, text: Mapping[str, Any], tools: Tools) -> dict[str, Any]:
    reasoning = body.reasoning or {}
    return {
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {name: _text_or_none(reasoning.get(name)) for name in ("effort", "summary")},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "text": {"format": _echoed_format(text), "verbosity": "medium"},
        "tool_choice": _echoed_choice(body.tool_choice),
        "tools": list(tools.echo),
        "top_logprobs": body.top_logprobs or 0,
        "truncation": "disabled",
        "user": body.user,
        "metadata": body.metadata or {},
    }


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _echoed_format(text: Mapping[str, Any]) -> dict[str, Any]:
    asked = dict(text.get("format") or {"type": "text"})
    inner = asked.pop("json_schema", None)
    if isinstance(inner, Mapping):  # chat's form
        asked |= inner if "schema" in inner else {"schema": inner}
    return {"name": "answer", **asked} if asked["type"] == "json_schema" else asked


def _echoed_choice(choice: Any) -> Any:
    if isinstance(choice, Mapping) and choice.get("type") == "function" and isinstance(choice.get("function"), Mapping):
        return {"type": "function", "name": choice["function"].get("name")}
    if isinstance(choice, Mapping) and choice.get("type") in ("auto", "none", "required"):
        return choice["type"]
    return "required" if choice == "any" else choice or "auto"
