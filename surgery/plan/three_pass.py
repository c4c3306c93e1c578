"""The three-pass method: top-k by score, then the whitelist of confident experts, then those of reasoning."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from ..mask import ExpertSwap
from ..profile.profile import Profile
from .criteria import activations, mean_rank
from .methods import ThreePass
from .selection import Kept

# What the cards' figures belong to: eight ranks, and the smallest corpus of the hand-curated family.
_CARDS_RANKS: Final = 8
_CARDS_TOKENS: Final = 45_000
_LEAST_ACTIVATIONS: Final = 3


def rank_limit(recipe: ThreePass, n_ranks: int) -> float:
    """The mean rank that a whitelisted expert stays below."""
    return recipe.whitelist_rank * n_ranks / _CARDS_RANKS if n_ranks > 1 else 0.0


def least_activations(recipe: ThreePass, n_tokens: int) -> int:
    """How often an expert must have been chosen to be whitelisted, for a corpus of so many tokens."""
    scaled = math.ceil(recipe.whitelist_activations * min(1.0, n_tokens / _CARDS_TOKENS))
    return max(scaled, min(_LEAST_ACTIVATIONS, recipe.whitelist_activations))


def whitelist(profile: Profile, recipe: ThreePass) -> Kept:
    """[L, E]: experts that are chosen rarely perhaps, but then among the first."""
    confident = mean_rank(profile) < rank_limit(recipe, profile.selections.shape[3])
    return np.asarray(confident & (activations(profile) >= least_activations(recipe, profile.n_tokens)))


def carry_out(
    profile: Profile,
    kept: Kept,
    recipe: ThreePass,
    utility: NDArray[np.float64],
    reasoning: NDArray[np.float64] | None,
    fixed: Kept,
) -> tuple[Kept, list[ExpertSwap]]:
    """Passes 2 and 3 on the result of pass 1: the new [L, E] and what was swapped, in that order.

    utility:   [L, E] of the domain. reasoning: [L, E] by the same criterion on domain-neutral reasoning traces; None
               leaves pass 3 out.
    fixed:     [L, E] experts that stay whatever their score; they are in `kept` already.

    Pass 2 takes whitelisted experts that are not in, the most useful first. Pass 3 takes experts that are not in, the
    strongest on reasoning first, as long as that strength is above the utility of the member that goes, at most
    `reasoning_cap` a layer; a member that is itself stronger on reasoning stays. In both the poorest member goes: the
    one with the largest sum of its places by mean rank and by utility among those that may go (neither fixed nor
    whitelisted nor just swapped in); of equal ones the less useful, then the higher index. Groups keep their sizes.
    """
    kept = kept.copy()
    listed = whitelist(profile, recipe)
    ranks = mean_rank(profile)
    n_groups = profile.parent.n_groups
    swaps: list[ExpertSwap] = []
    for row, layer in enumerate(profile.parent.layers):
        stays = fixed[row] | listed[row]
        poor = _poorest(kept[row] & ~stays, ranks[row], utility[row])
        for into in _strongest(listed[row] & ~kept[row], utility[row]):
            out = next((one for one in poor if _together(one, into, kept.shape[1], n_groups)), None)
            if out is None:
                continue
            poor.remove(out)
            kept[row, [out, into]] = False, True
            swaps.append(ExpertSwap(layer, out, into, f"whitelist: mean rank {ranks[row, into]:.2f}"))
        if reasoning is not None:
            done = _arbitrate(
                kept[row], stays, ranks[row], utility[row], reasoning[row], recipe.reasoning_cap, n_groups
            )
            swaps += [
                ExpertSwap(layer, out, into, f"reasoning: {reasoning[row, into]:.4g} against {utility[row, out]:.4g}")
                for out, into in done
            ]
    return kept, swaps


def _arbitrate(
    kept: Kept,
    stays: Kept,
    ranks: NDArray[np.float64],
    utility: NDArray[np.float64],
    reasoning: NDArray[np.float64],
    cap: int,
    n_groups: int,
) -> Iterator[tuple[int, int]]:
    """Swap in place, in one layer; gives (out, into)."""
    poor = _poorest(kept & ~stays, ranks, utility)
    done = 0
    for into in _strongest(~kept, reasoning):
        if done == cap:
            return
        weaker = (
            out
            for out in poor
            if _together(out, into, len(kept), n_groups)
            and reasoning[into] > utility[out]
            and reasoning[into] > reasoning[out]
        )
        out = next(weaker, None)
        if out is None:
            continue
        poor.remove(out)
        kept[[out, into]] = False, True
        done += 1
        yield out, into


def _strongest(those: Kept, scores: NDArray[np.float64]) -> list[int]:
    """Indices of those, highest score first; of equal ones the lowest index first."""
    among = np.flatnonzero(those)
    return [int(one) for one in among[np.argsort(-scores[among], kind="stable")]]


def _poorest(those: Kept, ranks: NDArray[np.float64], utility: NDArray[np.float64]) -> list[int]:
    """Indices of those, the first to go first."""
    among = np.flatnonzero(those)
    if not among.size:
        return []
    poverty: NDArray[Any] = rankdata(ranks[among]) + rankdata(-utility[among])
    return [int(one) for one in among[np.lexsort((-among, utility[among], -poverty))]]


def _together(one: int, other: int, n_expert: int, n_groups: int) -> bool:
    size = n_expert // n_groups
    return one // size == other // size
