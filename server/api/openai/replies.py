"""Answers in OpenAI's shapes: chat and plain completions, whole and as stream chunks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from coe.engine.request import Delta, Finish, Finished, TokenLogprob

from ...runtime.answer import Answer, Outcome

# OpenAI knows no reason for a loop: the answer was cut, which is what `length` tells every client. The `coe` object
# says what it was.
_REASONS = {Finish.STOP: "stop", Finish.LENGTH: "length", Finish.LOOP: "length", Finish.CANCELLED: "stop"}


def usage(ends: Sequence[Finished]) -> dict[str, Any]:
    """Token counts of all choices; the prompt counts once."""
    prompt = ends[0].prompt_tokens if ends else 0
    completion = sum(end.completion_tokens for end in ends)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": max((end.cached_tokens for end in ends), default=0)},
        "completion_tokens_details": {"reasoning_tokens": sum(end.reasoning_tokens for end in ends)},
    }


class Shape:
    """One answer's envelope. chat: chat.completion objects, else text_completion ones."""

    def __init__(self, answer: Answer, *, chat: bool) -> None:
        self.answer = answer
        self.chat = chat
        prefix = "chatcmpl" if chat else "cmpl"
        self._head = {
            "id": f"{prefix}-{answer.id}",
            "created": int(time.time()),
            "model": answer.choice.specialist.name,
        }
        self._kind = "chat.completion" if chat else "text_completion"

    def body(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """The whole answer."""
        ends = [outcome.end for outcome in outcomes if outcome.end is not None]
        choices = [self._choice(outcome) for outcome in outcomes]
        return {
            **self._head,
            "object": self._kind,
            "choices": choices,
            "usage": usage(ends),
            "coe": self.answer.facts(ends),
        }

    def _choice(self, outcome: Outcome) -> dict[str, Any]:
        assert outcome.end is not None
        reason = _REASONS[outcome.end.reason]
        logprobs = self._logprobs(outcome.logprobs)
        if not self.chat:
            return {"index": outcome.index, "text": outcome.text, "finish_reason": reason, "logprobs": logprobs}
        message: dict[str, Any] = {"role": "assistant", "content": outcome.text, "refusal": None}
        if self.answer.thinks:
            message["reasoning_content"] = outcome.reasoning
        return {"index": outcome.index, "message": message, "finish_reason": reason, "logprobs": logprobs}

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if self.answer.ask.top_logprobs is None:
            return None
        if self.chat:
            return {
                "content": [
                    {
                        "token": entry.token,
                        "logprob": entry.logprob,
                        "bytes": entry.bytes,
                        "top_logprobs": [
                            {"token": token, "logprob": value, "bytes": data} for token, data, value in entry.top
                        ],
                    }
                    for entry in entries
                ],
                "refusal": None,
            }
        return {
            "tokens": [entry.token for entry in entries],
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [{token: value for token, _, value in entry.top} for entry in entries],
            "text_offset": None,  # tokens that share a character have no offset of their own
        }

    # --- chunks -----------------------------------------------------------------------------------------------

    def opening(self, index: int) -> dict[str, Any] | None:
        """A chat stream begins with the role."""
        if not self.chat:
            return None
        return self._chunk([{"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])

    def piece(self, index: int, delta: Delta) -> dict[str, Any]:
        """A chunk with new text."""
        logprobs = self._logprobs(delta.logprobs)
        if not self.chat:
            return self._chunk([{"index": index, "text": delta.text, "finish_reason": None, "logprobs": logprobs}])
        content: dict[str, Any] = {}
        if delta.reasoning:
            content["reasoning_content"] = delta.reasoning
        if delta.text or not delta.reasoning:
            content["content"] = delta.text
        return self._chunk([{"index": index, "delta": content, "finish_reason": None, "logprobs": logprobs}])

    def ending(self, index: int, end: Finished, facts: dict[str, Any] | None) -> dict[str, Any]:
        """A choice's last chunk; the last choice's carries the `coe` object."""
        empty: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
        chunk = self._chunk([{"index": index, **empty, "finish_reason": _REASONS[end.reason], "logprobs": None}])
        return {**chunk, "coe": facts} if facts is not None else chunk

    def usage_chunk(self, ends: Sequence[Finished], facts: dict[str, Any]) -> dict[str, Any]:
        """The chunk after the last that stream_options.include_usage asks for."""
        return {**self._chunk([]), "usage": usage(ends), "coe": facts}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices}
