"""A resident that answers by a test's script, and dies where the test wants it to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field

from coe.engine.errors import PromptTooLongError, WorkerDiedError
from coe.engine.request import Accepted, Delta, Event, Finish, Finished, GenerateRequest
from coe.engine.spec import LoadSpec, Thinking


@dataclass(frozen=True)
class Line:
    """One answer. tokens: None for one a word."""

    text: str
    reason: Finish = Finish.STOP
    tokens: int | None = None
    reasoning_tokens: int = 0
    leaked_blocks: int = 0


@dataclass
class Script:
    """Answers by what stands in the prompt's last message; several are given one a attempt, the last for all further.

    deadly: prompts that kill the worker, and how many times they do.
    """

    lines: Mapping[str, str | Line | tuple[Line, ...]]
    deadly: dict[str, int] = field(default_factory=dict)
    too_long: frozenset[str] = frozenset()
    requests: list[GenerateRequest] = field(default_factory=list)
    loads: list[LoadSpec] = field(default_factory=list)
    policies: list[Mapping[str, Thinking]] = field(default_factory=list)
    together: int = 0  # the most requests that ran at once
    stopped: int = 0

    async def start(
        self, spec: LoadSpec, policies: Mapping[str, Thinking], on_progress: Callable[[float], None]
    ) -> ScriptedResident:
        """As WorkerResident.start."""
        self.loads.append(spec)
        self.policies.append(policies)
        on_progress(1.0)
        return ScriptedResident(self)

    def asked(self) -> list[str]:
        """The last messages of all requests, in order."""
        return [_last(request) for request in self.requests]


class ScriptedResident:
    """As WorkerResident, as far as generation goes."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._running = 0
        self._dead = False

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        script, text = self._script, _last(request)
        script.requests.append(request)
        self._running += 1
        script.together = max(script.together, self._running)
        try:
            key = next((key for key in sorted(script.lines, key=len, reverse=True) if key in text), text)
            if key in script.too_long:
                raise PromptTooLongError(999, 512)
            if script.deadly.get(key, 0):
                script.deadly[key] -= 1
                self._dead = True
            await asyncio.sleep(0)  # let the others come
            await asyncio.sleep(0)
            if self._dead:
                raise WorkerDiedError("The worker died (signal 6): GGML_ASSERT.")
            yield Accepted(request.id, 7)
            written = script.lines[key]
            lines = written if isinstance(written, tuple) else (written,)
            attempt = int(request.id.rsplit("-", 1)[1])
            line = lines[min(attempt, len(lines) - 1)]
            line = Line(line) if isinstance(line, str) else line
            middle = len(line.text) // 2
            for part in (line.text[:middle], line.text[middle:]):
                yield Delta(request.id, part)
            tokens = len(line.text.split()) if line.tokens is None else line.tokens
            yield Finished(
                request.id,
                line.reason,
                7,
                0,
                tokens,
                line.reasoning_tokens,
                line.leaked_blocks,
                "again and again" if line.reason is Finish.LOOP else None,
            )
        finally:
            self._running -= 1

    async def stop(self) -> None:
        self._script.stopped += 1

    def silent_s(self) -> float:
        return 0.0


def _last(request: GenerateRequest) -> str:
    assert request.messages is not None
    return str(request.messages[-1]["content"])
