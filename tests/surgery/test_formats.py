"""Masks of others: drop maps, lists and matrices, and what is refused rather than guessed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coe.surgery.errors import MaskError, ParentMismatchError
from coe.surgery.formats import experts_kept, names_parent, read_mask, write_mask
from coe.surgery.mask import Mask
from coe.surgery.parent import Identity, Parent
from fakes.random_moe import random_mask, write_random_moe
from fakes.synthetic_profile import identity

# Blocks 2 to 4 have a router; each keeps 11 of 16 where a token uses 8, so that five dropped are too few to be kept.
PARENT = identity(layers=3, experts=16, used=8, first_layer=2)
DROPPED = {2: (0, 1, 2, 3, 4), 3: (1, 3, 5, 7, 9), 4: (11, 12, 13, 14, 15)}
KEPT = {layer: tuple(e for e in range(16) if e not in gone) for layer, gone in DROPPED.items()}


def written(folder: Path, content: Any) -> Path:
    path = folder / "theirs.json"
    path.write_text(json.dumps(content))
    return path


def matrix_of(keep: dict[int, tuple[int, ...]]) -> list[list[int]]:
    return [[int(expert in experts) for expert in range(16)] for experts in keep.values()]


@pytest.mark.parametrize(
    "content",
    [
        {str(layer): list(gone) for layer, gone in DROPPED.items()},
        {str(layer): list(reversed(gone)) for layer, gone in DROPPED.items()},
        {str(layer): list(kept) for layer, kept in KEPT.items()},
        [list(gone) for gone in DROPPED.values()],
        [list(kept) for kept in KEPT.values()],
        matrix_of(KEPT),
        [[bool(one) for one in row] for row in matrix_of(KEPT)],
        {str(layer): row for layer, row in zip(KEPT, matrix_of(KEPT), strict=True)},
        {"per_layer_keep": {str(layer): list(kept) for layer, kept in KEPT.items()}, "note": "x"},
        {"drop_map": {str(layer): list(gone) for layer, gone in DROPPED.items()}},
    ],
    ids=[
        "drop map",
        "unsorted",
        "kept",
        "rows dropped",
        "rows kept",
        "0/1",
        "bool",
        "0/1 a layer",
        "named",
        "drop_map",
    ],
)
def test_what_has_one_reading_needs_no_option(tmp_path: Path, content: Any) -> None:
    mask = read_mask(written(tmp_path, content), PARENT)
    assert mask.keep == KEPT
    assert mask.parent == PARENT
    assert mask.provenance.recipe["name"] == "read"
    assert mask.provenance.recipe["file"] == "theirs.json"


@pytest.mark.parametrize("kind", [np.bool_, np.uint8, np.float32, np.int64])
def test_numpy_matrices(tmp_path: Path, kind: type) -> None:
    np.save(tmp_path / "mask.npy", np.array(matrix_of(KEPT), kind))
    assert read_mask(tmp_path / "mask.npy", PARENT).keep == KEPT


def test_our_own_files_are_bound_to_their_parent(tmp_path: Path) -> None:
    path = tmp_path / "ours.json"
    mask = Mask(PARENT, KEPT)
    mask.save(path)
    assert read_mask(path, PARENT) == mask
    with pytest.raises(ParentMismatchError):
        read_mask(path, identity(layers=3, experts=16, used=8, first_layer=2, name="other"))


class TestAmbiguity:
    def test_lists_that_can_be_read_both_ways_ask_for_the_option(self, tmp_path: Path) -> None:
        half = {str(layer): list(range(0, 16, 2)) for layer in PARENT.layers}
        with pytest.raises(
            MaskError, match=r"8 of 16 experts a layer: .* kept or the dropped.*--kind keep or --kind drop"
        ):
            read_mask(written(tmp_path, half), PARENT)
        evens = tuple(range(0, 16, 2))
        odds = tuple(range(1, 16, 2))
        assert read_mask(written(tmp_path, half), PARENT, kind="keep").keep == dict.fromkeys(PARENT.layers, evens)
        assert read_mask(written(tmp_path, half), PARENT, kind="drop").keep == dict.fromkeys(PARENT.layers, odds)

    def test_a_matrix_of_dropped_experts_needs_the_option(self, tmp_path: Path) -> None:
        inverse = [[1 - one for one in row] for row in matrix_of(KEPT)]
        assert read_mask(written(tmp_path, inverse), PARENT, kind="drop").keep == KEPT
        with pytest.raises(MaskError, match="keeps 5 experts a layer"):
            read_mask(written(tmp_path, inverse), PARENT)

    def test_empty_lists_drop_nothing(self, tmp_path: Path) -> None:
        assert read_mask(written(tmp_path, [[], [], []]), PARENT).n_keep == 16

    def test_a_file_with_both_asks_which(self, tmp_path: Path) -> None:
        both = {
            "per_layer_keep": {str(layer): list(kept) for layer, kept in KEPT.items()},
            "drop_map": {str(layer): list(gone) for layer, gone in DROPPED.items()},
        }
        with pytest.raises(MaskError, match="--kind"):
            read_mask(written(tmp_path, both), PARENT)
        assert read_mask(written(tmp_path, both), PARENT, kind="drop").keep == KEPT

    def test_an_option_that_contradicts_the_file(self, tmp_path: Path) -> None:
        named = {"drop_map": {str(layer): list(gone) for layer, gone in DROPPED.items()}}
        with pytest.raises(MaskError, match="under drop_map, and keep was asked for"):
            read_mask(written(tmp_path, named), PARENT, kind="keep")

    def test_groups_can_decide(self, tmp_path: Path) -> None:
        parent = Identity("p", "0" * 64, "deepseek2", (0,), 8, 2, 2)
        with pytest.raises(MaskError, match="--kind"):
            read_mask(written(tmp_path, [[0, 1, 4, 5]]), parent)
        with pytest.raises(MaskError, match="makes no mask, neither"):
            read_mask(written(tmp_path, [[0, 1, 2, 4]]), parent)


def test_two_readings_name_the_command_that_writes_one(tmp_path: Path) -> None:
    path = written(tmp_path, [[*range(8)]] * 3)
    with pytest.raises(MaskError) as caught:
        read_mask(path, PARENT)
    assert f"coe mask {path} --parent PARENT.gguf --kind keep|drop -o mask.json" in caught.value.remedy


def test_experts_are_counted_without_hashing_the_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = Parent.open(write_random_moe(tmp_path / "parent.gguf"))
    mask = random_mask(parent, 5)
    mask.save(tmp_path / "ours.json")
    np.save(tmp_path / "theirs.npy", mask.matrix())
    monkeypatch.setattr("coe.surgery.parent.sha256_of", lambda *_: pytest.fail("the parent was hashed"))
    found = {name: (experts_kept(tmp_path / name, parent), names_parent(tmp_path / name)) for name in NAMES}
    assert found == {"ours.json": (5, True), "theirs.npy": (5, False)}


NAMES = ("ours.json", "theirs.npy")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"2": [0], "3": [0]}, r"disagree about the layers \[4\]"),
        ({"0": [0], "1": [0], "2": [0]}, r"disagree about the layers \[0, 1, 3, 4\]"),
        ([[0], [1]], "has 2 rows, and parent has 3 layers"),
        ([[0], [1], [2, 3]], "lists 1 experts in layer 2 and 2 in layer 4.*one number of experts for all layers"),
        ([[0], [1], [16]], "Layer 4 of theirs.json names the expert 16; parent has 0 to 15"),
        ([[0], [-1], [2]], "Layer 3 .* names the expert -1"),
        ([[0], [1.5], [2]], "names the expert 1.5, which is no number"),
        ([["a"], [1], [2]], "names the expert 'a'"),
        ([[True], [True], [False]], "names the expert True"),
        ([[0, 0], [1, 2], [2, 3]], "names the expert 0 twice"),
        ([0, 1, 2], "something else than a list"),
        ({"model": "x", "prune": []}, "keys are model, prune"),
        (7, "neither layers nor a matrix"),
        (None, "neither layers nor a matrix"),
    ],
)
def test_what_is_no_mask_is_refused_with_the_place(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(MaskError, match=message):
        read_mask(written(tmp_path, content), PARENT)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_bytes(b"\xff{")
    (tmp_path / "broken.npy").write_bytes(b"NUMPY")
    for name in ("broken.json", "broken.npy"):
        with pytest.raises(MaskError, match="neither JSON nor"):
            read_mask(tmp_path / name, PARENT)
    with pytest.raises(MaskError, match="does not exist"):
        read_mask(tmp_path / "none.npy", PARENT)
    np.save(tmp_path / "flat.npy", np.ones(48))
    with pytest.raises(MaskError, match="1 dimensions"):
        read_mask(tmp_path / "flat.npy", PARENT)
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(MaskError, match="neither JSON nor"):
        read_mask(tmp_path / "objects.npy", PARENT)
    with pytest.raises(MaskError, match="no kind 'both'"):
        read_mask(tmp_path / "flat.npy", PARENT, kind="both")


@pytest.mark.parametrize(
    ("form", "name", "kind"),
    [
        ("mask", "m.json", "auto"),
        ("drop-map", "m.json", "drop"),
        ("keep-list", "m.json", "auto"),
        ("matrix", "m.json", "auto"),
        ("matrix", "m.npy", "auto"),
    ],
)
def test_what_is_written_for_another_tool_is_read_again(tmp_path: Path, form: str, name: str, kind: str) -> None:
    write_mask(Mask(PARENT, KEPT), tmp_path / name, form)
    assert read_mask(tmp_path / name, PARENT, kind=kind).keep == KEPT
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_drop_map_is_written_as_its_tool_reads_it(tmp_path: Path) -> None:
    write_mask(Mask(PARENT, KEPT), tmp_path / "drop.json", "drop-map")
    content = json.loads((tmp_path / "drop.json").read_text())
    assert content == {str(layer): list(gone) for layer, gone in DROPPED.items()}


def test_a_form_that_there_is_not(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match=r"no form 'yaml'.*drop-map, keep-list, matrix"):
        write_mask(Mask(PARENT, KEPT), tmp_path / "m", "yaml")
    assert not list(tmp_path.iterdir())


def test_what_a_drop_map_says_of_the_draft_block_is_left_out(tmp_path: Path) -> None:
    """As omnimergekit's maps of Qwen3.5 have it: their block for multi-token prediction is no layer of the mask's."""
    content = {str(layer): list(gone) for layer, gone in DROPPED.items()} | {"mtp": [0, 1, 2, 3, 4]}
    assert read_mask(written(tmp_path, content), PARENT).keep == KEPT


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32), st.integers(3, 10))
def test_any_mask_comes_back_from_every_form(tmp_path_factory: pytest.TempPathFactory, seed: int, n_keep: int) -> None:
    rng = np.random.default_rng(seed)
    parent = identity(layers=2, experts=10, used=3)
    keep = {layer: tuple(sorted(rng.permutation(10)[:n_keep].tolist())) for layer in parent.layers}
    matrix = Mask(parent, keep).matrix()
    folder = tmp_path_factory.mktemp("forms")
    forms = [
        ({str(layer): list(experts) for layer, experts in keep.items()}, "keep"),
        ([np.flatnonzero(~row).tolist() for row in matrix], "drop"),
        (matrix.astype(int).tolist(), "auto"),
    ]
    for content, kind in forms:
        assert read_mask(written(folder, content), parent, kind=kind).keep == keep


def test_a_layer_that_comes_twice_among_many_is_found_in_one_reading(tmp_path: Path) -> None:
    """A key at a time, 400,000 of them would be compared with each other for an hour."""
    path = tmp_path / "theirs.json"
    path.write_text("{" + ",".join(f'"{layer}":0' for layer in range(400_000)) + ',"399999":1}')
    with pytest.raises(MaskError, match=r"it has the key '399999' twice"):
        read_mask(path, PARENT)
