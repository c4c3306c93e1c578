"""Which specialist answers a request: the one it names, the supervisor's choice, or a stand-in for a missing one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from time import perf_counter

from coe.engine.errors import ModelTemplateError, UnavailableError
from coe.engine.pool.pool import Pool
from coe.router.choose import Decision, first_token_s
from coe.router.conversation import Conversation, ConversationKey, client_task_in
from coe.router.supervisor import Supervisor

from ..roster.models import Roster, Specialist
from ..roster.values import AUTO
from .availability import Unavailable
from .builds.owner import Builds
from .catalog import Catalog
from .choice import Choice
from .context_fit import ContextFit, Room, next_room
from .encoder_thread import is_of_encoder
from .errors import BuildingError, Part, RequestError, RuleError, UnknownModelError
from .policy import refusal_of
from .request import Request

_log = logging.getLogger(__name__)
_ASSUMED_PROMPT_TOKENS_PER_S = 1000.0  # before any prompt was read
_NAMED = "named in the request"
_UNTIL_BUILT_S = 600.0  # of one that is still to be built: longer than any load


class Chooser:
    """Asks the supervisor with what the pool knows of waits, and lets another specialist stand in for a missing one."""

    def __init__(self, roster: Roster, catalog: Catalog, pool: Pool, supervisor: Supervisor, builds: Builds) -> None:
        self._roster = roster
        self._catalog = catalog
        self._pool = pool
        self._supervisor = supervisor
        self._builds = builds
        self._fit = ContextFit()

    async def choose(self, request: Request, session_id: str | None, *, begin: bool = True) -> Choice:
        """The specialist that the request names, or the supervisor's choice.

        A specialist that can be built on demand may be chosen as well: then another answers meanwhile, and the build
        begins. begin: False to ask for the choice alone, without beginning a build.
        The supervisor's passes over those whose rules refuse the request; it is refused where all do (RequestError).
        Raises UnknownModelError; UnavailableError or BuildingError when no specialist can answer.
        """
        if self._roster.called(request.model) != AUTO:
            choice = await self._named(request, begin=begin)
            if choice.reason != _NAMED:
                _log.debug("choice: %s for %s: %s", choice.specialist.name, request.model, choice.reason)
            if len(self._pool.shared_with(choice.specialist.name)) == 1:  # no key is wanted, and less to be read
                task = await asyncio.to_thread(client_task_in, request.conversation, self._supervisor.tasks)
                return replace(choice, task=task)
            conversation = await self._read(request)
            return replace(choice, key=ConversationKey.of(conversation), task=conversation.client_task)
        started = perf_counter()
        conversation = await self._read(request)

        async def decide(names: list[str]) -> Decision:
            return await self._supervisor.decide(
                conversation,
                session_id=session_id,
                warm=self._catalog.warm,
                available=names,
                costs=self._costs(conversation, session_id, names),
                remember=False,
            )

        there = self._catalog.available
        answering = self._answering(request)
        to_build = [n for n in self._roster.names if n not in there and self._may_build(n)]
        candidates = [n for n in self._roster.names if n in answering or n in to_build]
        refusals = self._refusals(request, candidates)
        taking = [name for name in candidates if name not in refusals]
        available = [name for name in taking if name in answering]
        if refusals and not taking:
            raise next(iter(refusals.values())).of_all()
        if not candidates:
            what = "Nothing in the roster can be served yet." if not there else "No model of the roster answers chats."
            raise UnavailableError(what, "See GET /v1/models for the reasons.")
        decision = await decide(candidates)
        if (refusal := refusals.get(decision.specialist)) is not None:
            over = f"{decision.specialist} is passed over ({refusal.why})"
            decision = await decide(taking)
            decision = replace(decision, reason=f"{decision.reason}; {over}")
        kept = decision.specialist
        build = None
        if decision.specialist not in available:
            wanted = self._entry(decision.specialist)
            build = (self._builds.ask(wanted.name) if begin else self._builds.progress(wanted.name)).line()
            stand_in = self.stand_in(wanted.name, request)
            if stand_in is None and not available:
                raise self._building(wanted)
            if stand_in is not None:
                reason = f"{decision.reason}; {stand_in.name} stands in"
                decision = replace(decision, specialist=stand_in.name, reason=reason)
            else:
                decision = await decide(available)
                kept = decision.specialist
            _log.debug("choice: %s for %s, whose build is %s", decision.specialist, wanted.name, build)
        self._supervisor.remember(conversation, session_id, kept)
        spent_ms = (perf_counter() - started) * 1000
        specialist = self._entry(decision.specialist)
        key = ConversationKey.of(conversation)
        choice = Choice(
            *(specialist, decision.confidence, decision.reason, decision, spent_ms, build),
            key=key,
            task=conversation.client_task,
        )
        room = Room(specialist.name, specialist.context_tokens)
        n_chars = _n_chars(request, specialist)
        if not self._fit.is_too_long(room, n_chars):
            return choice
        tokens = self._fit.at_least_tokens(room.name, n_chars)
        passed = self.passing_over(request, choice, f"about {tokens}", tokens, [room.name])
        if passed is None:
            return choice  # where nobody has the room, the worker counts, and says so
        self._supervisor.remember(conversation, session_id, passed.specialist.name)
        return passed

    async def unasked(self, request: Request) -> Choice:
        """The specialist that the request names; of `auto` the fallback, to which any question may go.

        No build begins. Raises what `choose` does.
        """
        if self._roster.called(request.model) == AUTO:
            there = self._answering(request)
            fallback = self._roster.fallback
            name = fallback if fallback in there else next(iter(there), None)
            request = replace(request, model=name or AUTO)
        return await self.choose(request, None, begin=False)

    def passing_over(
        self, request: Request, choice: Choice, written: str, tokens: int, tried: Sequence[str]
    ) -> Choice | None:
        """The choice of another where the prompt does not fit the context of one that the supervisor chose: the
        fallback, else the best ranked that holds it. None where none does.

        written: how many tokens the prompt has, in words; tokens: so many at least. tried: names that have no room.
        """
        assert choice.decision is not None, "one that was named is not passed over"
        there = self._taking(request)
        ranked = [one.specialist for one in choice.decision.ranking]
        order = dict.fromkeys([self._roster.fallback, *ranked, *there])
        rooms = [Room(name, self._entry(name).context_tokens) for name in order if name in there]
        small = choice.specialist

        def needed(name: str) -> int:
            """One that leaves the tools out, unlike the one that had no room, needs less."""
            n_chars = _n_chars(request, self._entry(name))
            return tokens if n_chars == _n_chars(request, small) else self._fit.at_least_tokens(name, n_chars)

        room = next_room(rooms, needed, tried)
        if room is None:
            return None
        reason = (
            f"{choice.reason}; {small.name} holds {small.context_tokens} tokens, the prompt has {written}: "
            f"{room.name} answers"
        )
        return replace(choice, specialist=self._entry(room.name), reason=reason)

    def largest_context(self, request: Request) -> int:
        """The largest context, in tokens, of those that can answer such a request."""
        return max((self._entry(name).context_tokens for name in self._taking(request)), default=0)

    def measured(self, name: str, request: Request, prompt_tokens: int) -> None:
        """A request's prompt had so many tokens: the next is judged by that."""
        self._fit.measured(name, _n_chars(request, self._entry(name)), prompt_tokens)

    def _refusals(self, request: Request, names: Sequence[str]) -> dict[str, RuleError]:
        """Those of some specialists whose rules refuse a request, and why."""
        found = {name: refusal_of(request, self._entry(name)) for name in names}
        return {name: refusal for name, refusal in found.items() if refusal is not None}

    def _answering(self, request: Request) -> list[str]:
        """Those that can answer such a request: a chat, a completion, a gap to be filled."""
        return self._catalog.answering(chats=request.messages is not None, infill=request.suffix is not None)

    def _taking(self, request: Request) -> list[str]:
        """Those that can answer a request, and whose rules do not refuse it."""
        answering = self._answering(request)
        refusals = self._refusals(request, answering)
        return [name for name in answering if name not in refusals]

    def _costs(self, conversation: Conversation, session_id: str | None, names: list[str]) -> dict[str, float]:
        """Seconds until the first token of each, as far as they can be told beforehand."""
        available = self._catalog.available
        current = self._supervisor.current(conversation, session_id)
        return first_token_s(
            {name: self._pool.ready_in_s(name) if name in available else _UNTIL_BUILT_S for name in names},
            cached_by=current if current in available and self._pool.is_resident(current) else None,
            n_chars=conversation.n_chars,
            n_new_chars=conversation.n_new_chars,
            tokens_per_s=self.prompt_speeds(names),
        )

    def prompt_speeds(self, names: Sequence[str]) -> dict[str, float]:
        """Prompt tokens a second of each: what the roster says, else what was measured."""
        told = self._roster.router.prompt_tokens_per_s
        if told != "auto":
            return dict.fromkeys(names, told)
        available = self._catalog.available
        return prompt_speeds(names, {name: self._pool.prompt_tokens_per_s(name) for name in available})

    def _may_build(self, name: str) -> bool:
        return self._entry(name).on_missing == "build" and self._builds.can_come(name)

    async def _named(self, request: Request, *, begin: bool) -> Choice:
        chats = request.messages is not None
        entry = self._roster.find(request.model)
        if entry is None and is_of_encoder(request.model, self._roster, self._supervisor.encoder):
            raise _embeds(request.model)
        if entry is None:
            known = ", ".join([AUTO, *self._roster.names])
            raise UnknownModelError(
                f"There is no model {request.model!r}. Known: {known}. Ask for one of these, or write the name into "
                "the roster: under aliases of a specialist, or under router.aliases for auto.",
                param=Part.MODEL,
            )
        name = entry.name
        if entry.embeddings:
            raise _embeds(name)
        await self._catalog.recheck(name, being_built=self._builds)
        item = self._catalog.availability[name]
        if not isinstance(item, Unavailable):
            if chats and (fault := item.chat_fault) is not None:
                raise ModelTemplateError(f"{name} cannot answer chats: {fault.message}", fault.remedy)
            return Choice(entry, 1.0, _NAMED)
        to_build = self._builds.is_missing(name)
        if to_build and begin and entry.on_missing == "build":
            self._builds.ask(name)
        build = self._builds.progress(name).line() if to_build else None
        stand_in = self.stand_in(name, request) if entry.on_missing != "refuse" else None
        if stand_in is None:
            if to_build:
                raise self._building(entry)
            raise UnavailableError(f"{name} cannot be served: {item.reason}", item.remedy)
        why = f"{name} is not built yet ({build})" if to_build else f"{name} is unavailable"
        return Choice(stand_in, 1.0, f"{why}, {stand_in.name} stands in", build=build)

    def _building(self, entry: Specialist) -> BuildingError:
        """What a client is told that asked for a specialist which is not there yet."""
        progress = self._builds.progress(entry.name)
        told = f"{progress.message} {progress.remedy}".strip()
        said = f"{entry.name} is not built yet ({progress.line()}). {told}".strip()
        if not progress.state.unfinished:
            said += f" To build it: {entry.build_command}, or POST /v1/builds/{entry.name}."
        return BuildingError(said, progress.line(), retry=progress.state.unfinished)

    def stand_in(self, name: str, request: Request) -> Specialist | None:
        """The specialist that answers a request in place of another: the fallback, else a warm one, else any that can.

        One whose rules refuse the request stands in for nobody.
        """
        available = self._taking(request)
        order = [self._roster.fallback]
        if self._roster.fallback_warm:
            order += [*self._catalog.warm, *available]
        found = next((other for other in order if other and other != name and other in available), None)
        return self._entry(found) if found else None

    def fallback_for(self, name: str, request: Request) -> Specialist | None:
        """The roster's fallback, when it can answer such a request and is another specialist."""
        fallback = self._roster.fallback
        if fallback is None or fallback == name or fallback not in self._answering(request):
            return None
        return self._entry(fallback)

    async def _read(self, request: Request) -> Conversation:
        """Megabytes of history take a while to read: not in the event loop."""
        read = any(_reads_tools(self._entry(name)) for name in self._roster.names)
        return await asyncio.to_thread(
            lambda: Conversation.from_messages(
                request.conversation, request.tools_chars if read else 0, self._supervisor.tasks
            )
        )

    def _entry(self, name: str) -> Specialist:
        return self._catalog.availability[name].entry


def _embeds(name: str) -> RequestError:
    return RequestError(
        f"model: {name} gives embeddings and answers no chats. Ask it at /v1/embeddings or /v1/rerank.",
        param=Part.MODEL,
    )


def prompt_speeds(names: Sequence[str], measured: Mapping[str, float | None]) -> dict[str, float]:
    """Tokens a second at which prompts for each are read. measured: None of those that have read none.

    Those are taken to be as fast as the others on this machine: beside measured ones a figure of ours would make them
    look better than all that were asked, or worse.
    """
    known = {name: speed for name, speed in measured.items() if speed}
    usual = median(known.values()) if known else _ASSUMED_PROMPT_TOKENS_PER_S
    return {name: known.get(name, usual) for name in names}


def _reads_tools(specialist: Specialist) -> bool:
    """Whether the tools that a chat offers stand in a specialist's prompt."""
    return specialist.tools not in ("ignore", "refuse")


def _n_chars(request: Request, specialist: Specialist) -> int:
    """Characters that the prompt of a specialist has at least."""
    return request.n_chars - (0 if _reads_tools(specialist) else request.tools_chars)
