"""Files that appear whole or not at all, how a file is known again, and where what can be computed again is kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def cache_folder() -> Path:
    """Where what can be computed again is kept: $XDG_CACHE_HOME/coe, else ~/.cache/coe."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "coe"


def state_folder() -> Path:
    """Where what cannot be computed again is kept, such as keys: $XDG_STATE_HOME/coe, else ~/.local/state/coe."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "coe"


def private_folder(path: Path) -> None:
    """Make a folder that the user alone can enter, and those above it that are missing; one that is open to others is
    closed to them, where it is the user's. Raises OSError where it cannot be made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.stat()
    if status.st_mode & 0o077 and status.st_uid == os.geteuid():
        with suppress(OSError):  # a file system without modes
            path.chmod(0o700)


def shared_folder(path: Path) -> None:
    """Make a folder for models, and those above it that are missing: open to whom the one that it lies in is open,
    whatever the umask. Raises OSError where it cannot be made."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        with suppress(OSError):
            folder.chmod(folder.parent.stat().st_mode & 0o777)


def share_like(path: Path, like: Path) -> None:
    """Let those read a model who may read the one that it was made of, whatever the umask."""
    with suppress(OSError):
        path.chmod(like.stat().st_mode & 0o666 | 0o600)


def make_private(path: Path) -> None:
    """Close a file to others before anything is written to it. Raises OSError."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    path.chmod(0o600)


def stamp(path: Path) -> str:
    """A file's place, size, times and inode: another one when its bytes may have changed. Raises OSError."""
    status = path.stat()
    return f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\0{status.st_ino}"


@contextmanager
def written_beside(path: Path, *, private: bool = False) -> Iterator[Path]:
    """A path beside `path` to write to; it takes its place when the block ends well, and is removed when it does not.

    The bytes are on the disk before the name changes, so that a crash leaves either the old file or the new one.
    private: the user alone can read it.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if private:
            make_private(beside)
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        beside.unlink(missing_ok=True)
