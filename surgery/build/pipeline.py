"""A build as a resumable pipeline (checkpointing): it can be stopped or killed anywhere, and goes on from there.

`run` carries out the order in the folder's job.json; process runs it in a child. Each finished step is recorded with a
fingerprint of all that went into it, and is not repeated as long as that is unchanged.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from coe.engine.errors import EngineError
from coe.engine.files import FULL_DISK

from ..errors import BuildError, SurgeryError
from ..files import sha256_of
from ..parent import Parent
from .job import (
    MOST_BEGINNINGS,
    BuildOrder,
    BuildProgress,
    BuildState,
    Job,
    Machine,
    StepRecord,
)
from .preflight import check, disk_room
from .steps import BuildStep, BuildSteps

_REPORT_EVERY_S: Final = 0.5


class Pipeline:
    """Runs the steps of one build in order, each unless its record says that it is done."""

    def __init__(self, job: Job, order: BuildOrder, machine: Machine, report: Callable[[BuildProgress], None]) -> None:
        """report: called with the build's progress, at every step and twice a second in between."""
        self._job = job
        self._order = order
        self._report = report
        self._records = job.records()
        self._steps = tuple(BuildSteps(job, order, machine, Parent.open(order.parent), self._records))
        self._progress = BuildProgress(BuildState.RUNNING, started=time.time(), steps=len(self._steps))
        self._reported_at = 0.0

    def run(self) -> BuildProgress:
        """Carry out what is not yet done; gives RELEASED or ASIDE. Raises SurgeryError or EngineError."""
        for done, step in enumerate(self._steps):
            self._progress = replace(
                self._progress, step=step.name, steps_done=done, fraction=None, tokens_per_s=None, message=""
            )
            self._report_now()
            fingerprint = self._fingerprint(step)
            if self._is_done(step, fingerprint):
                continue
            if self._job.begin(step.name) >= MOST_BEGINNINGS:
                self._job.reset_attempts()
                raise BuildError(
                    f"The step {step.name} has ended without a word {MOST_BEGINNINGS} times.",
                    f"Look at {self._job.log}: it may lack memory. {self._order.command} tries again.",
                )
            began = time.monotonic()
            facts = step.act(self._on_stage)
            record = StepRecord(fingerprint, dict(facts), time.monotonic() - began, time.time())
            self._job.record(step.name, record)
            self._records[step.name] = record
        return self._ended()

    def _ended(self) -> BuildProgress:
        """The progress of a build whose steps are all done."""
        verdict = self._records["gate"].facts["verdict"]
        released = self._records["publish"].facts["released"]
        accept = f"{verdict['remedy']} To release it as it is: {self._order.command} --accept"
        return replace(
            self._progress,
            state=BuildState.RELEASED if released else BuildState.ASIDE,
            step="",
            steps_done=len(self._steps),
            message=verdict["reason"],
            remedy="" if released else accept,
        )

    def _fingerprint(self, step: BuildStep) -> str:
        files = [sha256_of((path,), self._hashing(path)) for path in step.files]
        # With the time: when a step was done again, what read its results is done again as well.
        before = {name: [self._records[name].fingerprint, self._records[name].ended] for name in step.after}
        text = json.dumps([step.name, dict(step.settings), files, before], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def _is_done(self, step: BuildStep, fingerprint: str) -> bool:
        record = self._records.get(step.name)
        return record is not None and record.fingerprint == fingerprint and all(path.exists() for path in step.outputs)

    def _hashing(self, path: Path) -> Callable[[int], None]:
        size, read = path.stat().st_size, 0

        def more(n_bytes: int) -> None:
            nonlocal read
            read += n_bytes
            self._on_stage(f"reading {path.name}", read, size, None)

        return more

    def _on_stage(self, stage: str, done: float, total: float, per_second: float | None) -> None:
        message = "" if stage == self._progress.step else stage
        fraction = done / total if total else None
        self._progress = replace(self._progress, fraction=fraction, tokens_per_s=per_second, message=message)
        if time.monotonic() - self._reported_at >= _REPORT_EVERY_S:
            self._report_now()

    def _report_now(self) -> None:
        self._reported_at = time.monotonic()
        self._report(self._progress)


def run(
    job: Job, *, accept_by: str | None = None, report: Callable[[BuildProgress], None] | None = None
) -> BuildProgress:
    """Carry a build out, from wherever it is, and record how it ended: released, kept aside, failed, stopped.

    accept_by: the person who releases it whatever the gate says.
    report:    called with the build's progress, in place of the build's own record.
    Raises Busy when another build is at work, and KeyboardInterrupt again after an orderly stop.
    """
    write_progress = report or job.write_progress
    started = time.time()
    with job.worked_on():
        last = BuildProgress(BuildState.RUNNING, started=started)
        warning = ""

        def reached(progress: BuildProgress) -> None:
            nonlocal last
            last = replace(progress, started=started, warning=warning)
            # On a full disk the step itself fails, and says so.
            with contextlib.suppress(OSError):
                write_progress(last)

        try:
            reached(last)
            order, machine = job.order()
            if accept_by is not None:
                _accept(job, accept_by)
            warning = check(order, job.folder)
            reached(Pipeline(job, order, machine, reached).run())
        except KeyboardInterrupt:
            job.reset_attempts()
            reached(replace(last, state=BuildState.STOPPED, fraction=None, tokens_per_s=None, message=""))
            raise
        except (SurgeryError, EngineError) as error:
            reached(_failed(last, error.message, error.remedy))
        except OSError as error:
            reached(_failed(last, *(_full_disk(job) if error.errno in FULL_DISK else _unwritten(error))))
        except Exception as error:
            traceback.print_exc()
            reached(_failed(last, f"Unforeseen: {error!r}.", f"Its log is {job.log}."))
        if last.state is BuildState.FAILED:
            print(last.message, last.remedy, file=sys.stderr, flush=True)
    return last


def _accept(job: Job, by: str) -> None:
    made = job.records().get("cut")
    if made is None:
        raise BuildError("There is nothing to accept yet: it has not been cut.", "Build it first, without --accept.")
    job.remember("accepted", {"by": by, "specialist": made.fingerprint})


def _full_disk(job: Job) -> tuple[str, str]:
    """The message and the remedy of a build whose disk has no room left."""
    order, _ = job.order()
    room = disk_room(order, Parent.open(order.parent), job.folder)
    remedy = f"Make room there, or set models_dir to another disk; {order.command} goes on from there."
    return f"No space left: the build takes {room}.", remedy


def _unwritten(error: OSError) -> tuple[str, str]:
    return f"{error}.", "Look at the disk, and at the rights of the models folder."


def _failed(last: BuildProgress, message: str, remedy: str) -> BuildProgress:
    where = f"{last.step}: " if last.step else ""
    return replace(
        last, state=BuildState.FAILED, fraction=None, tokens_per_s=None, message=f"{where}{message}", remedy=remedy
    )
