"""Answers, streams and errors as Ollama writes them: a line of JSON for each piece, the last with the counts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from time import perf_counter
from typing import Any, Final

from coe.engine.request import CallPiece, Delta, Finish, Finished, TokenLogprob

from ...runtime.answer import Answer, Outcome, Step
from ...runtime.calls import Calls, ToolCall
from ...runtime.errors import Failure, RequestError
from ..common.calls import call_id
from ..common.frames import line_frame
from ..json_body import parse_json

# Ollama knows no reason for calls, and none for a loop: that answer was cut. The `coe` object says what it was.
_REASONS: Final = {
    Finish.STOP: "stop",
    Finish.CALLS: "stop",
    Finish.LENGTH: "length",
    Finish.LOOP: "length",
    Finish.CANCELLED: "stop",
}
_NOTHING: Final = ("", "null")  # as arguments


def timestamp(when: datetime | None = None) -> str:
    """A time as Ollama writes it; now where none is given."""
    return (when or datetime.now(UTC)).isoformat(timespec="microseconds").replace("+00:00", "Z")


def error_body(failure: Failure) -> dict[str, str]:
    """Ollama's errors are a text."""
    message = failure.message_in("format")
    if failure.code == "model_not_found":  # words by which clients know it
        message = f"model not found: {message[:1].lower()}{message[1:]}"
    return {"error": message}


def done(reason: str, name: str, **said: Any) -> dict[str, Any]:
    """The answer to a body that wants none. said: what stands in the place of the text."""
    return {"model": name, "created_at": timestamp(), **said, "done": True, "done_reason": reason}


class OllamaEnvelope(ABC):
    """One answer. Sub-classes say where its text stands."""

    def __init__(self, answer: Answer, *, name: str) -> None:
        """name: of the model, as the client wrote it."""
        self.answer = answer
        self._name = name
        self._calls = _Calls(answer)
        self._began_s = perf_counter()

    @abstractmethod
    def said(self, text: str, thinking: str, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The part of a line that holds text."""

    def body(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        """See api.dialect.Envelope."""
        (outcome,) = outcomes  # more choices than one cannot be asked for
        return {
            **self._head(),
            **self.said(outcome.text, outcome.reasoning, self._calls.written(outcome.calls)),
            **self._logprobs(outcome.logprobs),
            **self._end(outcome.end),
        }

    def opening(self) -> Iterable[bytes]:
        """Nothing."""
        return ()

    def frames(self, step: Step) -> Iterable[bytes]:
        """See api.dialect.Envelope. A call comes whole, once the next begins or the answer ends."""
        event = step.event
        if isinstance(event, Delta):
            calls = self._calls.add(event.calls)
            if event.text or event.reasoning or event.logprobs or calls:
                said = self.said(event.text, event.reasoning, calls)
                yield self._line({**said, **self._logprobs(event.logprobs), "done": False})
        elif isinstance(event, Finished):
            if calls := self._calls.rest():
                yield self._line({**self.said("", "", calls), "done": False})
            yield self._line({**self.said("", "", ()), **self._end(event)})

    def waiting(self, text: str) -> Iterable[bytes]:
        """See api.dialect.Envelope."""
        yield self._line({**self.said("", f"{text}\n", ()), "done": False})

    def closing(self) -> Iterable[bytes]:
        """Nothing: the last line was the last choice's."""
        return ()

    def _head(self) -> dict[str, Any]:
        return {"model": self._name, "created_at": timestamp()}

    def _line(self, said: Mapping[str, Any]) -> bytes:
        return line_frame({**self._head(), **said})

    def _logprobs(self, entries: Sequence[TokenLogprob]) -> dict[str, Any]:
        if self.answer.request.top_logprobs is None or not entries:
            return {}
        return {
            "logprobs": [
                {
                    **_logprob(entry.token, entry.bytes, entry.logprob),
                    "top_logprobs": [_logprob(token, data, value) for token, data, value in entry.top],
                }
                for entry in entries
                if entry.logprob is not None  # a prompt's first token alone has none
            ]
        }

    def _end(self, end: Finished) -> dict[str, Any]:
        """What the last line tells. Its durations: of all, until the prompt was begun, of reading it, of the answer."""
        lease = self.answer.lease
        waited_s = (lease.waited_s if lease is not None else 0.0) + end.queued_s
        return {
            "done": True,
            "done_reason": _REASONS[end.reason],
            "total_duration": _ns(perf_counter() - self._began_s),
            "load_duration": _ns(waited_s),
            "prompt_eval_count": end.prompt_tokens,
            "prompt_eval_duration": _ns(end.prompt_s),
            "eval_count": end.completion_tokens,
            "eval_duration": _ns(end.answer_s),
            "coe": self.answer.provenance.facts([end]),
        }


class ChatEnvelope(OllamaEnvelope):
    """Of /api/chat: a message."""

    def said(self, text: str, thinking: str, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """See OllamaEnvelope."""
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if thinking:
            message["thinking"] = thinking
        if calls:
            message["tool_calls"] = list(calls)
        return {"message": message}


class GenerateEnvelope(OllamaEnvelope):
    """Of /api/generate: a response. Calls cannot come, for there are no tools."""

    def said(self, text: str, thinking: str, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """See OllamaEnvelope."""
        return {"response": text, **({"thinking": thinking} if thinking else {})}


class _Calls:
    """The calls of a stream, each told of when it is whole.

    One whose arguments are no object was cut, and is not told of: Ollama's clients take arguments for what was meant.
    """

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._found = Calls()
        self._n_begun = self._n_told = 0

    def add(self, pieces: Sequence[CallPiece]) -> list[dict[str, Any]]:
        """What is new of them; gives those that are whole by that."""
        self._found.add(pieces)
        begun = sum(piece.name is not None for piece in pieces)
        self._n_begun += begun
        return self._news(self._n_begun - 1) if begun else []

    def rest(self) -> list[dict[str, Any]]:
        """Those that have not been told of, at the answer's end."""
        return self._news(self._n_begun)

    def _news(self, until: int) -> list[dict[str, Any]]:
        if until <= self._n_told:
            return []
        first, self._n_told = self._n_told, until
        calls = self._found.whole()[first:until]
        return self.written(calls, first)

    def written(self, calls: Sequence[ToolCall], first: int = 0) -> list[dict[str, Any]]:
        """Calls as Ollama has them. first: the number of the first of them among the answer's calls."""
        found = []
        for number, call in enumerate(calls, first):
            try:
                arguments = parse_json(call.arguments.encode()) if call.arguments.strip() not in _NOTHING else {}
            except RequestError:
                continue
            function = {"index": number, "name": call.name, "arguments": arguments}
            found.append({"id": call_id(self._answer, 0, number), "function": function})
        return found


def _logprob(token: str, data: Sequence[int], logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": data}


def _ns(seconds: float) -> int:
    return max(0, round(seconds * 1e9))
