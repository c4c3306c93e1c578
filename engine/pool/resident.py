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
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from .. import errors, frames
from ..errors import EngineError, LoadError, OutOfMemoryError, WorkerDiedError, WorkerHungError
from ..last_words import telling_line
from ..logs import LLAMA_LOGGER, WORKER_LOGGER, RemoteTraceback, for_request, stack_in
from ..private import child_environment
from ..process import ending, signal_name, worker_environment
from ..request import (
    Embedded,
    EmbedRequest,
    Event,
    Finished,
    GenerateRequest,
    ReadRequest,
    Rejected,
    Told,
    event_from_json,
)
from ..shortage import Shortage, find_shortage
from ..spec import LoadSpec, Thinking
from ..vitals import STALL_S, Beat, Lookout, Vitals
from .inbox import ENDS, Inbox, Unread
from .places import Memory

_log = logging.getLogger(__name__)
_worker_log, _llama_log = logging.getLogger(WORKER_LOGGER), logging.getLogger(LLAMA_LOGGER)
_STOP_S = 5.0  # a worker that is told to stop and does not is killed
_LAST_WORDS_S = 1.0  # how long the output of a dead worker may take to arrive
_KILL_S = 5.0  # a killed process that has not ended by then hangs in the kernel, in a driver, say


@dataclass(frozen=True)
class Loss:
    """How a resident was lost. how: a phrase that goes with its title. requests: ids of those that it had.

    cause: a word or two of few that there are, for counting: "hung", "SIGKILL", "exit 1".
    shortage: the memory for want of which it died, None where it did not, or where that is not known.
    stack: where in its code it died, without any text of a request; "" where it could not say.
    """

    how: str
    requests: tuple[str, ...] = ()
    cause: str = "unknown"
    stack: str = ""
    shortage: Shortage | None = None


@dataclass(frozen=True)
class FreeReading:
    """Free memory of cards, as a worker saw it age_s ago."""

    memory: Memory
    age_s: float


class Resident(Protocol):
    """A model that is ready to answer."""

    def generate(
        self,
        request: GenerateRequest,
        *,
        on_end: Callable[[], None] | None = None,
        unread: Unread | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Events of one answer, Accepted first. Leaving the iterator early ends the generation.

        The generation does not wait for the iterator: what is not taken yet is kept, deltas joined.
        on_end:       called once when the resident has done with the request, whether or not its events are taken.
        unread:       more text than it lets wait is not kept: the generation ends, the iterator with SlowReaderError.
        Raises the EngineError of a rejected request, WorkerDiedError when the resident goes meanwhile, and what
        `refuse` was given.
        """
        ...

    async def read(self, request: ReadRequest) -> Told:
        """What the model makes of a text. Raises PromptTooLongError, TemplateError and WorkerDiedError."""
        ...

    async def embed(self, request: EmbedRequest) -> Embedded:
        """Embeddings of texts, of a resident that was loaded for them. Raises InputTooLongError and WorkerDiedError."""
        ...

    def refuse(self, error: EngineError) -> None:
        """End every request with an error."""
        ...

    async def stop(self) -> None:
        """Give the memory back; returns when it is back, or a few seconds after the process was killed in vain."""
        ...

    async def wait_lost(self) -> Loss:
        """Returns when the resident is of no more use, whatever the reason: its process ended, or hangs and was
        killed. Its requests have failed then; its memory may not be back yet."""
        ...

    async def wait_gone(self) -> None:
        """Returns when the resident is no more, and its memory back."""
        ...

    @property
    def memory(self) -> Memory | None:
        """What the resident was measured to take of each place, None when that is not known."""
        ...

    @property
    def free(self) -> FreeReading | None:
        """Free memory of the cards that it uses, as it last saw it; None where it uses none, or has not looked yet."""
        ...

    def silent_s(self) -> float:
        """Seconds without a sign of life; while there is work, seconds without progress or an effort to it."""
        ...

    @property
    def activity(self) -> Mapping[str, float]:
        """What it last said of itself, for metrics: steps, cells, swaps, swapped_bytes, change_s (of a swap),
        offloaded_bytes, worst_wait_s, prompt_tokens_per_s (0 before any were read). Empty before the first beat."""
        ...


class WorkerResident:
    """A resident in a worker process of this machine."""

    def __init__(self, stall_s: float = STALL_S) -> None:
        """stall_s: see Vitals."""
        self._title: str | None = None  # of what it holds, or is loading
        self._on_progress: Callable[[float], None] = lambda fraction: None
        self._inboxes: dict[str, Inbox] = {}
        self._ready: asyncio.Future[dict[str, Any]] | None = None
        self._gone = asyncio.Event()
        self._lost: asyncio.Future[Loss] = asyncio.get_running_loop().create_future()
        self._shortage: Shortage | None = None
        self._free: Memory | None = None
        self._free_seen_s = 0.0
        self._hung: str | None = None  # why it was given up while its process still ran
        self._stall_s = stall_s
        self._vitals = Vitals(time.monotonic(), stall_s)
        self._tail: deque[str] = deque(maxlen=200)  # the worker's last lines on stderr, a stack's worth
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
    async def spawn(cls, stall_s: float = STALL_S) -> WorkerResident:
        """A worker that holds nothing yet: it takes the time to load its libraries before it can load a model.

        stall_s: without a sign of life for so long it is given up, see Vitals; that goes for spares and loads, too.
        Leaves no process behind when it fails or is cancelled.
        """
        resident = cls(stall_s)
        try:
            await resident._launch()
        except BaseException:
            resident.kill()
            await asyncio.shield(resident._wait_killed())
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
        if self._lost.done():
            raise self._death()
        told = {name: asdict(policy) for name, policy in policies.items()}
        log_decisions = _worker_log.isEnabledFor(logging.DEBUG)
        self._send({"op": "load", "spec": spec.to_json(), "policies": told, "log_decisions": log_decisions})
        try:
            self.info = await self._ready
        except BaseException:
            self.kill()
            await asyncio.shield(self._wait_killed())
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
        self._readers = [
            asyncio.create_task(self._receive(reader)),
            asyncio.create_task(self._drain_output()),
            asyncio.create_task(self._watch()),
        ]

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        try:
            await self._dispatch(reader)
            # The process has closed its end, so it is about to end.
            await asyncio.wait_for(self._process.wait(), _STOP_S)
        except asyncio.CancelledError:  # the event loop is going down: wait_gone must return all the same
            self.kill()
            self._be_lost()
            self._gone.set()
            raise
        except Exception as error:
            _log.error("worker %s is out of control and is killed: %r", self._process.pid, error)
            self.kill()
        await self._process.wait()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._readers[1]), _LAST_WORDS_S)
        self._writer.close()
        self._readers[2].cancel()
        self._be_lost()
        self._gone.set()

    def _be_lost(self) -> None:
        """Nothing more will come of this worker: what it was asked fails."""
        if self._lost.done():
            return
        requests = tuple(name for name, inbox in self._inboxes.items() if not inbox.ended)
        tail = list(self._tail)
        if self._hung is None:
            self._shortage = self._shortage or find_shortage(tail)
        self._lost.set_result(Loss(self._how(), requests, self._cause(), stack_in(tail), self._shortage))
        death = self._death()
        self._settle(death)
        for inbox in list(self._inboxes.values()):
            inbox.fail(death)

    async def _watch(self) -> None:
        """Kill a worker that hangs. Its requests fail at once, even where the kernel takes its time to end it."""
        lookout = Lookout(time.monotonic(), self._stall_s)
        while True:
            await asyncio.sleep(lookout.every_s)
            now = time.monotonic()
            self._vitals.work(now, self._is_busy())
            if lookout.was_away(now):
                self._vitals.forgive(now)
            elif (fault := self._vitals.fault(now)) is not None:
                self._hung = f"{fault} and was killed"
                self.kill()
                self._be_lost()
                return

    def _is_busy(self) -> bool:
        return any(not inbox.ended for inbox in self._inboxes.values())

    async def _dispatch(self, reader: asyncio.StreamReader) -> None:
        while (message := await frames.read(reader)) is not None:
            now = time.monotonic()
            match message["event"]:
                case "alive":
                    self._vitals.beat(now, Beat.from_json(message))
                case "progress":
                    self._vitals.progress(now)
                    self._on_progress(message["fraction"])
                case "ready":
                    self._settle(message)
                case "failed":
                    kind = getattr(errors, message["error"], LoadError)
                    error: EngineError = kind(message["message"], message["remedy"], message["lines"])
                    if isinstance(error, OutOfMemoryError):
                        error.shortage = Shortage(**message["shortage"])
                    self._settle(error)
                case "free":
                    self._free, self._free_seen_s = Memory(message["free"]), now
                case "short":
                    self._shortage = Shortage(**message["shortage"])
                case "beat":
                    self.beat = {name: value for name, value in message.items() if name != "event"}
                case "log":
                    level = logging.getLevelNamesMapping()[message["level"].upper()]
                    # "ID/CHOICE": the HTTP request's own id, by which all its lines are found, and which answer of it.
                    name, slash, choice = message["request"].rpartition("/")
                    name, of = (name, f" {choice[:6]}{choice[32:]}") if slash else (choice, "")
                    line = f"worker {self._process.pid}{of}: {message['message']}"
                    trace = RemoteTraceback(message["traceback"]) if message["traceback"] else None
                    _worker_log.log(level, "%s", line, exc_info=trace, extra=for_request(name))
                case _:
                    self._vitals.progress(now)
                    if (inbox := self._inboxes.get(message["id"])) is not None:
                        self._deliver(inbox, event_from_json(message))

    def _deliver(self, inbox: Inbox, event: Event) -> None:
        inbox.put(event)
        if inbox.ended and not isinstance(event, ENDS):  # its reader is too far behind
            self._send({"op": "cancel", "id": event.id})

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

    def _how(self) -> str:
        """How it was lost, a phrase that goes with its title."""
        if self._hung is not None:
            return self._hung
        code = self._process.returncode
        cause = telling_line(list(self._tail))
        if cause is None and self._tail and code is not None and code > 0:
            cause = self._tail[-1]  # an exception's last line; what was printed before a signal need not be its cause
        return f"died ({ending(code) if code is not None else 'with its server'}){f': {cause}' if cause else ''}"

    def _cause(self) -> str:
        if self._hung is not None:
            return "hung"
        code = self._process.returncode
        if code is None:
            return "unknown"
        return (signal_name(-code) if code < 0 else None) or ending(code)

    def _death(self) -> WorkerDiedError:
        kind = WorkerDiedError if self._hung is None else WorkerHungError
        worker = f"The worker that holds {self._title}" if self._title is not None else "A spare worker"
        death = kind(f"{worker} {self._how()}.", "Send the request again: a new worker will be started.")
        death.cause, death.shortage = self._cause(), self._shortage
        return death

    def _send(self, message: Mapping[str, Any]) -> None:
        if not self._gone.is_set() and not self._writer.is_closing():
            self._writer.write(frames.pack(message))

    async def generate(
        self,
        request: GenerateRequest,
        *,
        on_end: Callable[[], None] | None = None,
        unread: Unread | None = None,
    ) -> AsyncGenerator[Event, None]:
        """See Resident.generate."""
        if self._lost.done():
            raise self._death()
        self._inboxes[request.id] = inbox = Inbox(on_end, unread)
        self._vitals.work(time.monotonic(), True)
        self._send({"op": "generate", "request": request.to_json()})
        try:
            while True:
                event = await inbox.take()
                if isinstance(event, Rejected):
                    raise _rejection(event)
                yield event
                if isinstance(event, Finished):
                    return
        finally:
            del self._inboxes[request.id]
            inbox.close()
            if not inbox.ended:
                self._send({"op": "cancel", "id": request.id})

    async def read(self, request: ReadRequest) -> Told:
        """See Resident.read."""
        event = await self._asked("read", request)
        assert isinstance(event, Told), "a reading is answered by one event"
        return event

    async def embed(self, request: EmbedRequest) -> Embedded:
        """See Resident.embed."""
        event = await self._asked("embed", request)
        assert isinstance(event, Embedded), "embeddings come in one event"
        return event

    async def _asked(self, op: str, request: ReadRequest | EmbedRequest) -> Event:
        """The one event that answers a request."""
        if self._lost.done():
            raise self._death()
        self._inboxes[request.id] = inbox = Inbox()
        self._vitals.work(time.monotonic(), True)
        self._send({"op": op, "request": request.to_json()})
        try:
            event = await inbox.take()
        finally:
            del self._inboxes[request.id]
            inbox.close()
            if not inbox.ended:
                self._send({"op": "cancel", "id": request.id})
        if isinstance(event, Rejected):
            raise _rejection(event)
        return event

    def refuse(self, error: EngineError) -> None:
        """See Resident.refuse."""
        for name, inbox in list(self._inboxes.items()):
            if not inbox.ended:
                inbox.fail(error)
                self._send({"op": "cancel", "id": name})

    @property
    def activity(self) -> Mapping[str, float]:
        """See Resident.activity."""
        return self.beat

    def silent_s(self) -> float:
        """See Resident.silent_s."""
        now = time.monotonic()
        self._vitals.work(now, self._is_busy())
        return 0.0 if self._gone.is_set() else self._vitals.silent_s(now)

    @property
    def memory(self) -> Memory | None:
        """See Resident.memory: what went from the cards, and host memory."""
        found = self.info.get("memory")
        return Memory(found) if found is not None else None

    @property
    def free(self) -> FreeReading | None:
        """See Resident.free."""
        return None if self._free is None else FreeReading(self._free, time.monotonic() - self._free_seen_s)

    @property
    def has_started(self) -> bool:
        """Whether its libraries are loaded: its first heartbeat has come."""
        return self._vitals.has_started

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
        await self._wait_killed()

    async def _wait_killed(self) -> None:
        try:
            await asyncio.wait_for(self.wait_gone(), _KILL_S)
        except TimeoutError:
            _log.error("worker %s was killed and does not end: it hangs in the kernel", self._process.pid)
            self._be_lost()

    def kill(self) -> None:
        """End the process at once."""
        process = getattr(self, "_process", None)
        if process is None:
            if not self._lost.done():
                self._lost.set_result(Loss("did not start"))
            self._gone.set()
        elif process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    async def wait_lost(self) -> Loss:
        """See Resident.wait_lost."""
        return await asyncio.shield(self._lost)

    async def wait_gone(self) -> None:
        """See Resident.wait_gone."""
        await self._gone.wait()


def _rejection(event: Rejected) -> EngineError:
    error = getattr(errors, event.error, EngineError)
    if error in (errors.PromptTooLongError, errors.InputTooLongError, errors.EmptyInputError):
        told: EngineError = error(**event.facts)
        return told
    rejection: EngineError = error(event.message, event.remedy)
    return rejection
