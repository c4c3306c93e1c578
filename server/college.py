"""A running college: the roster made real. Who can be served, who is asked, who answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from time import perf_counter

from coe.engine.errors import EngineError, UnavailableError
from coe.engine.memory import Prediction, budget_bytes, free_device_bytes, predict
from coe.engine.pool import Entry, Lease, Pool
from coe.engine.pool import PoolSettings as EnginePoolSettings
from coe.engine.resident import WorkerResident
from coe.engine.spec import Footprint, LoadSpec, Thinking
from coe.router.conversation import Conversation
from coe.router.supervisor import Candidate, Decision, Supervisor
from coe.router.supervisor import Settings as SupervisorSettings

from .builds import Builds
from .check import Available, Unavailable, availability
from .errors import BuildingError, UnknownModelError
from .masked import cut_masked
from .roster import Roster
from .roster_models import AUTO, Specialist
from .wire import Ask

_log = logging.getLogger(__name__)
_DRY_RUNS_AT_ONCE = 2


@dataclass(frozen=True)
class Choice:
    """The specialist that a request goes to, and why."""

    specialist: Specialist
    confidence: float
    reason: str
    decision: Decision | None = None  # None when the request named its specialist
    decided_in_ms: float = 0.0
    build: str | None = None  # how far the build of the one is that this one stands in for


class College:
    """Roster, supervisor and pool, and what of the roster this machine can serve."""

    def __init__(
        self,
        roster: Roster,
        judged: Mapping[str, Available | Unavailable],
        pool: Pool,
        supervisor: Supervisor,
        budget_note: str,
    ) -> None:
        self.roster = roster
        self.judged = dict(judged)
        self.pool = pool
        self.supervisor = supervisor
        self.budget_note = budget_note
        self.builds = Builds(roster, pool, self.adopt)
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def open(cls, roster: Roster) -> College:
        """Dry-run what the roster names, and be ready to serve it; models load when they are asked for.

        Raises UnavailableError when nothing of the roster can be served.
        """
        asked = roster.pool.vram_budget
        budget, note = await budget_bytes(None if asked == "auto" else asked, roster.pool.vram_margin)
        lacking = await cut_masked(roster)
        predictions = await predict_all(roster)
        judged = availability(roster, predictions.__getitem__, budget, predictions.refused)
        judged |= {name: Unavailable(*lack, judged[name].location) for name, lack in lacking.items()}
        entries = {name: entry for name, item in judged.items() if (entry := _entry(roster, name, item)) is not None}
        if not entries and not any(s.build is not None and s.on_missing == "build" for s in roster.specialists):
            lines = [
                f"  {name}: {item.reason} {item.remedy}"
                for name, item in judged.items()
                if isinstance(item, Unavailable)
            ]
            raise UnavailableError("Nothing in the roster can be served on this machine:\n" + "\n".join(lines))
        pool = Pool(entries, _pool_settings(roster, budget), WorkerResident.start, free_bytes=free_device_bytes)
        return cls(roster, judged, pool, supervisor_of(roster), note)

    async def start(self) -> None:
        """Load the supervisor, and begin to load what the roster wants loaded beforehand."""
        await self.supervisor.start()
        await self.builds.start({name for name, item in self.judged.items() if item.location.path is not None})
        if self.roster.pool.preload:
            self._tasks.append(asyncio.create_task(self._preload()))

    async def _preload(self) -> None:
        failed = await self.pool.preload(self.roster.pool.preload, max_wait_s=self.roster.pool.load_timeout_s)
        for name, error in failed.items():
            _log.error("preload of %s failed: %s", name, error)

    async def close(self) -> None:
        """Stop every worker."""
        await self.builds.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.pool.close()
        self.supervisor.close()

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
            return self._named(ask.model, begin=begin)
        started = perf_counter()
        conversation = Conversation.from_messages(ask.messages or [{"role": "user", "content": ask.prompt or ""}])

        async def decide(names: list[str]) -> Decision:
            return await self.supervisor.decide(conversation, session_id=session_id, warm=self.warm, available=names)

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
        return Choice(specialist, decision.confidence, decision.reason, decision, spent_ms, build)

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

    async def adopt(self, name: str) -> bool:
        """Serve what was just built, or built anew. False while its old file is in use: to be tried again."""
        if isinstance(self.judged[name], Available) and self.pool.is_warm(name) and not await self.pool.unload(name):
            return False
        alone = self.roster.model_copy(update={"specialists": (self._required(name),)})
        predictions = await predict_all(alone)
        budget = self.pool.settings.budget_bytes
        judged = await asyncio.to_thread(availability, alone, predictions.__getitem__, budget, predictions.refused)
        item = judged[name]
        if (entry := _entry(self.roster, name, item)) is not None:
            self.pool.add(name, entry)
        self.judged[name] = item
        if isinstance(item, Unavailable):
            _log.error("%s was built and cannot be served: %s %s", name, item.reason, item.remedy)
        else:
            _log.info("%s can be served now", name)
        return True

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

    async def lease(self, specialist: Specialist) -> Lease:
        """A hold on a resident; see Pool.lease."""
        return await self.pool.lease(specialist.name, max_wait_s=self.roster.server.max_wait_s)


def _entry(roster: Roster, name: str, item: Available | Unavailable) -> Entry | None:
    """What the pool has to know of a specialist that can be served."""
    if isinstance(item, Unavailable) or item.footprint is None:
        return None
    specialist = _specialist(roster, name)
    return Entry(item.spec, item.footprint.total_bytes, specialist.thinking_policy(), specialist.pin)


def supervisor_of(roster: Roster) -> Supervisor:
    """The supervisor that a roster asks for, not started yet."""
    settings = SupervisorSettings(
        threshold=roster.router.threshold, margin=roster.router.margin, hysteresis=roster.router.hysteresis
    )
    candidates = [
        Candidate(s.name, s.domains, examples=s.examples, order=order) for order, s in enumerate(roster.specialists)
    ]
    encoder = roster.router.encoder
    if encoder not in ("auto", "none"):
        encoder = str(roster.resolve(encoder))
    return Supervisor(candidates, fallback=roster.fallback, settings=settings, encoder=encoder)


async def predict_all(roster: Roster) -> Predictions:
    """Dry-run every distinct load of a roster; errors are kept beside the results."""
    policies: dict[LoadSpec, dict[str, Thinking]] = {}
    for specialist in roster.specialists:
        if (path := specialist.locate(roster.models_path)) is not None:
            policies.setdefault(specialist.load_spec(path), {})[specialist.name] = specialist.thinking_policy()
    gate = asyncio.Semaphore(_DRY_RUNS_AT_ONCE)

    async def one(spec: LoadSpec) -> Prediction | EngineError:
        async with gate:
            try:
                return await predict(spec, policies[spec])
            except EngineError as error:
                return error

    results = await asyncio.gather(*(one(spec) for spec in policies))
    return Predictions(dict(zip(policies, results, strict=True)))


class Predictions:
    """Results of dry runs, by load."""

    def __init__(self, results: Mapping[LoadSpec, Prediction | EngineError]) -> None:
        self._results = results

    def __getitem__(self, spec: LoadSpec) -> Footprint:
        """Raises the EngineError that the dry run ended in."""
        result = self._results[spec]
        if isinstance(result, EngineError):
            raise result
        return result.footprint

    def refused(self, spec: LoadSpec) -> Mapping[str, str]:
        """Thinking policies that this model cannot carry out: specialist -> why."""
        result = self._results.get(spec)
        return result.refused if isinstance(result, Prediction) else {}


def _ok(item: Available | Unavailable) -> bool:
    return isinstance(item, Available)


def _specialist(roster: Roster, name: str) -> Specialist:
    found = roster.find(name)
    assert found is not None, name
    return found


def _pool_settings(roster: Roster, budget: int) -> EnginePoolSettings:
    return EnginePoolSettings(
        budget_bytes=budget,
        max_queue=roster.server.max_queue,
        max_bypass_s=roster.pool.max_bypass_s,
        idle_ttl_s=roster.pool.idle_ttl_s,
        quiet_s=roster.pool.quiet_s,
        load_timeout_s=roster.pool.load_timeout_s,
        load_backoff_s=roster.pool.load_backoff_s,
        stall_s=roster.pool.stall_s,
    )
