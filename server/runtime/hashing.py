"""Contents of files hashed while nobody is served, so that swaps need not move what two specialists have in common."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from coe.engine.units import size_text

_log = logging.getLogger(__name__)

_COMMAND: Final = (sys.executable, "-m", "coe.engine.swap.hashing")
_LOOK_S: Final = 0.1  # how often it is asked whether requests are being served
_ATTEMPTS: Final = 2  # a process that died is started again once


@dataclass(frozen=True)
class Hashed:
    """How far the work is: the file at hand with what is done of it, how many are through, and what failed."""

    file: Path | None = None
    done_bytes: int = 0
    total_bytes: int = 0
    n_done: int = 0
    failed: tuple[tuple[Path, str], ...] = ()


async def _pause() -> None:
    await asyncio.sleep(_LOOK_S)


class Hashing:
    """Owns the process that hashes files, one at a time. It stands still while requests are served."""

    def __init__(
        self,
        files: Sequence[Path],
        busy: Callable[[], bool],
        *,
        on_hashed: Callable[[Path], Awaitable[None]] | None = None,
        pause: Callable[[], Awaitable[None]] = _pause,
    ) -> None:
        """busy: whether requests are being served. on_hashed: called after each file that is known now.

        pause: waited for between two looks at `busy`.
        """
        self._files = tuple(dict.fromkeys(files))
        self._busy = busy
        self._on_hashed = on_hashed
        self._pause = pause
        self._task: asyncio.Task[None] | None = None
        self.progress = Hashed()

    def start(self) -> None:
        """Begin; does nothing where there are no files."""
        if self._files and self._task is None:
            self._task = asyncio.create_task(self._run())

    async def wait(self) -> None:
        """Returns when all files are hashed or have failed."""
        if self._task is not None:
            await self._task

    async def close(self) -> None:
        """End, with the process; what is not hashed yet is hashed another time."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        for number, path in enumerate(self._files):
            self.progress = Hashed(path, n_done=number, failed=self.progress.failed)
            why = ""
            for _ in range(_ATTEMPTS):
                answer = await self._hash(path)
                if answer is not None:
                    why = str(answer.get("error", ""))
                    break
                why = "The process that hashes it ended without an answer."
            if why:
                _log.warning("%s could not be hashed, and swaps to and from it move everything: %s", path.name, why)
                self.progress = Hashed(n_done=number, failed=(*self.progress.failed, (path, why)))
                continue
            _log.info("%s is hashed: swaps leave what is the same", path.name)
            if self._on_hashed is not None:
                try:
                    await self._on_hashed(path)
                except Exception:  # whoever is told may fail; the other files are hashed all the same
                    _log.exception("what follows on the hashing of %s failed", path.name)
        self.progress = Hashed(n_done=len(self._files), failed=self.progress.failed)

    async def _hash(self, path: Path) -> dict[str, Any] | None:
        """The last line of a process of its own, None when it died before."""
        process = await asyncio.create_subprocess_exec(
            *_COMMAND,
            str(os.getpid()),
            str(path),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is the server's to answer
        )
        watch: asyncio.Task[None] | None = None
        try:
            assert process.stdout is not None
            async for text in process.stdout:
                line: dict[str, Any] = json.loads(text)
                if "total" not in line:
                    return line
                self._note(path, int(line["done"]), int(line["total"]))
                # Not before it has spoken: from then on it ends with this process, even while it stands still.
                watch = watch or asyncio.create_task(self._give_way(process))
            return None
        finally:
            if watch is not None:
                watch.cancel()
            with contextlib.suppress(ProcessLookupError):
                process.kill()  # it has said all, or is not wanted any more; one that stands still is killed too
            await process.wait()

    def _note(self, path: Path, done: int, total: int) -> None:
        now = self.progress
        self.progress = Hashed(path, done, total, now.n_done, now.failed)
        if done == 0:
            _log.info("hashing %s (%s) while nobody is served", path.name, size_text(total))
        else:
            _log.info("hashing %s: %d %%", path.name, 100 * done // max(total, 1))

    async def _give_way(self, process: asyncio.subprocess.Process) -> None:
        """Have the process stand still whenever requests are served."""
        stands = False
        while process.returncode is None:
            if self._busy() != stands:
                stands = not stands
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGSTOP if stands else signal.SIGCONT)
            await self._pause()
