"""The child process of a build: the check before it, and the build itself. Run by engine.child.

llama.cpp may abort either; a child that is killed, or whose parent is, leaves a build that goes on from there.
"""

from __future__ import annotations

import getpass
import os
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

from coe.engine.child import Report
from coe.engine.pool.places import Memory

from .job import BuildProgress, BuildState, Job
from .pipeline import run
from .preflight import check, fit


def main(job: dict[str, Any], report: Report) -> dict[str, Any]:
    """What the child answers: to a job with `check` what the build needs, to any other what the build came to.

    check:    {"budget": most bytes of memory that it may take, by place}.
              Answer: machine (how its models are loaded so that they fit), memory (bytes by place), warning.
    accept:   release it whatever the gate says. low_priority: leave the CPU to all other processes.
              Answer: the fields of the build's progress; its state is STOPPED after SIGINT or SIGTERM. Whatever it
              writes of its progress is a sign that it gets on.
    Raises SurgeryError or EngineError for what a check finds, Busy for a build while another is at work.
    """
    folder = Job(Path(job["folder"]))
    if (asked := job.get("check")) is not None:
        order, machine = folder.order()
        warning = check(order, folder.folder)
        found = fit(order, machine, Memory(asked["budget"]))
        return {"machine": asdict(found.machine), "memory": dict(found.memory.bytes_by_place), "warning": warning}
    if job["low_priority"]:
        os.nice(10)
    # One way to stop, whichever signal asks for it: every step hears of Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))

    def reached(progress: BuildProgress) -> None:
        report(None)
        folder.write_progress(progress)

    try:
        return asdict(run(folder, accept_by=getpass.getuser() if job["accept"] else None, report=reached))
    except KeyboardInterrupt:
        return {**asdict(folder.progress()), "state": BuildState.STOPPED}
