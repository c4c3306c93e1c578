"""Masks: what they promise, for any of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe.surgery.errors import MaskError, ParentMismatchError
from coe.surgery.mask import ExpertSwap, Mask, Pin, Provenance
from coe.surgery.parent import Identity
from fakes.synthetic_profile import identity

NAMES = st.text(max_size=12)


@st.composite
def parents(draw: st.DrawFn) -> Identity:
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    used = draw(st.integers(1, 6)) if groups == 1 else groups
    size = draw(st.integers(max(1 if groups == 1 else 2, -(-used // groups)), 8))
    first = draw(st.integers(0, 3))
    layers = tuple(range(first, first + draw(st.integers(1, 4))))
    return Identity(draw(NAMES), "f" * 64, "gemma4", layers, max(2, size * groups), used, groups)


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    parent = draw(parents().filter(lambda p: p.n_expert % p.n_groups == 0))
    size = parent.n_expert // parent.n_groups
    least = max(1 if parent.n_groups == 1 else 2, -(-parent.n_used // parent.n_groups))
    each = draw(st.integers(least, size))
    keep = {}
    for layer in parent.layers:
        groups = [draw(st.permutations(range(size)))[:each] for _ in range(parent.n_groups)]
        keep[layer] = tuple(sorted(group * size + one for group, picks in enumerate(groups) for one in picks))
    numbers = st.integers(0, 9)
    provenance = Provenance(
        recipe={"name": draw(NAMES), "weights": {"a": draw(st.floats(0, 9))}},
        corpus_sha256=draw(NAMES),
        tokens=draw(st.dictionaries(NAMES, numbers, max_size=2)),
        swaps=tuple(draw(st.lists(st.builds(ExpertSwap, numbers, numbers, numbers, NAMES), max_size=2))),
        pins=tuple(draw(st.lists(st.builds(Pin, numbers, numbers, NAMES), max_size=2))),
    )
    ranking = {}
    if draw(st.booleans()):
        for layer, kept in keep.items():
            rest = sorted(set(range(parent.n_expert)) - set(kept))
            ranking[layer] = (*draw(st.permutations(kept)), *draw(st.permutations(rest)))
    return Mask(parent, keep, provenance, ranking)


@settings(deadline=None, max_examples=25)
@given(masks())
def test_any_mask_survives_its_file(tmp_path_factory: pytest.TempPathFactory, mask: Mask) -> None:
    path = tmp_path_factory.mktemp("mask") / "mask.json"
    mask.save(path)
    assert Mask.load(path) == mask
    assert [p.name for p in path.parent.iterdir()] == ["mask.json"]


@given(masks())
def test_any_mask_survives_its_matrix(mask: Mask) -> None:
    matrix = mask.matrix()
    assert matrix.shape == (len(mask.parent.layers), mask.parent.n_expert)
    assert (matrix.sum(1) == mask.n_keep).all()
    order = np.array([mask.ranking[layer] for layer in mask.parent.layers]) if mask.ranking else None
    assert Mask.from_matrix(mask.parent, matrix, mask.provenance, order) == mask


class TestOtherCounts:
    """A ranked mask keeps more or fewer experts than it was planned for."""

    @given(masks().filter(lambda mask: mask.ranking), st.data())
    def test_more_experts_hold_the_fewer_ones(self, mask: Mask, data: st.DataObject) -> None:
        parent = mask.parent
        counts = [n for n in range(1, parent.n_expert + 1) if mask.can_keep(n)]
        few, many = sorted((data.draw(st.sampled_from(counts)), data.draw(st.sampled_from(counts))))
        fewer, more = mask.keeping(few), mask.keeping(many)
        assert (fewer.n_keep, more.n_keep) == (few, many)
        assert all(set(fewer.keep[layer]) <= set(more.keep[layer]) for layer in parent.layers)
        assert more.keeping(few).keep == fewer.keep, "whatever it kept in between"
        assert mask.keeping(few).keeping(mask.n_keep).keep == mask.keep

    @given(masks())
    def test_all_of_them_need_no_ranking(self, mask: Mask) -> None:
        assert mask.keeping(mask.parent.n_expert).keep == Mask.everything(mask.parent).keep
        assert mask.keeping(mask.n_keep) is mask

    def test_the_first_of_the_ranking_are_kept_of_each_group_as_many(self) -> None:
        parent = replace(identity(layers=1, experts=8, used=2), n_groups=2)
        mask = Mask(parent, {0: (1, 2, 5, 7)}, ranking={0: (7, 5, 2, 1, 6, 4, 0, 3)})
        assert mask.keeping(6).keep == {0: (0, 1, 2, 5, 6, 7)}
        with pytest.raises(MaskError, match="cannot be shared out among the 2 groups"):
            mask.keeping(5)

    def test_a_mask_without_a_ranking_does_not_say_which(self) -> None:
        mask = Mask(identity(layers=1, experts=8, used=2), {0: (1, 2, 3, 4)})
        with pytest.raises(MaskError, match=r"ranks none.* which would be the 6\..*Keep 4 or all 8"):
            mask.keeping(6)

    @pytest.mark.parametrize(
        ("count", "why"), [(9, "has 8 experts a layer, not 9"), (1, "every token of parent uses 2")]
    )
    def test_counts_that_cannot_be_are_refused(self, count: int, why: str) -> None:
        mask = Mask(identity(layers=1, experts=8, used=2), {0: (1, 2)}, ranking={0: (1, 2, 0, 3, 4, 5, 6, 7)})
        with pytest.raises(MaskError, match=why):
            mask.keeping(count)

    @pytest.mark.parametrize(
        ("ranking", "why"),
        [
            ({0: (0, 1, 2, 3, 4, 5, 6, 7)}, "keeps others than the first of its ranking"),
            ({0: (1, 2, 0, 3, 4, 5, 6)}, "does not rank its experts 0 to 7 once each"),
            ({0: (1, 2, 0, 3, 4, 5, 6, 6)}, "does not rank its experts 0 to 7 once each"),
            ({0: (1, 2, 0, 3, 4, 5, 6, True)}, "does not rank its experts 0 to 7 once each"),
            ({1: (1, 2, 0, 3, 4, 5, 6, 7)}, "Layer 0 does not rank"),
            ({0: (1, 2, 0, 3, 4, 5, 6, 7), 1: (0, 1)}, r"ranks the layers \[1\]"),
        ],
    )
    def test_a_ranking_that_contradicts_the_mask_is_refused(self, ranking: Any, why: str) -> None:
        with pytest.raises(MaskError, match=why):
            Mask(identity(layers=1, experts=8, used=2), {0: (1, 2)}, ranking=ranking)


@given(masks().filter(lambda mask: len(mask.parent.layers) > 1), st.data())
def test_a_mask_with_one_expert_less_in_one_layer_is_refused(mask: Mask, data: st.DataObject) -> None:
    matrix = mask.matrix()
    row = data.draw(st.integers(0, len(matrix) - 1))
    matrix[row, data.draw(st.sampled_from(np.flatnonzero(matrix[row]).tolist()))] = False
    with pytest.raises(MaskError, match="different numbers of experts"):
        Mask.from_matrix(mask.parent, matrix)


def test_a_file_has_a_line_a_layer(tmp_path: Path) -> None:
    mask = Mask(identity(layers=2, experts=6, used=2), {0: (0, 3), 1: (1, 5)})
    mask.save(tmp_path / "mask.json")
    text = (tmp_path / "mask.json").read_text()
    assert '    "0": [0, 3],\n    "1": [1, 5]\n' in text
    assert json.loads(text)["schema"] == 1


def test_keeping_everything_is_the_identity() -> None:
    parent = identity(experts=12, used=4, groups=4)
    mask = Mask.everything(parent)
    assert mask.n_keep == 12
    assert mask.matrix().all()


class TestRefusals:
    @pytest.mark.parametrize(
        ("keep", "message"),
        [
            ({0: (0, 1, 2, 3)}, r"disagree about the layers \[1\]"),
            ({0: (0, 1, 2, 3), 1: (0, 1, 2, 3), 2: (0, 1, 2, 3)}, r"disagree about the layers \[2\]"),
            ({0: (0, 1, 2, 3), 1: (0, 1, 2, 3, 4)}, "different numbers of experts .4 to 5."),
            ({0: (0, 1, 2, 3), 1: (0, 1, 2, 16)}, "Layer 1 names experts that are not 0 to 15"),
            ({0: (-1, 1, 2, 3), 1: (0, 1, 2, 3)}, "Layer 0 names experts"),
            ({0: (0, 1, 2, 3.0), 1: (0, 1, 2, 3)}, "Layer 0 names experts"),
            ({0: (False, 1, 2, 3), 1: (0, 1, 2, 3)}, "Layer 0 names experts"),
            ({0: (0, 1, 3, 2), 1: (0, 1, 2, 3)}, "Layer 0 does not list"),
            ({0: (0, 1, 1, 2), 1: (0, 1, 2, 3)}, "Layer 0 does not list"),
            ({0: (0, 1, 2), 1: (0, 1, 2)}, "every token uses 4"),
            ({0: (), 1: ()}, "every token uses 4"),
        ],
    )
    def test_masks_that_contradict_themselves_or_the_parent(self, keep: Any, message: str) -> None:
        with pytest.raises(MaskError, match=message):
            Mask(identity(layers=2), keep)

    def test_groups_that_keep_different_numbers(self) -> None:
        parent = identity(layers=1, experts=8, used=2, groups=2)
        Mask(parent, {0: (0, 3, 4, 5)})
        with pytest.raises(MaskError, match=r"keeps \[3, 1\] experts of its groups of 4"):
            Mask(parent, {0: (0, 1, 2, 4)})

    def test_another_parent(self) -> None:
        mask = Mask.everything(identity(name="one"))
        mask.require_parent(identity(name="one"))
        with pytest.raises(ParentMismatchError, match=r"made for one .*not for this two"):
            mask.require_parent(identity(name="two"))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"schema": 2}, "no mask file of schema 1"),
            ({"parent": {}}, "lacks something"),
            ({"parent": None}, "lacks something"),
            ({"keep": None}, "lacks something"),
            ({"keep": {"0": 3}}, "lacks something"),
            ({"keep": {"zero": [1]}}, "lacks something"),
            ({"provenance": {"swaps": [{"layer": 1}]}}, "lacks something"),
            ({"provenance": {"unknown": 1}}, "says too much"),
        ],
    )
    def test_files_that_are_damaged(self, change: dict[str, Any], message: str) -> None:
        content = json.loads(json.dumps(Mask.everything(identity()).to_json())) | change
        with pytest.raises(MaskError, match=message):
            Mask.from_json(content)

    @pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[1, 2]", b""])
    def test_files_that_are_no_masks(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "mask.json"
        path.write_bytes(content)
        with pytest.raises(MaskError, match="coe plan"):
            Mask.load(path)

    def test_files_that_are_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(MaskError, match=r"none\.json does not exist"):
            Mask.load(tmp_path / "none.json")


def of_router(router: str, **changes: Any) -> Identity:
    return replace(identity(**changes), router_sha256=router)


def test_another_file_of_the_same_router_is_the_same_parent() -> None:
    mask = Mask.everything(of_router("r" * 64, name="Q4"))
    mask.require_parent(of_router("r" * 64, name="Q8"))
    Mask.from_json(mask.to_json()).require_parent(of_router("r" * 64, name="IQ4"))


def test_a_file_of_another_router_is_another_checkpoint() -> None:
    mask = Mask.everything(of_router("a" * 64, name="one"))
    with pytest.raises(ParentMismatchError, match=r"made for one .* its router is another .*model or checkpoint"):
        mask.require_parent(of_router("b" * 64, name="two"))


@pytest.mark.parametrize("routers", [("", ""), ("a" * 64, ""), ("", "a" * 64)])
def test_without_both_routers_the_file_decides(routers: tuple[str, str]) -> None:
    mask = Mask.everything(of_router(routers[0], name="one"))
    mask.require_parent(of_router(routers[1], name="one"))
    with pytest.raises(ParentMismatchError, match=r"made for one .*coe mask MASK"):
        mask.require_parent(of_router(routers[1], name="two"))


def test_the_same_router_in_another_shape_is_no_parent() -> None:
    mask = Mask.everything(of_router("a" * 64, name="one", used=2))
    with pytest.raises(ParentMismatchError, match="describes its layers"):
        mask.require_parent(of_router("a" * 64, name="two", used=3))


def test_a_mask_of_a_file_is_bound_to_its_router_by_that_file_alone() -> None:
    old, file = Mask.everything(identity(name="one")), of_router("a" * 64, name="one")
    assert old.with_router_of(file).parent == file
    assert old.with_router_of(of_router("a" * 64, name="two")) == old
    new = Mask.everything(file)
    assert new.with_router_of(of_router("b" * 64, name="one")) == new


def test_a_router_s_hash_that_is_no_text_is_refused() -> None:
    content = Mask.everything(identity()).to_json()
    content["parent"]["router_sha256"] = 5
    with pytest.raises(MaskError, match="hashes"):
        Mask.from_json(content)


def test_a_mask_whose_parent_was_edited_does_not_apply(tmp_path: Path) -> None:
    parent = identity(layers=2, experts=8, used=2)
    mask = Mask.everything(parent)
    mask.require_parent(replace(parent, name="renamed"))
    with pytest.raises(ParentMismatchError, match="describes its layers"):
        mask.require_parent(replace(parent, n_used=3))
    routed = Mask.everything(replace(parent, router_sha256="a" * 64))
    with pytest.raises(ParentMismatchError, match="or router otherwise"):
        routed.require_parent(replace(parent, router_sha256="b" * 64))
    for broken in ({"layers": []}, {"n_groups": 0}, {"n_groups": 3}):
        content = mask.to_json()
        content["parent"] |= broken
        content["keep"] = {} if "layers" in broken else content["keep"]
        with pytest.raises(MaskError):
            Mask.from_json(content)
