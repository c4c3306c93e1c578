"""The worker process, which holds one resident model and serves it over a socket (inter-process communication).

llama.cpp may abort, and what it has allocated comes back for certain only when its process ends: so every resident
has a process of its own, and the server's process never calls llama.cpp. Frames go over an inherited socket; stdout
belongs to llama.cpp. Started as `python -m coe.engine.worker.worker FD PARENT_PID`.

Operations that the server sends:

    {"op": "load", "spec": ..., "policies": ..., "log_decisions": ...}   first and once; `ready` or `failed` answers it
    {"op": "generate", "request": ...}                                   events of request.py answer it
    {"op": "read", "request": ...}                                       a Told or a Rejected answers it
    {"op": "embed", "request": ...}                                      an Embedded or a Rejected answers it; for a
                                                                         load with `embeddings`, and no other
    {"op": "cancel", "id": ...}
    {"op": "stop"}

Frames beside the events of requests: `alive` once a second from the beginning to the end, on a thread of its own, so
that a decode of minutes is no silence (see vitals.py); `progress` of the load; `beat` (see BatchStatus) once a
second with work and when the last request has ended; `free`, the free memory of
the cards that it uses, every five seconds; `short` before it ends for want of memory; and `log` with a level, a
message and a request's id: warnings, and with log_decisions one line of level debug for every decision.
"""

from __future__ import annotations

import sys

from ..process import SPARE, be_killed_before_parent, call_process, die_with, effort, rss_bytes

if __name__ == "__main__":
    # Before llama.cpp is imported, which takes half a second: a worker that is stopped meanwhile must end, too.
    die_with(int(sys.argv[2]))

import faulthandler
import logging
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from typing import Any

from .. import frames
from ..cards import HOST
from ..errors import EngineError, LoadError, ModelFileError, OutOfMemoryError, SwapError
from ..generate.chat_template import Prompt
from ..generate.grammar import Grammar
from ..generate.tools.reading import Toolbox
from ..gguf.check import checked
from ..llama.context import Context
from ..llama.devices import free_memory
from ..llama.model import Model
from ..llama.pooling import pooled_reading
from ..logs import WORKER_LOGGER, print_uncaught, traceback_of
from ..private import keep_private, make_files_private
from ..request import EmbedRequest, Event, GenerateRequest, ReadRequest, event_to_json
from ..spec import LoadSpec, Thinking, ThinkingMode
from ..swap.fingerprints import SKELETON
from ..swap.swapper import Swapper
from .batch import BatchLoop, rejected, unforeseen
from .embed_loop import EmbedLoop

_BEAT_S = 1.0
_FREE_S = 5.0  # from one look at the cards' free memory to the next
# So long the batch waits for a chat template, which takes about a millisecond: the request starts a whole step earlier.
_RENDERED_WITHIN_S = 0.02
_AT_ONCE_CHARS = 10_000  # a plain prompt of fewer is read into tokens without such a thread


@dataclass(frozen=True)
class Prepared:
    """What takes time to make of a request: its prompt, and the grammar of its answer."""

    prompt: Prompt
    held_to: Grammar | Toolbox | None


class FrameHandler(logging.Handler):
    """Sends log records to the server as frames."""

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        error = record.exc_info[1] if record.exc_info else None
        self._send(
            {
                "event": "log",
                "level": record.levelname.lower(),
                "message": record.getMessage(),
                "request": getattr(record, "request_id", ""),
                "traceback": traceback_of(error) if error is not None else "",
            }
        )


class Worker:
    """Reads commands, runs the batch loop, writes events."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()  # a frame of a thread must not begin within a frame of another
        self._commands: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._devices: tuple[str, ...] = ()  # cards by name, see LoadSpec
        self._free_before: dict[str, int] = {}  # of the cards that it may use
        self._preparing: set[str] = set()
        self._preparer = ThreadPoolExecutor(1, "prepare")  # of requests with a schema, which may take seconds
        self._renderer = ThreadPoolExecutor(1, "render")  # of all other chats, in their order
        self._last_beat = 0.0
        self._last_progress = -1.0
        self._loop: BatchLoop | EmbedLoop | None = None

    def run(self) -> None:
        """Load what the first command names, then serve until told to stop or until the server is gone."""
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._live, daemon=True).start()
        command = self._commands.get()
        if command["op"] == "stop":
            return
        spec = LoadSpec.from_json(command["spec"])
        log = logging.getLogger(WORKER_LOGGER)
        log.addHandler(FrameHandler(self._send))
        log.setLevel(logging.DEBUG if command["log_decisions"] else logging.WARNING)
        try:
            loop = self._load(spec, command["policies"])
        except EngineError as error:
            failed = {"error": type(error).__name__, "message": error.message, "remedy": error.remedy}
            self._send({"event": "failed", **failed, "lines": str(error).splitlines()[1:], **self._shortage_of(error)})
            return
        self._loop = loop
        self._send({"event": "ready", "memory": self._memory(loop)})
        if self._free_before:
            threading.Thread(target=self._watch_cards, daemon=True).start()
        self._serve(loop)

    def _read(self) -> None:
        try:
            while (command := frames.receive(self._connection)) is not None:
                self._commands.put(command)
        finally:
            # A decode may last long, and no client waits for its result any more.
            os._exit(0)

    def _live(self) -> None:
        while True:
            cpu_s, reads = effort()
            steps = self._loop.steps if self._loop is not None else 0
            self._send({"event": "alive", "steps": steps, "cpu_s": cpu_s, "reads": reads})
            time.sleep(_BEAT_S)

    def _watch_cards(self) -> None:
        """On a thread of its own: a driver may take its time while the card computes."""
        while True:
            self._send({"event": "free", "free": free_memory(self._devices)})
            time.sleep(_FREE_S)

    def _send(self, message: dict[str, Any]) -> None:
        frame = frames.pack(message)
        try:
            with self._sending:
                self._connection.sendall(frame)
        except OSError:
            os._exit(0)

    def _load(self, spec: LoadSpec, policies: dict[str, dict[str, Any]]) -> BatchLoop | EmbedLoop:
        call_process(f"coe {spec.title}")
        if spec.gpu_layers:  # what keeps off the card must not ask for its free memory, which may open a context on it
            self._devices = spec.devices
            self._free_before = free_memory(self._devices)
        try:
            model = Model(spec, progress=self._progress)
        except ModelFileError:
            with checked(spec.path):  # a file that was cut short since its dry run: llama.cpp's own words do not say so
                raise
        if spec.sharing is None and model.metadata(SKELETON) is not None:
            raise LoadError(f"{spec.path.name} is a skeleton without weights.", "Name its parent in the roster.")
        swapper = Swapper(model, spec) if spec.sharing is not None else None
        context = Context(model, spec)
        if spec.embeddings:
            if self._free_before:
                self._warm_up(context)
            return EmbedLoop(model, context, pooled_reading(model, spec), self._emit)
        loop = BatchLoop(model, context, spec, self._emit, swapper=swapper)
        if loop.template is not None:
            for policy in policies.values():
                loop.template.check(Thinking(**{**policy, "mode": ThinkingMode(policy["mode"])}))
        if self._free_before:
            self._warm_up(context)
        return loop

    def _progress(self, fraction: float) -> bool:
        if fraction - self._last_progress >= 0.02 or fraction >= 1:
            self._last_progress = fraction
            self._send({"event": "progress", "fraction": fraction})
        return True

    def _warm_up(self, context: Context) -> None:
        """Evaluate one full batch, so that the pools of a GPU's runtime have their final size before we measure."""
        token = max(context.model.vocab.bos, 0)
        context.decode([(token, i, 0, i == context.n_batch - 1) for i in range(context.n_batch)])
        context.forget(0)

    def _memory(self, loop: BatchLoop | EmbedLoop) -> dict[str, int]:
        """What this process takes now, by place: host memory that is its own or mapped, and what went from the cards
        since it started."""
        taken = {HOST: rss_bytes() + loop.renderer_bytes}
        free = free_memory(self._devices) if self._free_before else {}
        for place, before in self._free_before.items():
            taken[place] = max(taken.get(place, 0), before - free.get(place, before))
        return taken

    def _shortage_of(self, error: EngineError) -> dict[str, Any]:
        """For a frame: what memory was short, with what this process is known to need of it at least."""
        if not isinstance(error, OutOfMemoryError):
            return {}
        short = error.shortage
        before = self._free_before.get(short.place)
        if before is not None and short.free_bytes is not None:
            short = replace(short, need_bytes=max(0, before - short.free_bytes) + short.asked_bytes)
        return {"shortage": asdict(short)}

    def _emit(self, event: Event) -> None:
        self._send(event_to_json(event))

    def _serve(self, loop: BatchLoop | EmbedLoop) -> None:
        busy = False
        while True:
            # Between steps take every command there is; wait for one only when there is nothing to decode.
            while not busy or not self._commands.empty():
                command = self._commands.get()
                if command["op"] == "stop":
                    loop.close()
                    return
                try:
                    if isinstance(loop, EmbedLoop):
                        self._handle_texts(loop, command)
                    else:
                        self._handle(loop, command)
                except BaseException as error:
                    self._refuse(command, error)
                busy = True
            try:
                busy = loop.step()
            except OutOfMemoryError as error:  # all requests are refused, and the next one loads anew
                self._send({"event": "short", **self._shortage_of(error)})
                print(error, file=sys.stderr, flush=True)
                os._exit(1)
            except SwapError as error:  # neither specialist: all requests are refused, and the next one loads anew
                print(error, file=sys.stderr, flush=True)
                os._exit(1)
            self._beat(loop, busy)

    def _handle_texts(self, loop: EmbedLoop, command: dict[str, Any]) -> None:
        if command["op"] == "embed":
            loop.submit(EmbedRequest.from_json(command["request"]))
        elif command["op"] == "cancel":
            loop.cancel(command["id"])
        else:  # the server asks only what the entry says that it answers
            self._emit(rejected(command["request"]["id"], EngineError("This model gives embeddings alone.")))

    def _handle(self, loop: BatchLoop, command: dict[str, Any]) -> None:
        if command["op"] == "generate":
            request = GenerateRequest.from_json(command["request"])
            plain = request.response_format is None and request.messages is None
            if plain and request.prompt_chars < _AT_ONCE_CHARS:
                loop.submit(request)
                return
            self._preparing.add(request.id)
            quick = request.response_format is None and not request.tools
            prepared = (self._renderer if quick else self._preparer).submit(self._prepare, loop, request)
            if quick and wait([prepared], _RENDERED_WITHIN_S).done:
                self._submit_prepared(loop, request, prepared.result())
                return
            prepared.add_done_callback(
                lambda done: self._commands.put({"op": "prepared", "request": request, "prepared": done.result()})
            )
        elif command["op"] == "read":
            reading = ReadRequest.from_json(command["request"])
            self._renderer.submit(self._told, loop, reading).add_done_callback(
                lambda done: self._commands.put({"op": "told", "event": done.result()})
            )
        elif command["op"] == "told":
            self._emit(command["event"])
        elif command["op"] == "prepared":
            self._submit_prepared(loop, command["request"], command["prepared"])
        elif command["op"] == "cancel":
            self._preparing.discard(command["id"])
            loop.cancel(command["id"])

    def _refuse(self, command: dict[str, Any], error: BaseException) -> None:
        """What one request holds must not take the others' worker down."""
        request = command.get("request")
        if request is None:
            raise error
        request_id = request["id"] if isinstance(request, dict) else request.id
        self._emit(rejected(request_id, unforeseen("The request cannot be read", request_id, error)))

    def _told(self, loop: BatchLoop, request: ReadRequest) -> Event:
        """On a thread of its own, as `_prepare`."""
        try:
            return loop.told(request)
        except EngineError as error:
            return rejected(request.id, error)
        except BaseException as error:
            return rejected(request.id, unforeseen("The text cannot be read", request.id, error))

    def _prepare(self, loop: BatchLoop, request: GenerateRequest) -> Prepared | EngineError:
        """On a thread of its own, for templates and schemas may take seconds: the answers under way go on."""
        try:
            return Prepared(loop.prompt_of(request), loop.held_to(request))
        except EngineError as error:
            return error
        except BaseException as error:  # a request of an unforeseen kind must get an answer too
            return unforeseen("The request cannot be prepared", request.id, error)

    def _submit_prepared(self, loop: BatchLoop, request: GenerateRequest, prepared: Prepared | EngineError) -> None:
        if request.id not in self._preparing:  # cancelled meanwhile
            return
        self._preparing.discard(request.id)
        if isinstance(prepared, EngineError):
            loop.reject(request.id, prepared)
        else:
            loop.submit(request, prepared.held_to, prepared.prompt)

    def _beat(self, loop: BatchLoop | EmbedLoop, busy: bool) -> None:
        now = time.monotonic()
        if not busy or now - self._last_beat >= _BEAT_S:
            self._last_beat = now
            self._send({"event": "beat", **vars(loop.status)})


def main() -> None:
    """Entry point of the process."""
    faulthandler.enable()
    be_killed_before_parent()
    keep_private()
    make_files_private()
    sys.excepthook = print_uncaught
    threading.excepthook = lambda ended: print_uncaught(ended.exc_type, ended.exc_value, ended.exc_traceback)
    call_process(SPARE)
    # Ctrl-C in a terminal reaches the whole group: the server decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Worker(socket.socket(fileno=int(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
