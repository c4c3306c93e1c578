"""A resident that becomes another specialist in place: to the last bit what a fresh load would be, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from coe.engine.errors import LayoutError, SharingError, SourceChangedError, SwapError
from coe.engine.llama import ggml
from coe.engine.llama.model import Model
from coe.engine.spec import Kept, LoadSpec, Member, Sharing
from coe.engine.swap import swapper as swap_module
from coe.engine.swap import weights as weights_module
from coe.engine.swap.fingerprints import fingerprint_file, member_stamp
from coe.engine.swap.swapper import Swapper
from coe.surgery.cut.cut import KEY, cut
from fakes.device import tolerance
from fakes.sharing_models import College, logits
from fakes.weight import brings

Q4 = {"quantised": Type.Q4_K, "embedding": 256, "expert_ff": 256}

VARIANTS: list[dict[str, Any]] = [
    {"architecture": "gemma4"},
    {"architecture": "gemma4", "fused": True},
    {"architecture": "gemma4", "fused": True, "quantised": Type.Q8_0},
    {"architecture": "gemma4", **Q4},
    {"architecture": "gemma4", "fused": True, "masks_only": "ac", "quantised": Type.Q8_0},
    {"architecture": "gemma4", "fused": True, "masks_only": "abc", **Q4},
    {"architecture": "gemma4", "parts": 3, "masks_only": "b"},
    {"architecture": "qwen3moe", "quantised": Type.Q8_0},
    {"architecture": "qwen3moe", **Q4},
    {"architecture": "gpt-oss"},
    {"architecture": "deepseek2", "groups": 2, "groups_used": 1, "dense_layers": 1},
    {"architecture": "qwen35moe", "draft": True, "masks_only": "c"},
]


@pytest.fixture(autouse=True)
def _caches_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Resident:
    """A loaded model, its swapper, and what it says."""

    def __init__(self, college: College, first: str = "a", **fields: Any) -> None:
        self.college = college
        self.spec = college.spec(first, **fields)
        self.model = Model(self.spec)
        self.swapper = Swapper(self.model, self.spec)

    def become(self, name: str) -> None:
        self.swapper.swap(self.swapper.id_of(name))

    def says(self) -> NDArray[np.float32]:
        return logits(self.model, self.spec)

    def close(self) -> None:
        self.swapper.close()
        self.model.close()


@pytest.fixture
@brings("model")
def new_resident() -> Iterator[Any]:
    made: list[Resident] = []

    def make(*arguments: Any, **fields: Any) -> Resident:
        made.append(Resident(*arguments, **fields))
        return made[-1]

    yield make
    for resident in made:
        resident.close()


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_after_many_swaps_logits_are_those_of_a_fresh_load_in_the_same_slots(
    tmp_path: Path, new_resident: Any, variant: dict[str, Any]
) -> None:
    resident = new_resident(College.random(tmp_path, **variant))
    before = resident.says()
    for name in "abcacba":
        resident.become(name)
        np.testing.assert_array_equal(resident.says(), resident.college.fresh(name, resident.swapper.order), name)
    assert not np.array_equal(before, resident.college.fresh("b", resident.swapper.order))


@pytest.mark.model
def test_tensors_that_the_processor_cannot_reach_are_written_through_a_buffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swap_module, "_PIECE_BYTES", 3000)
    monkeypatch.setattr(swap_module, "_HALF_BYTES", 20_000)
    monkeypatch.setattr(swap_module, "_GATHER_BYTES", 5000)
    college = College.random(tmp_path, fused=True, masks_only="c")
    spec = college.spec("c")
    model = Model(spec)
    swapper = Swapper(model, spec, direct=False)
    for name in "cabc":
        swapper.swap(swapper.id_of(name))
        np.testing.assert_array_equal(logits(model, spec), college.fresh(name, swapper.order), name)
    swapper.close()
    model.close()


@pytest.mark.host(
    "tensors of up to 1 MiB, as here, are set whole on a device, for a call to it costs more than the bytes"
)
def test_an_expert_that_both_have_stays_and_only_the_others_are_copied(tmp_path: Path, new_resident: Any) -> None:
    college = College.random(tmp_path, names="ab", architecture="qwen3moe", embedding=256, expert_ff=64)
    resident = new_resident(college)
    report = resident.swapper.swap(resident.swapper.id_of("b"))
    differing = sum(len(set(college.masks["b"].keep[n]) - set(college.masks["a"].keep[n])) for n in (0, 1))
    expert = 4 * (256 + 3 * 256 * 64)  # F32: its row of the router, gate, up and down
    assert report.changed_bytes == report.moved_bytes - _unchanged_rows(college) == differing * expert


def _unchanged_rows(college: College) -> int:
    """Router rows of shared experts: a small tensor is set in one call."""
    shared = sum(len(set(college.masks["b"].keep[n]) & set(college.masks["a"].keep[n])) for n in (0, 1))
    return 4 * 256 * shared


def test_files_without_provenance_share_experts_by_content(tmp_path: Path, new_resident: Any) -> None:
    college = College.random(tmp_path, names="ab")
    for member in college.members:
        cut(college.parent, college.masks[member.name], member.path, provenance=False)
    unknown = new_resident(college)
    everything = unknown.swapper.swap(unknown.swapper.id_of("b"))
    for member in college.members:
        fingerprint_file(member.path)
    resident = new_resident(college)
    report = resident.swapper.swap(resident.swapper.id_of("b"))
    assert report.changed_bytes < everything.changed_bytes / 2
    for one in (unknown, resident):
        np.testing.assert_array_equal(one.says(), college.fresh("b", one.swapper.order))


def test_a_scaled_shared_expert_moves_with_the_others(tmp_path: Path, new_resident: Any) -> None:
    college = College.random(tmp_path, names="ab")
    cut(college.parent, college.masks["b"], tmp_path / "b.gguf", shared_scale=1.5)
    resident = new_resident(college)
    resident.become("b")
    spec = college.spec("b", sharing=Sharing((Member("b", tmp_path / "b.gguf"),)))
    # The same experts in other slots round otherwise: by little, where a wrong scale would differ by much.
    model = Model(spec)
    np.testing.assert_allclose(resident.says(), logits(model, spec), atol=tolerance(1e-4))
    model.close()
    resident.become("a")
    np.testing.assert_array_equal(resident.says(), college.fresh("a", resident.swapper.order))


def test_two_names_for_the_same_weights_are_one_owner(tmp_path: Path, new_resident: Any) -> None:
    college = College.random(tmp_path, names="ab")
    again = Member("again", college.members[0].path)
    resident = new_resident(college, sharing=Sharing((*college.members, again)))
    assert resident.swapper.id_of("again") == resident.swapper.id_of("a") != resident.swapper.id_of("b")


def test_masks_of_one_skeleton_are_as_many_owners_as_they_keep_different_experts(
    tmp_path: Path, new_resident: Any
) -> None:
    college = College.random(tmp_path, names="ab", masks_only="ab")
    assert college.members[0].path == college.members[1].path
    again = replace(college.members[1], name="again")
    resident = new_resident(college, "again", sharing=Sharing((*college.members, again)))
    assert resident.swapper.id_of("again") == resident.swapper.id_of("b") != resident.swapper.id_of("a")
    assert resident.swapper.current == resident.swapper.id_of("b"), "what is to be loaded first decides"
    np.testing.assert_array_equal(resident.says(), college.fresh("b", resident.swapper.order))


def test_contents_that_become_known_while_it_runs_save_moving_them(tmp_path: Path, new_resident: Any) -> None:
    college = College.random(tmp_path, names="ab")
    for member in college.members:
        cut(college.parent, college.masks[member.name], member.path, provenance=False)
    resident = new_resident(college)
    swapper = resident.swapper
    blind = swapper.swap(swapper.id_of("b"))
    assert blind.moved_bytes == blind.changed_bytes == sum(p.total_bytes for p in swapper.specialist(0).places)
    swapper.prefetch(swapper.id_of("a")).result()  # a plan made while nothing is known
    for member in college.members:
        fingerprint_file(member.path)
    known = swapper.swap(swapper.id_of("a"))
    assert 0 < known.changed_bytes < blind.changed_bytes / 2
    np.testing.assert_array_equal(resident.says(), college.fresh("a", swapper.order))
    assert swapper.swap(swapper.id_of("b")).changed_bytes == known.changed_bytes
    np.testing.assert_array_equal(resident.says(), college.fresh("b", swapper.order))


def test_a_skeleton_takes_next_to_no_room_on_the_disk(tmp_path: Path) -> None:
    college = College.random(tmp_path, names="ab", masks_only="b", embedding=256, expert_ff=256)
    whole, skeleton = (member.path for member in college.members)
    assert abs(skeleton.stat().st_size - whole.stat().st_size) < 500, "but for some keys it is as long as the cut file"
    assert skeleton.stat().st_blocks * 512 < 100_000 < whole.stat().st_blocks * 512
    assert college.members[1].parent is not None


class TestWhatGoesWrong:
    @pytest.fixture
    def resident(self, tmp_path: Path, new_resident: Any) -> Resident:
        resident: Resident = new_resident(College.random(tmp_path, masks_only="c"))
        return resident

    @pytest.mark.parametrize("change", ["touched", "shortened", "replaced", "gone"])
    @pytest.mark.parametrize("name", ["b", "c"])
    def test_a_file_changed_on_disk_is_noticed_before_a_byte_is_moved(
        self, resident: Resident, change: str, name: str
    ) -> None:
        before = resident.says()
        path = resident.college.parent.path if name == "c" else resident.college.members[1].path
        if change == "touched":
            os.utime(path, ns=(1, 1))
        elif change == "shortened":
            os.truncate(path, path.stat().st_size - 1)
        elif change == "replaced":
            path.with_suffix(".new").write_bytes(path.read_bytes())
            path.with_suffix(".new").rename(path)
        else:
            path.unlink()
        with pytest.raises(SourceChangedError):
            resident.become(name)
        assert not resident.swapper.broken
        np.testing.assert_array_equal(resident.says(), before)

    def test_a_file_that_changed_since_the_roster_was_read_is_not_used(self, tmp_path: Path, new_resident: Any) -> None:
        college = College.random(tmp_path, names="ab")
        stamps = [member_stamp(member) for member in college.members]
        os.utime(tmp_path / "b.gguf", ns=(1, 1))
        members = tuple(Member(m.name, m.path, stamp=stamp) for m, stamp in zip(college.members, stamps, strict=True))
        resident = new_resident(college, sharing=Sharing(members))
        with pytest.raises(SourceChangedError, match="since the roster was read"):
            resident.become("b")
        resident.become("a")

    def test_a_file_that_ends_while_it_is_read_leaves_a_resident_that_is_never_used_again(
        self, resident: Resident, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reads = 0
        whole = os.preadv

        def preadv(file: int, buffers: Any, offset: int) -> int:
            nonlocal reads
            reads += 1
            return whole(file, buffers, offset) if reads < 4 else 0

        monkeypatch.setattr(swap_module.os, "preadv", preadv)
        with pytest.raises(SwapError, match="half-way"):
            resident.become("b")
        monkeypatch.undo()
        assert resident.swapper.broken
        for name in "abc":
            with pytest.raises(SwapError, match="half-changed"):
                resident.become(name)

    def test_a_file_that_is_written_while_it_is_read_is_noticed(
        self, resident: Resident, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole, path = os.preadv, resident.college.members[1].path

        def preadv(file: int, buffers: Any, offset: int) -> int:
            os.utime(path, ns=(1, 1))
            return whole(file, buffers, offset)

        monkeypatch.setattr(swap_module.os, "preadv", preadv)
        with pytest.raises(SwapError, match="changed on disk"):
            resident.become("b")
        assert resident.swapper.broken

    def test_whatever_interrupts_a_swap_leaves_it_broken(
        self, resident: Resident, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(resident.swapper, "_read_in_place", interrupt)
        with pytest.raises(KeyboardInterrupt):
            resident.become("b")
        assert resident.swapper.broken

    def test_the_check_after_a_swap_finds_bytes_that_did_not_arrive(
        self, resident: Resident, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for way in ("_read_in_place", "_send"):  # of the host's memory, and of a device's
            monkeypatch.setattr(resident.swapper, way, lambda pieces, files: None)
        with pytest.raises(SwapError, match="did not arrive"):
            resident.become("b")
        assert resident.swapper.broken


class TestWhatCannotBeShared:
    @pytest.mark.model
    def test_tensors_laid_out_otherwise_turn_it_off(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        ggml.require_layout.__wrapped__()
        monkeypatch.setattr(ggml, "NAME_OFFSET", ggml.NAME_OFFSET - 8)
        monkeypatch.setattr(weights_module, "require_layout", ggml.require_layout.__wrapped__)
        college = College.random(tmp_path, names="ab")
        model = Model(college.spec())
        with pytest.raises(LayoutError, match="pinned"):
            Swapper(model, college.spec())
        model.close()

    @pytest.mark.model
    def test_a_model_in_a_mapped_file_is_refused(self, tmp_path: Path) -> None:
        college = College.random(tmp_path, names="ab")
        model = Model(LoadSpec(tmp_path / "a.gguf"))
        with pytest.raises(SharingError, match="takes no parts"):
            Swapper(model, college.spec())
        model.close()

    @pytest.mark.model
    @pytest.mark.host("only the processor's backend keeps weights in an order of its own")
    def test_repacked_weights_are_refused(self, tmp_path: Path) -> None:
        college = College.random(tmp_path, names="ab", **Q4)
        model = Model(LoadSpec(tmp_path / "a.gguf", mmap=False))
        with pytest.raises(SharingError, match=r"CPU_REPACK, which takes no parts|another form"):
            Swapper(model, college.spec())
        model.close()

    @pytest.mark.parametrize(
        ("buffer", "writable"),
        [
            *((name, True) for name in ("CPU", "CUDA0", "CUDA11", "ROCm1", "Vulkan0", "MTL0", "CUDA_Host")),
            *((name, False) for name in ("CPU_Mapped", "CPU_REPACK", "AMX", "OpenCL", "SYCL0", "CANN0", "MTL0_Mapped")),
            *((name, False) for name in ("MTL0_Private", "Meta(CUDA0,CUDA1)", "CPU_KLEIDIAI", "")),
        ],
    )
    def test_only_buffers_that_take_bytes_as_they_are_count_as_writable(self, buffer: str, writable: bool) -> None:
        assert bool(weights_module._WRITABLE.fullmatch(buffer)) == writable

    @pytest.mark.model
    def test_another_models_file_is_refused(self, tmp_path: Path) -> None:
        college = College.random(tmp_path, names="ab")
        model = Model(college.spec())
        other = tmp_path / "other"
        other.mkdir()
        wide = College.random(other, names="a", keep=6)
        spec = college.spec(sharing=Sharing((*college.members, Member("w", wide.members[0].path))))
        with pytest.raises(SharingError):
            Swapper(model, spec)
        model.close()

    @pytest.mark.model
    def test_a_file_with_other_bytes_than_what_was_loaded_is_refused(self, tmp_path: Path) -> None:
        college = College.random(tmp_path, names="ab")
        model = Model(college.spec())
        (tmp_path / "a.gguf").write_bytes((tmp_path / "b.gguf").read_bytes())
        with pytest.raises(SharingError, match="not what its file holds"):
            Swapper(model, college.spec())
        model.close()

    @pytest.mark.model
    def test_a_skeleton_alone_has_no_weights(self, tmp_path: Path) -> None:
        college = College.random(tmp_path, names="ab", masks_only="b")
        skeleton = college.members[1].path
        spec = college.spec(sharing=Sharing((college.members[0], Member("b", skeleton))))
        model = Model(spec)
        with pytest.raises(SharingError, match="skeleton"):
            Swapper(model, spec)
        model.close()

    @pytest.mark.model
    def test_a_skeleton_of_another_parent_is_refused(self, tmp_path: Path) -> None:
        college = College.random(tmp_path, names="ab", masks_only="b")
        other = tmp_path / "other"
        other.mkdir()
        stranger = College.random(other, names="a", embedding=128)
        elsewhere = replace(college.members[1], parent=stranger.parent.path)
        spec = college.spec(sharing=Sharing((college.members[0], elsewhere)))
        model = Model(spec)
        with pytest.raises(SharingError, match="does not fit"):
            Swapper(model, spec)
        model.close()

    @pytest.mark.model
    @pytest.mark.parametrize(
        ("kept", "why"),
        [
            ((), "does not say which experts"),
            (((0, (0, 1, 2, 3)),), "0 experts are kept in layer 1"),
            (((0, (0, 1, 2, 3)), (1, (0, 1, 2, 2))), "3 experts are kept in layer 1"),
            (((0, (0, 1, 2, 3)), (1, (0, 1, 2, 8))), "does not have"),
        ],
    )
    def test_what_is_kept_must_fit_the_skeleton(self, tmp_path: Path, kept: Kept, why: str) -> None:
        college = College.random(tmp_path, names="ab", masks_only="b")
        spec = college.spec(sharing=Sharing((college.members[0], replace(college.members[1], kept=kept))))
        model = Model(spec)
        with pytest.raises(SharingError, match=why):
            Swapper(model, spec)
        model.close()


@pytest.mark.model
def test_how_a_file_was_quantised_after_the_cut_is_remembered(tmp_path: Path) -> None:
    college = College.random(tmp_path, names="a", quantised=Type.F16, embedding=256, expert_ff=256)
    cut(college.parent, college.masks["a"], tmp_path / "q.gguf", quantize="Q8_0")
    model = Model(LoadSpec(tmp_path / "q.gguf"), dry_run=True)
    assert model.metadata(KEY + "quantized") == "Q8_0"
    model.close()
