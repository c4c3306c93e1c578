"""Child processes that do one job: spawn, JSON lines over pipes, deadlines, typed errors, the end with the parent.

llama.cpp and ggml abort where they meet what they do not expect, and what they have allocated comes back for certain
only when their process ends. So what may abort runs in a child: `run` starts one, hands it a job, hears its progress
and gives its answer; `started` gives the running child itself, for signals and a log of its own. A caller without an
event loop writes `asyncio.run(child.run(...))`.

    parent                                   child: python -m coe.engine.child MODULE PARENT_PID LIMITS
    job, one JSON document       -> stdin    MODULE.main(job, report) is called
    {"alive": ...}, a line a second <- stdout   a thread of its own
    {"progress": ...}, each line <- stdout   report(...)
    {"answer": ...}              <- stdout   what main returns
    {"error": {...}}             <- stdout   the typed error that main raises
    last words                   <- stderr   all that llama.cpp, Python and main print

A child is in a session of its own, so that Ctrl-C is the parent's to answer. It is killed when its heartbeat ends
before it does (see vitals.py: it was stopped, or its interpreter hangs), when its caller raises or is cancelled, and by
the kernel when its parent dies, however that dies (PR_SET_PDEATHSIG). The kernel goes by the thread that started the
child: start it from a thread that lives as long as the child may.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import logging
import math
import os
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NoReturn

from . import errors as engine_errors
from .errors import ChildDiedError, ChildTimeoutError, EngineError, FullDiskError, OutOfMemoryError
from .files import is_full_disk
from .last_words import MOST_CHARS, last_words
from .private import child_environment, keep_private, make_files_private
from .process import NO_BACKTRACE, be_killed_before_parent, die_with, effort, take_limits, take_stdout
from .shortage import Shortage
from .vitals import STALL_S, Beat, Lookout, Vitals

_log = logging.getLogger(__name__)

# Called by a child's main with what it has to say on the way, JSON types; None: nothing, but it gets on.
Report = Callable[[Any], None]

_LONGEST_LINE_BYTES: Final = 2**28  # no answer of ours is longer
_LAST_BYTES: Final = 20_000  # of stderr, that last words are looked for in
_BEAT_S: Final = 1.0
_KILL_S: Final = 5.0  # a killed process that has not ended by then hangs in the kernel, in a driver or on a lost disk


@dataclass(frozen=True)
class Limits:
    """What a child may take that reads a stranger's file: memory of its own, and seconds of processor time."""

    memory_bytes: int | None = None
    cpu_s: int | None = None


# --- the parent's side ----------------------------------------------------------------------------------------


class Child:
    """A running child process. `answer` waits for what it comes to; `started` makes one, and sees to its end."""

    def __init__(
        self, process: asyncio.subprocess.Process, job: Any, title: str, output: int, begins: int, vitals: Vitals | None
    ) -> None:
        """title: what the process does, the beginning of a message. output: its stderr, a file of ours, in which
        this run begins at `begins`. vitals: what its heartbeat is judged by; None where it may stand still."""
        self._process = process
        self._job = job
        self._title = title
        self._output = output
        self._begins = begins
        self._vitals = vitals
        self._hung: str | None = None  # why it was given up

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def output(self) -> bytes:
        """The end of what it has printed so far."""
        # Not by seek: the child writes through the same open file, and would go on from there.
        start = max(self._begins, os.fstat(self._output).st_size - _LAST_BYTES)
        return os.pread(self._output, _LAST_BYTES, start)

    async def answer(
        self,
        on_progress: Report = lambda progress: None,
        *,
        within_s: float | None = None,
        silent_s: float | None = None,
        errors: Sequence[ModuleType] = (engine_errors,),
    ) -> Any:
        """Hand the job over and wait for the child's end; gives what its `main` returned. To be called once.

        on_progress: called with what `main` reports; what it raises is raised here.
        within_s:    how long the child may take in all; silent_s: how long between two reports. None: no limit.
        errors:      where the classes of its typed errors are looked up by name.

        Raises the error that `main` raised, ChildDiedError for an end without an answer, ChildTimeoutError, also where
        its heartbeat ends. A child that has given its answer has done its work, whatever its libraries do on their way
        out.
        """
        now = asyncio.get_running_loop().time
        begun = now()

        def due() -> float | None:
            if self._hung is not None:
                return now()
            ends = [begun + within_s] if within_s is not None else []
            return min([*ends, now() + silent_s] if silent_s is not None else ends, default=None)

        last: dict[str, Any] = {}
        try:
            async with asyncio.timeout_at(due()) as deadline:
                watching = asyncio.create_task(self._watch(deadline))
                try:
                    await self._hand_over()
                    assert self._process.stdout is not None
                    async for line in self._process.stdout:
                        if not line.endswith(b"\n"):  # it died while it wrote
                            break
                        try:
                            said = json.loads(line)
                        except ValueError:  # a beat after half a line: it died while it wrote, of a thread's doing
                            continue
                        if "alive" in said:
                            self._note(Beat(*said["alive"]))
                            continue
                        last = said
                        if "progress" in last:
                            on_progress(last["progress"])
                        deadline.reschedule(due())
                    code = await self._process.wait()
                finally:
                    watching.cancel()
                    _efforts.pop(self.pid, None)
        except TimeoutError:
            if not deadline.expired():
                raise
            if self._hung is not None:
                raise ChildTimeoutError(self._title, self._hung) from None
            took_too_long = within_s is not None and deadline.when() == begun + within_s
            how = f"did not end in {within_s:.0f} s" if took_too_long else f"gave no sign for {silent_s:.0f} s"
            raise ChildTimeoutError(self._title, how) from None
        if "error" in last:
            raise _revived(last["error"], errors)
        if "answer" not in last:
            raise ChildDiedError(self._title, code, last.get("words") or last_words(self.output))
        return last["answer"]

    def _note(self, beat: Beat) -> None:
        _efforts[self.pid] = (beat.steps, beat.cpu_s, beat.reads)
        if self._vitals is not None:
            self._vitals.beat(time.monotonic(), beat)

    async def _watch(self, deadline: asyncio.Timeout) -> None:
        """End the wait for a child that hangs."""
        if (vitals := self._vitals) is None:
            return
        lookout = Lookout(time.monotonic(), vitals.stall_s)
        while self._hung is None:
            await asyncio.sleep(lookout.every_s)
            now = time.monotonic()
            if lookout.was_away(now):
                vitals.forgive(now)
            elif (fault := vitals.fault(now)) is not None:
                self._hung = f"{fault} and was killed"
                deadline.reschedule(asyncio.get_running_loop().time())

    async def _hand_over(self) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(json.dumps(self._job).encode())
        with contextlib.suppress(ConnectionError):  # it died before it had read its job; its end says how
            await stdin.drain()
        stdin.close()

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, where it still runs."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def stop(self, number: signal.Signals, patience_s: float) -> None:
        """Tell it to end by a signal, kill it when it has not after `patience_s`; returns when it is gone.

        One that stands still goes on, to hear it: signals wait for that. Source: signal(7), job control.
        """
        self.send_signal(number)
        self.send_signal(signal.SIGCONT)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), patience_s)
        await self.kill()

    async def kill(self) -> None:
        """Kill it, also while it stands still; returns when it is gone, or some seconds later where the kernel does
        not let it end. Does nothing once it has ended."""
        self.send_signal(signal.SIGKILL)
        try:
            await asyncio.wait_for(self._process.wait(), _KILL_S)
        except TimeoutError:
            _log.error("%s (%d) was killed and does not end: it hangs in the kernel", self._title, self.pid)


@contextlib.asynccontextmanager
async def started(
    module: str,
    job: Any,
    *,
    title: str,
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
    limits: Limits = Limits(),  # frozen
    stall_s: float | None = STALL_S,
    idle_s: float | None = None,
) -> AsyncIterator[Child]:
    """A child that runs `module.main(job, report)`; killed at the end of the block if it has not ended.

    title: what the process does, for messages: "The process that hashes files".
    log:   a file that its output is added to; else it is kept for its last words alone.
    limits: what it may take; a child beyond them dies, or raises MemoryError.
    stall_s: how long it may be without a heartbeat; None where it may stand still. idle_s: how long its heart may beat
        while it neither reports nor computes nor reads; None: no limit.
    environment: None for this process's own without its secrets, see `private.child_environment`.
    """
    if environment is None:
        environment = child_environment(os.environ)
    with tempfile.TemporaryFile() if log is None else log.open("a+b") as output:
        begins = os.fstat(output.fileno()).st_size  # now: it may have said its last words when it is there
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "coe.engine.child",
            module,
            str(os.getpid()),
            json.dumps(asdict(limits)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=output,
            env={**environment, **NO_BACKTRACE},
            start_new_session=True,
            limit=_LONGEST_LINE_BYTES,
        )
        child = Child(process, job, title, output.fileno(), begins, _vitals(stall_s, idle_s))
        try:
            yield child
        finally:
            await child.kill()


def _vitals(stall_s: float | None, idle_s: float | None) -> Vitals | None:
    if stall_s is None:
        return None
    now = time.monotonic()
    vitals = Vitals(now, stall_s, idle_s=idle_s, slow_s=math.inf)  # what `main` does need not be made of steps
    vitals.work(now, idle_s is not None)
    return vitals


async def run(
    module: str,
    job: Any,
    *,
    title: str,
    on_progress: Report = lambda progress: None,
    within_s: float | None = None,
    silent_s: float | None = None,
    errors: Sequence[ModuleType] = (engine_errors,),
    environment: Mapping[str, str] | None = None,
    limits: Limits = Limits(),  # frozen
    stall_s: float | None = STALL_S,
) -> Any:
    """What `module.main(job, report)` returns in a child of its own; see `started` and `Child.answer`."""
    child_of = started(module, job, title=title, environment=environment, limits=limits, stall_s=stall_s)
    async with child_of as child:
        return await child.answer(on_progress, within_s=within_s, silent_s=silent_s, errors=errors)


# --- errors on the wire ---------------------------------------------------------------------------------------


def _told(error: Exception) -> dict[str, Any] | None:
    """A typed error as JSON types: one with a message and a remedy. None for any other, which is a bug of ours."""
    facts = {key: value for key, value in vars(error).items() if not key.startswith("_")}
    if not {"message", "remedy"} <= facts.keys():
        return None
    plain = json.loads(json.dumps(facts, default=lambda one: asdict(one) if isinstance(one, Shortage) else str(one)))
    return {"type": type(error).__name__, "text": str(error), "facts": plain}


def _revived(told: Mapping[str, Any], modules: Sequence[ModuleType]) -> Exception:
    """The error that crossed the pipe, as its class if one of the modules has it, with all its attributes."""
    found = (getattr(module, told["type"], None) for module in modules)
    kind = next((one for one in found if isinstance(one, type) and issubclass(one, Exception)), EngineError)
    error = kind.__new__(kind)  # not by its __init__: each class has its own, and the text is made already
    error.args = (told["text"],)
    vars(error).update(told["facts"])
    if isinstance(error, OutOfMemoryError):
        error.shortage = Shortage(**told["facts"]["shortage"])
    return error


# --- the child's side -----------------------------------------------------------------------------------------

# Of this process's own children, by their ids: what one of them does is an effort of its parent, who waits for it.
_efforts: Final[dict[int, tuple[int, float, int]]] = {}


def _beat(n_reports: int) -> list[float]:
    """What a heartbeat says of this process and its children; see vitals.Beat."""
    cpu_s, reads = effort()
    steps, theirs_s, theirs = (sum(column) for column in zip((0, 0.0, 0), *list(_efforts.values()), strict=True))
    return [n_reports + steps, cpu_s + theirs_s, reads + theirs]


def serve(module: str, parent_pid: int, limits: Limits) -> NoReturn:
    """Entry point of every child: reads its job, calls `main` of the module, and ends."""
    # Before the module is imported: that takes a second, and its libraries print what they like.
    die_with(parent_pid)
    be_killed_before_parent()
    take_limits(**asdict(limits))
    keep_private()
    make_files_private()
    answers = take_stdout()
    writing = threading.Lock()

    def say(line: Mapping[str, Any]) -> None:
        data = memoryview(json.dumps(line).encode() + b"\n")
        with writing:
            while data:  # at once and whole: this process may be gone with the next call
                data = data[os.write(answers, data) :]

    n_reports = 0

    def report(progress: Any) -> None:
        nonlocal n_reports
        n_reports += 1
        if progress is not None:
            say({"progress": progress})

    def live() -> None:
        room = select.poll()
        room.register(answers, select.POLLOUT)
        while True:
            time.sleep(_BEAT_S)
            # A parent that stands still reads nothing: a full pipe must not hold this process up.
            if room.poll(0):
                say({"alive": _beat(n_reports)})

    say({"alive": _beat(n_reports)})
    # Signals are the main thread's: one that this one took would not end what that waits for. Threads inherit a mask.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    threading.Thread(target=live, daemon=True, name="heartbeat").start()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    code = 0
    try:
        job = json.load(sys.stdin.buffer)
        answer = importlib.import_module(module).main(job, report)
        say({"answer": answer})
    except Exception as error:
        if isinstance(error, OSError) and is_full_disk(error):
            error = FullDiskError(error.errno or 0, error.strerror or "")
        if (told := _told(error)) is None:
            # Also by the pipe: where a disk is full, nothing that is printed arrives.
            say({"words": f"{type(error).__name__}: {error}"[:MOST_CHARS]})
            code = 1
            with contextlib.suppress(OSError):
                traceback.print_exc()
        else:
            say({"error": told})
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    # Not by way of the interpreter's end: GPU libraries crash there, and threads are waited for.
    os._exit(code)


if __name__ == "__main__":
    from . import child  # the module that a job's `main` imports, and not this second one: both know of its children

    child.serve(sys.argv[1], int(sys.argv[2]), Limits(**json.loads(sys.argv[3])))
