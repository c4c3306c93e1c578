"""The drop map: multi-class pruning; classes of text have weights, and the experts that serve none of them go."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from ..errors import MaskError, ProfileError
from ..mask import ExpertSwap
from ..profile.profile import Profile
from .criteria import score
from .methods import DropMap
from .selection import Kept, best, exchanged

Scores = NDArray[np.float64]

_BAND_IS_FOR: Final = 98


def weights_of(profile: Profile, recipe: DropMap) -> dict[str, float]:
    """Class -> weight. Raises ProfileError, naming the classes that the profile lacks; MaskError for odd weights."""
    weights = dict(recipe.weights) or dict.fromkeys(profile.classes, 1.0)
    missing = [name for name in weights if name not in profile.classes]
    if missing:
        raise ProfileError(
            f"The recipe weighs classes that the profile does not have: {', '.join(missing)}.",
            f"It has: {', '.join(profile.classes)}. Profile texts of the missing classes as well, or give weights "
            "for the classes that are there.",
        )
    if not all(np.isfinite(weight) and weight >= 0 for weight in weights.values()) or not any(weights.values()):
        raise MaskError("Class weights must be at least 0, and one of them more.", "Correct the weights.")
    return weights


def class_scores(profile: Profile, recipe: DropMap, criterion: str | None = None, *, seed: int = 0) -> Scores:
    """[C, L, E], in the order of the weights: how much each class makes of each expert.

    Without a criterion alpha x (sum of ||weight x output||) + number of choices; where the mean norm of a choice is
    above `outlier_norm` or not finite, the median of the layer's others stands in. With a criterion, the class scored
    by that.
    Raises ProfileError when norms are needed and the profile has none.
    Source: the drop-map cards' alpha, outlier_mode and outlier_wnorm_thresh. They compare sums with the threshold;
    here it is the mean of one choice, so that a longer corpus is not taken for an artefact.
    """
    names = list(weights_of(profile, recipe))
    if criterion is not None:
        return np.stack([score(profile.of_class(name), criterion, seed=seed) for name in names])
    at = [profile.classes.index(name) for name in names]
    counts: Scores = profile.selections[at].sum(3).astype(np.float64)
    if recipe.alpha == 0:
        return counts
    if profile.norms is None:
        raise ProfileError(
            "The drop map needs the norms of the experts' outputs, and this profile has none.",
            "Profile again with --norms, set alpha to 0 (token counts alone), or name a criterion without norms.",
        )
    norms = profile.norms[at]
    with np.errstate(invalid="ignore", over="ignore"):
        scores: Scores = recipe.alpha * norms + counts
        bad = ~np.isfinite(scores) | (np.abs(norms) > recipe.outlier_norm * np.maximum(counts, 1))
    for index in np.argwhere(bad.any(2)):
        row, odd = scores[tuple(index)], bad[tuple(index)]
        row[odd] = np.median(row[~odd]) if not odd.all() else 0.0
    return scores


def aggregate(scores: Scores, weights: NDArray[np.float64], breadth: float) -> Scores:
    """[L, E]: max over the classes of weight x place, plus breadth x the mean place, from [C, L, E] scores.

    A place is the expert's rank within its layer and class, 0 for the lowest and 1 for the highest; equal scores
    share the lowest of their places, so that experts never chosen stand at 0.
    Source: the drop-map cards' strategy max, normalize rank and breadth_bonus.
    """
    places = (rankdata(scores, method="min", axis=2) - 1) / max(scores.shape[2] - 1, 1)
    return np.asarray((weights[:, None, None] * places).max(0) + breadth * places.mean(0))


def floors(pooled: Scores, n_keep: int, recipe: DropMap, layers: tuple[int, ...]) -> NDArray[np.int64]:
    """[L]: how many experts of each layer are protected for their strength.

    A layer's strength is the mean of its n_keep highest pooled scores; the weakest layer gets the lower end of the
    band, the strongest the upper, the others lie between in proportion.
    Source: v4_floor_clamp of the last drop-map card, which calls its band of 24 to 40 the counterpart for 98 experts of
    15 to 25 for 62: it goes with their number. The map it is applied to is in no card, so the strengths of the profile
    at hand take its place.
    """
    if recipe.floor_band is None:
        return np.zeros(len(layers), np.int64)
    low, high = (round(bound * n_keep / _BAND_IS_FOR) for bound in recipe.floor_band)
    if recipe.floor:
        missing = [layer for layer in layers if layer not in recipe.floor]
        if missing:
            raise MaskError(f"The floor names no size for the layers {missing}.", "Name every layer, or none.")
        return np.array([min(max(recipe.floor[layer], low), high) for layer in layers], np.int64)
    strength = np.sort(pooled, axis=1)[:, -n_keep:].mean(1)
    spread = np.ptp(strength)
    share = (strength - strength.min()) / spread if spread > 0 else np.zeros(len(layers))
    sizes: NDArray[np.int64] = np.rint(low + (high - low) * share).astype(np.int64)
    return sizes


def carry_out(
    profile: Profile, n_keep: int, recipe: DropMap, criterion: str | None, fixed: Kept, *, seed: int = 0
) -> tuple[Kept, list[ExpertSwap], tuple[NDArray[Any], ...]]:
    """The [L, E] to keep, and the experts that protection kept, beside the n_keep highest aggregates; and the keys that
    experts are ranked by, [L, E] each.

    Those of lowest aggregate are dropped until n_keep remain; `fixed` ones never, protected ones only where pins or
    groups leave them no room, and then those of lowest pooled score first.
    """
    parent = profile.parent
    weights = weights_of(profile, recipe)
    scores = class_scores(profile, recipe, criterion, seed=seed)
    total = aggregate(scores, np.array(list(weights.values())), recipe.breadth)
    names = list(weights)
    at = [names.index(name) for name in recipe.floor_classes or names if name in names]
    pooled = scores[at or slice(None)].max(0)
    protected = np.zeros(total.shape, np.bool_)
    for row, size in enumerate(floors(pooled, n_keep, recipe, parent.layers)):
        strongest = min(int(size), n_keep)
        protected[row] = best((pooled[row : row + 1],), strongest)[0]
        protected[row] |= best((total[row : row + 1],), min(recipe.protect_top, n_keep - strongest))[0]
    keys = (fixed, protected, np.where(protected, pooled, total))
    kept = best(keys, n_keep, parent.n_groups)
    plain = best((total,), n_keep, parent.n_groups)
    return kept, exchanged(parent, plain, kept, {}, "protected: the layer's floor"), keys
