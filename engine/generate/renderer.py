"""Who renders a chat template: a process of its own with bounds, or this process where the template is our own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from jinja2 import Template

from .. import frames
from ..errors import ModelTemplateError, TemplateError
from ..process import ending, rss_bytes
from ..text import printable
from ..units import size_text
from .jinja import RefusedError, compiled, rendered, told
from .origin import Own

Message = Mapping[str, Any]

# What a template's process needs to know of its parent's environment: keys and tokens are not among it.
_ENVIRONMENT: Final = ("PATH", "LANG", "LC_ALL", "LC_TIME", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME")
_ANOTHER: Final = "Give the entry another GGUF of the model."


class Renderer(Protocol):
    """Renders one chat template."""

    source: str

    @property
    def rss_bytes(self) -> int:
        """Resident memory of a process of its own; 0 where none runs."""

    def compile(self) -> None:
        """Raise ModelTemplateError when the source is no template; needless before `render`."""

    def render(self, messages: Sequence[Message], own: Mapping[str, str], flags: Mapping[str, Any]) -> str:
        """A conversation as the template writes it, an Own where part of it is the template's.

        own: texts as good as the template's own, such as bos_token. flags: other variables.
        Raises TemplateError when the template refuses the conversation or fails on it, ModelTemplateError when it is
        broken or costs more than it may.
        """

    def close(self) -> None:
        """Free what it holds."""


@dataclass(frozen=True)
class Limits:
    """What a rendering may cost, in whole seconds of processor time; an honest one takes about a millisecond.

    total_cpu_s:  what one process may take in all; 0: no bound.
    wall_s:       ends one that waits for memory or for a processor.
    memory_bytes: beside what the process takes before it has read the template.
    """

    cpu_s: int = 2
    total_cpu_s: int = 0
    wall_s: float = 20.0
    memory_bytes: int = 512 * 2**20


HONEST: Final = Limits()  # more than any honest template needs


class RenderProcess:
    """Renders in a process of its own, which starts with the first use, is kept, and is replaced after its death.

    Calls from several threads wait for each other. The process dies with the thread that started it.
    """

    def __init__(self, source: str, limits: Limits = HONEST) -> None:
        self.source = source
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by `close`
        self._turn = threading.Lock()

    @property
    def rss_bytes(self) -> int:
        """See Renderer."""
        return rss_bytes(self._process.pid) if self._process is not None else 0

    def compile(self) -> None:
        """See Renderer."""
        with self._turn:
            self._ready()

    def render(self, messages: Sequence[Message], own: Mapping[str, str], flags: Mapping[str, Any]) -> str:
        """See Renderer."""
        with self._turn:
            self._ready()
            answer = self._ask({"op": "render", "messages": list(messages), "own": dict(own), "flags": dict(flags)})
        if "error" in answer:
            raise refusal(answer["message"]) if answer["error"] == "refused" else failure(answer["message"])
        return Own(answer["text"], tuple((begin, end) for begin, end in answer["spans"]))

    def close(self) -> None:
        """See Renderer."""
        with self._turn:
            self._end()
            self._words.close()

    def _ready(self) -> None:
        """See to it that a process runs and has read the template."""
        if self._process is not None and self._process.poll() is None:
            return
        self._end()
        ours, theirs = socket.socketpair()
        with theirs:
            limits = self._limits
            arguments = (theirs.fileno(), os.getpid(), limits.cpu_s, limits.total_cpu_s, limits.memory_bytes)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "coe.engine.generate.render_process", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._words,
                pass_fds=(theirs.fileno(),),
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                start_new_session=True,
            )
        self._connection = ours
        answer = self._ask({"op": "compile", "source": self.source})
        if "error" in answer:
            self._end()
            raise broken(answer["message"])

    def _ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """An answer to one frame; `error` in it is what the template did by itself. Raises ModelTemplateError."""
        assert self._connection is not None
        try:
            self._connection.settimeout(self._limits.wall_s)
            self._connection.sendall(frames.pack(message))
            answer = frames.receive(self._connection)
        except TimeoutError:
            self._end()
            raise self._over(f"takes more than {self._limits.wall_s:.0f} s") from None
        except OSError:  # it died before it had read all
            answer = None
        if answer is None:
            raise self._death()
        if answer.get("error") == "memory":
            self._end()
            raise self._over(f"needs more than {size_text(self._limits.memory_bytes)} of memory")
        if answer.get("error") == "size":
            raise self._over(f"grows beyond bounds: {answer['message']}")
        return answer

    def _death(self) -> ModelTemplateError:
        """What the end of the process was."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5.0)
        code = self._process.poll()
        self._end()
        if code == -signal.SIGXCPU:
            most_s = min(self._limits.cpu_s, self._limits.total_cpu_s or self._limits.cpu_s)
            return self._over(f"takes more than {most_s} s of processor time")
        words = self._words.fileno()
        said = os.pread(words, 2000, max(0, os.fstat(words).st_size - 2000)).decode("utf-8", "replace").strip()
        how = f"ended ({ending(code) if code is not None else 'and does not say how'})"
        last = printable(said.splitlines()[-1], 300) if said else "it printed nothing"
        return ModelTemplateError(f"The process that renders the model's chat template {how}: {last}.", _ANOTHER)

    def _over(self, how: str) -> ModelTemplateError:
        return ModelTemplateError(f"The model's chat template {how}; it was stopped.", _ANOTHER)

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None


class InProcess:
    """Renders in this process, without any bound: for templates that are no stranger's."""

    rss_bytes = 0  # none runs

    def __init__(self, source: str) -> None:
        self.source = source
        self._template: Template | None = None

    def compile(self) -> None:
        """See Renderer."""
        try:
            self._template = self._template or compiled(self.source)
        except Exception as error:
            raise broken(told(error)) from error

    def render(self, messages: Sequence[Message], own: Mapping[str, str], flags: Mapping[str, Any]) -> str:
        """See Renderer."""
        self.compile()
        assert self._template is not None
        try:
            return rendered(self._template, messages, own, flags)
        except RefusedError as error:
            raise refusal(str(error)) from error
        except Exception as error:  # a template is a program: it may fail in any way
            raise failure(told(error)) from error

    def close(self) -> None:
        """See Renderer."""


def refusal(said: str) -> TemplateError:
    """A template called raise_exception."""
    return TemplateError(f"The model's chat template refuses this conversation: {_quoted(said)}.")


def failure(said: str) -> TemplateError:
    """A template failed in another way."""
    return TemplateError(f"The model's chat template fails on this conversation: {_quoted(said)}.")


def broken(said: str) -> ModelTemplateError:
    """A source is no template."""
    return ModelTemplateError(f"The model's chat template is broken: {_quoted(said)}.", _ANOTHER)


def _quoted(said: str) -> str:
    return printable(said.strip().rstrip("."), 300) or "it does not say why"
