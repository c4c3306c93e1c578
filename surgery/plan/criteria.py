"""Expert importance: the criteria (gate mass, frequency, REAP ...) that score experts for pruning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ..errors import ProfileError
from ..profile.profile import Profile

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Criterion:
    """One way to score. needs_norms: only a profile that was taken with norms can be scored by it."""

    name: str
    summary: str
    formula: Callable[[Profile, int], Scores]  # profile, seed -> [L, E]
    needs_norms: bool = False


def score(profile: Profile, criterion: str = "gate-mass", *, seed: int = 0) -> Scores:
    """[L, E]: the score of each expert over the corpus, all classes together; higher matters more.

    seed: for `random` alone. Raises ProfileError for an unknown criterion, for one that needs norms the profile lacks,
    and for scores that are not finite.
    """
    return found_criterion(criterion, profile).formula(profile, seed)


def found_criterion(name: str, profile: Profile) -> Criterion:
    """The criterion of a name, if the profile can be scored by it. Raises ProfileError."""
    criterion = CRITERIA.get(name)
    if criterion is None:
        raise ProfileError(f"There is no criterion {name!r}.", f"Known: {', '.join(CRITERIA)}.")
    if criterion.needs_norms and profile.norms is None:
        raise ProfileError(
            f"The criterion {name} needs the norms of the experts' outputs, and this profile has none.",
            "Profile again with --norms, or choose another criterion: "
            f"{', '.join(other.name for other in CRITERIA.values() if not other.needs_norms)}.",
        )
    if criterion.needs_norms and profile.norms is not None and not np.isfinite(profile.norms).all():
        raise ProfileError(
            f"{np.count_nonzero(~np.isfinite(profile.norms))} norms of the profile are not finite.",
            "The parent overflows somewhere: profile a file of higher precision, or use the drop-map recipe, which "
            "puts the layer's median in their place.",
        )
    return criterion


def activations(profile: Profile) -> NDArray[np.int64]:
    """[L, E]: how often an expert was chosen at any rank, over all classes."""
    return np.asarray(profile.selections.sum((0, 3)))


def mean_rank(profile: Profile) -> Scores:
    """[L, E]: mean rank of an expert's choices, 0 for the first; R (one past the last) where it was never chosen."""
    chosen = profile.selections.sum(0)
    count = chosen.sum(2)
    ranks = chosen @ np.arange(chosen.shape[2], dtype=np.float64)
    return np.where(count > 0, ranks / np.maximum(count, 1), float(chosen.shape[2]))


def _tokens(profile: Profile) -> int:
    return max(profile.n_tokens, 1)


def _gate_mass(profile: Profile, seed: int) -> Scores:
    return profile.gate_mass()


def _frequency(profile: Profile, seed: int) -> Scores:
    return activations(profile) / _tokens(profile)


def _rank_weighted(profile: Profile, seed: int) -> Scores:
    chosen = profile.selections.sum(0)
    n_ranks = chosen.shape[2]
    worth = np.arange(n_ranks, 0, -1, dtype=np.float64) / (n_ranks * (n_ranks + 1) / 2)
    return np.asarray(chosen @ worth / _tokens(profile))


def _reap(profile: Profile, seed: int) -> Scores:
    assert profile.norms is not None
    return np.asarray(profile.norms.sum(0) / np.maximum(activations(profile), 1))


def _mass_norm(profile: Profile, seed: int) -> Scores:
    assert profile.norms is not None
    return np.asarray(profile.norms.sum(0) / _tokens(profile))


def _random(profile: Profile, seed: int) -> Scores:
    return np.random.default_rng(seed).random((len(profile.parent.layers), profile.parent.n_expert))


# R ranks, N tokens, hist[k] how often an expert was chosen at rank k, g the router's weight, f the expert's output.
# Sources: gate-mass is the model cards' utility, sum over k of (hist[k]/N) x (weight_sum[k]/hist[k]), which is
# sum(weight_sum)/N; rank-weighted is the same author's earlier (8-k)/36 for R = 8; reap is arXiv 2510.13999;
# mass-norm weighs frequency, gate and norm together.
CRITERIA: Final[dict[str, Criterion]] = {
    criterion.name: criterion
    for criterion in (
        Criterion("gate-mass", "mean router weight a token: sum of g / N", _gate_mass),
        Criterion("frequency", "share of tokens that chose the expert: sum of hist / N", _frequency),
        Criterion("rank-weighted", "sum of hist[k] x (R - k) / (R (R + 1) / 2) / N", _rank_weighted),
        Criterion("reap", "mean of g x ||f|| over the tokens that chose the expert", _reap, needs_norms=True),
        Criterion("mass-norm", "sum of g x ||f|| / N: frequency x gate x norm", _mass_norm, needs_norms=True),
        Criterion("random", "a control: seeded random numbers", _random),
    )
}
