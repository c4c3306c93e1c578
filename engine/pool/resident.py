"""The server's handle of a worker process, over length-prefixed frames: what the pool asks of a resident.

`Resident` is the seam: nothing above it may assume that the model is on this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

from .. import errors, frames
from ..errors import EngineError, LoadError, WorkerDiedError
from ..logs import LLAMA_LOGGER, WORKER_LOGGER, for_request
from ..private import child_environment
from ..process import worker_environment
from ..request import Event, Finished, GenerateRequest, Rejected, event_from_json
from ..spec import LoadSpec, Thinking

_log = logging.getLogger(__name__)
_worker_log, _llama_log = logging.getLogger(WORKER_LOGGER), logging.getLogger(LLAMA_LOGGER)
_STOP_S = 5.0  # a worker that is told to stop and does not is killed
_LAST_WORDS_S = 1.0  # how long the output of a dead worker may take to arrive


class Resident(Protocol):
    """A model that is ready to answer."""

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Events of one answer, Accepted first. Leaving the iterator early ends the generation.

        Raises the EngineError of a rejected request, and WorkerDiedError when the resident goes meanwhile.
        """
        ...

    async def stop(self) -> None:
        """Give the memory back; returns when it is back."""
        ...

    async def wait_gone(self) -> None:
        """Returns when the resident is no more, whatever the reason."""
        ...

    @property
    def memory_bytes(self) -> int | None:
        """What the resident was measured to take of what the budget counts, None when that is not known."""
        ...

    def silent_s(self) -> float:
        """Seconds since the last sign of progress while there is work, 0 when there is none."""
        ...

    @property
    def activity(self) -> Mapping[str, float]:
        """What it last said of itself, for metrics: steps, cells, swaps, swapped_bytes, change_s (of a swap),
        offloaded_bytes, worst_wait_s, prompt_tokens_per_s (0 before any were read). Empty before the first beat."""
        ...


class WorkerResident:
    """A resident in a worker process of this machine."""

    def __init__(self) -> None:
        self._title: str | None = None  # of what it holds, or is loading
        self._on_progress: Callable[[float], None] = lambda fraction: None
        self._queues: dict[str, asyncio.Queue[Event | None]] = {}
        self._ready: asyncio.Future[dict[str, Any]] | None = None
        self._gone = asyncio.Event()
        self._tail: deque[str] = deque(maxlen=200)  # the worker's last lines on stderr, a stack's worth
        self._last_sign = time.monotonic()
        self._stopping = False
        self._readers: list[asyncio.Task[None]] = []
        self.info: dict[str, Any] = {}
        self.beat: dict[str, Any] = {}

    @classmethod
    async def start(
        cls,
        spec: LoadSpec,
        policies: Mapping[str, Thinking],
        on_progress: Callable[[float], None] = lambda fraction: None,
    ) -> WorkerResident:
        """Spawn a worker and load the model in it.

        Raises LoadError, or the EngineError that the worker reports. Leaves no process behind when it fails or is
        cancelled.
        """
        resident = await cls.spawn()
        await resident.load(spec, policies, on_progress)
        return resident

    @classmethod
    async def spawn(cls) -> WorkerResident:
        """A worker that holds nothing yet: it takes the time to load its libraries before it can load a model.

        Leaves no process behind when it fails or is cancelled.
        """
        resident = cls()
        try:
            await resident._launch()
        except BaseException:
            resident.kill()
            await asyncio.shield(resident.wait_gone())
            raise
        return resident

    async def load(
        self, spec: LoadSpec, policies: Mapping[str, Thinking], on_progress: Callable[[float], None]
    ) -> None:
        """Load a model in a worker that was spawned; once, for the process ends when it fails or is cancelled.

        Raises what `start` raises.
        """
        self._title, self._on_progress = spec.title, on_progress
        self._ready = asyncio.get_running_loop().create_future()
        if self._gone.is_set():
            raise self._death()
        told = {name: asdict(policy) for name, policy in policies.items()}
        log_decisions = _worker_log.isEnabledFor(logging.DEBUG)
        self._send({"op": "load", "spec": spec.to_json(), "policies": told, "log_decisions": log_decisions})
        try:
            self.info = await self._ready
        except BaseException:
            self.kill()
            await asyncio.shield(self.wait_gone())
            raise

    async def _launch(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        # Before the process is there: from then on no cancellation may come between it and its readers.
        try:
            reader, self._writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        try:
            # Spawned by the event loop's thread, which lives as long as the server: the worker is killed when the
            # thread that created it ends (PR_SET_PDEATHSIG).
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "coe.engine.worker.worker",
                str(theirs.fileno()),
                str(os.getpid()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                env=worker_environment(child_environment(os.environ)),
                # Ctrl-C reaches a whole group of processes, and the server drains before its workers end.
                start_new_session=True,
            )
        except BaseException:
            self._writer.close()
            self._gone.set()
            raise
        finally:
            theirs.close()
        self._readers = [asyncio.create_task(self._receive(reader)), asyncio.create_task(self._drain_output())]

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        try:
            await self._dispatch(reader)
            # The process has closed its end, so it is about to end.
            await asyncio.wait_for(self._process.wait(), _STOP_S)
        except asyncio.CancelledError:  # the event loop is going down: wait_gone must return all the same
            self.kill()
            self._gone.set()
            raise
        except Exception as error:
            _log.error("worker %s is out of control and is killed: %r", self._process.pid, error)
            self.kill()
        await self._process.wait()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._readers[1]), _LAST_WORDS_S)
        self._writer.close()
        self._gone.set()
        self._settle(self._death())
        for queue in self._queues.values():
            queue.put_nowait(None)

    async def _dispatch(self, reader: asyncio.StreamReader) -> None:
        while (message := await frames.read(reader)) is not None:
            self._last_sign = time.monotonic()
            match message["event"]:
                case "progress":
                    self._on_progress(message["fraction"])
                case "ready":
                    self._settle(message)
                case "failed":
                    error = getattr(errors, message["error"], LoadError)
                    self._settle(error(message["message"], message["remedy"]))
                case "beat":
                    self.beat = {name: value for name, value in message.items() if name != "event"}
                case "log":
                    level = logging.getLevelNamesMapping()[message["level"].upper()]
                    # "ID/CHOICE": the HTTP request's own id, by which all its lines are found, and which answer of it.
                    name, slash, choice = message["request"].rpartition("/")
                    name, of = (name, f" {choice[:6]}{choice[32:]}") if slash else (choice, "")
                    line = f"worker {self._process.pid}{of}: {message['message']}"
                    _worker_log.log(level, "%s", line, extra=for_request(name))
                case _:
                    if (queue := self._queues.get(message["id"])) is not None:
                        queue.put_nowait(event_from_json(message))

    def _settle(self, result: dict[str, Any] | EngineError) -> None:
        if self._ready is None or self._ready.done():
            return
        if isinstance(result, EngineError):
            self._ready.set_exception(result)
            self._ready.exception()  # a cancelled start never looks at it
        else:
            self._ready.set_result(result)

    async def _drain_output(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            text = line.decode("utf-8", "replace").rstrip()
            self._tail.append(text)
            _llama_log.debug("worker %s: %s", self._process.pid, text)

    def _death(self) -> WorkerDiedError:
        code = self._process.returncode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit {code}"
        marks = ("GGML_ASSERT", "ggml_abort", "Fatal Python error")
        cause = next((line for mark in marks for line in self._tail if mark in line), None)
        if cause is None and self._tail and code is not None and code > 0:
            cause = self._tail[-1]  # an exception's last line; what was printed before a signal need not be its cause
        worker = f"The worker that holds {self._title}" if self._title is not None else "A spare worker"
        return WorkerDiedError(
            f"{worker} died ({how}){f': {cause}' if cause else ''}.",
            "Send the request again: a new worker will be started.",
        )

    def _send(self, message: Mapping[str, Any]) -> None:
        if not self._gone.is_set() and not self._writer.is_closing():
            self._writer.write(frames.pack(message))

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """See Resident.generate."""
        if self._gone.is_set():
            raise self._death()
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._queues[request.id] = queue
        if not self._busy():
            self._last_sign = time.monotonic()
        self._send({"op": "generate", "request": request.to_json()})
        ended = False
        try:
            while not ended:
                event = await queue.get()
                if event is None:
                    ended = True
                    raise self._death()
                if isinstance(event, Rejected):
                    ended = True
                    raise _rejection(event)
                ended = isinstance(event, Finished)
                yield event
        finally:
            del self._queues[request.id]
            if not ended:
                self._send({"op": "cancel", "id": request.id})

    def _busy(self) -> bool:
        return len(self._queues) > 1 or bool(self.beat.get("active") or self.beat.get("waiting"))

    @property
    def activity(self) -> Mapping[str, float]:
        """See Resident.activity."""
        return self.beat

    def silent_s(self) -> float:
        """See Resident.silent_s."""
        return time.monotonic() - self._last_sign if self._queues else 0.0

    @property
    def memory_bytes(self) -> int | None:
        """See Resident.memory_bytes: what went from the GPUs, or host memory where there is none."""
        memory = self.info.get("memory")
        if memory is None:
            return None
        return int(memory["device_bytes"] if memory["device_bytes"] is not None else memory["rss_bytes"])

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    async def stop(self) -> None:
        """See Resident.stop."""
        self._send({"op": "stop"})
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.wait_gone(), _STOP_S)
        self.kill()
        await self.wait_gone()

    def kill(self) -> None:
        """End the process at once."""
        process = getattr(self, "_process", None)
        if process is None:
            self._gone.set()
        elif process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    async def wait_gone(self) -> None:
        """See Resident.wait_gone."""
        await self._gone.wait()


def _rejection(event: Rejected) -> EngineError:
    error = getattr(errors, event.error, EngineError)
    if error is errors.PromptTooLongError:
        return errors.PromptTooLongError(**event.facts)
    rejection: EngineError = error(event.message, event.remedy)
    return rejection
