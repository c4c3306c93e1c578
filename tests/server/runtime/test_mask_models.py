"""Specialists that a roster gives as masks: cut when the server starts, and what is said where they cannot be."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from random_model import Shape, write_random_model
from rich.console import Console

from coe.engine.errors import UnavailableError
from coe.engine.swap.fingerprints import read_weights
from coe.engine.swap.plan import mismatch, plan_swap
from coe.server.commands.check import check_roster
from coe.server.commands.check_sizes import sizes_to_cut
from coe.server.roster.load import load_roster
from coe.server.roster.models import Roster
from coe.server.roster.source import RosterError
from coe.server.runtime.availability import Unavailable
from coe.server.runtime.college import College
from coe.server.runtime.mask_models import MaskSource, cut_masked, prepare_masks, uncut
from coe.surgery.cut.cut import KEY, read_slots
from coe.surgery.mask import Mask
from coe.surgery.parent import Parent

pytestmark = pytest.mark.slow


def mask_of(parent: Path, first: int = 0, count: int = 4) -> Mask:
    """Keeps `count` experts a layer from `first` on."""
    identity = Parent.open(parent).identity()
    kept = np.zeros((len(identity.layers), identity.n_expert), np.bool_)
    kept[:, first : first + count] = True
    return Mask.from_matrix(identity, kept)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("masked") / "parent.gguf", Shape(experts=8, experts_used=2))


@pytest.fixture
def folder(tmp_path: Path, parent: Path) -> Path:
    """A folder with a mask of the random parent in it."""
    (tmp_path / "masks").mkdir()
    mask_of(parent).save(tmp_path / "masks" / "law.json")
    return tmp_path


def roster_in(folder: Path, parent: Path | None, **entry: Any) -> Roster:
    law = {"name": "law", "mask": "masks/law.json", "domains": ["law"], "context_tokens": 256, **entry}
    text = {"version": 1, "router": {"encoder": "none"}, "specialists": [law]}
    if parent is not None:
        text["parent"] = {"model": "random", "file": str(parent)}
    path = folder / "roster.yaml"
    path.write_text(yaml.safe_dump(text))
    return load_roster(path)


async def test_a_mask_is_cut_out_of_the_parent_once(folder: Path, parent: Path) -> None:
    roster = roster_in(folder, parent)
    assert roster.locate(roster.specialists[0]).reason == "It has not been cut yet."
    assert await cut_masked(roster) == {}
    path = roster.locate(roster.specialists[0]).path
    assert path is not None
    assert path.parent == folder / "models" / "cut"
    assert set((read_slots(Parent.open(path).headers[0]) or {}).values()) == {(0, 1, 2, 3)}
    assert uncut(roster) == []
    before = path.stat().st_mtime_ns
    assert await cut_masked(roster) == {}
    assert path.stat().st_mtime_ns == before


async def test_another_mask_of_the_name_takes_the_place_of_the_old_cut(folder: Path, parent: Path) -> None:
    roster = roster_in(folder, parent)
    await cut_masked(roster)
    old = roster.locate(roster.specialists[0]).path
    mask_of(parent, first=2).save(folder / "masks" / "law.json")
    await cut_masked(roster)
    new = roster.locate(roster.specialists[0]).path
    assert old is not None
    assert new is not None
    assert set((read_slots(Parent.open(new).headers[0]) or {}).values()) == {(2, 3, 4, 5)}
    assert not old.exists()


async def test_a_college_opens_with_what_it_cuts(folder: Path, parent: Path) -> None:
    college = await College.open(roster_in(folder, parent))
    assert college.catalog.available == ["law"]
    await college.close()


async def test_a_mask_of_another_parent_says_so_and_the_rest_is_served(
    folder: Path, parent: Path, smollm2: Path
) -> None:
    path = folder / "masks" / "law.json"
    stranger = json.loads(path.read_text())
    stranger["parent"] |= {"sha256": "0" * 64, "router_sha256": "0" * 64}
    path.write_text(json.dumps(stranger))
    roster = roster_in(folder, parent)
    other = {"name": "general", "file": str(smollm2), "domains": ["general"], "context_tokens": 256}
    text = yaml.safe_load(roster.path.read_text())
    roster.path.write_text(yaml.safe_dump({**text, "specialists": [*text["specialists"], other]}))
    college = await College.open(load_roster(roster.path))
    judged = college.catalog.availability["law"]
    assert isinstance(judged, Unavailable)
    assert "was made for" in judged.reason
    assert judged.remedy
    assert college.catalog.available == ["general"]
    await college.close()


def in_other_formats(folder: Path, parent: Path) -> dict[str, str]:
    """The mask of the folder as other tools write it: by each file's name, what a roster names."""
    mask = mask_of(parent)
    gone = [np.flatnonzero(~row).tolist() for row in mask.matrix()]
    (folder / "masks" / "drop.json").write_text(json.dumps({"drop_map": dict(enumerate(gone))}))
    (folder / "masks" / "matrix.json").write_text(json.dumps(mask.matrix().astype(int).tolist()))
    np.save(folder / "masks" / "matrix.npy", mask.matrix())
    return {name: f"masks/{name}" for name in ("drop.json", "matrix.json", "matrix.npy")}


async def test_masks_of_other_tools_are_filled_and_cut_as_ours_are(folder: Path, parent: Path) -> None:
    ours = (await prepare_masks(roster_in(folder, parent)))["law"]
    assert isinstance(ours, MaskSource)
    for mask in in_other_formats(folder, parent).values():
        roster = roster_in(folder, parent, mask=mask)
        assert (await prepare_masks(roster))["law"] == ours
        assert (await sizes_to_cut(roster, dry_run=False))["law"].missing == ""
        assert await cut_masked(roster) == {}
        path = roster.locate(roster.specialists[0]).path
        assert path is not None
        assert set((read_slots(Parent.open(path).headers[0]) or {}).values()) == {(0, 1, 2, 3)}


async def test_a_mask_that_names_no_parent_is_cut_again_when_the_parent_changes(folder: Path, parent: Path) -> None:
    own = folder / "own.gguf"
    own.write_bytes(content_of(parent))
    roster = roster_in(folder, own, mask=in_other_formats(folder, parent)["drop.json"])
    assert await cut_masked(roster) == {}
    path = roster.locate(roster.specialists[0]).path
    assert path is not None
    before = path.stat().st_mtime_ns
    assert await cut_masked(roster) == {}
    assert path.stat().st_mtime_ns == before
    write_random_model(own, Shape(experts=8, experts_used=2), seed=1)
    assert await cut_masked(roster) == {}
    assert Parent.open(path).headers[0].metadata[KEY + "parent_sha256"] == Parent.open(own).identity().sha256
    own.unlink()
    assert await cut_masked(roster) == {}, "without the parent its cut file is served"


async def test_a_mask_with_two_readings_is_refused_once_with_the_command_that_converts_it(
    folder: Path, parent: Path
) -> None:
    half = folder / "masks" / "half.json"
    half.write_text(json.dumps([[0, 1, 2, 3]] * len(Parent.open(parent).experts.layers)))
    roster = roster_in(folder, parent, mask="masks/half.json")
    message = "half.json lists 4 of 8 experts a layer: these may be the kept or the dropped ones."
    remedy = f"coe mask {half} --parent PARENT.gguf --kind keep|drop -o mask.json"
    for lack in ((await prepare_masks(roster))["law"], (await cut_masked(roster))["law"]):
        assert isinstance(lack, tuple)
        assert lack[0] == message
        assert remedy in lack[1]
    for dry_run in (False, True):
        said = await asyncio.to_thread(checked, roster.path, dry_run=dry_run)
        assert (said.count(message), said.count(remedy)) == (1, 1), said


def checked(roster: Path, *, dry_run: bool) -> str:
    """What `coe check` prints of a roster in which nothing can be served."""
    out = Console(file=io.StringIO(), width=200)
    assert check_roster(roster, dry_run=dry_run, out=out) == 1
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


async def test_what_cannot_be_cut_is_said_with_a_remedy(folder: Path, parent: Path) -> None:
    absent = await cut_masked(roster_in(folder, folder / "absent.gguf"))
    assert "parent is not there" in absent["law"][0]
    (folder / "models").write_text("no folder")
    ((reason, remedy),) = (await cut_masked(roster_in(folder, parent))).values()
    assert "cannot be written" in reason
    assert "models_dir" in remedy


def content_of(path: Path) -> bytes:
    return path.read_bytes()


def two_masks(folder: Path, parent: Path, second: int = 2, count: int = 4) -> Roster:
    """A roster with two entries that are masks."""
    mask_of(parent, first=second, count=count).save(folder / "masks" / "art.json")
    roster = roster_in(folder, parent)
    text = yaml.safe_load(roster.path.read_text())
    art = {"name": "art", "mask": "masks/art.json", "domains": ["art"], "context_tokens": 256}
    roster.path.write_text(yaml.safe_dump({**text, "specialists": [*text["specialists"], art]}))
    return load_roster(roster.path)


async def test_masks_of_one_size_take_one_skeleton_and_no_file_of_their_own(folder: Path, parent: Path) -> None:
    roster = two_masks(folder, parent)
    prepared = await prepare_masks(roster)
    law, art = prepared["law"], prepared["art"]
    assert isinstance(law, MaskSource)
    assert isinstance(art, MaskSource)
    (skeleton,) = (folder / "models" / "cut").iterdir()
    assert law.skeleton == art.skeleton == skeleton
    assert law.parent == art.parent == parent
    assert {experts for _, experts in law.kept} == {(0, 1, 2, 3)}
    assert {experts for _, experts in art.kept} == {(2, 3, 4, 5)}
    before = skeleton.stat()
    assert await prepare_masks(roster) == prepared
    assert skeleton.stat().st_mtime_ns == before.st_mtime_ns, "what is there is left as it is"


async def test_what_is_filled_from_the_parent_is_what_would_be_cut(folder: Path, parent: Path) -> None:
    roster = two_masks(folder, parent)
    prepared = await prepare_masks(roster)
    await cut_masked(roster, ["art"])
    assert [s.name for s in uncut(roster)] == ["law"], "only those that were named are cut"
    art = prepared["art"]
    assert isinstance(art, MaskSource)
    path = roster.locate(roster.specialists[1]).path
    assert path is not None
    file, filled = read_weights(path), read_weights(art.skeleton, art.parent, art.kept)
    assert mismatch(file.shape, filled.shape) is None
    assert plan_swap(file, file.own_order, filled).changed_bytes == 0
    data, cut_data = content_of(parent), content_of(path)
    for mine, theirs in zip(file.places, filled.places, strict=True):
        of_file = cut_data[mine.offset :]
        for slot, number in enumerate(theirs.experts or (0,)):
            at = theirs.offset + number * theirs.n_bytes
            assert of_file[slot * mine.n_bytes :][: mine.n_bytes] == data[at : at + theirs.n_bytes], mine.name


async def test_masks_of_two_sizes_take_two_skeletons(folder: Path, parent: Path) -> None:
    prepared = await prepare_masks(two_masks(folder, parent, count=5), folder / "elsewhere")
    assert all(isinstance(source, MaskSource) for source in prepared.values())
    assert len(list((folder / "elsewhere").iterdir())) == 2
    assert not (folder / "models").exists(), "another folder was asked for"


async def test_skeletons_of_parents_that_are_gone_are_removed(folder: Path, parent: Path) -> None:
    own, other = folder / "own.gguf", folder / "other.gguf"
    for path in (own, other):
        path.write_bytes(content_of(parent))
    cuts = folder / "models" / "cut"
    await prepare_masks(roster_in(folder, other))
    (theirs,) = cuts.iterdir()
    await prepare_masks(roster_in(folder, own))
    assert len(list(cuts.iterdir())) == 2, "another roster may use that of a parent that is there"
    (cuts / "skeleton-0123456789ab.gguf").write_text("half of one")
    other.unlink()
    await prepare_masks(roster_in(folder, own))
    (mine,) = cuts.iterdir()
    assert mine != theirs
    write_random_model(own, Shape(experts=8, experts_used=2), seed=1)
    mask_of(own).save(folder / "masks" / "law.json")
    await prepare_masks(roster_in(folder, own))
    (new,) = cuts.iterdir()
    assert new != mine, "the parent has become another one"


async def test_what_cannot_be_prepared_is_said_of_each_mask(folder: Path, parent: Path) -> None:
    roster = two_masks(folder, parent)
    stranger = json.loads((folder / "masks" / "law.json").read_text())
    stranger["parent"] |= {"sha256": "0" * 64, "router_sha256": "0" * 64}
    (folder / "masks" / "law.json").write_text(json.dumps(stranger))
    prepared = await prepare_masks(roster)
    assert isinstance(prepared["art"], MaskSource)
    assert isinstance(prepared["law"], tuple)
    assert "was made for" in prepared["law"][0]
    (folder / "masks" / "art.json").write_text("{")
    prepared = await prepare_masks(roster)
    assert isinstance(prepared["art"], tuple)
    assert "is no mask" in prepared["art"][0]
    assert "coe plan" in prepared["art"][1]


async def test_where_no_skeleton_can_be_written_a_remedy_is_given(folder: Path, parent: Path) -> None:
    absent = (await prepare_masks(roster_in(folder, folder / "absent.gguf")))["law"]
    assert isinstance(absent, tuple)
    assert "parent is not there" in absent[0]
    (folder / "models").write_text("no folder")
    lack = (await prepare_masks(roster_in(folder, parent)))["law"]
    assert isinstance(lack, tuple)
    assert "cannot be written" in lack[0]
    assert "models_dir" in lack[1]


async def test_a_mask_that_is_filled_from_its_parent_takes_its_own_bytes_on_the_disk(
    folder: Path, parent: Path
) -> None:
    roster = two_masks(folder, parent)
    sizes = await sizes_to_cut(roster, dry_run=False, shared=["art"])
    assert sizes["art"].file_bytes == (folder / "masks" / "art.json").stat().st_size < 10_000
    assert sizes["law"].file_bytes > len(content_of(parent)) // 4
    assert (sizes["art"].how, sizes["law"].how) == ("filled from the parent", "cut")


def test_a_mask_that_is_not_there_is_named(folder: Path, parent: Path) -> None:
    roster = roster_in(folder, parent, mask="masks/lost.json")
    location = roster.locate(roster.specialists[0])
    assert "lost.json" in location.reason
    assert "mask" in location.remedy
    assert uncut(roster) == []


def test_a_mask_needs_a_parent_and_is_a_source_like_any_other(folder: Path, parent: Path) -> None:
    with pytest.raises(RosterError) as caught:
        roster_in(folder, None)
    assert [problem.key for problem in caught.value.problems] == ["specialists[0].mask"]
    with pytest.raises(RosterError) as caught:
        roster_in(folder, parent, file="law.gguf")
    assert "one source" in str(caught.value)


def test_check_says_what_is_to_be_cut_and_how_large_it_will_be(folder: Path, parent: Path) -> None:
    roster = roster_in(folder, parent)
    out = Console(file=io.StringIO(), width=200)
    assert check_roster(roster.path, dry_run=False, out=out) == 0
    assert isinstance(out.file, io.StringIO)
    assert "to be cut" in out.file.getvalue()
    assert not (folder / "models").exists(), "looking changes nothing"


@pytest.mark.parametrize("share", ["auto", False])
def test_what_would_be_over_the_budget_is_told_so_and_not_cut(folder: Path, parent: Path, share: object) -> None:
    roster = roster_in(folder, parent, share=share)
    text = yaml.safe_load(roster.path.read_text())
    roster.path.write_text(yaml.safe_dump({**text, "pool": {"vram_budget": "20 MiB"}}))
    said = checked(roster.path, dry_run=True)
    assert "no: over the budget" in said
    assert "the budget is 20 MiB. It lacks" in said
    assert "to be cut" not in said

    with pytest.raises(UnavailableError) as refused:
        asyncio.run(College.open(load_roster(roster.path)))
    assert "the budget is 20 MiB" in str(refused.value)
    assert not list(folder.rglob("law-*.gguf"))
