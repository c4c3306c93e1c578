"""Which specialists can share a resident, what stays where it is, and what has to move."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coe.engine.errors import SharingError
from coe.engine.gguf.reader import read_split
from coe.engine.swap.fingerprints import cached_fingerprints, file_stamp, fingerprint_file, read_weights
from coe.engine.swap.plan import (
    Keys,
    Place,
    Shape,
    Weights,
    assign_slots,
    group_by_shape,
    mismatch,
    pairs,
    plan_fill,
    plan_swap,
    quantised_after_cut,
)
from coe.surgery.cut.cut import cut, write_skeleton
from coe.surgery.cut.gguf_writer import read_raw_header
from coe.surgery.mask import Mask
from coe.surgery.parent import Parent
from fakes.random_moe import random_mask, write_random_moe
from fakes.sharing_models import kept_of

LAYERS, WIDTH, WHOLE = (0, 1), 10, 7  # bytes of an expert's part, and of a tensor outside the experts


@pytest.fixture(autouse=True)
def _caches_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def specialist(path: str, experts: dict[int, tuple[int, ...]], whole: str = "", n_groups: int = 1) -> Weights:
    """Two layers of experts, named by numbers, in the order of the file, and a tensor beside them."""
    count = len(experts[0])
    tensors = {f"blk.{layer}.ffn_up_exps.weight": (0, (4, count)) for layer in LAYERS} | {"output.weight": (0, (7,))}
    places = [
        Place(f"blk.{layer}.ffn_up_exps.weight", Path(path), 1000 * layer, WIDTH, layer, tuple(range(count)))
        for layer in LAYERS
    ]
    keys = Keys(
        "parent",
        {f"blk.{layer}.ffn_up_exps.weight": tuple(map(str, experts[layer])) for layer in LAYERS},
        {"output.weight": whole},
    )
    shape = Shape("gemma4", count, n_groups, tensors, {})
    return Weights(Path(path), shape, (*places, Place("output.weight", Path(path), 5000, WHOLE)), (keys,))


def memory_of(one: Weights, order: dict[int, tuple[int, ...]]) -> dict[str, list[tuple[str, int]]]:
    """What a resident holds, byte by byte: which file's, from where."""
    found = {}
    for place in one.places:
        slots = order[place.layer] if place.layer is not None else (0,)
        found[place.name] = [
            (str(place.path), place.offset + (place.experts[e] if place.experts else 0) * place.n_bytes + at)
            for e in slots
            for at in range(place.n_bytes)
        ]
    return found


def meaning(one: Weights, name: str, order: dict[int, tuple[int, ...]]) -> list[str]:
    """What a resident's tensor means, slot by slot."""
    keys = one.keys[0]
    layer = next(place.layer for place in one.places if place.name == name)
    return [keys.others[name]] if layer is None else [keys.experts[name][e] for e in order[layer]]


EXPERTS = st.lists(st.integers(0, 11), min_size=6, max_size=6, unique=True).map(tuple)
MEMBERS = st.builds(
    lambda zero, one, whole, name: specialist(name, {0: zero, 1: one}, whole),
    EXPERTS,
    EXPERTS,
    st.sampled_from(["", "scaled"]),
    st.sampled_from(["a.gguf", "b.gguf", "c.gguf"]),
)


class TestSlots:
    def test_an_expert_that_both_have_stays_where_it_is(self) -> None:
        held = [("e",), ("b",), ("x",), ("a",)]
        wanted = [("a",), ("b",), ("c",), ("d",)]
        assert assign_slots(held, wanted) == (2, 1, 3, 0)

    def test_the_same_matrices_with_another_router_row_stay_too(self) -> None:
        held = [("m1", "r1"), ("m2", "r2"), ("m3", "r3")]
        wanted = [("m9", "r9"), ("m3", "other"), ("m1", "r1")]
        assert assign_slots(held, wanted) == (2, 0, 1)

    @given(st.lists(st.integers(0, 5), min_size=8, max_size=8), st.lists(st.integers(0, 5), min_size=8, max_size=8))
    def test_every_wanted_expert_gets_one_slot_even_where_some_are_the_same(
        self, held: list[int], wanted: list[int]
    ) -> None:
        slots = assign_slots([(key,) for key in held], [(key,) for key in wanted])
        assert sorted(slots) == list(range(8))
        kept = sum(held[slot] == wanted[index] for slot, index in enumerate(slots))
        assert kept == sum(min(held.count(key), wanted.count(key)) for key in set(held)), "as many as can stay"

    @given(st.permutations(range(12)), st.permutations(range(12)), st.sampled_from([1, 2, 3]))
    def test_nothing_leaves_its_group(self, held: list[int], wanted: list[int], n_groups: int) -> None:
        slots = assign_slots([(key,) for key in held], [(key,) for key in wanted], n_groups)
        size = 12 // n_groups
        assert sorted(slots) == list(range(12))
        assert [slot // size for slot in range(12)] == [index // size for index in slots]


class TestPlan:
    @given(st.lists(MEMBERS, min_size=2, max_size=6), st.sampled_from([0, 30, 1000]))
    def test_after_any_swaps_every_slot_means_what_it_should(self, members: list[Weights], whole_below: int) -> None:
        """Carried out on bytes that know where they are from."""
        current, order = members[0], dict(members[0].own_order)
        memory = {name: meaning(current, name, order) for name in ("output.weight", *current.keys[0].experts)}
        for target in members[1:]:
            swap = plan_swap(current, order, target, whole_below=whole_below)
            for move in swap.moves:
                place = next(place for place in target.places if place.name == move.tensor)
                slot = move.at // place.n_bytes
                for span in move.spans:
                    for offset in range(span.offset, span.offset + span.n_bytes, place.n_bytes):
                        number = (offset - place.offset) // place.n_bytes
                        keys = target.keys[0]
                        source = keys.experts[place.name][number] if place.experts else keys.others[place.name]
                        memory[place.name][slot] = source
                        slot += 1
            current, order = target, dict(swap.order)
            for name in memory:
                assert memory[name] == meaning(current, name, order)

    @given(MEMBERS, MEMBERS)
    def test_bytes_that_change_and_bytes_that_stay_are_all_there_are(self, one: Weights, other: Weights) -> None:
        swap = plan_swap(one, one.own_order, other)
        assert swap.changed_bytes == swap.moved_bytes
        assert swap.changed_bytes + swap.shared_bytes == sum(place.total_bytes for place in other.places)
        back = plan_swap(other, swap.order, one)
        assert back.changed_bytes == swap.changed_bytes

    @given(MEMBERS)
    def test_becoming_what_it_is_moves_nothing(self, one: Weights) -> None:
        assert plan_swap(one, one.own_order, one).moves == ()

    def test_neighbours_move_together(self) -> None:
        one = specialist("a", {0: (0, 1, 2, 3), 1: (0, 1, 2, 3)})
        other = specialist("b", {0: (2, 3, 4, 5), 1: (0, 1, 2, 3)})
        (move,) = plan_swap(one, one.own_order, other).moves
        assert (move.tensor, move.at, len(move.spans), move.n_bytes) == ("blk.0.ffn_up_exps.weight", 0, 1, 2 * WIDTH)

    def test_small_tensors_are_set_in_one_move(self) -> None:
        one = specialist("a", {0: (0, 1, 2, 3, 4), 1: (0, 1, 2, 3, 4)})
        other = specialist("b", {0: (9, 1, 8, 3, 7), 1: (0, 1, 2, 3, 4)})
        assert len(plan_swap(one, one.own_order, other).moves) == 3
        swap = plan_swap(one, one.own_order, other, whole_below=5 * WIDTH)
        assert (len(swap.moves), swap.moved_bytes, swap.changed_bytes) == (1, 5 * WIDTH, 3 * WIDTH)

    def test_of_what_is_not_known_everything_moves(self) -> None:
        one = specialist("a", {0: (0, 1), 1: (0, 1)})
        stranger = replace(one, keys=(replace(one.keys[0], origin="another parent"),))
        total = sum(place.total_bytes for place in one.places)
        assert plan_swap(one, one.own_order, stranger).changed_bytes == total
        assert plan_fill(one).changed_bytes == total

    def test_pairs_tell_what_is_shared(self) -> None:
        members = {
            "a": specialist("a", {0: (0, 1), 1: (0, 1)}),
            "b": specialist("b", {0: (0, 2), 1: (0, 1)}),
            "c": specialist("c", {0: (8, 9), 1: (8, 9)}, "scaled"),
        }
        found = {(pair.one, pair.other): (pair.shared_bytes, pair.changed_bytes) for pair in pairs(members)}
        assert found == {("a", "b"): (37, 10), ("a", "c"): (0, 47), ("b", "c"): (0, 47)}


class TestWhoCanShare:
    SHAPE = Shape("gemma4", 4, 1, {"a": (8, (32, 4))}, {"gemma4.rope.freq_base": "1e6"})

    @pytest.mark.parametrize(
        ("other", "why"),
        [
            (replace(SHAPE, architecture="qwen3moe"), "architectures"),
            (replace(SHAPE, n_expert=5), "4 and 5 experts"),
            (replace(SHAPE, tensors={"a": (2, (32, 4))}), "a is quantised in two ways"),
            (replace(SHAPE, tensors={"a": (8, (64, 4))}), "a has two shapes"),
            (replace(SHAPE, tensors={"a": (8, (32, 4)), "b": (8, (32,))}), "only one of them has b"),
            (replace(SHAPE, metadata={}), "gemma4.rope.freq_base differs"),
        ],
    )
    def test_the_first_difference_is_told(self, other: Shape, why: str) -> None:
        assert why in (mismatch(self.SHAPE, other) or "")
        assert mismatch(self.SHAPE, self.SHAPE) is None
        assert group_by_shape({"one": self.SHAPE, "two": other, "three": self.SHAPE}) == [("one", "three"), ("two",)]


class TestFiles:
    @pytest.fixture
    def parent(self, tmp_path: Path) -> Parent:
        return Parent.open(write_random_moe(tmp_path / "parent.gguf"))

    def test_cuts_of_one_parent_share_by_their_masks(self, tmp_path: Path, parent: Parent) -> None:
        masks = [random_mask(parent, 4, seed=seed) for seed in (0, 1)]
        cut(parent, masks[0], tmp_path / "a.gguf")
        cut(parent, masks[1], tmp_path / "b.gguf", slots={0: masks[1].keep[0][::-1]})
        write_skeleton(parent, masks[1].n_keep, tmp_path / "c.gguf")
        one, other = read_weights(tmp_path / "a.gguf"), read_weights(tmp_path / "b.gguf")
        mask_only = read_weights(tmp_path / "c.gguf", parent.path, kept_of(parent, masks[1]))
        assert group_by_shape({"a": one.shape, "b": other.shape, "c": mask_only.shape}) == [("a", "b", "c")]
        swap = plan_swap(one, one.own_order, other)
        differing = {n: set(masks[1].keep[n]) - set(masks[0].keep[n]) for n in (0, 1)}
        sizes = {p.name: p.n_bytes for p in one.places if p.layer is not None}
        assert swap.changed_bytes == sum(
            len(differing[p.layer]) * sizes[p.name] for p in one.places if p.layer is not None
        )
        assert plan_swap(other, other.own_order, mask_only).changed_bytes == 0

    def test_by_content_the_same_experts_are_found_without_provenance(self, tmp_path: Path, parent: Parent) -> None:
        masks = [random_mask(parent, 4, seed=seed) for seed in (0, 1)]
        for name, provenance in (("named", True), ("plain", False)):
            for seed in (0, 1):
                cut(parent, masks[seed], tmp_path / f"{name}{seed}.gguf", provenance=provenance)
        told: list[int] = []
        for seed in (0, 1):
            fingerprint_file(tmp_path / f"plain{seed}.gguf", told.append)
        assert sum(told) == sum(p.total_bytes for s in (0, 1) for p in read_weights(tmp_path / f"plain{s}.gguf").places)
        changed = {}
        for name in ("named", "plain"):
            one, other = (read_weights(tmp_path / f"{name}{seed}.gguf") for seed in (0, 1))
            changed[name] = plan_swap(one, one.own_order, other).changed_bytes
        assert changed["named"] == changed["plain"] > 0
        # A mask-only specialist is known by its parent's content.
        write_skeleton(parent, masks[1].n_keep, tmp_path / "c.gguf")
        fingerprint_file(parent.path)
        plain = read_weights(tmp_path / "plain1.gguf")
        mask_only = read_weights(tmp_path / "c.gguf", parent.path, kept_of(parent, masks[1]))
        assert plan_swap(plain, plain.own_order, mask_only).changed_bytes == 0

    def test_contents_are_worked_out_once_and_again_when_the_file_changes(self, tmp_path: Path, parent: Parent) -> None:
        told: list[int] = []
        for _ in range(2):
            fingerprint_file(parent.path, told.append)
        assert sum(told) == parent.headers[0].weights_bytes
        before, stamp = cached_fingerprints(parent.paths), file_stamp(parent.path)
        offset = next(t.offset for t in parent.headers[0].tensors if t.name == "output_norm.weight")
        with parent.path.open("r+b") as file:
            file.seek(offset)
            file.write(b"\1\2\3\4")
        assert file_stamp(parent.path) != stamp
        assert cached_fingerprints(parent.paths) is None
        fingerprint_file(parent.path)
        after = cached_fingerprints(parent.paths)
        assert before is not None
        assert after is not None
        assert {name for name in before.others if before.others[name] != after.others[name]} == {"output_norm.weight"}
        assert before.experts == after.experts

    @pytest.mark.slow
    def test_what_was_quantised_apart_is_never_taken_for_the_same(self, tmp_path: Path, parent: Parent) -> None:
        mask = random_mask(parent, 4)
        cut(parent, mask, tmp_path / "a.gguf")
        cut(parent, mask, tmp_path / "b.gguf", quantize="F16")
        one, other = read_weights(tmp_path / "a.gguf"), read_weights(tmp_path / "b.gguf")
        assert one.keys[0].origin != other.keys[0].origin
        cut(parent, mask, tmp_path / "c.gguf", quantize="F16")
        third = read_weights(tmp_path / "c.gguf")
        assert quantised_after_cut(one, other)
        assert not quantised_after_cut(other, third)
        assert not quantised_after_cut(one, replace(other, parent="another"))

    def test_another_vocabulary_or_template_keeps_specialists_apart(self, tmp_path: Path, parent: Parent) -> None:
        other = write_random_moe(tmp_path / "other.gguf", seed=3)
        shapes = [read_weights(path).shape for path in (parent.path, other)]
        assert mismatch(*shapes) is None
        changed = replace(shapes[1], metadata=shapes[1].metadata | {"tokenizer.chat_template": "another"})
        assert mismatch(shapes[0], changed) == "tokenizer.chat_template differs"
        assert "tokenizer.ggml.tokens" in shapes[0].metadata
        assert not any(key.startswith("general.") for key in shapes[0].metadata)

    def test_a_split_file_is_read_in_all_its_parts(self, tmp_path: Path) -> None:
        first = write_random_moe(tmp_path / "split.gguf", parts=3)
        found = read_weights(first)
        assert {place.path for place in found.places} == {header.path for header in read_split(first)}

    def test_provenance_that_does_not_fit_its_file_counts_for_nothing(self, tmp_path: Path, parent: Parent) -> None:
        cut(parent, random_mask(parent, 4), tmp_path / "a.gguf")
        whole = cut(parent, Mask.everything(parent.identity()), tmp_path / "whole.gguf")
        header = read_raw_header(tmp_path / "a.gguf")
        data = (tmp_path / "a.gguf").read_bytes()[-header.offsets()[-1] :]
        wrong = header.with_value("coe.surgery.kept_experts", [0, 1, 2, 3])  # of two layers: two each
        (tmp_path / "b.gguf").write_bytes(wrong.to_bytes() + data)
        assert read_weights(tmp_path / "a.gguf").keys
        assert not read_weights(tmp_path / "b.gguf").keys
        assert read_weights(whole.path).keys

    def test_a_dense_model_has_nothing_to_exchange(self, smollm2: Path) -> None:
        with pytest.raises(SharingError):
            read_weights(smollm2)
