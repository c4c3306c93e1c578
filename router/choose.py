"""Model routing decided over plain values: probabilities of domains, a roster, what is warm, what a wait costs.

A classifier with a reject option (below a threshold the fallback answers) and hysteresis (a conversation stays).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from .domains import GENERAL, canonical, family, stand_ins
from .errors import RouterError

SURE = 0.95  # n-grams this sure are right as often as with the encoder: see docs/router.md
CHARS_PER_TOKEN = 4  # of English; a guess that decides between near-equals only


@dataclass(frozen=True)
class SupervisorSettings:
    """How sure is sure. Probabilities or differences of probabilities, 0..1, but for the weight.

    threshold:  below this confidence the fallback answers.
    thresholds: the same for single domains, in place of `threshold`. Kept as a read-only copy.
    margin:     specialists closer than this to the likeliest are a tie, and the sooner answer wins it.
    residency_weight: what a second of waiting is worth, in probability; 0 leaves ties to the roster's order.
    hysteresis: another specialist must beat the conversation's own by this much.
    follow_up_hysteresis: the same for a short follow-up, which says little about its subject.
    sure:       from here on the n-grams decide without the encoder.
    """

    threshold: float = 0.6
    thresholds: Mapping[str, float] = field(default_factory=dict, hash=False)
    margin: float = 0.05
    residency_weight: float = 0.01
    hysteresis: float = 0.25
    follow_up_hysteresis: float = 0.75
    sure: float = SURE

    def __post_init__(self) -> None:
        named = {canonical(domain): threshold for domain, threshold in self.thresholds.items()}
        object.__setattr__(self, "thresholds", MappingProxyType(named))

    def threshold_of(self, domain: str) -> float:
        """The confidence that a question of this domain must reach."""
        return self.thresholds.get(domain, self.threshold)


@dataclass(frozen=True)
class Candidate:
    """A specialist as the supervisor knows it. `order` is its place in the roster, lower first.

    domains: what it is for. Where there are examples and no domain they are for a domain of the specialist's own name.
    """

    name: str
    domains: tuple[str, ...]
    available: bool = True
    examples: tuple[str, ...] = ()
    order: int = 0

    def __post_init__(self) -> None:
        if self.examples and not self.domains:
            object.__setattr__(self, "domains", (self.name,))


@dataclass(frozen=True)
class Ranked:
    """A specialist and the probability that the question is for it."""

    specialist: str
    score: float


@dataclass(frozen=True)
class Weighed:
    """Numbers that a decision compared; None for those that it did not come to.

    threshold:   the confidence that the best specialist must reach.
    lead:        by how much the best specialist leads the conversation's own, in probability.
    needed_lead: the lead that it needs: hysteresis, and what the move costs or saves.
    """

    threshold: float | None = None
    lead: float | None = None
    needed_lead: float | None = None


@dataclass(frozen=True)
class Decision:
    """Which specialist answers, and why."""

    specialist: str
    confidence: float  # 0..1, calibrated: the probability that the question belongs to what the specialist is for
    reason: str  # one phrase, for logs and headers; printable ASCII
    ranking: tuple[Ranked, ...]  # available specialists, best first
    domain: str  # the likeliest domain
    path: str  # "rules", "ngrams", "classifier", "session" or "fallback"
    weighed: Weighed = Weighed()


class NoSpecialist(RouterError):
    """No candidate is available, so no specialist can answer."""


def choose(
    probabilities: Mapping[str, float],
    candidates: Sequence[Candidate],
    *,
    fallback: str | None,
    current: str | None = None,
    warm: Collection[str] = (),
    costs: Mapping[str, float] | None = None,
    settings: SupervisorSettings | None = None,
    follow_up: bool = False,
    tool_exchange: bool = False,
    client_task: str | None = None,
    path: str = "classifier",
) -> Decision:
    """Choose among the candidates that are marked available.

    probabilities: of each domain, adding up to 1; empty when the conversation says nothing.
    current:       the specialist this conversation has had, if it is known.
    warm:          names of resident specialists, most recently used first where the caller knows.
    costs:         seconds until a specialist's first token, finite: until it is resident, and until it has read what it
                   has not in its cache. A specialist without an entry costs nothing.
    path:          which classifier the probabilities come from, for the decision's own path.
    Raises NoSpecialist when no candidate is available.
    """
    settings = settings or SupervisorSettings()
    able = sorted((c for c in candidates if c.available), key=lambda c: c.order)
    names = [c.name for c in able]
    if not names:
        raise NoSpecialist("no specialist is available")
    warm = [name for name in warm if name in names]
    fallback = fallback if fallback in names else None
    current = current if current in names else None
    seconds = {name: (costs or {}).get(name, 0.0) for name in names}
    servers = {domain: serving(domain, able) or ([fallback] if fallback else []) for domain in probabilities}
    scores = {n: sum(p for d, p in probabilities.items() if n in servers[d]) for n in names}
    ranking = tuple(Ranked(n, round(scores[n], 4)) for n in sorted(names, key=lambda n: -scores[n]))
    domain = max(probabilities, key=lambda d: probabilities[d]) if probabilities else GENERAL

    weighed = Weighed()

    def decision(name: str, confidence: float, reason: str, path: str) -> Decision:
        return Decision(name, round(min(max(confidence, 0.0), 1.0), 4), reason, ranking, domain, path, weighed)

    # What holds whatever the text is about.
    if tool_exchange and current:
        return decision(current, 1.0, f"inside a tool exchange {current} stays", "session")
    instead = fallback or (warm[0] if warm else ranking[0].specialist)
    if client_task:
        resident = next((n for n in (current, fallback, *warm) if n in warm), None)
        why = "goes to what is warm" if resident else "and nothing is warm"
        return decision(resident or current or instead, 1.0, f"a chat client's own task ({client_task}) {why}", "rules")
    if not probabilities:
        if current:
            return decision(current, 0.0, f"nothing to go by: {current} stays", "session")
        return decision(instead, 0.0, "nothing to go by", "fallback")

    # The likeliest specialist; of several that serve its subject, or that nearly tie with it, the one whose answer
    # begins so much sooner that the time outweighs the probability it lacks.
    leader = ranking[0].specialist
    lacks = {name: scores[leader] - scores[name] for name in names}
    subject = _subject(leader, servers, probabilities) or domain
    equals = servers[subject] or [leader]
    peers = dict.fromkeys(equals, 0.0)
    for ranked in ranking:
        if lacks[ranked.specialist] < settings.margin:
            peers.setdefault(ranked.specialist, lacks[ranked.specialist])
    best = min(peers, key=lambda name: peers[name] + settings.residency_weight * seconds[name])  # the first of equals
    subject = _subject(best, servers, probabilities) or domain
    confidence = _confidence(best, servers, probabilities)
    threshold = settings.threshold_of(subject)
    doubtful = confidence < threshold
    weighed = Weighed(threshold)

    # A conversation keeps its specialist unless another is clearly better. To move it costs time, too, or saves some.
    if current:
        kept = _confidence(current, servers, probabilities)
        lead = scores[leader] - peers[best] - scores[current]
        moving = settings.residency_weight * (seconds[best] - seconds[current])
        needed = settings.follow_up_hysteresis if follow_up else settings.hysteresis
        needed += max(-settings.margin, min(settings.margin, moving))
        weighed = Weighed(threshold, round(lead, 4), round(needed, 4))
        if current == best or current in equals or lead <= 0:
            return decision(current, kept, f"{domain} {kept:.2f}: {current} stays", "session")
        if lead < needed:
            why = "a short follow-up, " if follow_up else ""
            why += f"{best} leads by {lead:.2f} of {needed:.2f}"
            return decision(current, kept, f"{why}: {current} stays", "session")
        if doubtful:
            why = f"in doubt: {subject} {confidence:.2f} of {threshold:.2f}"
            if fallback is None or fallback == current:
                return decision(current, kept, f"{why}, {current} stays", "session")
            return decision(fallback, confidence, f"{why}, but not for {current}", "fallback")
        return decision(best, confidence, f"the subject changed to {subject} {confidence:.2f}", path)

    if doubtful:
        why = f"in doubt: {subject} {confidence:.2f} of {threshold:.2f}"
        if not servers[domain]:
            why = f"{domain} has no specialist"
        if not fallback:
            why += ", no fallback: the warm one" if warm else ", no fallback: the likeliest"
        return decision(instead, confidence, why, "fallback")
    why = f"{subject} {confidence:.2f}"
    if subject in names and subject != best:  # a domain and another specialist have the same name
        why = f"the domain {subject} {confidence:.2f}, which {best} serves"
    direct = any(subject in map(canonical, c.domains) for c in able if c.name == best)
    if not direct and best == fallback:
        return decision(best, confidence, f"{subject} has no specialist", "fallback")
    if not direct:
        why += f", {best} stands in"
    if best != equals[0]:
        why += f", {seconds[equals[0]] - seconds[best]:.1f} s sooner than {equals[0]}"
    return decision(best, confidence, why, path)


def first_token_s(
    ready_s: Mapping[str, float],
    *,
    cached_by: str | None,
    n_chars: int,
    n_new_chars: int,
    tokens_per_s: Mapping[str, float],
) -> dict[str, float]:
    """What `choose` wants as costs: seconds until each specialist is ready, and until it has read the conversation.

    cached_by:   the specialist that has the conversation in its cache up to its last answer, and reads the new
                 characters only; to move a long conversation to another often costs more than the swap.
    tokens_per_s: about how fast each reads prompts here; a token is taken for CHARS_PER_TOKEN characters.
    """
    return {
        name: seconds + read_s(n_new_chars if name == cached_by else n_chars, tokens_per_s[name])
        for name, seconds in ready_s.items()
    }


def read_s(n_chars: int, tokens_per_s: float) -> float:
    """About how many seconds it takes to evaluate so much text."""
    return n_chars / CHARS_PER_TOKEN / tokens_per_s


def serving(domain: str, able: Sequence[Candidate]) -> list[str]:
    """Names of the specialists for a domain, in order: those that name it, else those that name its best stand-in."""
    for one in (domain, *stand_ins(domain)):
        found = [c.name for c in able if one in map(canonical, c.domains)]
        if found:
            return found
    return []


def _subject(name: str, servers: Mapping[str, Sequence[str]], probabilities: Mapping[str, float]) -> str | None:
    """The likeliest of the domains that a specialist serves."""
    served = [domain for domain in probabilities if name in servers[domain]]
    return max(served, key=lambda domain: probabilities[domain], default=None)


def _confidence(name: str, servers: Mapping[str, Sequence[str]], probabilities: Mapping[str, float]) -> float:
    """Probability of the domains that a specialist serves, and of their families: a python specialist is no mistake
    where the question turns out to be about coding at large."""
    families = {family(d) for d in probabilities if name in servers[d]}
    return sum(p for d, p in probabilities.items() if family(d) in families)
