"""What can be served now: the resolved roster, kept up with changed files, finished builds and failed sharing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Container, Coroutine, Mapping
from typing import Final

from coe.engine.errors import EngineError, SourceChangedError
from coe.engine.pool.pool import Pool
from coe.engine.spec import ModelFacts

from ..roster.models import Roster
from .availability import Hindrance, Servable, Unavailable, locate
from .hashing import Hashing
from .resolve import Resolved, resolve

_log = logging.getLogger(__name__)
_TRY_AGAIN_S: Final = 30.0  # between dry runs of what the GPU had no room to try


class Catalog:
    """Owns the resolved roster. Whenever it is resolved anew, the pool is told what it serves from now on."""

    def __init__(
        self,
        roster: Roster,
        resolved: Resolved,
        pool: Pool,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """resolved: just now. clock: seconds. sleep: for so many of them."""
        self._roster = roster
        self._resolved = resolved
        self._pool = pool
        self._unshared: set[str] = set()  # specialists that turned out unable to share a resident
        self._resolving = asyncio.Lock()
        self._clock = clock
        self._sleep = sleep
        self._resolved_s = clock()
        self._background: set[asyncio.Task[None]] = set()

    @property
    def availability(self) -> Mapping[str, Servable | Unavailable]:
        """What can be served here, and why the rest cannot, by name, in the roster's order."""
        return self._resolved.availability

    @property
    def facts(self) -> Mapping[str, ModelFacts]:
        """What the files of those that can be loaded say of themselves, by name."""
        return self._resolved.facts

    def stamps(self, name: str) -> tuple[str, ...]:
        """Of a specialist's files: others when one came, went or changed."""
        return self._resolved.stamps.get(name, ())

    @property
    def available(self) -> list[str]:
        """Names of the specialists that can be served, in the roster's order."""
        return [name for name, item in self.availability.items() if isinstance(item, Servable)]

    def answering(self, *, chats: bool, infill: bool = False) -> list[str]:
        """Those of them that answer chats, or plain completions, which all do but models made for embeddings.

        infill: those alone that can fill the middle, or of which it is not known. Where none can, all: one says so.
        """
        items = [item for item in self.availability.values() if isinstance(item, Servable)]
        answering = [item for item in items if not item.entry.embeddings and not (chats and item.chat_fault)]
        filling = [item for item in answering if item.infill is not False] if infill else []
        return [item.entry.name for item in filling or answering]

    @property
    def doubts(self) -> list[str]:
        """What an operator has to know of what can be served, a line each."""
        return [
            f"{name}: {doubt}"
            for name, item in self.availability.items()
            if isinstance(item, Servable)
            for doubt in item.doubts
        ]

    @property
    def warm(self) -> list[str]:
        """Names of those that would be served without a load or a swap."""
        return [name for name in self.available if self._pool.is_warm(name)]

    def start(self) -> None:
        """Log what is in doubt; begin to hash, while no request is served, files of which no mask tells what they have
        in common; and try again now and then what the GPU had no room to try."""
        for doubt in self.doubts:
            _log.warning("%s", doubt)
        if self._resolved.unhashed:
            self._in_background(self._hash())
        if self._untried:
            self._in_background(self._try_again())

    async def close(self) -> None:
        """End what runs in the background."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _hash(self) -> None:
        hashing = Hashing(self._resolved.unhashed, self._pool.is_busy)
        hashing.start()
        try:
            await hashing.wait()
        finally:
            await hashing.close()
        await self._resolve_quietly()  # residents know by themselves; distances between specialists are new

    @property
    def _untried(self) -> list[str]:
        items = self.availability.items()
        return [name for name, it in items if isinstance(it, Unavailable) and it.hindrance is Hindrance.UNTRIED]

    async def _try_again(self) -> None:
        while untried := self._untried:
            await self._sleep(_TRY_AGAIN_S)
            try:
                await self.recheck(untried[0], being_built=())
            except Exception:
                _log.exception("%s could not be tried again", untried[0])

    async def _resolve(self) -> None:
        """Look at the files anew. A specialist that is loaded in another way from now on gets another resident."""
        known, before = self.doubts, self._resolved.tried
        self._resolved = await resolve(self._roster, self._pool.room, unshared=self._unshared, before=before)
        self._resolved_s = self._clock()
        self._pool.serve(self._resolved.entries())
        for doubt in self.doubts:
            if doubt not in known:
                _log.warning("%s", doubt)

    async def _resolve_quietly(self) -> None:
        """The same in the background, where no caller would hear of a failure."""
        async with self._resolving:
            try:
                await self._resolve()
            except Exception:
                _log.exception("the models' files could not be read again; what is served stays as it is")

    async def recheck(self, name: str, *, being_built: Container[object]) -> None:
        """Re-check an unavailable specialist when its files changed, or when the GPU had no room to try it a while ago;
        one that is to be built comes by `adopt`."""
        if not isinstance(self.availability.get(name), Unavailable) or name in being_built:
            return
        async with self._resolving:
            item = self.availability[name]
            (found,) = await asyncio.to_thread(locate, self._roster, [name])
            if not isinstance(item, Unavailable):
                return
            if found.stamps != self._resolved.stamps[name]:
                _log.info("the files of %s changed: reading them", name)
            elif item.hindrance is Hindrance.UNTRIED and self._clock() >= self._resolved_s + _TRY_AGAIN_S:
                _log.info("the GPU had no room to try %s: trying again", name)
            else:
                return
            await self._resolve()

    async def adopt(self, name: str) -> bool:
        """Serve what was just built, or built anew. False while its old file is in use: to be tried again."""
        before = self.availability[name]
        in_use = isinstance(before, Servable) and before.spec.sharing is None and self._pool.is_resident(name)
        if in_use and not await self._pool.unload(name):
            return False
        async with self._resolving:
            await self._resolve()
        item = self.availability[name]
        if isinstance(item, Unavailable):
            _log.error("%s was built and cannot be served: %s %s", name, item.reason, item.remedy)
        else:
            _log.info("%s can be served now", name)
        return True

    async def unshare(self, name: str, error: EngineError) -> None:
        """A group cannot share a resident on this machine after all: each member is loaded by itself from now on."""
        async with self._resolving:
            groups = ([member.name for member in group.members] for group in self._resolved.groups)
            names = next((names for names in groups if name in names), None)
            if names is None:  # another request had the same error, and this is done
                return
            _log.warning("%s cannot share a resident, and are loaded by themselves: %s", ", ".join(names), error)
            self._unshared.update(names)
            await self._resolve()

    def files_changed(self, error: SourceChangedError) -> None:
        """A model's file was changed while it was in use: read the files again."""
        _log.warning("%s The models' files are read again.", error.message)
        self._in_background(self._resolve_quietly())
