"""The methods that choose experts, as values: each its settings and nothing else, so that a roster loads no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

HAND_CURATED_CAP: Final = 3


@dataclass(frozen=True)
class TopK:
    """The experts of highest score, and nothing else."""


@dataclass(frozen=True)
class ThreePass:
    """Settings of the recipe.

    whitelist_rank:        mean rank (0: first choice) below which an expert is confident, of eight ranks; a router
                           of R ranks is asked for R/8 of it. With one rank there is no whitelist.
    whitelist_activations: choices at any rank that it takes at least, in a corpus of 45,000 tokens or more; in a
                           smaller one in proportion, but never below 3.
    reasoning_cap:         swaps a layer of the third pass: the cards take 3 (hand-curated) or 6 (automated).
    """

    whitelist_rank: float = 2.0
    whitelist_activations: int = 10
    reasoning_cap: int = HAND_CURATED_CAP


@dataclass(frozen=True)
class DropMap:
    """Settings of the recipe.

    weights:       class -> weight; empty for every class of the profile with weight 1. A class of weight 0 still
                   counts towards breadth.
    alpha:         what a norm counts beside a token, see `class_scores`; at 0 no norms are needed.
    breadth:       what the mean over the classes adds to the best of them.
    protect_top:   so many of the highest aggregate a layer are never dropped, or as many as fit beside the floor.
    floor_band:    fewest and most experts a layer that are protected for their strength over the floor's classes where
                   98 are kept, in proportion where others are; see `floors`. None for no floor.
    floor_classes: the classes that the floor looks at; empty for all that are weighed. Those the profile lacks are
                   left out.
    floor:         layer -> size of the floor where it is known, kept within the band; empty to work it out.
    outlier_norm:  a mean norm above this, or one that is not finite, is taken for an artefact.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    alpha: float = 2.0
    breadth: float = 0.5
    protect_top: int = 16
    floor_band: tuple[int, int] | None = (24, 40)
    floor_classes: tuple[str, ...] = ()
    floor: Mapping[int, int] = field(default_factory=dict)
    outlier_norm: float = 1e4


SelectionMethod = TopK | ThreePass | DropMap
