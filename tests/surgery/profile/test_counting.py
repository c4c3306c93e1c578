"""Counting: what is observed is added to a profile's arrays as a plain loop would add it."""

from __future__ import annotations

import numpy as np

from coe.surgery.parent import Identity
from coe.surgery.profile.counting import count
from coe.surgery.profile.profile import Profile
from coe.surgery.profile.tap import Observation


def test_counting_is_what_a_plain_loop_counts() -> None:
    parent = Identity("p", "0" * 64, "gemma4", (0, 3), n_expert=5, n_used=2)
    rng = np.random.default_rng(0)
    chosen = np.stack([[rng.permutation(5)[:2] for _ in range(30)] for _ in range(2)]).astype(np.int32)
    chosen[1, :, 1] = -1  # a layer that uses fewer experts
    weights = np.where(chosen < 0, 0, rng.random(chosen.shape)).astype(np.float32)
    norms, peaks = rng.random((2, *chosen.shape)).astype(np.float32)
    categories = rng.integers(0, 3, 30) * 2  # classes 0, 2 and 4 of five
    profile = Profile.empty(parent, "abcde", norms=True)
    count(profile, Observation(chosen, weights, None, norms, peaks), categories)
    wanted = Profile.empty(parent, "abcde", norms=True)
    assert wanted.norms is not None
    assert wanted.peaks is not None
    for (layer, token, rank), expert in np.ndenumerate(chosen):
        if expert >= 0:
            at = (categories[token], layer, expert)
            wanted.selections[(*at, rank)] += 1
            wanted.weights[(*at, rank)] += weights[layer, token, rank]
            wanted.norms[at] += norms[layer, token, rank]
            wanted.peaks[layer, expert] = max(wanted.peaks[layer, expert], peaks[layer, token, rank])
    np.testing.assert_array_equal(profile.selections, wanted.selections)
    np.testing.assert_allclose(profile.weights, wanted.weights)
    assert profile.norms is not None
    np.testing.assert_allclose(profile.norms, wanted.norms)
    np.testing.assert_array_equal(profile.peaks, wanted.peaks)
    np.testing.assert_array_equal(profile.tokens, np.bincount(categories, minlength=5))
