"""A client's own files: merged, a copy of what was there, nothing where something is in the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest

from coe.server.commands.launch.asking import LaunchError
from coe.server.commands.launch.saving import Saved, plan, save
from coe.server.commands.launch.values import Edit


def saved(*edits: Edit, key: str = "") -> list[Saved]:
    return list(save(plan(edits), key))


def test_a_new_file_is_the_users_alone_and_so_are_its_folders_made(tmp_path: Path) -> None:
    path = tmp_path / "a/b/settings.json"
    assert saved(Edit(path, "json", {"key": "k"}), key="k") == [Saved(path, None, written=True)]
    assert json.loads(path.read_text()) == {"key": "k"}
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_was_there_stays_beside_and_keeps_its_rights(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"theme": "dark"}')
    path.chmod(0o640)
    [first, second] = [
        one.copy for model in ("auto", "math") for one in saved(Edit(path, "json", {"model": model}), key="secret")
    ]
    assert json.loads(path.read_text()) == {"theme": "dark", "model": "math"}
    assert path.stat().st_mode & 0o777 == 0o640
    assert first is not None
    assert second is not None
    assert first != second
    assert first.read_text() == '{"theme": "dark"}'
    assert json.loads(second.read_text())["model"] == "auto"


@pytest.mark.parametrize("key", ["open sesame", 'qu"oted', "it's", "back\\slash"])
@pytest.mark.parametrize("form", ["json", "yaml"])
def test_a_file_that_gets_a_key_is_closed_to_others_with_its_copy(
    form: Literal["json", "yaml"], key: str, tmp_path: Path
) -> None:
    path = tmp_path / "settings"
    path.write_text('{"theme": "dark"}' if form == "json" else "theme: dark\n")
    path.chmod(0o644)
    [one] = saved(Edit(path, form, {"env": {"token": key}}), key=key)
    assert one.copy is not None
    assert [file.stat().st_mode & 0o777 for file in (path, one.copy)] == [0o600, 0o600]
    assert one.closed == (path,)


def test_a_key_that_stands_open_already_is_closed_though_nothing_changes(tmp_path: Path) -> None:
    path, copy, other = (tmp_path / name for name in ("settings.json", "settings.json.bak", "settings.json.bak1"))
    edit = Edit(path, "json", {"token": "secret"})
    saved(edit, key="secret")
    copy.write_text(path.read_text())
    other.write_text("{}")
    for file in (path, copy, other):
        file.chmod(0o644)
    assert saved(edit, key="secret") == [Saved(path, None, written=False, closed=(path, copy))]
    assert [file.stat().st_mode & 0o777 for file in (path, copy, other)] == [0o600, 0o600, 0o644]
    assert saved(edit, key="secret") == []


def test_a_file_without_the_key_is_left_as_open_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "models.json"
    path.write_text("{}")
    path.chmod(0o644)
    [one] = saved(Edit(path, "json", {"model": "auto"}), key="secret")
    assert one.closed == ()
    assert path.stat().st_mode & 0o777 == 0o644


def test_nothing_is_written_where_nothing_changes(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    edit = Edit(path, "json", {"model": "auto"})
    saved(edit)
    assert saved(edit) == []
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_behind_a_link_is_changed_and_the_link_stays(tmp_path: Path) -> None:
    real, link = tmp_path / "dotfiles.json", tmp_path / "settings.json"
    real.write_text("{}")
    link.symlink_to(real)
    saved(Edit(link, "json", {"model": "auto"}))
    assert link.is_symlink()
    assert json.loads(real.read_text()) == {"model": "auto"}


@pytest.mark.parametrize("text", [b"// comment\n{}", b"\xff\xfe", b"[]"])
def test_where_one_file_cannot_be_merged_into_none_is_touched(text: bytes, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text("{}")
    bad.write_bytes(text)
    with pytest.raises(LaunchError, match=r"bad\.json.*left as it is"):
        saved(Edit(good, "json", {"a": 1}), Edit(bad, "json", {"a": 1}))
    assert good.read_text() == "{}"
    assert bad.read_bytes() == text


def test_a_folder_in_the_files_place_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "settings.json").mkdir()
    with pytest.raises(LaunchError, match="folder"):
        plan([Edit(tmp_path / "settings.json", "json", {"a": 1})])
