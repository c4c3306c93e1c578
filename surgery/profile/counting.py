"""Histograms of expert choices: what a router's observations add to a profile's counts and sums."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .profile import Profile
from .tap import Observation


def count(profile: Profile, observed: Observation, categories: NDArray[np.int64]) -> None:
    """Add what was observed to a profile's arrays, in place.

    categories: [T], the class of each token as its place in `profile.classes`.
    """
    n_layers, n_expert, n_used = profile.selections.shape[1:]
    there, local = np.unique(categories, return_inverse=True)  # a batch holds few classes, a profile may have many
    chosen = observed.chosen.astype(np.int64)
    owner = (local[None, :, None] * n_layers + np.arange(n_layers)[:, None, None]) * n_expert + chosen
    index = owner * n_used + np.arange(n_used)
    used: Any = observed.chosen >= 0
    if used.all():  # an index by truth values copies; no layer of most models uses fewer experts than another
        used = ...
    index = index[used].ravel()
    shape = (len(there), n_layers, n_expert, n_used)
    size = int(np.prod(shape))
    profile.selections[there] += np.bincount(index, minlength=size).reshape(shape)
    profile.weights[there] += np.bincount(index, observed.weights[used].ravel(), size).reshape(shape)
    np.add.at(profile.tokens, categories, 1)
    if profile.norms is not None and profile.peaks is not None:
        assert observed.norms is not None
        assert observed.peaks is not None
        owner = owner[used].ravel()
        sums = np.bincount(owner, observed.norms[used].ravel(), size // n_used)
        profile.norms[there] += sums.reshape(shape[:3])
        np.maximum.at(profile.peaks.reshape(-1), owner % (n_layers * n_expert), observed.peaks[used].ravel())


def added(total: Profile, part: Profile) -> Profile:
    """Both profiles as one. Packs are added whole, so that an interrupted run rounds as one that ran through."""
    norms = peaks = None
    if total.norms is not None and total.peaks is not None:
        assert part.norms is not None
        assert part.peaks is not None
        norms, peaks = total.norms + part.norms, np.maximum(total.peaks, part.peaks)
    return replace(
        total,
        selections=total.selections + part.selections,
        weights=total.weights + part.weights,
        tokens=total.tokens + part.tokens,
        documents=total.documents + part.documents,
        norms=norms,
        peaks=peaks,
    )
