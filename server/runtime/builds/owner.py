"""The owner of a server's builds: a job queue of one, with preemption, memory reservations, and adoption of results."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from coe.engine.errors import EngineError
from coe.engine.pool.leases import Reservation
from coe.engine.pool.places import Memory
from coe.engine.pool.pool import Pool
from coe.surgery.build.job import BuildProgress, BuildState, Busy, Job, at_work
from coe.surgery.errors import SurgeryError

from ...roster.models import Roster, Specialist
from .order import machine_of, order_of
from .process import BuildProcess, prepare

_log = logging.getLogger(__name__)

Stamp = tuple[int, int]  # inode and time of change of a released file


@dataclass
class _Tracked:
    """What the server knows of one build without reading the disk."""

    progress: BuildProgress = field(default_factory=BuildProgress)
    stamp: Stamp | None = None  # of the released file, as it is served
    task: asyncio.Task[None] | None = None
    order_changed: bool = False  # the roster's order differs from the one in the build's folder
    warning: str = ""  # what the check of its build foresaw
    unwritten: BuildProgress | None = None  # newer than the record on a disk that is full; written when there is room


class Builds:
    """The builds of a server: runs one at a time, and has each finished specialist served.

    A build, as its task in this process goes through it (its record on disk is the state machine of `BuildState`):

        asked ──> preparing ──> waiting for ──> waiting for ──> reserved, ──> ended: released, kept aside,
                      │          the lock        its memory      running             failed or stopped
                      v            ^   ^              │             │
                ended: failed      │   └─ preempted ──┘             │   by a priority build that waits for the lock
                                   └───── preempted ────────────────┘   by a request that needs the memory

    Preemption is for builds with `when: idle` alone. A build with `when: now` has priority: it takes the lock from a
    build that still waits for idle time, and its reservation is not taken back.

    All methods belong to one event loop; the disk is read in threads.
    """

    def __init__(
        self, roster: Roster, pool: Pool, adopt: Callable[[str], Awaitable[bool]], *, poll_every_s: float = 1.0
    ) -> None:
        """adopt: has a specialist's released file served from now on; False when it must be tried again later."""
        self._roster = roster
        self._pool = pool
        self._adopt = adopt
        self._poll_every_s = poll_every_s
        self._tracked = {s.name: _Tracked() for s in roster.specialists if s.build is not None}
        self._lock = asyncio.Lock()  # held by the one build that may run
        self._refreshing = asyncio.Lock()  # else two refreshes at a time would adopt a new file twice
        self._n_priority = 0  # priority builds that wait for the lock
        self._priority_waits = asyncio.Event()  # set while there are some
        self._poller: asyncio.Task[None] | None = None
        self._closing = False

    def __contains__(self, name: object) -> bool:
        return name in self._tracked

    async def start(self, with_file: Collection[str]) -> None:
        """Read every build's folder, resume builds that an earlier server had begun, and keep polling.

        with_file: specialists whose files were there when the roster was read; those need no adoption.
        """
        if not self._tracked:
            return
        for name in self._tracked.keys() & with_file:
            path = self._specialist(name).built_path(self._roster.models_path)
            self._tracked[name].stamp = await asyncio.to_thread(_stamp, path)
        await self._refresh()
        for name, tracked in self._tracked.items():
            if tracked.progress.state.unfinished and await asyncio.to_thread(self._was_asked_by_server, name):
                _log.info("going on with the build of %s", name)
                self._begin(name)
        self._poller = asyncio.create_task(self._poll())

    def _was_asked_by_server(self, name: str) -> bool:
        return bool(self._job(name).recall("asked_by") == "server")

    async def close(self) -> None:
        """Stop the build at work; the next server resumes it."""
        self._closing = True
        tasks = [tracked.task for tracked in self._tracked.values() if tracked.task] + (
            [self._poller] if self._poller else []
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

    # --- polling: builds may also run in a terminal ------------------------------------------------------------

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._poll_every_s)
            try:
                await self._refresh()
            except Exception:
                _log.exception("reading the builds' folders")

    async def _refresh(self) -> None:
        """Read the progress of all builds, in whichever process they run, and adopt each new released file once."""
        async with self._refreshing:
            for name, tracked in self._tracked.items():
                progress, stamp, tracked.order_changed = await asyncio.to_thread(self._read, name)
                if tracked.unwritten is not None and tracked.task is None:
                    await self._record(name, tracked.unwritten)  # the disk may have room again
                elif tracked.task is None or progress.state is BuildState.RUNNING:
                    tracked.progress = progress
                if stamp is not None and stamp != tracked.stamp and await self._adopt(name):
                    tracked.stamp = stamp
                elif stamp is None:
                    tracked.stamp = None

    def _read(self, name: str) -> tuple[BuildProgress, Stamp | None, bool]:
        job, specialist = self._job(name), self._specialist(name)
        try:
            order_changed = job.order()[0] != order_of(self._roster, specialist)
        except SurgeryError:
            order_changed = False
        return job.progress(), _stamp(specialist.built_path(self._roster.models_path)), order_changed

    def is_missing(self, name: str) -> bool:
        """Whether a specialist has a `build:` and its file is not there."""
        return name in self._tracked and self._tracked[name].stamp is None

    def can_come(self, name: str) -> bool:
        """Whether a missing specialist is being built, or would be when a request asks for it."""
        return self.is_missing(name) and not self._is_settled(self._tracked[name])

    @staticmethod
    def _is_settled(tracked: _Tracked) -> bool:
        return tracked.progress.state in (BuildState.FAILED, BuildState.ASIDE) and not tracked.order_changed

    def progress(self, name: str) -> BuildProgress:
        """How far a build is, as last read."""
        return self._tracked[name].progress

    def cards(self) -> list[dict[str, Any]]:
        """All builds, as GET /v1/builds gives them."""
        return [self.card(name) for name in self._tracked]

    def card(self, name: str) -> dict[str, Any]:
        """One build as JSON types."""
        tracked = self._tracked[name]
        card = asdict(tracked.progress)
        return {"name": name, **card, "status": tracked.progress.line(), "served": tracked.stamp is not None}

    async def details(self, name: str) -> dict[str, Any]:
        """One build with its report, where there is one."""
        return {**self.card(name), "report": await asyncio.to_thread(self._job(name).report)}

    # --- the queue --------------------------------------------------------------------------------------------

    def ask(self, name: str) -> BuildProgress:
        """A request wants a specialist that is not there: begin its build, unless that has been tried.

        A build that failed or was kept aside stays so, unless the roster has changed since.
        """
        tracked = self._tracked[name]
        if self.can_come(name) and self._may_begin(tracked):
            self._begin(name)
        return tracked.progress

    def retry(self, name: str) -> BuildProgress:
        """Build it, whatever came of it before. Nothing happens while it is at work."""
        tracked = self._tracked[name]
        if self._may_begin(tracked):
            self._begin(name, again=True)
        return tracked.progress

    def _may_begin(self, tracked: _Tracked) -> bool:
        return tracked.task is None and not self._closing and tracked.progress.state is not BuildState.RUNNING

    def _begin(self, name: str, *, again: bool = False) -> None:
        tracked = self._tracked[name]
        tracked.warning, tracked.unwritten = "", None
        tracked.progress = BuildProgress(BuildState.WAITING)
        tracked.task = asyncio.create_task(self._build(name, again=again))

    async def _build(self, name: str, *, again: bool) -> None:
        tracked, job = self._tracked[name], self._job(name)
        try:
            await self._prepare_and_run(name, job, again=again)
        except (SurgeryError, EngineError) as error:
            await self._record(name, BuildProgress(BuildState.FAILED, message=error.message, remedy=error.remedy))
        except OSError as error:
            await self._record(name, BuildProgress(BuildState.FAILED, message=f"The build cannot begin: {error}."))
        except asyncio.CancelledError:
            await asyncio.to_thread(_record_stopped, job)
            raise
        except Exception:
            _log.exception("building %s", name)
            await self._record(
                name, BuildProgress(BuildState.FAILED, message="The build failed; the server's log says why.")
            )
        finally:
            tracked.task = None
        state = tracked.progress.state
        if state is BuildState.FAILED:
            _log.error("building %s failed: %s %s", name, tracked.progress.message, tracked.progress.remedy)
        elif state in (BuildState.RELEASED, BuildState.ASIDE):
            _log.info("built %s: %s %s", name, state, tracked.progress.message)
        await self._refresh()

    async def _record(self, name: str, progress: BuildProgress) -> None:
        tracked = self._tracked[name]
        tracked.progress = progress = replace(progress, warning=tracked.warning)
        try:
            await asyncio.to_thread(self._job(name).write_progress, progress)
            tracked.unwritten = None
        except OSError as error:
            if tracked.unwritten is None:
                _log.warning("how far the build of %s is cannot be written: %s", name, error)
            tracked.unwritten = progress  # the record on the disk is older, and must not take the place of this

    async def _prepare_and_run(self, name: str, job: Job, *, again: bool) -> None:
        specialist = self._specialist(name)
        assert specialist.build is not None
        order = await asyncio.to_thread(order_of, self._roster, specialist)
        pool = self._pool
        prepared = await prepare(
            job, order, machine_of(self._roster, specialist), pool.room, stall_s=pool.limits.stall_s
        )
        if prepared.warning:
            self._tracked[name].warning = prepared.warning
            _log.warning("building %s: %s", name, prepared.warning)
        await asyncio.to_thread(job.remember, "asked_by", "server")
        if again:
            await asyncio.to_thread(job.reset_attempts)
        priority = specialist.build.when == "now"
        preempted = True
        while preempted:
            await self._record(name, BuildProgress(BuildState.WAITING, message="for its turn"))
            async with self._locked(priority=priority):
                preempted = await self._reserve_and_run(name, job, prepared.memory, priority=priority)
            # The child may have finished before the signal to stop reached it.
            preempted = preempted and self.progress(name).state.unfinished

    @contextlib.asynccontextmanager
    async def _locked(self, *, priority: bool) -> AsyncIterator[None]:
        """Hold the lock. priority: a holder that only waits for idle time gives the lock up."""
        self._n_priority += priority
        if priority:
            self._priority_waits.set()
        try:
            await self._lock.acquire()
        finally:
            self._n_priority -= priority
            if not self._n_priority:
                self._priority_waits.clear()
        try:
            yield
        finally:
            self._lock.release()

    async def _reserve_and_run(self, name: str, job: Job, memory: Memory, *, priority: bool) -> bool:
        """Reserve the memory, then run the build to its end. Gives whether it was preempted.

        Without priority the reservation waits for idle time, is given up for a priority build until the child runs,
        and is taken back for requests while the child runs.
        """
        await self._until_none_runs_elsewhere(name)
        why = "for room" if priority else "for idle time"
        await self._record(name, BuildProgress(BuildState.WAITING, message=why))
        process = BuildProcess(job, low_priority=not priority, stall_s=self._pool.limits.stall_s)
        preempted = False

        async def preempt() -> None:
            nonlocal preempted
            preempted = True
            await process.stop()

        title = f"the build of {name}"
        room: Reservation | None
        if priority:
            room = await self._pool.reserve(title, memory)
        else:
            room = await self._unless_priority_waits(
                self._pool.reserve(title, memory, waits_for_idle=True, stop=preempt)
            )
        if room is None:
            return True
        await self._run(name, process, room)
        return preempted

    async def _unless_priority_waits(self, asked: Coroutine[Any, Any, Reservation]) -> Reservation | None:
        """The reservation that is asked for; None when a priority build asks for the lock before it is granted."""
        reserving = asyncio.create_task(asked)
        priority_waits = asyncio.create_task(self._priority_waits.wait())
        room: Reservation | None = None
        try:
            await asyncio.wait({reserving, priority_waits}, return_when=asyncio.FIRST_COMPLETED)
            if reserving.done():
                room = reserving.result()
            return room
        finally:
            priority_waits.cancel()
            if room is None and not reserving.cancel() and reserving.exception() is None:
                reserving.result().release()  # granted at the very moment it was given up

    async def _run(self, name: str, process: BuildProcess, room: Reservation) -> None:
        tracked = self._tracked[name]
        tracked.progress = BuildProgress(BuildState.RUNNING, warning=tracked.warning)
        try:
            tracked.progress = ended = await process.run()
            # Where the disk is full the child could not record why it failed.
            if (await asyncio.to_thread(self._job(name).progress)).state is not ended.state:
                await self._record(name, ended)
        except Busy:
            tracked.progress = BuildProgress(BuildState.STOPPED)  # a terminal was quicker; polled next
        finally:
            room.release()

    async def _until_none_runs_elsewhere(self, name: str) -> None:
        """Wait until no build that was started in a terminal is at work."""
        models_dir = self._roster.models_path
        while (other := await asyncio.to_thread(at_work, models_dir)) is not None:
            if other != name:
                await self._record(name, BuildProgress(BuildState.WAITING, message=f"for the build of {other}"))
            await asyncio.sleep(self._poll_every_s)


def _record_stopped(job: Job) -> None:
    """Record the end of a build whose child had no time to do so."""
    if (found := job.progress()).state.unfinished:
        job.write_progress(replace(found, state=BuildState.STOPPED, message=""))


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
