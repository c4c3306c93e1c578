"""What stays of models that were looked at on the hub: bounded in bytes and age, least recently used first to go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from coe.server.commands.pull.headers import HubHeaders
from coe.server.commands.pull.pruning import MOST_AGE_S, Kept, mark_used, prune, to_remove

NOW, DAY = 1e9, 86_400.0


def kept(name: str, n_bytes: int, days: float) -> Kept:
    return Kept(Path(name), n_bytes, NOW - days * DAY)


@pytest.mark.parametrize(
    ("there", "gone"),
    [
        ([], []),
        ([kept("a", 6, 2), kept("b", 4, 1)], []),
        ([kept("a", 6, 2), kept("b", 5, 1)], ["a"]),
        ([kept("b", 5, 1), kept("a", 1, 2), kept("c", 5, 3), kept("d", 8, 0.5)], ["c", "a", "b"]),
        ([kept("a", 1, 31), kept("b", 1, 29)], ["a"]),
        ([kept("a", 99, 0), kept("b", 1, 2)], ["b"]),
        ([kept("a", 99, 0.01), kept("b", 99, 0.02)], []),
    ],
    ids=["nothing", "within", "over", "several", "old", "in use counts", "in use stays"],
)
def test_the_least_recently_used_go_until_the_others_lie_within_the_bound(there: list[Kept], gone: list[str]) -> None:
    assert to_remove(there, NOW, most_bytes=10, most_age_s=30 * DAY) == [Path(name) for name in gone]


def put(folder: Path, age_s: float) -> Path:
    """A model of a commit, in a folder of its repository as well."""
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "m.gguf").write_bytes(b"x")
    (folder / "sub" / ".m.gguf.ranges").write_bytes(b"{}")
    os.utime(folder, (NOW - age_s, NOW - age_s))
    return folder


def test_what_goes_takes_its_repository_with_it_where_that_is_empty(tmp_path: Path) -> None:
    old, of_same, alone = (
        put(tmp_path / "o--r" / "aaa", MOST_AGE_S + 1),
        put(tmp_path / "o--r" / "bbb", MOST_AGE_S - 1),
        put(tmp_path / "o--s" / "ccc", MOST_AGE_S + 1),
    )
    prune(tmp_path, NOW)
    assert not old.exists()
    assert of_same.exists()
    assert not alone.parent.exists()


def test_what_is_used_again_stays(tmp_path: Path) -> None:
    folder = put(tmp_path / "o--r" / "aaa", MOST_AGE_S + 1)
    mark_used(folder)
    prune(tmp_path)
    assert folder.exists()


def test_a_hole_takes_no_room(tmp_path: Path) -> None:
    folder = put(tmp_path / "o--r" / "aaa", DAY)
    os.truncate(folder / "sub" / "m.gguf", 2**36)
    os.utime(folder, (NOW - DAY, NOW - DAY))
    prune(tmp_path, NOW)
    assert folder.exists()


def test_a_folder_that_is_not_there_and_files_of_others_are_no_error(tmp_path: Path) -> None:
    prune(tmp_path / "none", NOW)
    (tmp_path / "note.txt").write_text("mine")
    (tmp_path / "o--r").mkdir()
    (tmp_path / "o--r" / "note.txt").write_text("mine")
    prune(tmp_path, NOW + 1e9)
    assert (tmp_path / "o--r" / "note.txt").exists()


def test_a_command_that_looks_at_the_hub_prunes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    old = put(tmp_path / "coe" / "headers" / "o--r" / "aaa", MOST_AGE_S + 1)
    HubHeaders(None)
    assert not old.exists()
