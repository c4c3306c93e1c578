"""Super experts: the handful whose outputs carry a model's massive activations, and which no mask may drop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from ..mask import Pin
from ..profile.profile import Profile

_PERCENTILE: Final = 99.5
_OF_LARGEST: Final = 0.1
_OF_DEPTH: Final = 0.75
_OVER_LAYER_MEDIAN: Final = 10.0


@dataclass(frozen=True)
class SuperExperts:
    """The experts found, as pins, and in one sentence how they were looked for or why they were not."""

    pins: tuple[Pin, ...]
    note: str


def find(profile: Profile) -> SuperExperts:
    """Experts whose largest output value is extreme; nothing is claimed of a profile taken without norms.

    An expert is one when its peak is above the 99.5th percentile of all experts' peaks and above a tenth of the
    largest one, and it lies in the first three quarters of the blocks, since later ones only pass on or cancel what was
    made before. These three are relative and pick some experts in any model, so a fourth asks for an outlier: at least
    10 times the median peak of its own layer.
    Source: "Unveiling Super Experts in Mixture-of-Experts Large Language Models", arXiv 2507.23279, for the first three
    (the share of blocks from its code); the fourth is ours.
    """
    if profile.peaks is None:
        return SuperExperts((), "Super experts were not looked for: the profile was taken without norms.")
    layers = np.array(profile.parent.layers)
    early = layers < _OF_DEPTH * (layers[-1] + 1)
    # A value that is not finite is no peak to compare others with: it is an overflow, which scoring reports.
    peaks = np.where(np.isfinite(profile.peaks), profile.peaks, 0.0)
    seen = peaks[peaks > 0]
    if not seen.size or not early.any():
        return SuperExperts((), "Super experts were not found: the profile holds no peaks.")
    medians = np.array([np.median(row[row > 0]) if (row > 0).any() else np.inf for row in peaks])
    extreme = (
        (peaks > np.percentile(seen, _PERCENTILE))
        & (peaks > _OF_LARGEST * peaks[early].max())
        & early[:, None]
        & (peaks >= _OVER_LAYER_MEDIAN * medians[:, None])
    )
    pins = tuple(
        Pin(
            int(layers[row]),
            int(expert),
            f"super expert: its output reaches {peaks[row, expert]:.4g}, {peaks[row, expert] / medians[row]:.0f} times "
            "its layer's median",
        )
        for row, expert in np.argwhere(extreme)
    )
    found = ", ".join(f"{pin.layer}:{pin.expert}" for pin in pins)
    return SuperExperts(pins, f"Super experts (layer:expert): {found}." if pins else "No super experts were found.")
