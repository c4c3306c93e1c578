"""How concentrated a parent's router was over a corpus: entropy and gate mass, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .profile import Profile


@dataclass(frozen=True)
class LayerSummary:
    """How concentrated one layer's router was.

    entropy:      of the gate mass over the experts, 0..1; 1: spread evenly.
    top_half, top_quarter: share of the gate mass that its strongest half and quarter of the experts have.
    never_used:   experts that no token chose.
    """

    layer: int
    entropy: float
    top_half: float
    top_quarter: float
    never_used: int


def summarize(profile: Profile) -> list[LayerSummary]:
    """A line a layer."""
    mass = np.sort(profile.gate_mass(), axis=1)[:, ::-1]
    share = np.cumsum(mass, axis=1) / np.maximum(mass.sum(1, keepdims=True), 1e-300)
    n_expert = profile.parent.n_expert
    never = (profile.selections.sum((0, 3)) == 0).sum(1)
    return [
        LayerSummary(
            layer,
            float(entropy),
            float(share[row, max(n_expert // 2, 1) - 1]),
            float(share[row, max(n_expert // 4, 1) - 1]),
            int(never[row]),
        )
        for row, (layer, entropy) in enumerate(zip(profile.parent.layers, profile.entropy(), strict=True))
    ]


def summary_line(profile: Profile) -> str:
    """One sentence: how concentrated the router was on average, and where most."""
    layers = summarize(profile)
    focused = min(layers, key=lambda summary: summary.entropy)
    half = float(np.mean([summary.top_half for summary in layers]))
    never = sum(summary.never_used for summary in layers)
    return (
        f"{profile.n_tokens:,} tokens of {int(profile.documents.sum()):,} documents: the strongest half of the experts "
        f"has {half:.1%} of the router's weight on average; entropy {np.mean([s.entropy for s in layers]):.3f}, lowest "
        f"{focused.entropy:.3f} in layer {focused.layer}; {never} of {len(layers) * profile.parent.n_expert} experts "
        "were never used."
    )
