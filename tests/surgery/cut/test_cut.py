"""Cutting: which bytes end where, and what is left behind when it goes wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from coe.engine.gguf.reader import read_header
from coe.surgery.cut import cut as cutting
from coe.surgery.cut.cut import KEY, ByteRange, CutReport, cut, kept_experts, mask_sha256, neighbours, read_slots
from coe.surgery.errors import CutError, MaskError, ParentMismatchError, SurgeryError
from coe.surgery.mask import Mask, Provenance
from coe.surgery.parent import Parent
from coe.surgery.verify.verify import verify
from fakes import random_moe
from fakes.full_disk import files_of_at_most
from fakes.random_moe import random_mask, write_random_moe


@pytest.fixture
def parent(tmp_path: Path) -> Parent:
    return Parent.open(write_random_moe(tmp_path / "parent.gguf"))


def tensors_of(*paths: Path) -> dict[str, NDArray[Any]]:
    """Every tensor's bytes, experts outermost where it has any, read by another reader than ours."""
    return {tensor.name: tensor.data for path in paths for tensor in GGUFReader(path).tensors}


def expected(parent: Parent, name: str, whole: NDArray[Any], kept: dict[int, tuple[int, ...]]) -> NDArray[Any]:
    found = name.split(".", 2)
    counts = "_exps." in name or name.endswith(("ffn_gate_inp.weight", "ffn_gate_inp.bias", "exp_probs_b.bias"))
    return whole[list(kept[int(found[1])])] if counts else whole


def assert_is_cut(parent: Parent, out: Path, kept: dict[int, tuple[int, ...]]) -> None:
    before, after = tensors_of(*parent.paths), tensors_of(out)
    assert list(after) == list(before)
    for name, whole in before.items():
        np.testing.assert_array_equal(after[name], expected(parent, name, whole, kept), name)


VARIANTS: list[dict[str, Any]] = [
    *({"architecture": name} for name in random_moe.ARCHITECTURES),
    *({"architecture": name, "fused": True} for name in random_moe.FUSED),
    *({"architecture": name, "draft": True} for name in random_moe.DRAFTING),
    {"architecture": "deepseek2", "groups": 2, "groups_used": 1, "dense_layers": 1},
    {"architecture": "gemma4", "parts": 3},
    {"architecture": "gemma4", "alignment": 256},
    *({"architecture": "llama", "quantised": kind} for kind in (Type.Q5_0, Type.Q8_0, Type.F16, Type.MXFP4)),
    {"architecture": "gemma4", "quantised": Type.Q4_K, "embedding": 256, "expert_ff": 256, "fused": True},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_kept_experts_and_all_else_are_copied_byte_for_byte(tmp_path: Path, variant: dict[str, Any]) -> None:
    parent = Parent.open(write_random_moe(tmp_path / "parent.gguf", **variant))
    mask = random_mask(parent, 4)
    report = cut(parent, mask, tmp_path / "out.gguf")
    assert_is_cut(parent, tmp_path / "out.gguf", kept_experts(parent.experts, mask))
    assert report.n_bytes == (tmp_path / "out.gguf").stat().st_size < report.parent_bytes
    assert Parent.open(tmp_path / "out.gguf").experts.n_expert == 4


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_keeping_everything_gives_every_tensor_again(tmp_path: Path, variant: dict[str, Any]) -> None:
    parent = Parent.open(write_random_moe(tmp_path / "parent.gguf", **variant))
    everything = Mask.everything(parent.identity())
    cut(parent, everything, tmp_path / "out.gguf")
    assert_is_cut(parent, tmp_path / "out.gguf", kept_experts(parent.experts, everything))
    cut(parent, everything, tmp_path / "plain.gguf", provenance=False)
    if "parts" not in variant:
        assert (tmp_path / "plain.gguf").read_bytes() == parent.path.read_bytes()


def test_a_parent_without_padding_at_its_end_is_given_again_too(tmp_path: Path, parent: Parent) -> None:
    short = tmp_path / "short.gguf"
    last = max(parent.headers[0].tensors, key=lambda tensor: tensor.offset)
    short.write_bytes(parent.path.read_bytes()[: last.offset + last.n_bytes])
    parent = Parent.open(short)
    cut(parent, Mask.everything(parent.identity()), tmp_path / "out.gguf", provenance=False)
    assert (tmp_path / "out.gguf").read_bytes() == short.read_bytes()


@pytest.mark.parametrize("in_kernel", [True, False])
def test_large_tensors_are_copied_run_by_run(
    tmp_path: Path, parent: Parent, monkeypatch: pytest.MonkeyPatch, in_kernel: bool
) -> None:
    monkeypatch.setattr(cutting, "_PIECE_BYTES", 1000)
    monkeypatch.setattr(cutting, "_STEP_BYTES", 3000)
    if not in_kernel:

        def refuse(*_: int) -> int:
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(os, "copy_file_range", refuse)
    mask = random_mask(parent, 5)
    cut(parent, mask, tmp_path / "out.gguf", shared_scale=1.0)
    assert_is_cut(parent, tmp_path / "out.gguf", dict(mask.keep))


@given(st.lists(st.integers(0, 30), unique=True))
def test_neighbours_are_the_order_in_runs(order: list[int]) -> None:
    runs = neighbours(order)
    assert [first + at for first, count in runs for at in range(count)] == order
    assert all(left + n != right for (left, n), (right, _) in pairwise(runs))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = write_random_moe(
        tmp_path / "parent.gguf", architecture="qwen3moe", layers=1, experts=48, embedding=256, expert_ff=256
    )
    parent = Parent.open(path)
    mask = random_mask(parent, 24)
    tracemalloc.start()
    cut(parent, mask, tmp_path / "out.gguf")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 35e6
    assert peak < 10e6


# --- what the file says -------------------------------------------------------------------------------------------


def test_metadata_are_carried_over_and_say_where_the_file_comes_from(tmp_path: Path, parent: Parent) -> None:
    provenance = Provenance(recipe={"name": "top-k", "k": 5}, corpus_sha256="ab" * 32)
    mask = replace(random_mask(parent, 5), provenance=provenance)
    report = cut(parent, mask, tmp_path / "out.gguf", shared_scale=1.25)
    before, after = parent.headers[0].metadata, read_header(tmp_path / "out.gguf").metadata
    assert after["general.name"] == "Random gemma4 (5 of 8 experts)"
    assert after["gemma4.expert_count"] == 5
    said = {key.removeprefix(KEY): value for key, value in after.items() if key.startswith(KEY)}
    assert json.loads(said.pop("recipe")) == {"name": "top-k", "k": 5}
    assert said == {
        "parent_name": "Random gemma4",
        "parent_sha256": parent.identity().sha256,
        "parent_expert_count": 8,
        "mask_sha256": mask_sha256(mask),
        "corpus_sha256": "ab" * 32,
        "shared_scale": 1.25,
    }
    assert (report.parent_sha256, report.mask_sha256) == (said["parent_sha256"], said["mask_sha256"])
    rest = before.keys() - {"general.name", "gemma4.expert_count"}
    assert {key: after[key] for key in rest} == {key: before[key] for key in rest}
    assert read_slots(read_header(tmp_path / "out.gguf")) == mask.keep


def test_without_provenance_only_the_count_changes(tmp_path: Path, parent: Parent) -> None:
    cut(parent, random_mask(parent, 5), tmp_path / "out.gguf", provenance=False)
    header = read_header(tmp_path / "out.gguf")
    assert header.metadata == {**parent.headers[0].metadata, "gemma4.expert_count": 5}
    assert read_slots(header) is None


def test_a_split_parent_becomes_one_file(tmp_path: Path) -> None:
    parent = Parent.open(write_random_moe(tmp_path / "parent.gguf", parts=3))
    assert len(parent.paths) == 3
    cut(parent, random_mask(parent, 4), tmp_path / "out.gguf")
    assert not any(key.startswith("split.") for key in read_header(tmp_path / "out.gguf").metadata)


def test_the_masks_hash_is_of_what_is_kept_and_not_of_how_it_was_found(parent: Parent) -> None:
    mask = random_mask(parent, 4)
    assert mask_sha256(mask) == mask_sha256(replace(mask, provenance=Provenance(tokens={"all": 5})))
    assert mask_sha256(mask) != mask_sha256(random_mask(parent, 4, seed=1))


def notes_of(tmp_path: Path, n_keep: int, **variant: Any) -> str:
    parent = Parent.open(write_random_moe(tmp_path / "parent.gguf", **variant))
    return " ".join(cut(parent, random_mask(parent, n_keep), tmp_path / "out.gguf").notes)


def test_the_report_says_what_an_owner_should_know(tmp_path: Path) -> None:
    assert notes_of(tmp_path, 4) == ""
    assert "CUDA" in notes_of(tmp_path, 5)
    assert "output grows" in notes_of(tmp_path, 4, architecture="olmoe")
    assert "Do not draft" in notes_of(tmp_path, 4, architecture="qwen35moe", draft=True)


# --- slots --------------------------------------------------------------------------------------------------------


def test_slots_give_the_kept_experts_another_order(tmp_path: Path, parent: Parent) -> None:
    mask = random_mask(parent, 4)
    slots = {1: tuple(reversed(mask.keep[1]))}
    cut(parent, mask, tmp_path / "out.gguf", slots=slots)
    order = {**mask.keep, **slots}
    assert_is_cut(parent, tmp_path / "out.gguf", order)
    assert read_slots(read_header(tmp_path / "out.gguf")) == order


def test_slots_must_be_an_order_of_what_is_kept(tmp_path: Path, parent: Parent) -> None:
    mask = Mask(parent.identity(), {0: (0, 1, 2), 1: (0, 1, 2)})
    for slots in ({0: (0, 1)}, {0: (0, 1, 3)}, {0: (0, 1, 1)}, {5: (0, 1, 2)}):
        with pytest.raises(CutError, match="not the experts that the mask keeps"):
            cut(parent, mask, tmp_path / "out.gguf", slots=slots)


def test_slots_stay_within_their_groups(tmp_path: Path) -> None:
    path = write_random_moe(tmp_path / "parent.gguf", architecture="deepseek2", groups=2, groups_used=1)
    parent = Parent.open(path)
    mask = Mask(parent.identity(), dict.fromkeys((0, 1), (0, 1, 4, 5)))
    assert kept_experts(parent.experts, mask, {0: (1, 0, 5, 4)})[0] == (1, 0, 5, 4)
    with pytest.raises(CutError, match="other groups"):
        kept_experts(parent.experts, mask, {0: (4, 1, 0, 5)})


def test_draft_blocks_keep_as_many_of_each_group(tmp_path: Path) -> None:
    path = write_random_moe(tmp_path / "parent.gguf", architecture="deepseek2", groups=2, groups_used=1, draft=True)
    parent = Parent.open(path)
    assert kept_experts(parent.experts, random_mask(parent, 4))[2] == (0, 1, 4, 5)


# --- what is refused ----------------------------------------------------------------------------------------------


def test_fewer_experts_than_a_token_uses_are_refused(parent: Parent) -> None:
    with pytest.raises(MaskError, match="every token uses 2"):
        random_mask(parent, 1)


def test_groups_too_small_to_choose_from_are_refused(tmp_path: Path) -> None:
    path = write_random_moe(
        tmp_path / "parent.gguf", architecture="deepseek2", experts=16, experts_used=3, groups=4, groups_used=1
    )
    parent = Parent.open(path)
    with pytest.raises(CutError, match=r"keeps 2 of each of 4 groups.*at least 12"):
        cut(parent, random_mask(parent, 8), tmp_path / "out.gguf")


def test_one_expert_a_layer_is_refused(tmp_path: Path) -> None:
    parent = Parent.open(write_random_moe(tmp_path / "parent.gguf", experts_used=1))
    with pytest.raises(CutError, match="at least 2"):
        cut(parent, random_mask(parent, 1), tmp_path / "out.gguf")


def change_one_byte(path: Path, tensor: str) -> None:
    [offset] = [one.offset for one in read_header(path).tensors if one.name == tensor]
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_a_parent_whose_router_changed_by_one_byte_is_another(tmp_path: Path, parent: Parent) -> None:
    mask = random_mask(parent, 4)
    change_one_byte(parent.path, "blk.1.ffn_gate_inp.weight")
    with pytest.raises(ParentMismatchError, match=r"The mask was made for Random gemma4.*its router is another"):
        cut(Parent.open(parent.path), mask, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_a_parent_changed_by_one_byte_is_another_to_a_mask_that_knows_no_router(tmp_path: Path, parent: Parent) -> None:
    mask = random_mask(parent, 4)
    old = replace(mask, parent=replace(mask.parent, router_sha256=""))
    cut(parent, old, tmp_path / "out.gguf")
    (tmp_path / "out.gguf").unlink()
    change_one_byte(parent.path, "output_norm.weight")
    with pytest.raises(ParentMismatchError, match=r"The mask was made for Random gemma4.*coe mask MASK"):
        cut(Parent.open(parent.path), old, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_a_mask_serves_other_quantisations_of_its_parent(tmp_path: Path) -> None:
    shape = {"embedding": 256, "expert_ff": 256}
    full = Parent.open(write_random_moe(tmp_path / "full.gguf", **shape))
    small = Parent.open(write_random_moe(tmp_path / "small.gguf", **shape, quantised=Type.Q8_0))
    mask = random_mask(full, 4)
    report = cut(small, mask, tmp_path / "out.gguf")
    assert report.parent_sha256 == small.identity().sha256 != mask.parent.sha256
    own = replace(mask, parent=small.identity())
    cut(small, own, tmp_path / "own.gguf", provenance=False)
    cut(small, mask, tmp_path / "other.gguf", provenance=False)
    assert (tmp_path / "other.gguf").read_bytes() == (tmp_path / "own.gguf").read_bytes()
    assert verify(small.path, tmp_path / "out.gguf", mask, run=False).ok


def test_the_parent_is_never_written_over(tmp_path: Path) -> None:
    parent = Parent.open(write_random_moe(tmp_path / "parent.gguf", parts=2))
    mask = random_mask(parent, 4)
    (tmp_path / "link.gguf").symlink_to(parent.paths[1])
    os.link(parent.paths[0], tmp_path / "hard.gguf")
    for out in (*parent.paths, tmp_path / "link.gguf", tmp_path / "hard.gguf"):
        with pytest.raises(SurgeryError, match="is itself read"):
            cut(parent, mask, out)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, parent: Parent) -> None:
    with pytest.raises(SurgeryError, match="mkdir -p"):
        cut(parent, random_mask(parent, 4), tmp_path / "nowhere" / "out.gguf")


# --- disks and kills ----------------------------------------------------------------------------------------------


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".part")]


def test_room_is_looked_for_before_anything_is_written(
    tmp_path: Path, parent: Parent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=20_000))
    steps: list[str] = []
    with pytest.raises(CutError, match=r"has 0\.00 GB free and the cut needs 0\.00 GB"):
        cut(
            parent, random_mask(parent, 4), tmp_path / "out.gguf", progress=lambda step, done, total: steps.append(step)
        )
    assert "copy" not in steps
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("room", [10_000, 100_000, 300_000])
@pytest.mark.parametrize("run_by_run", [True, False])
def test_a_disk_that_fills_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, parent: Parent, monkeypatch: pytest.MonkeyPatch, room: int, run_by_run: bool
) -> None:
    if run_by_run:
        monkeypatch.setattr(cutting, "_PIECE_BYTES", 4096)
    mask, out = random_mask(parent, 4), tmp_path / "out.gguf"
    out.write_bytes(b"the old one")
    with pytest.raises(CutError, match=r"out\.gguf could not be written to its end.*make room"), files_of_at_most(room):
        cut(parent, mask, out)
    assert out.read_bytes() == b"the old one"
    assert leftovers(tmp_path) == []


KILLED = """
import os, sys
from pathlib import Path
from coe.surgery.cut.cut import cut
from coe.surgery.mask import Mask
from coe.surgery.parent import Parent

def kill_at(step, done, total):
    if (step, done >= total) == (sys.argv[4], sys.argv[5] == "end"):
        os.kill(os.getpid(), 9)

parent = Parent.open(Path(sys.argv[1]))
cut(parent, Mask.load(Path(sys.argv[2])), Path(sys.argv[3]), progress=kill_at, quantize=sys.argv[6] or None)
"""


@pytest.mark.parametrize(
    ("step", "at", "quantize"), [("copy", "begin", ""), ("copy", "end", ""), ("quantize", "begin", "Q8_0")]
)
def test_a_kill_leaves_the_old_file_and_the_next_cut_clears_up(
    tmp_path: Path, parent: Parent, step: str, at: str, quantize: str
) -> None:
    mask, out = random_mask(parent, 4), tmp_path / "out.gguf"
    mask.save(tmp_path / "mask.json")
    out.write_bytes(b"the old one")
    command = [sys.executable, "-c", KILLED, parent.path, tmp_path / "mask.json", out, step, at, quantize]
    assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGKILL
    assert out.read_bytes() == b"the old one"
    assert leftovers(tmp_path)
    cut(parent, mask, out)
    assert_is_cut(parent, out, dict(mask.keep))
    assert leftovers(tmp_path) == []


def test_the_half_written_file_of_a_living_process_is_left_alone(tmp_path: Path, parent: Parent) -> None:
    theirs = tmp_path / f".out.gguf.{os.getppid()}.part"
    theirs.write_bytes(b"half")
    cut(parent, random_mask(parent, 4), tmp_path / "out.gguf")
    assert theirs.read_bytes() == b"half"


def test_an_interrupted_cut_leaves_nothing(tmp_path: Path, parent: Parent) -> None:
    def interrupt(step: str, done: int, total: int) -> None:
        if step == "copy":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut(parent, random_mask(parent, 4), tmp_path / "out.gguf", progress=interrupt)
    assert not (tmp_path / "out.gguf").exists()
    assert leftovers(tmp_path) == []


def test_progress_counts_every_byte_once(tmp_path: Path, parent: Parent) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    report: CutReport = cut(
        Parent.open(parent.path),
        Mask(parent.identity(), {0: (0, 1, 2), 1: (3, 4, 5)}, Provenance()),
        tmp_path / "out.gguf",
        progress=lambda step, done, total: seen.setdefault(step, []).append((done, total)),
    )
    counts = [done for done, _ in seen["copy"]]
    assert counts == sorted(counts)
    assert seen["copy"][-1][0] == seen["copy"][-1][1] < report.n_bytes


def test_a_parent_that_becomes_shorter_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"12345")
    with path.open("rb") as file, pytest.raises(CutError, match="became shorter"):
        cutting._read(file.fileno(), ByteRange(path, 0, 10), 2, 8)
