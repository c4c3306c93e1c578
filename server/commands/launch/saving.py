"""The one that changes a client's own files: beside and renamed, with a copy of what was there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from coe.engine.files import read_bounded

from .._keeping import write_keeping
from .asking import LaunchError
from .merging import MergeError, merge_json, merge_yaml
from .values import Edit

_MOST_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Change:
    """A file as it is to be. before: what it says now, None where there is none."""

    path: Path
    before: str | None
    after: str

    @property
    def changes(self) -> bool:
        """Whether there is anything to write."""
        return self.before != self.after


def plan(edits: Sequence[Edit]) -> list[Change]:
    """What the files would say. Raises LaunchError where one cannot be read, or not be merged into; nothing is written
    then."""
    return [_planned(edit) for edit in edits]


def _planned(edit: Edit) -> Change:
    path = edit.path.resolve()
    before = _read(path) if path.exists() else None
    if isinstance(edit.values, str):
        return Change(path, before, edit.values)
    merge = merge_json if edit.form == "json" else merge_yaml
    try:
        return Change(path, before, merge(before or "", edit.values))
    except MergeError as error:
        raise LaunchError(
            f"{path} {error}: it is left as it is. Put in by hand what --print shows, or leave --save out."
        ) from error


def _read(path: Path) -> str:
    try:
        return read_bounded(path, _MOST_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise LaunchError(f"{path} is not UTF-8: it is left as it is. Save it as UTF-8.") from error
    except OSError as error:
        raise LaunchError(f"{path} cannot be read: {error.strerror}.") from error


def save(changes: Sequence[Change]) -> Iterator[tuple[Path, Path | None]]:
    """Write what changes; gives each file, and the copy of what was there. Raises LaunchError.

    A new file is the user's alone: a key may stand in it.
    """
    for change in changes:
        if not change.changes:
            continue
        try:
            copy = write_keeping(change.path, change.after, mode=0o600)
        except OSError as error:
            raise LaunchError(f"{change.path} cannot be written: {error.strerror}.") from error
        yield change.path, copy
