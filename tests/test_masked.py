"""Specialists that a roster gives as masks: cut when the server starts, and what is said where they cannot be."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from random_model import Shape, write_random_model
from rich.console import Console

from coe.server.check import Unavailable
from coe.server.college import College
from coe.server.masked import cut_masked, uncut
from coe.server.roster import Roster, RosterError, load_roster
from coe.server.serving import check_roster
from coe.surgery.cut import read_slots
from coe.surgery.mask import Mask
from coe.surgery.parent import Parent


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
    assert college.available == ["law"]
    await college.close()


async def test_a_mask_of_another_parent_says_so_and_the_rest_is_served(
    folder: Path, parent: Path, smollm2: Path
) -> None:
    path = folder / "masks" / "law.json"
    stranger = json.loads(path.read_text())
    stranger["parent"]["sha256"] = "0" * 64
    path.write_text(json.dumps(stranger))
    roster = roster_in(folder, parent)
    other = {"name": "general", "file": str(smollm2), "domains": ["general"], "context_tokens": 256}
    text = yaml.safe_load(roster.path.read_text())
    roster.path.write_text(yaml.safe_dump({**text, "specialists": [*text["specialists"], other]}))
    college = await College.open(load_roster(roster.path))
    judged = college.judged["law"]
    assert isinstance(judged, Unavailable)
    assert "was made for" in judged.reason
    assert judged.remedy
    assert college.available == ["general"]
    await college.close()


async def test_what_cannot_be_cut_is_said_with_a_remedy(folder: Path, parent: Path) -> None:
    absent = await cut_masked(roster_in(folder, folder / "absent.gguf"))
    assert "parent is not there" in absent["law"][0]
    (folder / "models").write_text("no folder")
    ((reason, remedy),) = (await cut_masked(roster_in(folder, parent))).values()
    assert "cannot be written" in reason
    assert "models_dir" in remedy


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
