"""The one that changes a client's own files: beside and renamed, with a copy of what was there."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
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


@dataclass(frozen=True)
class Saved:
    """What became of a file. copy: of what was there; None where there was nothing, or nothing to write.

    closed: files with a key that others could read, and cannot any longer.
    """

    path: Path
    copy: Path | None
    written: bool
    closed: tuple[Path, ...] = ()


def save(changes: Sequence[Change], key: str = "") -> Iterator[Saved]:
    """Write what changes; gives each file that was written or closed. Raises LaunchError.

    key: the server's. A file that it stands in is the user's alone afterwards, and so are the copies beside it.
    A new file is the user's alone in any case.
    """
    for change in changes:
        private = _holds(change.after, key)
        was_open = change.before is not None and _is_open(change.path)
        copy = None
        if change.changes:
            try:
                copy = write_keeping(change.path, change.after, mode=0o600, private=private)
            except OSError as error:
                raise LaunchError(f"{change.path} cannot be written: {error.strerror}.") from error
        closed = _closed(change.path, key) if private else []
        if private and was_open and not _is_open(change.path):
            closed = [change.path, *(one for one in closed if one != change.path)]
        if change.changes or closed:
            yield Saved(change.path, copy, change.changes, tuple(closed))


def _holds(text: str, key: str) -> bool:
    """Whether a key stands in a file, as it is or as JSON and YAML write it in quotes."""
    return bool(key) and any(one in text for one in (key, json.dumps(key)[1:-1], key.replace("'", "''")))


def _is_open(path: Path) -> bool:
    return bool(path.stat().st_mode & 0o077)


def _closed(path: Path, key: str) -> list[Path]:
    """Close a file and its copies of earlier times to others, where the key stands in them; gives those closed."""
    found = []
    for one in (path, *sorted(path.parent.glob(f"{glob.escape(path.name)}.bak*"))):
        with suppress(OSError, LaunchError):  # somebody else's, or a file system without rights
            if _is_open(one) and _holds(_read(one), key):
                one.chmod(one.stat().st_mode & 0o600)
                if not _is_open(one):
                    found.append(one)
    return found
