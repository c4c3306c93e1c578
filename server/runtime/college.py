"""A running college: the roster made real. Who can be served, who is asked, who answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import perf_counter

from coe.engine.errors import EngineError, LayoutError, SharingError, SourceChangedError, UnavailableError
from coe.engine.pool.leases import Lease
from coe.engine.pool.memory import budget_bytes, free_device_bytes
from coe.engine.pool.pool import Pool
from coe.engine.pool.spare import SpareWorker
from coe.engine.pool.types import PoolLimits
from coe.router.choose import Candidate, Decision, first_token_s
from coe.router.choose import Settings as SupervisorSettings
from coe.router.conversation import Conversation
from coe.router.head import SHIPPED, HeadError
from coe.router.supervisor import Supervisor
from coe.router.thresholds import load_thresholds

from ..api.openai.requests import Ask
from ..roster.load import Roster
from ..roster.models import AUTO, Specialist
from .affinity import Homes, Thread, messages_of
from .availability import Available, Unavailable
from .builds import Builds
from .errors import BuildingError, UnknownModelError
from .hashing import Hashing
from .resolve import Arrangement, arrange, file_stamps

_log = logging.getLogger(__name__)
_ASSUMED_PROMPT_TOKENS_PER_S = 1000.0  # before any prompt was read
_UNTIL_BUILT_S = 600.0  # of one that is still to be built: longer than any load


@dataclass(frozen=True)
class Choice:
    """The specialist that a request goes to, and why."""

    specialist: Specialist
    confidence: float
    reason: str
    decision: Decision | None = None  # None when the request named its specialist
    decided_in_ms: float = 0.0
    build: str | None = None  # how far the build of the one is that this one stands in for
    thread: Thread | None = None  # the conversation, where somebody looked at it


class College:
    """Roster, supervisor and pool, and what of the roster this machine can serve."""

    def __init__(
        self,
        roster: Roster,
        arrangement: Arrangement,
        pool: Pool,
        spare: SpareWorker,
        supervisor: Supervisor,
        budget_note: str,
    ) -> None:
        self.roster = roster
        self.arrangement = arrangement
        self.pool = pool
        self._spare = spare
        self.supervisor = supervisor
        self.budget_note = budget_note
        self.builds = Builds(roster, pool, self.adopt)
        self._tasks: list[asyncio.Task[None]] = []
        self._homes = Homes()
        self._apart: set[str] = set()  # who cannot share after all
        self._arranging = asyncio.Lock()

    @classmethod
    async def open(cls, roster: Roster) -> College:
        """Dry-run what the roster names, and be ready to serve it; models load when they are asked for.

        Raises UnavailableError when nothing of the roster can be served.
        """
        asked = roster.pool.vram_budget
        budget, note = await budget_bytes(None if asked == "auto" else asked, roster.pool.vram_margin)
        arrangement = await arrange(roster, budget)
        entries = arrangement.entries(roster)
        if not entries and not any(s.build is not None and s.on_missing == "build" for s in roster.specialists):
            lines = [
                f"  {name}: {item.reason} {item.remedy}"
                for name, item in arrangement.judged.items()
                if isinstance(item, Unavailable)
            ]
            raise UnavailableError("Nothing in the roster can be served on this machine:\n" + "\n".join(lines))
        spare = SpareWorker()
        pool = Pool(entries, _pool_limits(roster, budget), spare.start, free_bytes=free_device_bytes)
        return cls(roster, arrangement, pool, spare, supervisor_of(roster), note)

    async def start(self) -> None:
        """Load the supervisor, and begin to load what the roster wants loaded beforehand."""
        await self.supervisor.start()
        await self.builds.start({name for name, item in self.judged.items() if item.location.path is not None})
        if self.roster.pool.preload:
            self._tasks.append(asyncio.create_task(self._preload()))
        self._tasks.append(asyncio.create_task(self._hash()))

    async def _preload(self) -> None:
        for name in self.roster.pool.preload:
            try:
                (await self.lease(_specialist(self.roster, name), max_wait_s=self.roster.pool.load_timeout_s)).release()
            except EngineError as error:
                _log.error("preload of %s failed: %s", name, error)

    async def _hash(self) -> None:
        """Find out what files have in common that no mask tells it of, while nobody is served."""
        if not self.arrangement.unhashed:
            return
        hashing = Hashing(self.arrangement.unhashed, self.pool.is_busy)
        hashing.start()
        try:
            await hashing.wait()
        finally:
            await hashing.close()
        await self._look_again()  # residents know by themselves; who is near whom is judged anew

    async def close(self) -> None:
        """Stop every worker."""
        await self.builds.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._spare.close()  # first: no load that the pool ends spawns another
        await self.pool.close()
        self.supervisor.close()

    # --- who is served, and how ---------------------------------------------------------------------------------

    @property
    def judged(self) -> Mapping[str, Available | Unavailable]:
        """What can be served here, by name, in the roster's order."""
        return self.arrangement.judged

    async def _arrange_again(self) -> None:
        """Look at the files anew. Who is loaded in another way from now on gets another resident."""
        budget = self.pool.limits.budget_bytes
        self.arrangement = await arrange(self.roster, budget, apart=self._apart)
        self.pool.serve(self.arrangement.entries(self.roster))

    async def _look_again(self) -> None:
        """The same in the background, where nobody would hear of a failure."""
        async with self._arranging:
            try:
                await self._arrange_again()
            except Exception:
                _log.exception("the models' files could not be read again; what is served stays as it is")

    async def _look_for(self, name: str) -> None:
        """Who could not be served is looked for again once its files are others than before."""
        item = self.judged.get(name)
        if not isinstance(item, Unavailable) or name in self.builds:
            return
        async with self._arranging:
            found = await asyncio.to_thread(file_stamps, self.roster, name)
            if isinstance(self.judged[name], Unavailable) and found != self.arrangement.stamps[name]:
                _log.info("the files of %s are others than before: reading them", name)
                await self._arrange_again()

    async def adopt(self, name: str) -> bool:
        """Serve what was just built, or built anew. False while its old file is in use: to be tried again."""
        before = self.judged[name]
        in_use = isinstance(before, Available) and before.spec.sharing is None and self.pool.is_resident(name)
        if in_use and not await self.pool.unload(name):
            return False
        async with self._arranging:
            await self._arrange_again()
        item = self.judged[name]
        if isinstance(item, Unavailable):
            _log.error("%s was built and cannot be served: %s %s", name, item.reason, item.remedy)
        else:
            _log.info("%s can be served now", name)
        return True

    async def _load_apart(self, name: str, error: EngineError) -> None:
        """A group cannot share a resident on this machine after all: each of it is loaded by itself from now on."""
        async with self._arranging:
            group = next((g for g in self.arrangement.groups if name in [member.name for member in g.members]), None)
            if group is None:  # somebody else had the same error, and this is done
                return
            names = [member.name for member in group.members]
            _log.warning("%s cannot share a resident, and are loaded apart: %s", ", ".join(names), error)
            self._apart.update(names)
            await self._arrange_again()

    def files_changed(self, error: SourceChangedError) -> None:
        """Somebody changed a model's file while it was in use: read the files again."""
        _log.warning("%s The models' files are read again.", error.message)
        self._tasks = [task for task in self._tasks if not task.done()] + [asyncio.create_task(self._look_again())]

    # --- choosing ---------------------------------------------------------------------------------------------

    @property
    def available(self) -> list[str]:
        """Names of the specialists that can be served, in the roster's order."""
        return [name for name, item in self.judged.items() if _ok(item)]

    @property
    def warm(self) -> list[str]:
        """Names of those that would be served without a load."""
        return [name for name in self.available if self.pool.is_warm(name)]

    async def choose(self, ask: Ask, session_id: str | None, *, begin: bool = True) -> Choice:
        """Who answers: the one that the request names, or the supervisor's choice.

        Who can be built on demand may be chosen as well: then another answers meanwhile, and the build begins.
        begin: False to ask who would answer, without beginning a build.
        Raises UnknownModelError; UnavailableError or BuildingError when nobody can answer.
        """
        if ask.model != AUTO:
            if (named := self.roster.find(ask.model)) is not None:
                await self._look_for(named.name)
            choice = self._named(ask.model, begin=begin)
            if len(self.pool.shared_with(choice.specialist.name)) == 1:
                return choice
            return replace(choice, thread=Thread.of(await _read(ask)))
        started = perf_counter()
        conversation = await _read(ask)

        async def decide(names: list[str]) -> Decision:
            return await self.supervisor.decide(
                conversation,
                session_id=session_id,
                warm=self.warm,
                available=names,
                costs=self._costs(conversation, session_id, names),
            )

        available = self.available
        buildable = [name for name in self.roster.names if name in available or self._may_build(name)]
        if not buildable:
            raise UnavailableError("Nothing in the roster can be served yet.", "See GET /v1/models for the reasons.")
        decision = await decide(buildable)
        build = None
        if decision.specialist not in available:
            wanted = self._required(decision.specialist)
            build = (self.builds.ask(wanted.name) if begin else self.builds.progress(wanted.name)).line()
            stand_in = self.stand_in(wanted.name)
            if stand_in is None and not available:
                raise self._building(wanted)
            if stand_in is not None:
                reason = f"{decision.reason}; {stand_in.name} stands in"
                decision = replace(decision, specialist=stand_in.name, reason=reason)
            else:
                decision = await decide(available)
        spent_ms = (perf_counter() - started) * 1000
        specialist = self._required(decision.specialist)
        thread = Thread.of(conversation)
        return Choice(specialist, decision.confidence, decision.reason, decision, spent_ms, build, thread)

    def _costs(self, conversation: Conversation, session_id: str | None, names: list[str]) -> dict[str, float]:
        """Seconds until the first token of each, as far as they can be told beforehand."""
        available = self.available
        current = self.supervisor.current(conversation, session_id)
        return first_token_s(
            {name: self.pool.ready_in_s(name) if name in available else _UNTIL_BUILT_S for name in names},
            cached_by=current if current in available and self.pool.is_resident(current) else None,
            n_chars=conversation.n_chars,
            n_new_chars=conversation.n_new_chars,
            tokens_per_s=self._prompt_speeds(names),
        )

    def _prompt_speeds(self, names: Sequence[str]) -> dict[str, float]:
        """Tokens a second of each: what the roster says, else what was measured."""
        told = self.roster.router.prompt_tokens_per_s
        if told != "auto":
            return dict.fromkeys(names, told)
        return prompt_speeds(names, {name: self.pool.prompt_tokens_per_s(name) for name in self.available})

    def _may_build(self, name: str) -> bool:
        return self._required(name).on_missing == "build" and self.builds.can_come(name)

    def _named(self, model: str, *, begin: bool) -> Choice:
        specialist = self.roster.find(model)
        if specialist is None:
            known = ", ".join([AUTO, *self.roster.names])
            raise UnknownModelError(f"There is no model {model!r}. Known: {known}.", param="model")
        name = specialist.name
        item = self.judged[name]
        if not isinstance(item, Unavailable):
            return Choice(specialist, 1.0, "named in the request")
        to_build = self.builds.is_missing(name)
        if to_build and begin and specialist.on_missing == "build":
            self.builds.ask(name)
        build = self.builds.progress(name).line() if to_build else None
        stand_in = self.stand_in(name) if specialist.on_missing != "refuse" else None
        if stand_in is None:
            if to_build:
                raise self._building(specialist)
            raise UnavailableError(f"{name} cannot be served: {item.reason}", item.remedy)
        why = f"{name} is not built yet ({build})" if to_build else f"{name} is unavailable"
        return Choice(stand_in, 1.0, f"{why}, {stand_in.name} stands in", build=build)

    def _building(self, specialist: Specialist) -> BuildingError:
        """What somebody is told who asked for a specialist that is not there yet."""
        progress = self.builds.progress(specialist.name)
        told = f"{progress.message} {progress.remedy}".strip()
        said = f"{specialist.name} is not built yet ({progress.line()}). {told}".strip()
        if not progress.state.unfinished:
            said += f" To build it: coe build {specialist.name}, or POST /v1/builds/{specialist.name}."
        return BuildingError(said, progress.line(), retry=progress.state.unfinished)

    def stand_in(self, name: str) -> Specialist | None:
        """Who answers in another's place: the fallback, else whoever is warm, else whoever can be served."""
        order = [self.roster.fallback, *self.warm, *self.available] if self.roster.fallback_warm else []
        order = order or [self.roster.fallback]
        found = next((other for other in order if other and other != name and other in self.available), None)
        return _specialist(self.roster, found) if found else None

    def fallback_for(self, name: str) -> Specialist | None:
        """The roster's fallback, when it can be served and is another one."""
        fallback = self.roster.fallback
        if fallback is None or fallback == name or fallback not in self.available:
            return None
        return _specialist(self.roster, fallback)

    def _required(self, name: str) -> Specialist:
        return _specialist(self.roster, name)

    async def lease(
        self, specialist: Specialist, thread: Thread | None = None, *, max_wait_s: float | None = None
    ) -> Lease:
        """A hold on a resident; see Pool.lease. max_wait_s: the roster's where left out.

        thread: the conversation, which goes to the resident that has it in its cache.
        """
        name, wait_s = specialist.name, max_wait_s or self.roster.server.max_wait_s
        home, read_s = None, 0.0
        if thread is not None:
            home, read_s = self._homes.find(name, thread, self._prompt_speeds([name])[name])
        try:
            lease = await self.pool.lease(name, max_wait_s=wait_s, read_by=home, read_s=read_s)
        except (LayoutError, SharingError) as error:
            await self._load_apart(name, error)
            lease = await self.pool.lease(name, max_wait_s=wait_s)
        if thread is not None:
            self._homes.note(name, thread, lease.resident, lease.swap_s)
        return lease


def prompt_speeds(names: Sequence[str], measured: Mapping[str, float | None]) -> dict[str, float]:
    """Tokens a second at which prompts for each are read. measured: None of those that have read none.

    Those are taken to be as fast as the others on this machine: beside measured ones a figure of ours would make them
    look better than all that were asked, or worse.
    """
    known = {name: speed for name, speed in measured.items() if speed}
    usual = median(known.values()) if known else _ASSUMED_PROMPT_TOKENS_PER_S
    return {name: known.get(name, usual) for name in names}


async def _read(ask: Ask) -> Conversation:
    """Megabytes of history take a while to read: not in the event loop."""
    return await asyncio.to_thread(Conversation.from_messages, messages_of(ask))


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
        Candidate(s.name, s.domains, examples=s.examples, order=order) for order, s in enumerate(roster.specialists)
    ]
    return Supervisor(candidates, fallback=roster.fallback, settings=settings, encoder=encoder_of(roster), head=head)


def encoder_of(roster: Roster) -> str:
    """The sentence encoder that a roster asks for: "auto", "none", or an absolute folder."""
    encoder = roster.router.encoder
    return encoder if encoder in ("auto", "none") else str(roster.resolve(encoder))


def head_of(roster: Roster) -> Path:
    """The head that a roster asks for: the shipped one where it names none."""
    return SHIPPED if roster.router.head is None else roster.resolve(roster.router.head)


def _ok(item: Available | Unavailable) -> bool:
    return isinstance(item, Available)


def _specialist(roster: Roster, name: str) -> Specialist:
    found = roster.find(name)
    assert found is not None, name
    return found


def _pool_limits(roster: Roster, budget: int) -> PoolLimits:
    return PoolLimits(
        budget_bytes=budget,
        max_queue=roster.server.max_queue,
        most_shared=roster.pool.most_shared,
        max_bypass_s=roster.pool.max_bypass_s,
        idle_ttl_s=roster.pool.idle_ttl_s,
        quiet_s=roster.pool.quiet_s,
        load_timeout_s=roster.pool.load_timeout_s,
        load_backoff_s=roster.pool.load_backoff_s,
        stall_s=roster.pool.stall_s,
    )
