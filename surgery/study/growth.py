"""Convergence (early stopping) of a profile: the parent reads on until neither mask nor utility moves any more."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..mask import require_count
from ..plan.criteria import found_criterion, score
from ..plan.selection import top_k
from ..profile.corpus import Corpus
from ..profile.profile import Profile
from ..profile.run import profile_corpus
from . import plots
from .compare import jaccard_by_layer


@dataclass(frozen=True)
class GrowthStep:
    """The mask after so many tokens, beside the one a step before.

    jaccard, worst_jaccard: overlap of the two, mean over the layers and in the layer where it is lowest; None for the
                            first step.
    entropy:                of the utility over the experts, 0..1, mean over the layers.
    """

    tokens: int
    jaccard: float | None
    worst_jaccard: float | None
    entropy: float


@dataclass(frozen=True)
class Rule:
    """When a profile has settled: `times` steps in a row moved neither the mask nor the entropy by more than this.

    jaccard:       least mean overlap with the step before. 0.98 is two of three layers with one expert exchanged of 64.
    worst_jaccard: least overlap in any layer; one exchanged expert is always let pass, however few are kept.
    entropy:       largest change.
    first_tokens:  of the first step.
    growth:        each step is this many times as long as the one before. A constant increment would settle by itself:
                   the longer the corpus, the less any increment weighs.
    """

    jaccard: float = 0.98
    worst_jaccard: float = 0.95
    entropy: float = 0.005
    times: int = 2
    first_tokens: int = 16_384
    growth: float = 1.25


def settled(steps: Sequence[GrowthStep], n_keep: int, rule: Rule | None = None) -> bool:
    """Whether the last steps of a growing profile say that more of the corpus would change nothing."""
    rule = rule or Rule()
    least_worst = min(rule.worst_jaccard, (n_keep - 1) / (n_keep + 1))
    if len(steps) <= rule.times:
        return False
    pairs = list(itertools.pairwise(steps))[-rule.times :]
    return all(
        step.jaccard is not None
        and step.worst_jaccard is not None
        and step.jaccard >= rule.jaccard
        and step.worst_jaccard >= least_worst
        and abs(step.entropy - before.entropy) <= rule.entropy
        for before, step in pairs
    )


class Growth:
    """Watches a profile grow: takes the mask of the best experts at every step, and says when it has settled.

    It is the Watcher of `profile_corpus`. n_keep, criterion: of the mask that is looked at.
    """

    def __init__(self, n_keep: int, criterion: str = "gate-mass", rule: Rule | None = None) -> None:
        self.n_keep, self.criterion, self.rule = n_keep, criterion, rule or Rule()
        self.steps: list[GrowthStep] = []
        self._kept: NDArray[np.bool_] | None = None

    @property
    def settled(self) -> bool:
        """Whether the corpus was enough."""
        return settled(self.steps, self.n_keep, self.rule)

    def begin(self, profile: Profile, memory: Mapping[str, Any]) -> None:
        """Go on from what was remembered of a profile. Raises SurgeryError for a mask that could never be made."""
        require_count(profile.parent, self.n_keep)
        found_criterion(self.criterion, profile)
        self.steps, self._kept = [], None
        if memory.get("asked") == self._asked():
            self.steps = [GrowthStep(**step) for step in memory["steps"]]
            self._kept = np.array(memory["kept"], np.bool_) if self.steps else None

    def enough(self, profile: Profile, *, last: bool) -> bool:
        """Look at the mask when the profile has grown by a step, or ends; whether it has settled."""
        reached = profile.n_tokens
        before = self.steps[-1].tokens if self.steps else 0
        due = max(self.rule.first_tokens, before * self.rule.growth)
        if reached < due and not (last and reached > before):
            return self.settled
        utility = score(profile, self.criterion)
        kept = top_k(utility, self.n_keep, profile.parent.n_groups)
        overlap = jaccard_by_layer(kept, self._kept) if self._kept is not None else None
        self.steps.append(
            GrowthStep(
                reached,
                None if overlap is None else float(overlap.mean()),
                None if overlap is None else float(overlap.min()),
                float(_entropy(utility).mean()),
            )
        )
        self._kept = kept
        return self.settled

    def remember(self) -> Mapping[str, Any]:
        """The history, for the saved state and for the profile."""
        return {
            "asked": self._asked(),
            "settled": self.settled,
            "steps": [asdict(step) for step in self.steps],
            "kept": [] if self._kept is None else self._kept.astype(int).tolist(),
        }

    def _asked(self) -> dict[str, Any]:
        return {"n_keep": self.n_keep, "criterion": self.criterion, **asdict(self.rule)}


def _entropy(utility: NDArray[np.float64]) -> NDArray[np.float64]:
    """[L], 0..1: of the shares that the experts have of a layer's utility."""
    share = utility / np.maximum(utility.sum(1, keepdims=True), 1e-300)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    return np.asarray(-(share * logs).sum(1) / np.log(utility.shape[1]))


def profile_until_stable(
    path: Path,
    corpus: Corpus,
    out: Path,
    n_keep: int,
    *,
    criterion: str = "gate-mass",
    rule: Rule | None = None,
    curve: Path | None = None,
    **settings: Any,
) -> tuple[Profile, Growth]:
    """Profile the corpus until the mask of the n_keep best experts a layer has settled, or the corpus ends.

    The documents are read in an order of chance (the same every time), so that every step is like the whole corpus.
    curve:    where the history is drawn, as PNG; None for beside `out`, as NAME.growth.png. It is also kept with the
              profile, as `growth` of its extra facts.
    settings: those of `profile_corpus`, which also says what is raised and how an interrupted run goes on.
    """
    watcher = Growth(n_keep, criterion, rule)
    profile = profile_corpus(path, corpus.shuffled(), out, watcher=watcher, **settings)
    plots.growth_curve(curve or out.with_name(f"{out.stem}.growth.png"), watcher.steps)
    return profile, watcher
