"""Progress of long commands in a terminal: a bar a stage, with tokens a second where there are any."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from coe.surgery.judge import generation
    from coe.surgery.profile import run as profiling


class Bars:
    """Bars on a console, while the block lasts. Its methods are the progress callbacks that surgery's steps take."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, tuple[float, int]] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def tell(self, stage: str, done: float, total: float, per_second: float | None = None) -> None:
        """How much of a stage is done; a new stage has a new bar."""
        task = self._tasks.get(stage)
        if task is None:
            task = self._tasks[stage] = self._progress.add_task(stage, total=total, rate="")
        rate = f"{per_second:,.0f} tokens/s" if per_second else ""
        self._progress.update(task, completed=done, total=total, rate=rate)

    def staged(self, stage: str, done: int, total: int) -> None:
        """Of cutting and verifying."""
        self.tell(stage, done, total)

    def profiling(self, progress: profiling.ProfileProgress) -> None:
        """Of profiling."""
        tokens = progress.stage == "profile"
        self.tell(progress.stage, progress.done, progress.total, progress.per_second if tokens else None)

    def generating(self, progress: generation.GenerationProgress) -> None:
        """Of answering; tokens a second since a model's first answer of this run."""
        rate = None
        if progress.step == "generate":
            began, tokens = self._began.setdefault(progress.model, (time.monotonic(), progress.tokens))
            rate = (progress.tokens - tokens) / max(time.monotonic() - began, 1e-9)
        self.tell(f"{progress.step} {progress.model}", progress.done, progress.total, rate)

    def hashing(self, paths: Sequence[Path]) -> Callable[[int], None]:
        """Of reading files whole: called with the bytes of each piece."""
        total, done = sum(path.stat().st_size for path in paths), 0

        def more(n_bytes: int) -> None:
            nonlocal done
            done += n_bytes
            self.tell("hash", done, total)

        return more
