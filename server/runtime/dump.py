"""A dump of the running server's state, for a person with a hanging server: `kill -USR1`. No text of a request."""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator

from .college import College
from .metrics import Running

MOST_REQUESTS = 200
MOST_FRAMES = 6  # of a task's stack, the innermost


def state_lines(college: College, running: Running) -> Iterator[str]:
    """Pool, residents, who waits, requests in flight with their ages, stacks of threads and tasks.

    To be called in the event loop's thread. Tasks that stand at the same place share one line, with their number.
    """
    status, now = college.pool.status(), time.perf_counter()
    yield (
        f"pool: {status.booked} of {status.budget} booked, {len(status.waiting)} wait, "
        f"{status.loads} loads, {status.failed_loads} failed, {status.evictions} evictions, "
        f"deaths {status.deaths or 'none'}"
    )
    yield from (f"stalled: {line}" for line in status.stalled)
    yield from college.pool.describe()
    requests = sorted(running.requests.values(), key=lambda request: request.since)
    yield f"{len(requests)} requests in flight, {running.connections()} connections"
    for request in requests[:MOST_REQUESTS]:
        age_s = now - request.since
        what = f"model {request.model}, by {request.specialist}"
        yield f"request [{request.id}] {request.route}, {age_s:.1f} s old: {what}"
    stacks = Counter(_task_stack(task) for task in asyncio.all_tasks())
    for stack, count in stacks.most_common():
        yield f"{count} tasks at {stack}"
    for thread, frame in sys._current_frames().items():
        yield f"thread {thread} at {_places(traceback.extract_stack(frame)[-MOST_FRAMES:])}"


def _task_stack(task: asyncio.Task[object]) -> str:
    """Where a task waits, outermost first, through the coroutines that it awaits."""
    places: list[str] = []
    work: object = task.get_coro()
    while work is not None and len(places) < 3 * MOST_FRAMES:
        frame = getattr(work, "cr_frame", None) or getattr(work, "ag_frame", None) or getattr(work, "gi_frame", None)
        if frame is not None:
            places.append(f"{_short(frame.f_code.co_filename)}:{frame.f_lineno} {frame.f_code.co_name}")
        work = getattr(work, "cr_await", None) or getattr(work, "ag_await", None) or getattr(work, "gi_yieldfrom", None)
    return " > ".join(places) or "its end"


def _places(frames: traceback.StackSummary | list[traceback.FrameSummary]) -> str:
    return " > ".join(f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in frames)


def _short(path: str) -> str:
    return "/".join(path.split("/")[-2:])
