"""The child process of a build: preparing it, running it, and what it came to."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass, replace
from typing import Any, Final

from coe.engine import child
from coe.engine import errors as engine_errors
from coe.engine.errors import ChildDiedError, ChildTimeoutError
from coe.engine.files import make_private
from coe.engine.pool.places import Memory
from coe.engine.private import child_environment
from coe.engine.process import ending, worker_environment
from coe.engine.vitals import STALL_S
from coe.surgery import errors as surgery_errors
from coe.surgery.build import job as job_module
from coe.surgery.build.job import BuildOrder, BuildProgress, BuildState, Job, Machine

_MODULE: Final = "coe.surgery.build.process"
_ERRORS: Final = (engine_errors, surgery_errors, job_module)  # job has Busy
_CHECK_S: Final = 600.0  # it reads headers in a second, and the corpus, which may have gigabytes
_STOP_S: Final = 30.0  # a build that is told to stop ends after its current batch; later it is killed
# A build that neither computes nor reads nor gets on for so long hangs. Bringing a written file to a slow disk is the
# longest that an honest one does so.
_IDLE_S: Final = 1800.0


@dataclass(frozen=True)
class Prepared:
    """What is known of a build before it begins: what it takes of each place at most, and a warning of what its end
    will suffer from, "" for nothing."""

    memory: Memory
    warning: str


async def prepare(
    job: Job, order: BuildOrder, machine: Machine, budget: Memory, *, stall_s: float = STALL_S
) -> Prepared:
    """Write the order, with the machine settings that fit the budget, into the build's folder; give the memory to book.

    A child checks whether the parent can be cut so, the corpus can be read, and disk and memory have room; it loads
    headers alone. Raises the SurgeryError or EngineError that it found, ChildTimeoutError after ten minutes, or after
    stall_s without a heartbeat of the child.
    """
    await asyncio.to_thread(job.write_order, order, machine)
    answer = await child.run(
        _MODULE,
        {"folder": str(job.folder), "check": {"budget": dict(budget.bytes_by_place)}},
        title=f"The check of the build of {order.name}",
        within_s=_CHECK_S,
        stall_s=stall_s,
        errors=_ERRORS,
    )
    await asyncio.to_thread(job.write_order, order, Machine.from_json(answer["machine"]))
    return Prepared(Memory(answer["memory"]), str(answer["warning"]))


class BuildProcess:
    """One run of a build in a child process, which ends with the process that started it."""

    def __init__(self, job: Job, *, low_priority: bool = False, accept: bool = False, stall_s: float = STALL_S) -> None:
        """low_priority: leave the CPU to all other processes. accept: release it whatever the gate says.

        stall_s: without a heartbeat for so long the child is killed.
        """
        self._job = job
        self._flags = {"low_priority": low_priority, "accept": accept}
        self._stall_s = stall_s
        self._child: child.Child | None = None
        self._told_to_stop = False

    async def run(self) -> BuildProgress:
        """Work until the build ends or is stopped; gives what it came to. Raises Busy when another build is at work.

        A child that dies or hangs is a failed build, which says how it was lost. Cancelling the call stops the child.
        """
        if self._told_to_stop:
            return await asyncio.to_thread(self._stopped)
        before = await asyncio.to_thread(self._begin)
        try:
            async with child.started(
                _MODULE,
                {"folder": str(self._job.folder), **self._flags},
                title=f"The build of {self._job.folder.name}",
                log=self._job.log,
                environment=worker_environment(child_environment(os.environ)),
                stall_s=self._stall_s,
                idle_s=max(_IDLE_S, self._stall_s),
            ) as self._child:
                try:
                    if not self._told_to_stop:
                        return _progress(await self._child.answer(errors=_ERRORS))
                except asyncio.CancelledError:
                    await self.stop()
                    raise
        except ChildDiedError as error:
            return await asyncio.to_thread(self._lost, f"died ({ending(error.code)})", error.words, before)
        except ChildTimeoutError as error:
            return await asyncio.to_thread(self._lost, error.how, "", before)
        finally:
            self._child = None
        return await asyncio.to_thread(self._stopped)

    def _begin(self) -> float | None:
        """Make the build's folder, where the log lies; gives the time of the last progress of an earlier run."""
        self._job.make_folder()
        make_private(self._job.log)
        return self._job.progress().updated

    def _lost(self, how: str, words: str, before: float | None) -> BuildProgress:
        """Record a build whose child is no more: stopped or failed, unless it had recorded another end in this run.

        how: it was lost, a phrase. words: its last, "" for none.
        """
        progress = self._job.progress()
        of_this_run = progress.updated != before
        if of_this_run and not progress.state.unfinished:
            return progress
        if self._told_to_stop:
            return self._stopped()
        step = progress.step if of_this_run else ""
        progress = replace(
            progress,
            state=BuildState.FAILED,
            message=f"The process {how} {f'in the step {step}' if step else 'before its first step'}"
            f"{f': {words}' if words else '.'}",
            remedy=f"Its log is {self._job.log}; {self._job.command} goes on from there.",
        )
        with contextlib.suppress(OSError):
            self._job.write_progress(progress)
        return progress

    def _stopped(self) -> BuildProgress:
        """Record that the build was stopped, which its child may have had no time to do."""
        found = self._job.progress()
        stopped = replace(found, state=BuildState.STOPPED, fraction=None, tokens_per_s=None, message="", remedy="")
        with contextlib.suppress(OSError):
            self._job.write_progress(stopped)
        return stopped

    async def stop(self) -> None:
        """Have the child end after its current batch, or be killed 30 s later; returns when its memory is back."""
        self._told_to_stop = True
        if self._child is None:
            return
        await self._child.stop(signal.SIGTERM, _STOP_S)
        # The step was ended on purpose, so this end does not count against it.
        await asyncio.to_thread(self._job.reset_attempts)


def _progress(plain: dict[str, Any]) -> BuildProgress:
    return BuildProgress(**{**plain, "state": BuildState(plain["state"])})
