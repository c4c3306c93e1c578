"""Similarity of masks: Jaccard index, F-score and weighted cosine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MaskError, ParentMismatchError
from ..mask import Mask

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """M masks of one parent, each beside each. Matrices are [M, M] and symmetric, in the order of the names.

    jaccard:          mean over the layers of |A and B| / |A or B|; jaccard_by_layer [M, M, L] has them layer by layer.
    f_direct:         2 |A and B| / (|A| + |B|), all layers together.
    f_score:          the same without the experts that every mask has; None for fewer than three masks, since of two
                      nothing would be left in common.
    cosine:           budget-weighted cosine of the utilities of the kept experts; None without utilities.
    heterogeneity:    spread of the alignment over the layers beside its whole (standard deviation / whole); the
                      alignment is the cosine, or the F-score where there are no utilities.
    n_common:         layer -> experts that every mask has.
    """

    names: tuple[str, ...]
    layers: tuple[int, ...]
    n_keep: tuple[int, ...]
    jaccard: Values
    jaccard_by_layer: Values
    f_direct: Values
    f_score: Values | None
    cosine: Values | None
    heterogeneity: Values
    n_common: Mapping[int, int]

    def to_json(self) -> dict[str, Any]:
        """For a report."""
        return {
            "names": list(self.names),
            "n_keep": list(self.n_keep),
            "layers": list(self.layers),
            "jaccard": self.jaccard.tolist(),
            "jaccard_by_layer": self.jaccard_by_layer.tolist(),
            "f_direct": self.f_direct.tolist(),
            "f_score": None if self.f_score is None else self.f_score.tolist(),
            "cosine": None if self.cosine is None else self.cosine.tolist(),
            "heterogeneity": self.heterogeneity.tolist(),
            "n_common": {str(layer): count for layer, count in self.n_common.items()},
        }


def jaccard_by_layer(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> Values:
    """[L] of two [L, E] masks: experts that both keep, of those that either keeps; 1 where neither keeps any."""
    either = (one | other).sum(1)
    return np.where(either > 0, (one & other).sum(1) / np.maximum(either, 1), 1.0)


def f_scores(kept: NDArray[np.bool_]) -> Values:
    """[M, M] of masks [M, ...]: 2 |A and B| / (|A| + |B|), all that follows the first axis together; 1 of two empty."""
    flat = kept.reshape(len(kept), -1).astype(np.float64)
    sizes = flat.sum(1)
    both = sizes[:, None] + sizes[None, :]
    return np.where(both > 0, 2 * (flat @ flat.T) / np.maximum(both, 1), 1.0)


def compare(masks: Mapping[str, Mask], utilities: Mapping[str, Values] | None = None) -> Comparison:
    """Compare masks of one parent. utilities: name -> [L, E], what each mask was planned by.

    Raises MaskError for fewer than two masks or utilities that do not go with them, ParentMismatchError for masks of
    different parents.
    Source: the third model card. Its F-score is the share of the visitor's experts that the target has too, "after
    subtraction of experts found in all masks"; of masks of one size that is 2 |A and B| / (|A| + |B|), which also
    serves for masks of different sizes. Its "cosine similarity between the two models' per-layer activation utility
    vectors, weighted by expert budget" leaves open which experts are in the vectors and what a layer's budget is: here
    they are the experts a mask keeps (0 for the others), without those that every mask has, and a layer weighs as many
    as it has of these.
    """
    if len(masks) < 2:
        raise MaskError("There is nothing to compare with one mask.", "Give two or more.")
    names = tuple(masks)
    parent = masks[names[0]].parent
    for name, mask in masks.items():
        if not mask.parent.is_checkpoint_of(parent):
            raise ParentMismatchError(
                f"The mask {name} belongs to {mask.parent.name}, {names[0]} to {parent.name}.",
                "Compare masks of one parent.",
            )
    kept = np.stack([mask.matrix() for mask in masks.values()])
    by_layer = np.array([[jaccard_by_layer(one, other) for other in kept] for one in kept])
    common = kept.all(0)
    # Of two masks the common experts are all that they agree on: without them nothing could be said.
    own = kept & ~common if len(names) > 2 else kept
    cosine = None
    alignment = np.stack([f_scores(own[:, row]) for row in range(len(parent.layers))], axis=2)
    whole = f_scores(own)
    if utilities is not None:
        alignment = _cosines(np.where(own, _stacked(utilities, names, kept.shape[1:]), 0.0))
        whole = cosine = _weighed(alignment, own)
    return Comparison(
        names,
        parent.layers,
        tuple(mask.n_keep for mask in masks.values()),
        by_layer.mean(2),
        by_layer,
        f_scores(kept),
        f_scores(own) if len(names) > 2 else None,
        cosine,
        _heterogeneity(alignment, whole, own),
        dict(zip(parent.layers, common.sum(1).tolist(), strict=True)),
    )


def _stacked(utilities: Mapping[str, Values], names: Sequence[str], shape: tuple[int, ...]) -> Values:
    missing = [name for name in names if name not in utilities]
    odd = [name for name in names if name in utilities and np.shape(utilities[name]) != shape]
    if missing or odd:
        raise MaskError(
            f"There are no utilities for {', '.join(missing)}."
            if missing
            else f"The utilities of {', '.join(odd)} are not of the parent's layers and experts.",
            "Give each mask the profile it was planned by, or none.",
        )
    return np.stack([utilities[name] for name in names])


def _cosines(vectors: Values) -> Values:
    """[M, M, L] of [M, L, E]; 1 of two empty vectors, 0 of one."""
    lengths = np.linalg.norm(vectors, axis=2)
    products = np.einsum("ale,ble->abl", vectors, vectors)
    both = lengths[:, None] * lengths[None, :]
    empty = (lengths[:, None] == 0) & (lengths[None, :] == 0)
    return np.where(empty, 1.0, products / np.where(both > 0, both, 1.0))


def _budgets(own: NDArray[np.bool_]) -> Values:
    """[M, M, L]: experts a layer of two masks has to tell them apart, the mean of both."""
    counts = own.sum(2).astype(np.float64)
    return np.asarray((counts[:, None] + counts[None, :]) / 2)


def _weighed(alignment: Values, own: NDArray[np.bool_]) -> Values:
    budgets = _budgets(own)
    total = budgets.sum(2)
    return np.where(total > 0, (alignment * budgets).sum(2) / np.where(total > 0, total, 1.0), 1.0)


def _heterogeneity(alignment: Values, whole: Values, own: NDArray[np.bool_]) -> Values:
    """[M, M]: standard deviation over the layers that tell two masks apart / the whole; 0 of masks without overlap."""
    there = _budgets(own) > 0
    count = np.maximum(there.sum(2), 1)
    mean = (alignment * there).sum(2) / count
    spread = np.sqrt((np.square(alignment - mean[:, :, None]) * there).sum(2) / count)
    return np.where(whole > 0, spread / np.where(whole > 0, whole, 1.0), 0.0)
