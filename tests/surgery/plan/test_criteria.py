"""Criteria: each formula beside a plain computation, and what happens without norms."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from coe.surgery.errors import ProfileError
from coe.surgery.plan import super_experts
from coe.surgery.plan.criteria import CRITERIA, mean_rank, score
from coe.surgery.profile.profile import Profile, combine
from fakes.synthetic_profile import identity, routed


@pytest.fixture
def profile() -> Profile:
    rng = np.random.default_rng(0)
    parent = identity(layers=3, experts=16, used=8)
    return combine([routed(parent, 200, rng, name="prose"), routed(parent, 100, rng, name="code")])


def test_the_cards_long_utility_is_the_mean_gate_mass(profile: Profile) -> None:
    chosen, weights = profile.selections.sum(0), profile.weights.sum(0)
    long = np.zeros(chosen.shape[:2])
    for rank in range(8):
        long += chosen[:, :, rank] / profile.n_tokens * (weights[:, :, rank] / np.maximum(chosen[:, :, rank], 1))
    np.testing.assert_allclose(score(profile, "gate-mass"), long, rtol=1e-12)


def test_gate_mass_adds_up_to_the_weight_of_a_token(profile: Profile) -> None:
    np.testing.assert_allclose(score(profile).sum(1), 1.0)


def test_frequency_adds_up_to_the_experts_a_token_uses(profile: Profile) -> None:
    np.testing.assert_allclose(score(profile, "frequency").sum(1), 8.0)


def test_rank_weighted_counts_a_first_choice_8_36_and_a_last_one_1_36(profile: Profile) -> None:
    assert score(profile, "rank-weighted").sum(1) == pytest.approx(1.0)
    counts = profile.selections.sum(0)[1, 5]
    by_hand = sum((8 - rank) / 36 * counts[rank] for rank in range(8)) / profile.n_tokens
    assert score(profile, "rank-weighted")[1, 5] == pytest.approx(by_hand)


def test_reap_is_the_mean_of_a_choice_and_mass_norm_the_mean_of_a_token(profile: Profile) -> None:
    assert profile.norms is not None
    total = profile.norms.sum(0)
    np.testing.assert_allclose(score(profile, "reap"), total / profile.selections.sum((0, 3)))
    np.testing.assert_allclose(score(profile, "mass-norm"), total / 300)


def test_an_expert_never_chosen_scores_nothing_and_has_the_poorest_rank(profile: Profile) -> None:
    for counts in (profile.selections, profile.weights, profile.norms):
        assert counts is not None
        counts[:, 2, 3] = 0
    for name in CRITERIA:
        if name != "random":
            assert score(profile, name)[2, 3] == 0
    assert mean_rank(profile)[2, 3] == 8


def test_random_is_the_same_for_the_same_seed_and_another_for_another(profile: Profile) -> None:
    np.testing.assert_array_equal(score(profile, "random", seed=3), score(profile, "random", seed=3))
    assert not np.array_equal(score(profile, "random", seed=3), score(profile, "random", seed=4))


@pytest.mark.parametrize("name", ["reap", "mass-norm"])
def test_without_norms_the_criteria_that_need_them_say_so(profile: Profile, name: str) -> None:
    bare = replace(profile, norms=None, peaks=None)
    with pytest.raises(ProfileError, match=r"none\. Profile again with --norms.*gate-mass"):
        score(bare, name)
    assert score(bare).shape == (3, 16)


def test_norms_that_overflowed_are_refused(profile: Profile) -> None:
    assert profile.norms is not None
    profile.norms[0, 1, 2] = np.inf
    with pytest.raises(ProfileError, match="1 norms of the profile are not finite"):
        score(profile, "reap")


def test_an_unknown_criterion_is_answered_with_the_known(profile: Profile) -> None:
    with pytest.raises(ProfileError, match="gate-mass, frequency, rank-weighted, reap, mass-norm, random"):
        score(profile, "entropy")


class TestSuperExperts:
    def test_extreme_experts_of_early_layers_are_found(self) -> None:
        profile = routed(identity(layers=8, experts=128, used=4), 50, np.random.default_rng(1))
        assert profile.peaks is not None
        profile.peaks[1, 60] = 900.0
        profile.peaks[2, 7] = 300.0
        profile.peaks[7, 0] = 2000.0  # a late layer: it passes on what was made before
        profile.peaks[3, 9] = 50.0  # large in its layer, small beside the largest
        found = super_experts.find(profile)
        assert [(pin.layer, pin.expert) for pin in found.pins] == [(1, 60), (2, 7)]
        assert "1:60, 2:7" in found.note

    def test_a_layer_whose_experts_are_all_loud_has_none(self) -> None:
        profile = routed(identity(layers=8, experts=64, used=4), 50, np.random.default_rng(1))
        assert profile.peaks is not None
        profile.peaks[4] *= 100
        assert super_experts.find(profile).pins == ()

    def test_a_router_without_outliers_has_none(self) -> None:
        found = super_experts.find(routed(identity(layers=8, experts=64), 50, np.random.default_rng(2)))
        assert found.pins == ()
        assert "No super experts" in found.note

    def test_nothing_is_claimed_without_norms(self) -> None:
        found = super_experts.find(routed(identity(), 20, np.random.default_rng(3), norms=False))
        assert found.pins == ()
        assert "not looked for" in found.note

    def test_blocks_are_counted_from_the_model_s_first_not_from_the_first_with_a_router(self) -> None:
        profile = routed(identity(layers=4, experts=64, first_layer=4), 50, np.random.default_rng(4))
        assert profile.peaks is not None
        profile.peaks[1, 3] = 1000.0  # block 5 of 8
        profile.peaks[2, 3] = 1000.0  # block 6 of 8: beyond three quarters
        assert [(pin.layer, pin.expert) for pin in super_experts.find(profile).pins] == [(5, 3)]
