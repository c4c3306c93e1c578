"""A running college: the parts of a server made from a roster, their start and their end, and leases on residents."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from pathlib import Path
from typing import Final

from coe.engine.errors import EngineError, LayoutError, SharingError, UnavailableError
from coe.engine.pool.inbox import Unread
from coe.engine.pool.leases import Lease
from coe.engine.pool.memory import Budget, free_memory
from coe.engine.pool.pool import Pool
from coe.engine.pool.resident import WorkerResident
from coe.engine.pool.spare import SpareWorker
from coe.engine.pool.types import PoolLimits
from coe.router.choose import Candidate, SupervisorSettings
from coe.router.client_tasks import ClientTasks
from coe.router.conversation import ConversationKey
from coe.router.head import HeadError
from coe.router.head_file import SHIPPED
from coe.router.supervisor import Supervisor
from coe.router.thresholds import load_thresholds

from ..roster.models import Roster, Specialist
from .affinity import Affinity
from .availability import Unavailable
from .budget import encoder_of, find_room
from .builds.owner import Builds
from .catalog import Catalog
from .chooser import Chooser
from .embedding import Embeddings
from .fitting import devices_of
from .resolve import Resolved, resolve

_log = logging.getLogger(__name__)

_UNREAD_BYTES: Final = 64 * 1024  # of a streamed choice's text, that may wait for its reader


class College:
    """Owns the parts of a running server.

    catalog: what can be served. chooser: which specialist answers. pool: residents. builds: specialists to come.
    embeddings: what embeds texts. unread: how much text of streams may wait for their clients.
    """

    def __init__(
        self,
        roster: Roster,
        resolved: Resolved,
        pool: Pool,
        spare: SpareWorker,
        supervisor: Supervisor,
        budget_note: str,
    ) -> None:
        self.roster = roster
        self.pool = pool
        self.supervisor = supervisor
        self.budget_note = budget_note
        self.catalog = Catalog(roster, resolved, pool)
        self.builds = Builds(roster, pool, self.catalog.adopt)
        self.chooser = Chooser(roster, self.catalog, pool, supervisor, self.builds)
        self.embeddings = Embeddings(roster, self.catalog, supervisor, self.lease)
        self.unread = Unread(_UNREAD_BYTES, roster.server.max_unread_bytes)
        self._spare = spare
        self._affinity = Affinity()
        self._preloading: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, roster: Roster) -> College:
        """Dry-run what the roster names, and be ready to serve it; models load when they are asked for.

        Raises UnavailableError when nothing of the roster can be served.
        """
        room = await find_room(roster)
        resolved = await resolve(roster, room.residents)
        for fit in resolved.fits:
            if fit.doubt:
                _log.warning("%s: %s", ", ".join(fit.names), fit.doubt)
        entries = resolved.entries()
        if not entries and not any(s.build is not None and s.on_missing == "build" for s in roster.specialists):
            lines = [
                f"  {name}: {item.reason} {item.remedy}"
                for name, item in resolved.availability.items()
                if isinstance(item, Unavailable)
            ]
            raise UnavailableError("Nothing in the roster can be served on this machine:", lines=lines)
        spare = SpareWorker(partial(WorkerResident.spawn, roster.pool.stall_s))
        limits = _pool_limits(roster, room.budget)
        measure = partial(free_memory, devices_of(roster, room.residents)) if limits.budget.cards else None
        pool = Pool(entries, limits, spare.start, free_memory=measure, held=room.held)
        return cls(roster, resolved, pool, spare, supervisor_of(roster), room.budget.note)

    async def start(self) -> None:
        """Load the supervisor, and begin to load what the roster wants loaded beforehand."""
        await self.supervisor.start()
        there = {name for name, item in self.catalog.availability.items() if item.location.path is not None}
        await self.builds.start(there)
        if self.roster.pool.preload:
            self._preloading = asyncio.create_task(self._preload())
        self.catalog.start()

    async def _preload(self) -> None:
        for name in self.roster.pool.preload:
            entry = self.catalog.availability[name].entry
            try:
                (await self.lease(entry, max_wait_s=self.roster.pool.load_timeout_s)).release()
            except EngineError as error:
                _log.error("preload of %s failed: %s", name, error)

    async def close(self) -> None:
        """Stop every worker."""
        await self.builds.close()
        await self.catalog.close()
        if self._preloading is not None:
            self._preloading.cancel()
            await asyncio.gather(self._preloading, return_exceptions=True)
        await self._spare.close()  # first: no load that the pool ends spawns another
        await self.pool.close()
        self.embeddings.close()
        self.supervisor.close()

    async def lease(
        self, specialist: Specialist, key: ConversationKey | None = None, *, max_wait_s: float | None = None
    ) -> Lease:
        """A hold on a resident; see Pool.lease. max_wait_s: the roster's where left out.

        key: the conversation, which goes to the resident that has it in its cache.
        """
        name, wait_s = specialist.name, max_wait_s or self.roster.server.max_wait_s
        resident, read_s = None, 0.0
        if key is not None:
            resident, read_s = self._affinity.find(name, key, self.chooser.prompt_speeds([name])[name])
        try:
            lease = await self.pool.lease(name, max_wait_s=wait_s, read_by=resident, read_s=read_s)
        except (LayoutError, SharingError) as error:
            await self.catalog.unshare(name, error)
            lease = await self.pool.lease(name, max_wait_s=wait_s)
        if key is not None:
            self._affinity.record(name, key, lease.resident, lease.swap_s)
        return lease

    async def unload(self, specialist: Specialist) -> tuple[bool, list[str]]:
        """Give a specialist's memory back, unless a request holds it: whether it was, and whose went with it."""
        name = specialist.name
        shared = self.pool.shared_with(name) if name in self.catalog.available else ()
        unloaded = bool(shared) and await self.pool.unload(name)
        return unloaded, [other for other in shared if other != name]


def supervisor_of(roster: Roster) -> Supervisor:
    """The supervisor that a roster asks for, not started yet.

    Raises RouterError when its thresholds cannot be read, or when there is no head where it says.
    """
    fitted = roster.router.thresholds
    head = head_of(roster)
    if not head.is_file():
        raise HeadError(
            f"there is no head {head}; write it with `coe train-router -o`, or remove `router.head` from the roster"
        )
    settings = SupervisorSettings(
        threshold=roster.router.threshold,
        thresholds=load_thresholds(roster.resolve(fitted)) if fitted is not None else {},
        margin=roster.router.margin,
        residency_weight=roster.router.residency_weight,
        hysteresis=roster.router.hysteresis,
    )
    candidates = [
        Candidate(s.name, s.domains, examples=s.examples, order=order)
        for order, s in enumerate(roster.specialists)
        if not s.embeddings
    ]
    return Supervisor(
        candidates,
        fallback=roster.fallback,
        settings=settings,
        encoder=encoder_of(roster),
        head=head,
        tasks=ClientTasks(roster.router.client_tasks, roster.router.client_task_tokens),
    )


def head_of(roster: Roster) -> Path:
    """The head that a roster asks for: the shipped one where it names none."""
    return SHIPPED if roster.router.head is None else roster.resolve(roster.router.head)


def _pool_limits(roster: Roster, budget: Budget) -> PoolLimits:
    return PoolLimits(
        budget=budget.memory,
        margin_bytes=budget.margin_bytes,
        max_queue=roster.server.max_queue,
        most_shared=roster.pool.most_shared,
        max_bypass_s=roster.pool.max_bypass_s,
        idle_ttl_s=roster.pool.idle_ttl_s,
        quiet_s=roster.pool.quiet_s,
        load_timeout_s=roster.pool.load_timeout_s,
        load_backoff_s=roster.pool.load_backoff_s,
        stall_s=roster.pool.stall_s,
    )
