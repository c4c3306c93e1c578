"""The child process of a build: preparing it, running it, and what it came to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Final

from coe.engine.process import worker_environment
from coe.surgery.build.job import EXIT_BUSY, EXIT_STOPPED, BuildState, Busy, Job, Machine, Order, Progress, at_work
from coe.surgery.errors import BuildError

_STOP_S: Final = 30.0  # a build that is told to stop ends after its current batch; later it is killed

_COMMAND: Final = (sys.executable, "-m", "coe.surgery.build.pipeline")


@dataclass(frozen=True)
class Prepared:
    """What is known of a build before it begins. warning: what its end will suffer from, "" for nothing."""

    need_bytes: int
    warning: str


async def prepare(job: Job, order: Order, machine: Machine, budget_bytes: int | None) -> Prepared:
    """Write the order, with the machine settings that fit the budget, into the build's folder; give the bytes to book.

    A child checks whether the parent can be cut so, the corpus can be read, and disk and memory have room; it loads
    headers alone. Raises BuildError with what it found.
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
    """One run of a build in a child process, which ends with the process that started it."""

    def __init__(self, job: Job, *, polite: bool = False, accept: bool = False) -> None:
        """polite: at a lower CPU priority than everything else here. accept: release it whatever the gate says."""
        self._job = job
        self._flags = [*(["--polite"] if polite else []), *(["--accept"] if accept else [])]
        self._process: asyncio.subprocess.Process | None = None
        self._told_to_stop = False
        self._recorded_before: float | None = None  # time of the last progress record of an earlier run

    async def run(self) -> Progress:
        """Work until the build ends or is stopped; gives what it came to. Raises Busy when another build is at work.

        A child that dies is a failed build, which says how it died. Cancelling the call stops the child.
        """
        if self._told_to_stop:
            return await asyncio.to_thread(self._stopped)
        log = await asyncio.to_thread(self._open_log)
        self._recorded_before = (await asyncio.to_thread(self._job.progress)).updated
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
                start_new_session=True,  # Ctrl-C is answered by the process that started it
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
        of_this_run = progress.updated != self._recorded_before
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
        """Record that the build was stopped, which its child may have had no time to do."""
        found = self._job.progress()
        stopped = replace(found, state=BuildState.STOPPED, fraction=None, tokens_per_s=None, message="", remedy="")
        with contextlib.suppress(OSError):
            self._job.note(stopped)
        return stopped

    async def stop(self) -> None:
        """Have the child end after its current batch, or be killed 30 s later; returns when its memory is back."""
        self._told_to_stop = True
        if self._process is None or self._process.returncode is not None:
            return
        self._signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(asyncio.shield(self._process.wait()), _STOP_S)
        except TimeoutError:
            self._signal(signal.SIGKILL)
            await self._process.wait()
        # The step was ended on purpose, so this end does not count against it.
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
