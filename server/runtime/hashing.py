"""Background content hashing: files get fingerprints while no request is served, so that a swap need not move the bytes
that two specialists have in common."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from coe.engine import child
from coe.engine.errors import ChildError, EngineError
from coe.engine.units import size_text

_log = logging.getLogger(__name__)

_PROCESS: Final = "coe.engine.swap.hashing"
_LOOK_S: Final = 0.1  # between two looks whether requests are being served
_LONGEST_LOOK_S: Final = 1.0  # more time between two looks is this server's own delay
_ATTEMPTS: Final = 2  # a child that died is started again once
_SILENT_S: Final = 600.0  # of time in which it may work; a report comes with every hundredth part of a file


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
    """Owns the child process that hashes files, one at a time. It stands still while requests are served."""

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
        """End, with the child; files that are not hashed yet are hashed another time."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        for number, path in enumerate(self._files):
            self.progress = Hashed(path, n_done=number, failed=self.progress.failed)
            if why := await self._attempt(path):
                _log.warning("%s could not be hashed, and swaps to and from it move everything: %s", path.name, why)
                self.progress = Hashed(n_done=number, failed=(*self.progress.failed, (path, why)))
                continue
            _log.info("%s is hashed: swaps leave what is the same", path.name)
            if self._on_hashed is not None:
                try:
                    await self._on_hashed(path)
                except Exception:  # the other files are hashed all the same
                    _log.exception("what follows on the hashing of %s failed", path.name)
        self.progress = Hashed(n_done=len(self._files), failed=self.progress.failed)

    async def _attempt(self, path: Path) -> str:
        """Hash a file, again where the child died; gives why it failed, "" where it did not."""
        why = ""
        for _ in range(_ATTEMPTS):
            try:
                await self._hash(path)
            except ChildError as error:
                why = f"The process that hashes it {error.how} without an answer."
            except EngineError as error:
                return error.message
            else:
                return ""
        return why

    async def _hash(self, path: Path) -> None:
        job = {"file": str(path)}
        async with child.started(_PROCESS, job, title=f"The process that hashes {path.name}", stall_s=None) as process:
            reported = asyncio.Event()

            def note(progress: dict[str, Any]) -> None:
                self._note(path, int(progress["done"]), int(progress["total"]))
                reported.set()

            watch = asyncio.create_task(self._watch(process, reported))
            try:
                await process.answer(note)
            finally:
                watch.cancel()

    def _note(self, path: Path, done: int, total: int) -> None:
        now = self.progress
        self.progress = Hashed(path, done, total, now.n_done, now.failed)
        if done == 0:
            _log.info("hashing %s (%s) while no request is served", path.name, size_text(total))
        else:
            _log.info("hashing %s: %d %%", path.name, 100 * done // max(total, 1))

    async def _watch(self, process: child.Child, reported: asyncio.Event) -> None:
        """Have the child stand still whenever requests are served, and end it where it hangs.

        reported: set at each of its reports. Not before the first is it stopped: from then on it ends with this
        process, even while it stands still.
        """
        try:
            async with asyncio.timeout(_SILENT_S):
                await reported.wait()
            await self._give_way(process, reported)
        except TimeoutError:
            _log.warning("the process that hashes gave no sign for %.0f s, and is killed", _SILENT_S)
            await process.kill()

    async def _give_way(self, process: child.Child, reported: asyncio.Event) -> None:
        """Raises TimeoutError when it has not reported for _SILENT_S in which it was let work."""
        now = asyncio.get_running_loop().time
        stands, worked_s, before = False, 0.0, now()
        while worked_s <= _SILENT_S:
            if self._busy() != stands:
                stands = not stands
                process.send_signal(signal.SIGSTOP if stands else signal.SIGCONT)
            await self._pause()
            passed_s, before = now() - before, now()
            if reported.is_set():
                reported.clear()
                worked_s = 0.0
            elif not stands:
                worked_s += min(passed_s, _LONGEST_LOOK_S)
        raise TimeoutError
