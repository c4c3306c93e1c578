"""A running college: the roster made real. Who can be served, who is asked, who answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
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

from .check import Available, Unavailable, availability
from .errors import UnknownModelError
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
        self.judged = judged
        self.pool = pool
        self.supervisor = supervisor
        self.budget_note = budget_note
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def open(cls, roster: Roster) -> College:
        """Dry-run what the roster names, and be ready to serve it; models load when they are asked for.

        Raises UnavailableError when nothing of the roster can be served.
        """
        asked = roster.pool.vram_budget
        budget, note = await budget_bytes(None if asked == "auto" else asked, roster.pool.vram_margin)
        predictions = await predict_all(roster)
        judged = _without_refused(availability(roster, predictions.__getitem__, budget), predictions)
        entries = {
            name: Entry(
                item.spec,
                item.footprint.total_bytes,
                _specialist(roster, name).thinking_policy(),
                _specialist(roster, name).pin,
            )
            for name, item in judged.items()
            if isinstance(item, Available) and item.footprint is not None
        }
        if not entries:
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
        if self.roster.pool.preload:
            self._tasks.append(asyncio.create_task(self._preload()))

    async def _preload(self) -> None:
        failed = await self.pool.preload(self.roster.pool.preload, max_wait_s=self.roster.pool.load_timeout_s)
        for name, error in failed.items():
            _log.error("preload of %s failed: %s", name, error)

    async def close(self) -> None:
        """Stop every worker."""
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

    async def choose(self, ask: Ask, session_id: str | None) -> Choice:
        """Who answers: the one that the request names, or the supervisor's choice.

        Raises UnknownModelError, and UnavailableError when the named one cannot be served and nobody stands in.
        """
        if ask.model != AUTO:
            return self._named(ask.model)
        started = perf_counter()
        decision = await self.supervisor.decide(
            Conversation.from_messages(ask.messages or [{"role": "user", "content": ask.prompt or ""}]),
            session_id=session_id,
            warm=self.warm,
            available=self.available,
        )
        spent_ms = (perf_counter() - started) * 1000
        specialist = self._required(decision.specialist)
        return Choice(specialist, decision.confidence, decision.reason, decision, spent_ms)

    def _named(self, model: str) -> Choice:
        specialist = self.roster.find(model)
        if specialist is None:
            known = ", ".join([AUTO, *self.roster.names])
            raise UnknownModelError(f"There is no model {model!r}. Known: {known}.", param="model")
        item = self.judged[specialist.name]
        if not isinstance(item, Unavailable):
            return Choice(specialist, 1.0, "named in the request")
        stand_in = self.stand_in(specialist.name) if specialist.on_missing == "fallback" else None
        if stand_in is None:
            raise UnavailableError(f"{specialist.name} cannot be served: {item.reason}", item.remedy)
        return Choice(stand_in, 1.0, f"{specialist.name} is unavailable, {stand_in.name} stands in")

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


async def predict_all(roster: Roster) -> _Predictions:
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
    return _Predictions(dict(zip(policies, results, strict=True)))


class _Predictions:
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


def _without_refused(
    judged: Mapping[str, Available | Unavailable], predictions: _Predictions
) -> dict[str, Available | Unavailable]:
    """Specialists whose thinking policy their model cannot carry out are unavailable."""
    result = dict(judged)
    for name, item in judged.items():
        if isinstance(item, Available) and (why := predictions.refused(item.spec).get(name)):
            result[name] = Unavailable(why, "", item.location, item.footprint)
    return result


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
        load_timeout_s=roster.pool.load_timeout_s,
        load_backoff_s=roster.pool.load_backoff_s,
        stall_s=roster.pool.stall_s,
    )
