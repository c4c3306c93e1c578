"""Recipes: what each pass takes and leaves, that nothing pinned goes, and that ties fall the same way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe.surgery.errors import MaskError, ParentMismatchError, ProfileError
from coe.surgery.mask import Mask, Pin
from coe.surgery.parent import Identity
from coe.surgery.plan import drop_map, three_pass
from coe.surgery.plan.criteria import mean_rank, score
from coe.surgery.plan.methods import DropMap, SelectionMethod, ThreePass, TopK
from coe.surgery.plan.planning import plan
from coe.surgery.plan.presets import PRESETS
from coe.surgery.plan.selection import best, top_k
from coe.surgery.profile.profile import Profile, combine
from fakes.synthetic_profile import identity, routed


def flat(parent: Identity, tokens: int = 45_000) -> Profile:
    """A profile in which expert e of every layer was chosen often, less the higher its index, always in the middle."""
    profile = Profile.empty(parent, ["all"], corpus_sha256="flat")
    middle = parent.n_used // 2
    for expert in range(parent.n_expert):
        profile.selections[0, :, expert, middle] = 1000 - expert
        profile.weights[0, :, expert, middle] = (1000 - expert) * 0.1
    return replace(profile, tokens=np.array([tokens]), documents=np.array([1]))


def chosen(profile: Profile, row: int, expert: int, rank: int, count: int, weight: float) -> None:
    """Put one expert's counts in the place of what they were."""
    profile.selections[0, row, expert] = 0
    profile.weights[0, row, expert] = 0
    profile.selections[0, row, expert, rank] = count
    profile.weights[0, row, expert, rank] = weight


class TestTopK:
    def test_the_highest_scores_are_kept(self) -> None:
        profile = routed(identity(), 300, np.random.default_rng(0))
        mask = plan(profile, 6, TopK(), criterion="frequency")
        scores = score(profile, "frequency")
        for row, layer in enumerate(profile.parent.layers):
            kept = list(mask.keep[layer])
            assert scores[row, kept].min() >= np.delete(scores[row], kept).max()

    def test_of_equal_experts_the_lowest_indices_are_kept(self) -> None:
        assert top_k(np.zeros((2, 6)), 3).tolist() == [[True] * 3 + [False] * 3] * 2
        scores = np.array([[1.0, 2.0, 1.0, 2.0, 1.0, 1.0]])
        assert np.flatnonzero(top_k(scores, 3)).tolist() == [0, 1, 3]

    def test_every_group_keeps_as_many(self) -> None:
        scores = np.array([[9.0, 8, 7, 6, 1, 2, 3, 4]])
        assert np.flatnonzero(top_k(scores, 4, n_groups=2)).tolist() == [0, 1, 6, 7]

    def test_a_pin_takes_the_place_of_the_weakest_and_is_logged(self) -> None:
        mask = plan(flat(identity(experts=8)), 4, TopK(), pins=[Pin(1, 7, "super expert")])
        assert mask.keep == {0: (0, 1, 2, 3), 1: (0, 1, 2, 7), 2: (0, 1, 2, 3)}
        assert mask.provenance.pins == (Pin(1, 7, "super expert"),)
        (swap,) = mask.provenance.swaps
        assert (swap.layer, swap.out, swap.into, swap.why) == (1, 3, 7, "pinned: super expert")


class TestThreePass:
    def test_a_whitelisted_expert_takes_the_poorest_member_s_place(self) -> None:
        profile = flat(identity(layers=1, experts=8, used=8))
        chosen(profile, 0, 7, rank=0, count=12, weight=6.0)  # rare, but always the first choice
        chosen(profile, 0, 2, rank=7, count=998, weight=99.8)  # a member of the same utility, always the last choice
        mask = plan(replace(profile, parent=replace(profile.parent, n_used=4)), 4, ThreePass())
        assert mask.keep[0] == (0, 1, 3, 7)
        (swap,) = mask.provenance.swaps
        assert (swap.out, swap.into) == (2, 7)
        assert "whitelist: mean rank 0.00" in swap.why

    def test_an_expert_chosen_too_rarely_is_not_whitelisted(self) -> None:
        profile = flat(identity(layers=1, experts=12, used=8))
        chosen(profile, 0, 11, rank=0, count=9, weight=4.5)
        assert not three_pass.whitelist(profile, ThreePass())[0, 11]
        chosen(profile, 0, 11, rank=0, count=10, weight=5.0)
        assert three_pass.whitelist(profile, ThreePass())[0, 11]

    @pytest.mark.parametrize(("tokens", "needed"), [(900_000, 10), (45_000, 10), (22_500, 5), (4_500, 3), (10, 3)])
    def test_small_corpora_ask_for_fewer_activations(self, tokens: int, needed: int) -> None:
        assert three_pass.least_activations(ThreePass(), tokens) == needed

    @pytest.mark.parametrize(("ranks", "limit"), [(8, 2.0), (4, 1.0), (2, 0.5), (1, 0.0)])
    def test_the_rank_to_stay_below_follows_the_number_of_ranks(self, ranks: int, limit: float) -> None:
        assert three_pass.rank_limit(ThreePass(), ranks) == limit

    def test_reasoning_experts_come_in_up_to_the_cap(self) -> None:
        parent = identity(layers=2, experts=16, used=8)
        domain, reasoning = flat(parent), flat(parent)
        for expert in range(16):
            chosen(reasoning, 0, expert, rank=4, count=100 + expert, weight=(100 + expert) * 10.0)
            chosen(reasoning, 1, expert, rank=4, count=1, weight=0.001)
        for cap in (3, 6):
            mask = plan(domain, 8, ThreePass(reasoning_cap=cap), second=reasoning)
            swaps = [(swap.layer, swap.out, swap.into) for swap in mask.provenance.swaps]
            assert swaps == [(0, 7 - i, 15 - i) for i in range(cap)]
            assert mask.keep[1] == tuple(range(8))
        assert all("reasoning:" in swap.why for swap in mask.provenance.swaps)

    def test_a_member_that_is_stronger_on_reasoning_stays(self) -> None:
        parent = identity(layers=1, experts=10, used=8)
        domain, reasoning = flat(parent), flat(parent)
        for expert in range(10):
            chosen(reasoning, 0, expert, rank=4, count=1, weight=0.0)
        chosen(reasoning, 0, 9, rank=4, count=500, weight=500.0)
        chosen(reasoning, 0, 8, rank=4, count=10, weight=0.5)
        chosen(reasoning, 0, 7, rank=4, count=900, weight=900.0)
        mask = plan(domain, 8, ThreePass(), second=reasoning)
        assert mask.keep[0] == (0, 1, 2, 3, 4, 5, 7, 9)

    def test_without_a_second_profile_the_third_pass_is_left_out(self) -> None:
        mask = plan(flat(identity()), 8, ThreePass())
        assert mask.provenance.swaps == ()
        assert "reasoning_corpus_sha256" not in mask.provenance.recipe

    def test_a_second_profile_of_another_parent_is_refused(self) -> None:
        with pytest.raises(ParentMismatchError, match="second profile is of other"):
            plan(flat(identity()), 8, ThreePass(), second=flat(identity(name="other")))

    def test_a_second_profile_is_refused_by_recipes_that_have_no_use_for_it(self) -> None:
        with pytest.raises(ProfileError, match="no use of a second"):
            plan(flat(identity()), 8, TopK(), second=flat(identity()))


def classes(weights: dict[str, float], parent: Identity | None = None, *, norms: bool = True) -> Profile:
    parent = parent or identity(layers=4, experts=32, used=4)
    rng = np.random.default_rng(5)
    return combine([routed(parent, 150, rng, name=name, norms=norms) for name in weights])


class TestDropMap:
    def test_places_are_maximum_plus_breadth(self) -> None:
        scores = np.array([[[1.0, 5.0, 3.0]], [[30.0, 10.0, 20.0]]])
        total = drop_map.aggregate(scores, np.array([1.0, 2.0]), 0.5)
        # places: class one 0, 1, 0.5; class two 1, 0, 0.5
        assert total.tolist() == [[2.0 + 0.25, 1.0 + 0.25, 1.0 + 0.25]]

    def test_equal_scores_share_the_lowest_of_their_places(self) -> None:
        scores = np.array([[[0.0, 0.0, 5.0, 0.0, 7.0]]])
        assert drop_map.aggregate(scores, np.array([1.0]), 0.0).tolist() == [[0, 0, 0.75, 0, 1]]

    def test_a_score_is_alpha_times_norm_plus_choices(self) -> None:
        profile = classes({"a": 1, "b": 1})
        assert profile.norms is not None
        expected = 2.0 * profile.norms[::-1] + profile.selections[::-1].sum(3)
        np.testing.assert_allclose(drop_map.class_scores(profile, DropMap({"b": 1, "a": 1})), expected)

    @pytest.mark.parametrize("artefact", [np.inf, np.nan, 1e9])
    def test_an_outlier_takes_the_median_of_its_layer_and_class(self, artefact: float) -> None:
        profile = classes({"a": 1})
        clean = drop_map.class_scores(profile, DropMap())
        assert profile.norms is not None
        profile.norms[0, 2, 9] = artefact
        scores = drop_map.class_scores(profile, DropMap())
        assert scores[0, 2, 9] == np.median(np.delete(clean[0, 2], 9))
        np.testing.assert_array_equal(np.delete(scores[0, 2], 9), np.delete(clean[0, 2], 9))

    def test_a_long_corpus_is_no_outlier(self) -> None:
        profile = classes({"a": 1})
        assert profile.norms is not None
        longer = replace(profile, selections=profile.selections * 10**6, norms=profile.norms * 10**6)
        np.testing.assert_allclose(
            drop_map.class_scores(longer, DropMap()), 1e6 * drop_map.class_scores(profile, DropMap())
        )

    def test_the_floor_lies_within_its_band_and_follows_the_layers_strength(self) -> None:
        pooled = np.array([[1.0] * 128, [3.0] * 128, [2.0] * 128])
        assert drop_map.floors(pooled, 98, DropMap(), (0, 1, 2)).tolist() == [24, 40, 32]
        assert drop_map.floors(pooled * 0 + 1, 98, DropMap(), (0, 1, 2)).tolist() == [24, 24, 24]
        given = DropMap(floor={0: 10, 1: 30, 2: 90})
        assert drop_map.floors(pooled, 98, given, (0, 1, 2)).tolist() == [24, 30, 40]
        assert drop_map.floors(pooled, 98, DropMap(floor_band=None), (0, 1, 2)).tolist() == [0, 0, 0]
        with pytest.raises(MaskError, match=r"no size for the layers \[2\]"):
            drop_map.floors(pooled, 98, DropMap(floor={0: 10, 1: 30}), (0, 1, 2))

    def test_the_band_goes_with_the_number_kept_as_the_card_has_it(self) -> None:
        pooled = np.array([[1.0] * 128, [3.0] * 128])
        assert drop_map.floors(pooled, 62, DropMap(), (0, 1)).tolist() == [15, 25]

    def test_strength_is_that_of_the_experts_that_can_be_kept(self) -> None:
        pooled = np.ones((2, 128))
        pooled[0, :98] = 2.0
        pooled[1, 98:] = 0.0  # weak experts that go anyway
        pooled[1, :98] = 3.0
        assert drop_map.floors(pooled, 98, DropMap(), (0, 1)).tolist() == [24, 40]

    def test_the_lowest_aggregates_go_where_nothing_is_protected(self) -> None:
        profile = classes({"a": 1, "b": 3})
        recipe = DropMap({"a": 1, "b": 3}, protect_top=0, floor_band=None)
        mask = plan(profile, 20, recipe)
        total = drop_map.aggregate(drop_map.class_scores(profile, recipe), np.array([1.0, 3.0]), 0.5)
        np.testing.assert_array_equal(mask.matrix(), top_k(total, 20))
        assert mask.provenance.swaps == ()

    def test_the_floor_keeps_experts_that_the_weights_would_drop_and_says_so(self) -> None:
        profile = classes({"a": 1, "b": 1})
        weights = {"a": 0.0, "b": 1.0}
        recipe = DropMap(weights, breadth=0.0, protect_top=2, floor_band=(65, 65), floor_classes=("a",))
        mask = plan(profile, 12, recipe)  # 65 of 98 are 8 of 12
        strongest = best((drop_map.class_scores(profile, recipe)[0],), 8)
        assert mask.matrix()[strongest].all()
        assert mask.provenance.swaps
        assert {swap.why for swap in mask.provenance.swaps} == {"protected: the layer's floor"}

    def test_the_weights_still_tell_where_few_are_kept(self) -> None:
        names = {"a": 1.0, "b": 1.0}
        profile = classes(names)
        masks = [plan(profile, 8, DropMap(weights)).keep for weights in ({"a": 1, "b": 0}, {"a": 0, "b": 1})]
        assert masks[0] != masks[1]

    def test_protection_gives_way_to_pins(self) -> None:
        profile = classes({"a": 1})
        worst = int(np.argmin(drop_map.class_scores(profile, DropMap())[0, 0]))
        mask = plan(profile, 8, DropMap(), pins=[Pin(0, worst, "wanted")])
        assert mask.n_keep == 8
        assert worst in mask.keep[0]
        assert any(swap.why == "pinned: wanted" for swap in mask.provenance.swaps)

    def test_missing_classes_are_named(self) -> None:
        with pytest.raises(ProfileError, match=r"does not have: code, law\. It has: a, b"):
            plan(classes({"a": 1, "b": 1}), 8, DropMap({"a": 1, "code": 2, "law": 0}))

    def test_without_norms_it_says_what_else_there_is(self) -> None:
        bare = classes({"a": 1}, norms=False)
        with pytest.raises(ProfileError, match=r"--norms, set alpha to 0 .* or name a criterion"):
            plan(bare, 8, DropMap())
        assert plan(bare, 8, DropMap(alpha=0)).n_keep == 8
        assert plan(bare, 8, DropMap(), criterion="gate-mass").n_keep == 8

    @pytest.mark.parametrize("weights", [{"a": -1.0}, {"a": 0.0}, {"a": float("nan")}])
    def test_weights_that_mean_nothing_are_refused(self, weights: dict[str, float]) -> None:
        with pytest.raises(MaskError, match="Class weights"):
            plan(classes({"a": 1}), 8, DropMap(weights))

    @pytest.mark.parametrize(
        ("name", "weights"),
        [
            ("v6", [1, 1, 3, 1, 1, 0, 0, 2]),
            ("v7", [1, 1, 3, 1, 1, 0, 0, 0, 2, 1.5]),
            ("v7-coderx", [1, 1, 3, 1, 1, 0, 0, 0, 2, 0]),
        ],
    )
    def test_presets_carry_the_cards_weights_and_can_be_planned(self, name: str, weights: list[float]) -> None:
        preset = PRESETS[name]
        assert list(preset.method.weights.values()) == weights
        assert preset.exact
        assert preset.assumed
        profile = classes(dict(preset.method.weights), identity(layers=3, experts=128, used=8))
        mask = plan(profile, preset.n_keep, preset.method)
        assert mask.n_keep == 98
        assert mask.provenance.recipe["preset"] == name
        with pytest.raises(ProfileError, match="generic_math"):
            plan(classes({"all": 1}), 8, preset.method)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Profile, int, SelectionMethod, Profile | None, list[Pin]]:
    """Any profile with many ties, any recipe, any pins that fit."""
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    used = draw(st.integers(1, 4)) if groups == 1 else 4
    experts = groups * draw(st.integers(max(2, -(-used // groups)), 6))
    parent = identity(layers=draw(st.integers(1, 3)), experts=max(experts, used), used=used, groups=groups)
    least = used if groups == 1 else max(used, 2 * groups)
    n_keep = draw(st.sampled_from([n for n in range(least, parent.n_expert + 1) if n % groups == 0]))
    profiles = []
    for name in ("a", "b"):
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        profile = Profile.empty(parent, [name], norms=True)
        profile.selections[:] = rng.integers(0, 4, profile.selections.shape) * draw(st.sampled_from([1, 10]))
        profile.selections[0, 0, 0, 0] += 1
        profile.weights[:] = profile.selections * rng.choice([0.25, 0.5], profile.weights.shape)
        assert profile.norms is not None
        profile.norms[:] = rng.integers(0, 3, profile.norms.shape)
        profiles.append(replace(profile, tokens=np.array([50])))
    recipe = draw(
        st.sampled_from(
            [TopK(), ThreePass(), ThreePass(reasoning_cap=6), DropMap(), DropMap({"a": 2}, floor_band=(2, 4))]
        )
    )
    room = n_keep // groups
    pins = [
        Pin(layer, group * (parent.n_expert // groups) + offset, "drawn")
        for layer in parent.layers
        for group in range(groups)
        for offset in draw(st.sets(st.integers(0, parent.n_expert // groups - 1), max_size=min(room, 3)))
    ]
    second = profiles[1] if isinstance(recipe, ThreePass) and draw(st.booleans()) else None
    return combine(profiles), n_keep, recipe, second, pins


@settings(deadline=None, max_examples=150)
@given(cases())
def test_any_plan_is_a_valid_mask_that_keeps_its_pins_and_explains_itself(case: Any) -> None:
    profile, n_keep, recipe, second, pins = case
    parent = profile.parent
    mask = plan(profile, n_keep, recipe, second=second, pins=pins)  # Mask itself checks counts and groups
    assert mask == plan(profile, n_keep, recipe, second=second, pins=list(reversed(pins)))
    assert {len(experts) for experts in mask.keep.values()} == {n_keep}
    assert all(pin.expert in mask.keep[pin.layer] for pin in pins)
    assert Mask.from_json(mask.to_json()) == mask

    # The logged swaps lead from the plain choice to the mask.
    if isinstance(recipe, DropMap):
        weights = np.array(list(drop_map.weights_of(profile, recipe).values()))
        scores = drop_map.aggregate(drop_map.class_scores(profile, recipe), weights, recipe.breadth)
    else:
        scores = score(profile)
    kept = top_k(scores, n_keep, parent.n_groups)
    for swap in mask.provenance.swaps:
        row = parent.layers.index(swap.layer)
        assert kept[row, swap.out]
        assert not kept[row, swap.into]
        assert swap.why
        kept[row, [swap.out, swap.into]] = False, True
    np.testing.assert_array_equal(kept, mask.matrix())

    if isinstance(recipe, ThreePass):
        listed = three_pass.whitelist(profile, recipe)
        gone = {(swap.layer, swap.out) for swap in mask.provenance.swaps if "pinned" not in swap.why}
        assert not any(listed[parent.layers.index(layer), expert] for layer, expert in gone)
        late = [swap.layer for swap in mask.provenance.swaps if swap.why.startswith("reasoning")]
        assert all(late.count(layer) <= recipe.reasoning_cap for layer in parent.layers)


@settings(deadline=None, max_examples=60)
@given(cases(), st.data())
def test_any_plan_ranks_all_experts_and_keeps_what_is_pinned_the_longest(case: Any, data: st.DataObject) -> None:
    profile, n_keep, recipe, second, pins = case
    parent = profile.parent
    mask = plan(profile, n_keep, recipe, second=second, pins=pins)  # Mask itself checks that the first are kept
    count = data.draw(st.sampled_from([n for n in range(1, parent.n_expert + 1) if mask.can_keep(n)]))
    resized = mask.keeping(count)
    room = count // parent.n_groups
    size = parent.n_expert // parent.n_groups
    for layer in parent.layers:
        for group in range(parent.n_groups):
            pinned = {pin.expert for pin in pins if pin.layer == layer and pin.expert // size == group}
            if len(pinned) <= room:
                assert pinned <= set(resized.keep[layer])


def test_top_k_of_a_ranking_is_the_plan_for_that_many() -> None:
    profile = routed(identity(), 300, np.random.default_rng(0))
    mask = plan(profile, 6, TopK())
    for count in (4, 5, 8, 11):
        assert mask.keeping(count).keep == plan(profile, count, TopK()).keep


def test_the_whitelist_goes_last() -> None:
    profile = flat(identity(layers=1, experts=8, used=2))
    chosen(profile, 0, 7, rank=0, count=20, weight=0.1)  # confident and rare
    mask = plan(profile, 4, ThreePass())
    assert 7 in mask.keep[0]
    assert mask.ranking[0][0] == 7
    assert 7 in mask.keeping(2).keep[0]


@settings(deadline=None, max_examples=30)
@given(cases())
def test_keeping_everything_keeps_everything(case: Any) -> None:
    profile, _, recipe, second, _ = case
    mask = plan(profile, profile.parent.n_expert, recipe, second=second)
    assert mask.keep == Mask.everything(profile.parent).keep
    assert mask.provenance.swaps == ()


@pytest.mark.parametrize("recipe", [TopK(), ThreePass(), DropMap(alpha=0)])
class TestRefusals:
    def test_fewer_than_a_token_uses(self, recipe: SelectionMethod) -> None:
        with pytest.raises(MaskError, match=r"every token of parent uses 4\. Keep at least 4"):
            plan(flat(identity()), 3, recipe)

    def test_more_than_there_are(self, recipe: SelectionMethod) -> None:
        with pytest.raises(MaskError, match="has 16 experts a layer, not 17"):
            plan(flat(identity()), 17, recipe)

    def test_a_number_that_groups_cannot_share(self, recipe: SelectionMethod) -> None:
        with pytest.raises(MaskError, match="Keep a multiple of 4"):
            plan(flat(identity(groups=4)), 6, recipe)

    def test_pins_that_do_not_exist(self, recipe: SelectionMethod) -> None:
        with pytest.raises(MaskError, match="no expert 16 in layer 0"):
            plan(flat(identity()), 8, recipe, pins=[Pin(0, 16, "?")])

    def test_more_pins_than_places(self, recipe: SelectionMethod) -> None:
        pins = [Pin(1, expert, "?") for expert in range(5)]
        with pytest.raises(MaskError, match="5 experts are pinned in layer 1, and only 4 are kept"):
            plan(flat(identity()), 4, recipe, pins=pins)

    def test_a_profile_of_nothing(self, recipe: SelectionMethod) -> None:
        with pytest.raises(ProfileError, match="no tokens"):
            plan(Profile.empty(identity(), ["all"]), 8, recipe)


def test_a_mask_remembers_its_recipe_corpus_and_tokens() -> None:
    profile = routed(identity(), 100, np.random.default_rng(0), name="law")
    provenance = plan(profile, 8, ThreePass(), criterion="reap").provenance
    assert provenance.recipe["name"] == "three-pass"
    assert provenance.recipe["criterion"] == "reap"
    assert provenance.recipe["activations_at_least"] == 3
    assert provenance.corpus_sha256 == "corpus of law"
    assert provenance.tokens == {"law": 100}
    assert provenance.made_with.startswith("coe-runtime ")
    assert plan(profile, 8, TopK(), criterion="random", seed=7).provenance.recipe["seed"] == 7
    assert "preset" not in plan(profile, 8, DropMap()).provenance.recipe


def test_the_poorest_are_those_late_in_rank_and_low_in_utility() -> None:
    profile = flat(identity(layers=1, experts=12, used=8))
    chosen(profile, 0, 11, rank=0, count=20, weight=2.0)
    assert mean_rank(profile)[0, 11] == 0
    # All members have the same rank: the least useful goes.
    assert plan(profile, 8, ThreePass()).keep[0] == (0, 1, 2, 3, 4, 5, 6, 11)
