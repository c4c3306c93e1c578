"""The experiment's design: how much is done, and the recipes (an ablation of selection criteria) that are compared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from coe.surgery.mask import Mask
from coe.surgery.parent import Parent
from coe.surgery.plan import planning
from coe.surgery.plan.criteria import CRITERIA
from coe.surgery.plan.methods import DropMap, SelectionMethod, ThreePass, TopK
from coe.surgery.profile.profile import Profile, combine

from ..curriculum import DOMAINS

REASONING: Final = "reasoning"  # the class of the thoughts that the third pass reads
HALF: Final = 0.5
THINKING: Final = ("off", "budget", "on")
BUDGET_TOKENS: Final = 12


@dataclass(frozen=True)
class ExperimentPlan:
    """How much is done.

    samples:   corpora, and question sets to go with each, drawn independently of each other.
    corpus:    training questions of a domain that its profile is made of, and the smaller corpora beside it.
    exam:      held-out questions of a domain, of one sample.
    shares:    of the experts that are kept.
    loops:     questions of a specialist's own domain, and of all others, for the loop rates.
    """

    samples: int = 4
    corpora: tuple[int, ...] = (1, 3, 10, 30, 100, 300)
    exam: int = 60
    shares: tuple[float, ...] = (0.75, 0.5, 0.375, 0.25)
    corpus_shares: tuple[float, ...] = (0.5, 0.25)
    visits: int = 60
    loops: int = 24
    loop_tokens: int = 700
    thoughts: int = 60  # of each domain
    growth: int = 2000  # training questions of a domain, for the question when a profile settles

    @property
    def corpus(self) -> int:
        """Questions of a whole corpus."""
        return self.corpora[-1]


FULL: Final = ExperimentPlan()
QUICK: Final = ExperimentPlan(
    samples=2,
    corpora=(3, 30, 100),
    exam=24,
    shares=(0.5, 0.25),
    corpus_shares=(0.5,),
    visits=16,
    loops=8,
    loop_tokens=700,
    thoughts=10,
    growth=150,
)


@dataclass(frozen=True)
class Method:
    """One way to choose experts. recipe: of `coe plan`; own: only the domain's own class is read."""

    name: str
    recipe: SelectionMethod
    criterion: str | None = None
    reasoning: bool = False
    own: bool = True

    def mask(self, profile: Profile, domain: str, n_keep: int, seed: int) -> Mask:
        """The domain's mask out of a profile with a class a domain and one of reasoning."""
        recipe = self.recipe
        read = profile.of_class(domain)
        if not self.own and isinstance(recipe, DropMap):
            read = combine([profile.of_class(one) for one in DOMAINS])
            recipe = replace(recipe, weights={one: 1.0 if one == domain else _OTHERS_WEIGH for one in DOMAINS})
        second = profile.of_class(REASONING) if self.reasoning else None
        return planning.plan(read, n_keep, recipe, criterion=self.criterion, second=second, seed=seed)


_OTHERS_WEIGH: Final = 0.2
BASE: Final = "top-k, gate-mass"
RANDOM: Final = "top-k, random"
METHODS: Final = (
    *(Method(f"top-k, {name}", TopK(), name) for name in CRITERIA),
    Method("three-pass", ThreePass()),
    Method("three-pass with reasoning", ThreePass(), reasoning=True),
    Method("drop-map, own class", DropMap()),
    Method("drop-map, all classes", DropMap(), own=False),
)


def kept_of(parent: Parent, share: float) -> int:
    """Experts a layer that a share of them comes to."""
    return max(round(share * parent.experts.n_expert), parent.experts.n_used)
