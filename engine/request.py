"""What a worker is asked, and what it answers. Frozen values of JSON types: they cross a socket as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, Self

from .spec import Sampling, Thinking, ThinkingMode


class Finish(StrEnum):
    """Why an answer ended."""

    STOP = "stop"  # end of turn, or a stop string
    CALLS = "calls"  # end of turn, after calls of tools whose results are awaited
    LENGTH = "length"  # max_tokens, or the context is full
    LOOP = "loop"  # the loop guard ended it
    INVALID = "invalid"  # it ended by itself and breaks its schema, or a tool's, all the same
    CANCELLED = "cancelled"  # the client left


class Patience(StrEnum):
    """How long the loop guard lets an answer repeat itself."""

    STRICT = "strict"
    NORMAL = "normal"
    PATIENT = "patient"


@dataclass(frozen=True)
class Tool:
    """A function that a client offers. parameters: JSON schema of its arguments. strict: these must keep to it."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False


@dataclass(frozen=True)
class ToolUse:
    """How tools may be called.

    required: the answer must be a call. only: names of those that may be called, all when it is empty.
    forbidden: the model is told of the tools, so that its prompt stays as it was, and may call none.
    parallel: an answer may have several calls. generic: in the form for models whose template knows no tools.
    """

    required: bool = False
    only: Sequence[str] = ()
    parallel: bool = True
    generic: bool = False
    forbidden: bool = False


@dataclass(frozen=True)
class GenerateRequest:
    """One answer wanted from one specialist.

    messages or prompt: a conversation for the chat template, or a text to be continued as it is. An assistant's message
                may have `tool_calls`, each {"id", "name", "arguments": an object}, and its `reasoning`; a tool's has
                `tool_call_id` and `name`.
    prompt_ids: a text's token ids in place of `prompt`, read as they are: control tokens included, none added.
    suffix:     the text that follows the answer (fill in the middle); `prompt` is the one before it.
    snippets:   other texts for fill in the middle, each {"filename", "text"}; those that do not fit are left out, the
                first ones first.
    tools:      functions that the model may call.
    raw_prompt: control tokens that are spelt in `prompt` are read as such; else they are text, as in messages.
    max_tokens: None for what the context leaves. max_answer_tokens: the same, without those of thinking.
    top_logprobs: None for no log-probabilities, else how many alternatives a token.
    echo:       the prompt's own text comes before the answer's. With top_logprobs each of its tokens is scored, and of
                the answer each token that was drawn is listed, the one that ended it too.
    ranked:     the end says how likely the answer was.
    loop_guard: None for none.
    tells_reading: events say how far the prompt has been read.
    """

    id: str
    specialist: str
    messages: Sequence[Mapping[str, Any]] | None = None
    prompt: str | None = None
    prompt_ids: Sequence[int] | None = None
    suffix: str | None = None
    snippets: Sequence[Mapping[str, str]] = ()
    tools: Sequence[Tool] = ()
    tool_use: ToolUse = field(default_factory=ToolUse)
    raw_prompt: bool = False
    thinking: Thinking = field(default_factory=Thinking)
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    max_answer_tokens: int | None = None
    max_prompt_tokens: int | None = None
    stop: Sequence[str] = ()
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    response_format: Mapping[str, Any] | None = None
    top_logprobs: int | None = None
    echo: bool = False
    ranked: bool = False
    loop_guard: Patience | None = Patience.NORMAL
    tells_reading: bool = False

    @property
    def scores_prompt(self) -> bool:
        """Whether the log-probabilities of the prompt's own tokens are wanted."""
        return self.echo and self.top_logprobs is not None

    @property
    def prompt_chars(self) -> int:
        """How long a plain prompt is, about: what there is to read before it can be evaluated."""
        texts = (self.prompt or "", self.suffix or "", *(snippet["text"] for snippet in self.snippets))
        return sum(map(len, texts)) + len(self.prompt_ids or ())

    def to_json(self) -> dict[str, Any]:
        """For the wire."""
        # Not asdict of it all, which copies every message and schema value by value: megabytes hold the event loop up.
        data = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        for name in ("thinking", "sampling", "tool_use"):
            data[name] = asdict(data[name])
        data["tools"] = [dict(vars(tool)) for tool in self.tools]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From the wire."""
        known = {entry.name for entry in fields(cls)}
        values = {key: value for key, value in data.items() if key in known}
        thinking = dict(values["thinking"])
        values["thinking"] = Thinking(**{**thinking, "mode": ThinkingMode(thinking["mode"])})
        values["sampling"] = Sampling(**values["sampling"])
        values["tools"] = tuple(Tool(**tool) for tool in values["tools"])
        values["snippets"] = tuple(values["snippets"])
        use = values["tool_use"]
        values["tool_use"] = ToolUse(**{**use, "only": tuple(use["only"])})
        values["logit_bias"] = {int(token): bias for token, bias in values["logit_bias"].items()}
        values["loop_guard"] = Patience(values["loop_guard"]) if values["loop_guard"] else None
        return cls(**values)


@dataclass(frozen=True)
class ReadRequest:
    """What a model makes of a text, without an answer; a Told comes of it.

    prompt: a conversation or a text as for an answer; of a text its control tokens are read only with raw_prompt.
    tokens: to be written as text, in place of reading a prompt. bos: whether the text begins as prompts do.
    pieces: whether the bytes of each token are wanted. vocabulary: whether the facts of the vocabulary are.
    """

    id: str
    prompt: GenerateRequest
    tokens: Sequence[int] | None = None
    bos: bool = False
    pieces: bool = False
    vocabulary: bool = False

    def to_json(self) -> dict[str, Any]:
        """For the wire."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From the wire."""
        return cls(**{**data, "prompt": GenerateRequest.from_json(data["prompt"])})


@dataclass(frozen=True)
class Told:
    """What a model makes of a text: the text as it is continued, and its tokens.

    pieces: None where not asked for. vocabulary: the texts `bos_token` and `eos_token`, and the `chat_template`'s
    source, each None where there is none; None where not asked for.
    """

    id: str
    text: str
    tokens: list[int]
    pieces: list[list[int]] | None = None
    vocabulary: dict[str, str | None] | None = None


@dataclass(frozen=True)
class EmbedRequest:
    """Texts whose embeddings are wanted; an Embedded comes of it.

    cut_to: tokens that each text is cut to, at most as many as the model reads; None: a longer text is refused.
    """

    id: str
    texts: Sequence[str]
    cut_to: int | None = None

    def to_json(self) -> dict[str, Any]:
        """For the wire."""
        return {**vars(self), "texts": list(self.texts)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """From the wire."""
        return cls(**data)


@dataclass(frozen=True)
class Embedded:
    """Embeddings of texts, in their order.

    vectors: float32, little-endian, row by row, as base64. tokens: that were read of each text. cut: indexes of the
    texts of which the end was left out.
    """

    id: str
    vectors: str
    tokens: list[int]
    cut: list[int]


@dataclass(frozen=True)
class TokenLogprob:
    """One token's log-probability under the model's distribution before sampling, and its best rivals'.

    logprob: None of a prompt's first token, before which nothing stands.
    top:    text, bytes and log-probability of each, the likeliest first.
    offset: characters of the text, an echoed prompt's included, before the first one that the token has a byte of.
    """

    token: str
    bytes: list[int]
    logprob: float | None
    top: list[tuple[str, list[int], float]]
    offset: int = 0


@dataclass(frozen=True)
class Accepted:
    """A request is well-formed, fits the context, and is queued or running.

    swap: whether the resident is another specialist now and has to be changed first.
    """

    id: str
    prompt_tokens: int
    swap: bool = False


@dataclass(frozen=True)
class Reading:
    """So many tokens of the prompt have been read."""

    id: str
    tokens: int
    prompt_tokens: int


@dataclass(frozen=True)
class CallPiece:
    """What is new of a call: its tool's name first, then pieces of its arguments' JSON. index: of an answer's calls."""

    index: int
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True)
class Delta:
    """New text of an answer, and what is new of its calls."""

    id: str
    text: str = ""
    reasoning: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    calls: tuple[CallPiece, ...] = ()


@dataclass(frozen=True)
class Finished:
    """An answer's end. Tokens: the prompt's, those of them found in the cache, the answer's, and the thinking's share.

    leaked_blocks: thinking blocks that a think-off specialist wrote all the same; they were stripped.
    loop: what repeated, when the loop guard ended the answer.
    violation: what the answer breaks of its schema, when it is invalid.
    conforms: whether it was checked against its schema, and keeps to it; None where none was asked for.
    queued_s: seconds in the worker before it was begun: for a slot, for its specialist's time slice, for the change.
    malformed_calls: what began as a call and was none; it came as text, but for what was cut before its name.
    forbidden_calls: those that were made although none might be; they were left out.
    mean_logprob: log-probability a drawn token, the one that ended it included; None where it was not asked for, or
               none was drawn.
    prompt_s, answer_s: seconds that the prompt was read for, and from then on to the end.
    """

    id: str
    reason: Finish
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int = 0
    leaked_blocks: int = 0
    loop: str | None = None
    queued_s: float = 0.0
    violation: str | None = None
    conforms: bool | None = None
    malformed_calls: int = 0
    mean_logprob: float | None = None
    forbidden_calls: int = 0
    prompt_s: float = 0.0
    answer_s: float = 0.0


@dataclass(frozen=True)
class Rejected:
    """A request cannot be answered, or its answering failed: an EngineError's class name, message and facts."""

    id: str
    error: str
    message: str
    remedy: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


Event = Accepted | Reading | Delta | Finished | Rejected | Told | Embedded
EVENTS: dict[str, type[Event]] = {
    kind.__name__: kind for kind in (Accepted, Reading, Delta, Finished, Rejected, Told, Embedded)
}


def event_to_json(event: Event) -> dict[str, Any]:
    """For the wire."""
    # One a token: asdict, which looks into everything, would take longer than writing the JSON.
    data = {"event": type(event).__name__, **vars(event)}
    for name in ("logprobs", "calls"):
        if data.get(name):
            data[name] = [asdict(entry) for entry in data[name]]
    return data


def event_from_json(data: Mapping[str, Any]) -> Event:
    """From the wire."""
    values = {key: value for key, value in data.items() if key != "event"}
    if data["event"] == "Finished":
        values["reason"] = Finish(values["reason"])
    if data["event"] == "Delta":
        values["logprobs"] = tuple(TokenLogprob(**entry) for entry in values["logprobs"])
        values["calls"] = tuple(CallPiece(**entry) for entry in values["calls"])
    return EVENTS[data["event"]](**values)
