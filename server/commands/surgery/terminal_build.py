"""A build started from a terminal: a child process, its live progress, and its exit code."""

from __future__ import annotations

import asyncio
import os
import signal

from rich.console import Console
from rich.table import Table

from coe.surgery.build.job import BuildOrder, BuildProgress, BuildState, Job
from coe.surgery.errors import BuildError

from ...roster.models import Roster, Specialist
from ...runtime.budget import find_room
from ...runtime.builds.order import machine_of, order_of
from ...runtime.builds.process import BuildProcess, prepare
from .._bars import Bars
from .._errors import STOPPED_EXIT
from .._lines import print_line

_LOOK_EVERY_S = 0.3
_ASIDE_EXIT = 3  # made and judged, and not released


def build(roster: Roster, name: str, *, accept: bool, out: Console, err: Console, live: bool) -> int:
    """Carry a build out, or go on with it. Returns the exit code: 0 released, 3 kept aside, 1 failed, 130 stopped.

    Raises BuildError, EngineError or SurgeryError for what does not let it begin, Busy while another is at work.
    """
    specialist = roster.find(name)
    if specialist is None:
        known = ", ".join(s.name for s in roster.specialists if s.build is not None) or "none"
        raise BuildError(f"{roster.path.name} has no specialist {name!r}.", f"Entries with `build:`: {known}.")
    order = order_of(roster, specialist)
    job = Job.of(roster.models_path, specialist.name)
    ended = asyncio.run(_build(roster, specialist, order, job, accept, err, live=live))
    if ended.state is BuildState.RELEASED:
        print_line(out, f"{order.out} is released. {ended.message}")
        print_line(out, f"Its report: {order.out.with_suffix('.report.json')}")
        return 0
    if ended.state is BuildState.ASIDE:
        print_line(out, f"{specialist.name} is kept aside. {ended.message} {ended.remedy}")
        print_line(out, f"Its report: {job.path('report.json')}")
        return _ASIDE_EXIT
    if ended.state is BuildState.STOPPED:
        err.print(f"Stopped. The same command goes on from there: {order.command}", markup=False)
        return STOPPED_EXIT
    print_line(err, f"The build failed. {ended.message} {ended.remedy}", "red")
    return 1


async def _build(
    roster: Roster, specialist: Specialist, order: BuildOrder, job: Job, accept: bool, err: Console, *, live: bool
) -> BuildProgress:
    if not job.at_work():
        budget = (await find_room(roster)).budget.memory
        prepared = await prepare(job, order, machine_of(roster, specialist), budget, stall_s=roster.pool.stall_s)
        if prepared.warning and not accept:
            print_line(err, prepared.warning, "yellow")
        await asyncio.to_thread(_as_from_here, job)
    process = BuildProcess(job, accept=accept, stall_s=roster.pool.stall_s)
    loop = asyncio.get_running_loop()
    stops: set[asyncio.Task[None]] = set()

    def stop() -> None:
        stops.add(loop.create_task(process.stop()))

    for one in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(one, stop)
    running = asyncio.create_task(process.run())
    if not live:
        return await running
    with Bars(err) as bars:
        while not running.done():
            await asyncio.wait({running}, timeout=_LOOK_EVERY_S)
            progress = await asyncio.to_thread(job.progress)
            if progress.state is BuildState.RUNNING and progress.step:
                what = f"{progress.step}: {progress.message}" if progress.message else progress.step
                place = f"{progress.steps_done + 1}/{progress.steps} {what}"
                bars.tell(place, progress.fraction or 0.0, 1.0, progress.tokens_per_s)
    return await running


def _as_from_here(job: Job) -> None:
    job.remember("asked_by", "terminal")
    job.reset_attempts()


def show_builds(roster: Roster, out: Console) -> None:
    """A table of the roster's builds."""
    table = Table("specialist", "state", "step", "", box=None, pad_edge=False)
    for specialist in roster.specialists:
        if specialist.build is None:
            continue
        progress = Job.of(roster.models_path, specialist.name).progress()
        there = os.path.isfile(specialist.built_path(roster.models_path))
        state = "released" if there and progress.state is BuildState.ABSENT else str(progress.state)
        table.add_row(specialist.name, state, progress.step, f"{progress.message} {progress.remedy}".strip())
    if not table.row_count:
        out.print(f"{roster.path.name} has no entry with `build:`.", markup=False)
        return
    out.print(table)
