"""A warm spare worker process: a load then takes what loading the model takes, without the start of a process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from ..errors import WorkerDiedError
from ..spec import LoadSpec, Thinking
from .resident import Resident, WorkerResident

_log = logging.getLogger(__name__)

_FRESH_S = 5.0  # a spare without a heartbeat for so long is not handed out: it was stopped, or is about to be killed


class SpareWorker:
    """Starts residents in worker processes, of which the next has loaded its libraries already.

    That saves a third of a second a load, for 55 MB of host memory. It belongs to one event loop.
    """

    def __init__(self, spawn: Callable[[], Awaitable[WorkerResident]] = WorkerResident.spawn) -> None:
        self._spawn = spawn
        self._spare: WorkerResident | None = None
        self._filling: asyncio.Task[None] | None = None
        self._closed = False

    async def start(
        self, spec: LoadSpec, policies: Mapping[str, Thinking], on_progress: Callable[[float], None]
    ) -> Resident:
        """See WorkerResident.start. The next spare is spawned when the load has ended, so as not to slow it."""
        spare, self._spare = self._spare, None
        if spare is not None and spare.silent_s() > _FRESH_S:
            _log.warning("the spare worker gives no sign of life: another is started")
            spare.kill()
            spare = None
        try:
            if spare is not None and (resident := await self._load_in(spare, spec, policies, on_progress)) is not None:
                return resident
            resident = await self._spawn()
            await resident.load(spec, policies, on_progress)
        finally:
            self._fill()
        return resident

    async def _load_in(
        self,
        spare: WorkerResident,
        spec: LoadSpec,
        policies: Mapping[str, Thinking],
        on_progress: Callable[[float], None],
    ) -> WorkerResident | None:
        """The spare with the model; None where it ended as it waited: killed for want of memory, or for it hung."""
        begun = False

        def report(fraction: float) -> None:
            nonlocal begun
            begun = True
            on_progress(fraction)

        try:
            await spare.load(spec, policies, report)
        except WorkerDiedError as error:
            if begun:
                raise
            _log.warning("another worker is started in place of the spare one: %s", error.message)
            return None
        return spare

    def _fill(self) -> None:
        if not self._closed and self._spare is None and (self._filling is None or self._filling.done()):
            self._filling = asyncio.create_task(self._fill_now())

    async def _fill_now(self) -> None:
        try:
            self._spare = await self._spawn()
        except OSError as error:  # out of processes or memory: the next load spawns its own, and says why if it cannot
            _log.warning("no spare worker could be started: %s", error)

    async def close(self) -> None:
        """End the spare. Residents that it started go on."""
        self._closed = True
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.gather(self._filling, return_exceptions=True)
        if self._spare is not None:
            await self._spare.stop()
            self._spare = None
