"""Builds of a roster's specialists: what is asked of one, what it takes, the process that does it, and its owner here.

The pipeline is coe.surgery.build's, in a process of its own: llama.cpp may abort it, and the server must go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import IO, Any, Final

from coe.engine.errors import EngineError
from coe.engine.pool.leases import Reservation
from coe.engine.pool.memory import predict
from coe.engine.pool.pool import Pool
from coe.engine.process import worker_environment
from coe.surgery.build.job import EXIT_BUSY, EXIT_STOPPED, BuildState, Busy, Job, Machine, Order, Progress, at_work
from coe.surgery.errors import BuildError, SurgeryError

from ..roster.load import Roster
from ..roster.models import Specialist
from .availability import ToBuild

_log = logging.getLogger(__name__)

_STOP_S: Final = 30.0  # a build that is told to stop ends after its current batch; later it is killed

_COMMAND: Final = (sys.executable, "-m", "coe.surgery.build.pipeline")

Stamp = tuple[int, int]  # inode and time of change of a released file


# --- what is asked --------------------------------------------------------------------------------------------


def order_of(roster: Roster, specialist: Specialist) -> Order:
    """What the roster asks to be built, with absolute paths. Raises BuildError for a parent or corpus not there."""
    build = specialist.build
    if build is None:
        raise BuildError(
            f"{specialist.name} has no `build:` in {roster.path.name}.", "Add one, or name an entry that has."
        )
    source = roster.parent_of(specialist)
    if source is None:
        raise BuildError(f"{specialist.name} has no parent.", "Add `parent:` to the roster.")
    found = source.find_file(roster.models_path, "parent" if build.parent is None else specialist.name)
    if found.path is None:
        raise BuildError(f"The parent of {specialist.name} is not there. {found.reason}", found.remedy)
    questions = tuple(roster.resolve(path) for path in build.questions)
    corpus, reasoning = (
        tuple(_with_class(roster, text) for text in texts) for texts in (build.corpus, build.reasoning)
    )
    for path in (*questions, *(path for _, path in (*corpus, *reasoning))):
        if not os.path.isfile(path):
            raise BuildError(f"There is no file {path}.", f"Correct the build of {specialist.name} in the roster.")
    return Order(
        name=specialist.name,
        parent=found.path,
        corpus=tuple(f"{category}{path}" for category, path in corpus),
        experts=build.experts,
        out=specialist.built_path(roster.models_path),
        recipe=build.recipe.model_dump(exclude_none=True),
        reasoning=tuple(f"{category}{path}" for category, path in reasoning),
        answer=build.answer,
        questions=questions,
        bound=build.bound.model_dump(),
        system=specialist.system_prompt or "",
        quantize=build.quantize,
        shared_scale=build.shared_scale,
        max_tokens=build.max_tokens,
    )


def _with_class(roster: Roster, text: str) -> tuple[str, Path]:
    """`law=texts/law.jsonl` as ("law=", path); a file without a class has "" before it."""
    category, found, path = text.partition("=")
    if not found or not category or os.path.exists(roster.resolve(text)):
        return "", roster.resolve(text)
    return f"{category}=", roster.resolve(path)


async def sizes_to_build(roster: Roster, *, dry_run: bool) -> dict[str, ToBuild]:
    """About what the specialists will come to that have yet to be built, from their parents' headers.

    dry_run: ask llama.cpp what the parents would take. Not for the server: headers are read in this process.
    """
    from coe.surgery.build.preflight import check, specialist_bytes
    from coe.surgery.parent import Parent

    sizes = {}
    for specialist in roster.specialists:
        if specialist.build is None or specialist.locate(roster.models_path) is not None:
            continue
        try:
            order = order_of(roster, specialist)
            check(order, Job.of(roster.models_path, specialist.name).folder)
            parent = Parent.open(order.parent)
            size = specialist_bytes(parent, order.experts)
            gone = sum(path.stat().st_size for path in parent.paths) - size
            whole = (await predict(specialist.load_spec(order.parent))).footprint.total_bytes if dry_run else None
            sizes[specialist.name] = ToBuild(size, None if whole is None else max(whole - gone, 0))
        except (SurgeryError, EngineError) as error:
            sizes[specialist.name] = ToBuild(lacks=str(error))
    return sizes


def machine_of(specialist: Specialist) -> Machine:
    """How the roster loads a specialist: as its parent is loaded, too, where there is room."""
    spec = specialist.load_spec(Path())
    return Machine(**{field.name: getattr(spec, field.name) for field in fields(Machine)})


# --- the process ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """What is known of a build before it begins. warning: what its end will suffer from, "" for nothing."""

    need_bytes: int
    warning: str


async def prepare(job: Job, order: Order, machine: Machine, budget_bytes: int | None) -> Prepared:
    """Write down what is asked, and how it is to be loaded so that it fits the budget; gives the bytes to book.

    Whether the parent can be cut so, the corpus can be read, and disk and memory have room, is found out in a process
    of its own, that loads nothing. Raises BuildError with what it found.
    """
    await asyncio.to_thread(job.ask, order, machine)
    budget = [] if budget_bytes is None else ["--budget", str(budget_bytes)]
    process = await asyncio.create_subprocess_exec(
        *_COMMAND,
        str(job.folder),
        "--check",
        *budget,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    if not out:
        last = (err.decode("utf-8", "replace").strip().splitlines() or ["it printed nothing"])[-1]
        raise BuildError(f"The check of the build died {_how(process.returncode or 0)}: {last}", "Run coe doctor.")
    answer = json.loads(out)
    if "message" in answer:
        raise BuildError(answer["message"], answer["remedy"])
    await asyncio.to_thread(job.ask, order, Machine(**answer["machine"]))
    return Prepared(int(answer["need_bytes"]), str(answer["warning"]))


class BuildProcess:
    """One run of a build in a process of its own. It ends with the process that started it."""

    def __init__(self, job: Job, *, polite: bool = False, accept: bool = False) -> None:
        """polite: it lets everybody else on this machine go first. accept: it releases whatever the gate says."""
        self._job = job
        self._flags = [*(["--polite"] if polite else []), *(["--accept"] if accept else [])]
        self._process: asyncio.subprocess.Process | None = None
        self._told_to_stop = False
        self._noted_before: float | None = None  # when the last was written that is of an earlier run

    async def run(self) -> Progress:
        """Work until the build ends or is stopped; gives what it came to. Raises Busy when another is at work.

        A process that dies has failed, and the build says how. Cancelling the call stops it.
        """
        if self._told_to_stop:
            return await asyncio.to_thread(self._stopped)
        log = await asyncio.to_thread(self._open_log)
        self._noted_before = (await asyncio.to_thread(self._job.progress)).updated
        try:
            self._process = await asyncio.create_subprocess_exec(
                *_COMMAND,
                str(self._job.folder),
                "--parent-process",
                str(os.getpid()),
                *self._flags,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=worker_environment(os.environ),
                start_new_session=True,  # Ctrl-C is answered by who started it
            )
            if self._told_to_stop:
                self._signal(signal.SIGTERM)
            code = await self._process.wait()
        except asyncio.CancelledError:
            await self.stop()
            raise
        finally:
            log.close()
        return await asyncio.to_thread(self._outcome, code)

    def _open_log(self) -> IO[bytes]:
        self._job.folder.mkdir(parents=True, exist_ok=True)
        return self._job.log.open("ab")

    def _outcome(self, code: int) -> Progress:
        if code == EXIT_BUSY:
            raise Busy(f"The build of {at_work(self._job.folder.parent.parent) or 'another'} is at work.")
        progress = self._job.progress()
        of_this_run = progress.updated != self._noted_before
        if of_this_run and not progress.state.unfinished:
            return progress
        if self._told_to_stop or code == EXIT_STOPPED:
            return self._stopped()
        step = progress.step if of_this_run else ""
        progress = replace(
            progress,
            state=BuildState.FAILED,
            message=f"The process died {_how(code)} in the step {step or 'before the first'}: "
            f"{last_words(self._job.log)}",
            remedy=f"Its log is {self._job.log}; coe build {self._job.folder.name} tries again.",
        )
        with contextlib.suppress(OSError):
            self._job.note(progress)
        return progress

    def _stopped(self) -> Progress:
        """Write down that it was stopped, which its process may have had no time to."""
        found = self._job.progress()
        stopped = replace(found, state=BuildState.STOPPED, fraction=None, tokens_per_s=None, message="", remedy="")
        with contextlib.suppress(OSError):
            self._job.note(stopped)
        return stopped

    async def stop(self) -> None:
        """Have it end at the next good moment, and soon; returns when its memory is back."""
        self._told_to_stop = True
        if self._process is None or self._process.returncode is not None:
            return
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(asyncio.shield(self._process.wait()), _STOP_S)
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self._process.wait()
        # It was told to end, so that it did is no fault of its step.
        await asyncio.to_thread(self._job.forgive)

    def _signal(self, which: signal.Signals) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(which)


def _how(code: int) -> str:
    if code == -signal.SIGKILL:
        return "(killed, perhaps for lack of memory)"
    return f"(signal {-code})" if code < 0 else f"(exit {code})"


def last_words(log: Path) -> str:
    """The most telling of a log's last lines."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 20_000))
            lines = [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    telling = ("GGML_ASSERT", "ggml_abort", "Fatal Python error", "MemoryError")
    said = next((line for line in reversed(lines) for mark in telling if mark in line), None)
    return (said or (lines[-1] if lines else "it printed nothing")).strip()[:500]


# --- the owner ------------------------------------------------------------------------------------------------


@dataclass
class _Known:
    """What the server knows of one build without looking at the disk."""

    progress: Progress = field(default_factory=Progress)
    stamp: Stamp | None = None  # of the released file, as it is served
    task: asyncio.Task[None] | None = None
    stale: bool = False  # the roster asks for something else than what was last asked
    warning: str = ""  # what the check of its build foresaw


class Builds:
    """The builds of a server: starts what is asked for, one at a time, and has what is finished served.

    All methods belong to one event loop; the disk is looked at in threads.
    """

    def __init__(
        self, roster: Roster, pool: Pool, adopt: Callable[[str], Awaitable[bool]], *, look_every_s: float = 1.0
    ) -> None:
        """adopt: has a specialist's released file served from now on; False when it must be tried again later."""
        self._roster = roster
        self._pool = pool
        self._adopt = adopt
        self._look_every_s = look_every_s
        self._known = {s.name: _Known() for s in roster.specialists if s.build is not None}
        self._turn = asyncio.Lock()  # of the one build that may run
        self._looking = asyncio.Lock()  # else two who look at the same time would both have a new file served
        self._hurried = 0  # builds that wait for the turn and not for idle time
        self._hurry = asyncio.Event()  # set while there are some
        self._watcher: asyncio.Task[None] | None = None
        self._closing = False

    def __contains__(self, name: str) -> bool:
        return name in self._known

    async def start(self, judged: Collection[str]) -> None:
        """Look at what is there, go on with what a server had begun, and keep looking.

        judged: specialists whose files were there when the roster was read; those need no adoption.
        """
        if not self._known:
            return
        for name in self._known.keys() & judged:
            path = self._specialist(name).built_path(self._roster.models_path)
            self._known[name].stamp = await asyncio.to_thread(_stamp, path)
        await self._look()
        for name, known in self._known.items():
            if known.progress.state.unfinished and await asyncio.to_thread(self._is_ours, name):
                _log.info("going on with the build of %s", name)
                self._begin(name)
        self._watcher = asyncio.create_task(self._watch())

    def _is_ours(self, name: str) -> bool:
        return bool(self._job(name).recall("asked_by") == "server")

    async def close(self) -> None:
        """Stop what is at work; the next server goes on with it."""
        self._closing = True
        tasks = [known.task for known in self._known.values() if known.task] + (
            [self._watcher] if self._watcher else []
        )
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _job(self, name: str) -> Job:
        return Job.of(self._roster.models_path, name)

    def _specialist(self, name: str) -> Specialist:
        found = self._roster.find(name)
        assert found is not None
        return found

    # --- looking ----------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._look_every_s)
            try:
                await self._look()
            except Exception:
                _log.exception("looking at the builds")

    async def _look(self) -> None:
        """Read how far builds are, whoever works on them, and have newly released files served, each once."""
        async with self._looking:
            for name, known in self._known.items():
                progress, stamp, stale = await asyncio.to_thread(self._read, name)
                known.stale = stale
                if known.task is None or progress.state is BuildState.RUNNING:
                    known.progress = progress
                if stamp is not None and stamp != known.stamp and await self._adopt(name):
                    known.stamp = stamp
                elif stamp is None:
                    known.stamp = None

    def _read(self, name: str) -> tuple[Progress, Stamp | None, bool]:
        job, specialist = self._job(name), self._specialist(name)
        try:
            stale = job.order()[0] != order_of(self._roster, specialist)
        except SurgeryError:
            stale = False
        return job.progress(), _stamp(specialist.built_path(self._roster.models_path)), stale

    def is_missing(self, name: str) -> bool:
        """Whether a specialist is one to be built, and its file is not there."""
        return name in self._known and self._known[name].stamp is None

    def can_come(self, name: str) -> bool:
        """Whether a missing specialist is being built, or would be if somebody asked for it."""
        return self.is_missing(name) and not self._is_settled(self._known[name])

    @staticmethod
    def _is_settled(known: _Known) -> bool:
        return known.progress.state in (BuildState.FAILED, BuildState.ASIDE) and not known.stale

    def progress(self, name: str) -> Progress:
        """How far a build is, as last seen."""
        return self._known[name].progress

    def cards(self) -> list[dict[str, Any]]:
        """All builds, as GET /v1/builds gives them."""
        return [self.card(name) for name in self._known]

    def card(self, name: str) -> dict[str, Any]:
        """One build as JSON types."""
        known = self._known[name]
        card = asdict(known.progress)
        return {"name": name, **card, "status": known.progress.line(), "served": known.stamp is not None}

    async def details(self, name: str) -> dict[str, Any]:
        """One build with its report, where there is one."""
        return {**self.card(name), "report": await asyncio.to_thread(self._job(name).report)}

    # --- asking -----------------------------------------------------------------------------------------------

    def ask(self, name: str) -> Progress:
        """Somebody wants a specialist that is not there: begin to build it, unless that has been tried.

        A build that failed or was kept aside stays so, unless the roster has changed since.
        """
        known = self._known[name]
        if self.can_come(name) and self._is_free(known):
            self._begin(name)
        return known.progress

    def retry(self, name: str) -> Progress:
        """Build it, whatever came of it before. Nothing happens while it is at work."""
        known = self._known[name]
        if self._is_free(known):
            self._begin(name, again=True)
        return known.progress

    def _is_free(self, known: _Known) -> bool:
        return known.task is None and not self._closing and known.progress.state is not BuildState.RUNNING

    def _begin(self, name: str, *, again: bool = False) -> None:
        known = self._known[name]
        known.warning = ""
        known.progress = Progress(BuildState.WAITING)
        known.task = asyncio.create_task(self._build(name, again=again))

    async def _build(self, name: str, *, again: bool) -> None:
        known, job = self._known[name], self._job(name)
        try:
            await self._prepare_and_run(name, job, again=again)
        except (SurgeryError, EngineError) as error:
            await self._note(name, Progress(BuildState.FAILED, message=error.message, remedy=error.remedy))
        except OSError as error:
            await self._note(name, Progress(BuildState.FAILED, message=f"The build cannot begin: {error}."))
        except asyncio.CancelledError:
            await asyncio.to_thread(_note_stopped, job)
            raise
        except Exception:
            _log.exception("building %s", name)
            await self._note(name, Progress(BuildState.FAILED, message="The build failed; the server's log says why."))
        finally:
            known.task = None
        state = known.progress.state
        if state is BuildState.FAILED:
            _log.error("building %s failed: %s %s", name, known.progress.message, known.progress.remedy)
        elif state in (BuildState.RELEASED, BuildState.ASIDE):
            _log.info("built %s: %s %s", name, state, known.progress.message)
        await self._look()

    async def _note(self, name: str, progress: Progress) -> None:
        known = self._known[name]
        known.progress = progress = replace(progress, warning=known.warning)
        try:
            await asyncio.to_thread(self._job(name).note, progress)
        except OSError as error:
            _log.warning("how far the build of %s is cannot be written: %s", name, error)

    async def _prepare_and_run(self, name: str, job: Job, *, again: bool) -> None:
        specialist = self._specialist(name)
        assert specialist.build is not None
        order = await asyncio.to_thread(order_of, self._roster, specialist)
        prepared = await prepare(job, order, machine_of(specialist), self._pool.limits.budget_bytes)
        if prepared.warning:
            self._known[name].warning = prepared.warning
            _log.warning("building %s: %s", name, prepared.warning)
        await asyncio.to_thread(job.remember, "asked_by", "server")
        if again:
            await asyncio.to_thread(job.forgive)
        yields = specialist.build.when == "idle"
        made_way = True
        while made_way:
            await self._note(name, Progress(BuildState.WAITING, message="for its turn"))
            async with self._in_turn(hurried=not yields):
                made_way = await self._reserve_and_run(name, job, prepared.need_bytes, yields=yields)
            # It may have come to its end before it heard that it should make way.
            made_way = made_way and self.progress(name).state.unfinished

    @contextlib.asynccontextmanager
    async def _in_turn(self, *, hurried: bool) -> AsyncIterator[None]:
        """Hold the turn. hurried: whoever holds it and only waits for idle time makes way."""
        self._hurried += hurried
        if hurried:
            self._hurry.set()
        try:
            await self._turn.acquire()
        finally:
            self._hurried -= hurried
            if not self._hurried:
                self._hurry.clear()
        try:
            yield
        finally:
            self._turn.release()

    async def _reserve_and_run(self, name: str, job: Job, need_bytes: int, *, yields: bool) -> bool:
        """Wait for room, then for its end. yields: it makes way for requests, and for hurried builds until it runs.

        Gives whether it made way.
        """
        await self._free_of_others(name)
        why = "for idle time" if yields else "for room"
        await self._note(name, Progress(BuildState.WAITING, message=why))
        process = BuildProcess(job, polite=yields)
        made_way = False

        async def make_way() -> None:
            nonlocal made_way
            made_way = True
            await process.stop()

        title = f"the build of {name}"
        if yields:
            asked = self._pool.reserve(title, need_bytes, waits_for_idle=True, stop=make_way)
            room = await self._unless_hurried(asked)
        else:
            room = await self._pool.reserve(title, need_bytes)
        if room is None:
            return True
        await self._run(name, process, room)
        return made_way

    async def _unless_hurried(self, asked: Coroutine[Any, Any, Reservation]) -> Reservation | None:
        """The room that is asked for; None when a hurried build wants the turn before there is any."""
        reserving, hurry = asyncio.create_task(asked), asyncio.create_task(self._hurry.wait())
        room: Reservation | None = None
        try:
            await asyncio.wait({reserving, hurry}, return_when=asyncio.FIRST_COMPLETED)
            if reserving.done():
                room = reserving.result()
            return room
        finally:
            hurry.cancel()
            if room is None and not reserving.cancel() and reserving.exception() is None:
                reserving.result().release()  # granted at the very moment it was given up

    async def _run(self, name: str, process: BuildProcess, room: Reservation) -> None:
        known = self._known[name]
        known.progress = Progress(BuildState.RUNNING, warning=known.warning)
        try:
            known.progress = await process.run()
        except Busy:
            known.progress = Progress(BuildState.STOPPED)  # somebody was quicker; it is looked at again
        finally:
            room.release()

    async def _free_of_others(self, name: str) -> None:
        """Wait until no build that somebody started elsewhere, in a terminal, is at work."""
        models_dir = self._roster.models_path
        while (other := await asyncio.to_thread(at_work, models_dir)) is not None:
            if other != name:
                await self._note(name, Progress(BuildState.WAITING, message=f"for the build of {other}"))
            await asyncio.sleep(self._look_every_s)


def _note_stopped(job: Job) -> None:
    """Of a build that its process had no time to say it of."""
    if (found := job.progress()).state.unfinished:
        job.note(replace(found, state=BuildState.STOPPED, message=""))


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
