"""Whatever writes a file leaves the old one, and nothing beside it, where the disk is full."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coe.engine.files import written_beside
from coe.router.head_file import SHIPPED, load_head, save_head
from coe.router.thresholds import save_thresholds
from coe.surgery.mask import Mask
from fakes.demo_college import MASKS
from fakes.full_disk import files_of_at_most
from fakes.synthetic_profile import identity, routed

ROOM = 64  # bytes that the disk has left


def save_text(path: Path) -> None:
    with written_beside(path) as beside:
        beside.write_text("x" * 1000)


WRITERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a mask": ("mask.json", lambda path: Mask.load(MASKS["math"]).save(path)),
    "a profile": ("profile.npz", lambda path: routed(identity(), 50, np.random.default_rng(0)).save(path)),
    "a head": ("head.npz", lambda path: save_head(load_head(SHIPPED), path)),
    "thresholds": ("t.json", lambda path: save_thresholds(path, {f"domain {n}": 0.5 for n in range(50)}, {})),
    "any other": ("text", save_text),
}


@pytest.mark.parametrize("what", WRITERS)
@pytest.mark.parametrize("before", [True, False], ids=["replaced", "new"])
def test_a_full_disk_leaves_what_was_there_and_nothing_else(what: str, before: bool, tmp_path: Path) -> None:
    name, save = WRITERS[what]
    if before:
        save(tmp_path / name)
    there = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OSError, match="File too large"), files_of_at_most(ROOM):
        save(tmp_path / name)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == there


def test_a_head_whose_description_finds_no_room_stays_the_old_one(tmp_path: Path) -> None:
    """The two are one: a new head beside the old description would be refused, and the old head be lost."""
    path = tmp_path / "head.npz"
    save_head(load_head(SHIPPED), path)
    old, head = path.read_bytes(), load_head(path)
    head = replace(head, about={**head.about, "made_by": "x" * 2 * len(old)})
    with pytest.raises(OSError, match="File too large"), files_of_at_most(len(old) + 4096):
        save_head(head, path)
    assert path.read_bytes() == old
    assert load_head(path).labels == head.labels
