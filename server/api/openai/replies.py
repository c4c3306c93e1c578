"""Answers, streams and errors as OpenAI writes them: one envelope for chat, one for plain completions."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final

from coe.engine.request import CallPiece, Delta, Finish, Finished, TokenLogprob

from ...runtime.answer import Answer, Outcome, Step
from ...runtime.errors import Failure, Part
from ..common.calls import call_id, in_pieces
from ..common.frames import data_frame

# What the two endpoints call the parts of a request.
CHAT_NAMES: Final[Mapping[Part, str]] = {
    Part.INPUT: "messages",
    Part.FORMAT: "response_format",
    Part.TOOLS: "tools",
    Part.TOOL_CHOICE: "tool_choice",
    Part.MODEL: "model",
    Part.SUFFIX: "suffix",
}
COMPLETION_NAMES: Final[Mapping[Part, str]] = {**CHAT_NAMES, Part.INPUT: "prompt"}

# OpenAI knows no reason for a loop: the answer was cut, which is what `length` tells every client. The `coe` object
# says what it was. An invalid answer is an error, and has none.
_REASONS = {
    Finish.STOP: "stop",
    Finish.CALLS: "tool_calls",
    Finish.LENGTH: "length",
    Finish.LOOP: "length",
    Finish.CANCELLED: "stop",
}


def usage(ends: Sequence[Finished], prompts: Sequence[Finished] | None = None) -> dict[str, Any]:
    """Token counts of all choices; the prompt counts once. prompts: where there are several, an end of each."""
    asked = ends[:1] if prompts is None else prompts
    prompt = sum(end.prompt_tokens for end in asked)
    cached = sum(end.cached_tokens for end in asked) if len(asked) > 1 else _most_cached(ends)
    completion = sum(end.completion_tokens for end in ends)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": sum(end.reasoning_tokens for end in ends)},
    }


def _most_cached(ends: Sequence[Finished]) -> int:
    return max((end.cached_tokens for end in ends), default=0)


def error_body(failure: Failure, names: Mapping[Part, str] = CHAT_NAMES) -> dict[str, Any]:
    """OpenAI's error envelope. names: what the endpoint calls the parts of a request."""
    param = failure.param_in(names)
    error = {"message": failure.message, "type": failure.type, "param": param, "code": failure.code}
    return {"error": error}


class OpenAIEnvelope(ABC):
    """One answer. Sub-classes say what a choice looks like, whole and in pieces."""

    prefix: ClassVar[str]  # of ids
    whole: ClassVar[str]  # `object` of a whole answer
    chunk: ClassVar[str]  # `object` of a chunk of a stream

    def __init__(
        self, answer: Answer, *, include_usage: bool = False, legacy_calls: bool = False, prompts: int = 1
    ) -> None:
        """include_usage: the stream ends with a chunk of token counts. legacy_calls: function_call, not tool_calls.
        prompts: how many there are, with as many choices each; the answer is the first's.
        """
        self.answer = answer
        self._n_choices = answer.request.n * prompts
        self._legacy = legacy_calls
        self._include_usage = include_usage
        self._created = int(time.time())
        self._finished: dict[int, Finished] = {}  # the choices of a stream that have, by index

    @abstractmethod
    def choice(self, outcome: Outcome) -> dict[str, Any]:
        """A choice's part of a whole answer."""

    @abstractmethod
    def first(self) -> dict[str, Any] | None:
        """What a choice's stream begins with; None for nothing."""

    @abstractmethod
    def pieces(self, index: int, delta: Delta) -> Iterable[dict[str, Any]]:
        """A choice's parts of the chunks that tell what is new, one at least. index: the choice's."""

    @abstractmethod
    def last(self) -> dict[str, Any]:
        """A choice's part of its last chunk."""

    @abstractmethod
    def logprobs(self, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        """Log-probabilities of tokens."""

    def _reason(self, end: Finished) -> str:
        return "function_call" if self._legacy and end.reason is Finish.CALLS else _REASONS[end.reason]

    def _head(self, kind: str) -> dict[str, Any]:
        # Not kept from the beginning: after a loop another specialist may have answered.
        name = self.answer.answered_by.name
        return {"id": f"{self.prefix}-{self.answer.id}", "created": self._created, "model": name, "object": kind}

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        return None if self.answer.request.top_logprobs is None else self.logprobs(entries)

    def body(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """See api.dialect.Envelope."""
        ends = {outcome.index: outcome.end for outcome in outcomes}
        discarded = [end for outcome in outcomes for end in outcome.discarded]
        choices = [
            {
                "index": outcome.index,
                **self.choice(outcome),
                "finish_reason": self._reason(outcome.end),
                "logprobs": self._logprobs(outcome.logprobs),
            }
            for outcome in outcomes
        ]
        facts = self.answer.provenance.facts(list(ends.values()))
        return {**self._head(self.whole), "choices": choices, "usage": self._usage(ends, discarded), "coe": facts}

    def _usage(self, ends: Mapping[int, Finished], discarded: Sequence[Finished] = ()) -> dict[str, Any]:
        prompts = [end for index, end in sorted(ends.items()) if index % self.answer.request.n == 0]
        return usage([*ends.values(), *discarded], prompts)

    def opening(self) -> Iterable[bytes]:
        """See api.dialect.Envelope."""
        first = self.first()
        if first is not None:
            for index in range(self._n_choices):
                yield self._frame([{"index": index, **first, "finish_reason": None}])

    def frames(self, step: Step) -> Iterable[bytes]:
        """See api.dialect.Envelope."""
        event = step.event
        if isinstance(event, Delta):
            logprobs = self._logprobs(event.logprobs)
            for piece in self.pieces(step.index, event):
                yield self._frame([{"index": step.index, **piece, "finish_reason": None, "logprobs": logprobs}])
                logprobs = None
        elif isinstance(event, Finished):
            self._finished[step.index] = event
            reason = self._reason(event)
            choice = {"index": step.index, **self.last(), "finish_reason": reason, "logprobs": None}
            # The last choice's last chunk says how the answer came about.
            yield self._frame([choice], with_facts=len(self._finished) == self._n_choices)

    def waiting(self, text: str) -> Iterable[bytes]:
        """See api.dialect.Envelope."""
        told = self.told(text)
        if told is not None:
            for index in range(self._n_choices):
                yield self._frame([{"index": index, **told, "finish_reason": None}])

    def told(self, text: str) -> dict[str, Any] | None:
        """A choice's part of a chunk that tells what it waits for; None for no such chunk."""
        return None

    def closing(self) -> Iterable[bytes]:
        """See api.dialect.Envelope."""
        if self._include_usage:
            yield self._frame([], with_facts=True, usage=self._usage(self._finished))
        yield b"data: [DONE]\n\n"

    def _frame(self, choices: list[dict[str, Any]], *, with_facts: bool = False, **more: Any) -> bytes:
        facts = {"coe": self.answer.provenance.facts(list(self._finished.values()))} if with_facts else {}
        return data_frame({**self._head(self.chunk), "choices": choices, **more, **facts})


class ChatEnvelope(OpenAIEnvelope):
    """chat.completion and chat.completion.chunk objects."""

    prefix, whole, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, outcome: Outcome) -> dict[str, Any]:
        """See OpenAIEnvelope."""
        calls = outcome.calls[:1] if self._legacy else outcome.calls
        content = outcome.text if outcome.text or not (calls or self.answer.must_call) else None
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if self.answer.thinks:
            message["reasoning_content"] = outcome.reasoning
        if calls and self._legacy:
            message["function_call"] = _function(calls[0].name, calls[0].arguments)
        elif calls:
            message["tool_calls"] = [
                {**self._call(outcome.index, number), "function": _function(call.name, call.arguments)}
                for number, call in enumerate(calls)
            ]
        return {"message": message}

    def _call(self, choice: int, number: int) -> dict[str, Any]:
        """What a call is known by, the same whenever it is asked for."""
        return {"id": call_id(self.answer, choice, number), "type": "function"}

    def first(self) -> dict[str, Any]:
        """The role."""
        return {"delta": {"role": "assistant", "content": ""}}

    def pieces(self, index: int, delta: Delta) -> Iterable[dict[str, Any]]:
        """See OpenAIEnvelope. A call is told of by its name first, then by pieces of its arguments."""
        content: dict[str, Any] = {}
        if delta.reasoning:
            content["reasoning_content"] = delta.reasoning
        if delta.text or not (delta.reasoning or delta.calls):
            content["content"] = delta.text
        if content or delta.logprobs:
            yield {"delta": content}
        for piece in in_pieces(delta.calls):
            if self._legacy:
                if piece.index == 0:
                    yield {"delta": {"function_call": _news(piece)}}
            else:
                known = self._call(index, piece.index) if piece.name is not None else {}
                yield {"delta": {"tool_calls": [{"index": piece.index, **known, "function": _news(piece)}]}}

    def told(self, text: str) -> dict[str, Any]:
        """See OpenAIEnvelope."""
        return {"delta": {"reasoning_content": f"{text}\n"}}

    def last(self) -> dict[str, Any]:
        """See OpenAIEnvelope."""
        return {"delta": {}}

    def logprobs(self, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        """See OpenAIEnvelope."""
        content = [
            {
                "token": entry.token,
                "logprob": entry.logprob,
                "bytes": entry.bytes,
                "top_logprobs": [{"token": token, "logprob": value, "bytes": data} for token, data, value in entry.top],
            }
            for entry in entries
        ]
        return {"content": content, "refusal": None}


class CompletionEnvelope(OpenAIEnvelope):
    """text_completion objects."""

    prefix, whole, chunk = "cmpl", "text_completion", "text_completion"

    def choice(self, outcome: Outcome) -> dict[str, Any]:
        """See OpenAIEnvelope."""
        return {"text": outcome.text}

    def first(self) -> None:
        """Nothing."""

    def pieces(self, index: int, delta: Delta) -> Iterable[dict[str, Any]]:
        """See OpenAIEnvelope."""
        yield {"text": delta.text}

    def last(self) -> dict[str, Any]:
        """See OpenAIEnvelope."""
        return {"text": ""}

    def logprobs(self, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        """See OpenAIEnvelope."""
        return {
            "tokens": [_written(entry.token, entry.bytes) for entry in entries],
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [None if entry.logprob is None else _by_text(entry) for entry in entries],
            "text_offset": [entry.offset for entry in entries],
        }


def _function(name: str, arguments: str) -> dict[str, str]:
    return {"name": name, "arguments": arguments}


def _news(piece: CallPiece) -> dict[str, str]:
    return _function(piece.name, "") if piece.name is not None else {"arguments": piece.arguments}


def _by_text(entry: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens and the one that was drawn; of two that are written alike, the likelier."""
    found: dict[str, float] = {}
    own = [] if entry.logprob is None else [(entry.token, entry.bytes, entry.logprob)]
    for token, data, value in (*entry.top, *own):
        found.setdefault(_written(token, data), value)
    return found


def _written(token: str, data: Sequence[int]) -> str:
    r"""A token's text; its bytes where they are none, as OpenAI's completions have it: bytes:\xe4\xb8."""
    try:
        bytes(data).decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
    return token
