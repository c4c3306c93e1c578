"""Files that appear whole or not at all, and hashes of large ones that are worked out once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .errors import SurgeryError

_CHUNK: Final = 8 * 2**20


def cache_folder() -> Path:
    """Where what can be computed again is kept: $XDG_CACHE_HOME/coe, else ~/.cache/coe."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "coe"


def sha256_of(paths: tuple[Path, ...], progress: Callable[[int], None] | None = None) -> str:
    """SHA-256 of the files' bytes, one after the other; cached by path, size and time of change.

    progress: called with the number of bytes of each piece read.
    """
    key = hashlib.sha256("\n".join(_stamp(path) for path in paths).encode()).hexdigest()
    cached = cache_folder() / "sha256" / f"{key}.json"
    try:
        return str(json.loads(cached.read_text())["sha256"])
    except (OSError, ValueError, KeyError):
        pass
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(_CHUNK):
                digest.update(piece)
                if progress is not None:
                    progress(len(piece))
    found = digest.hexdigest()
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with written_beside(cached) as beside:
            beside.write_text(json.dumps({"sha256": found, "files": [str(path) for path in paths]}))
    except OSError:  # a cache that cannot be written costs time and nothing else
        pass
    return found


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ctime_ns}\0{status.st_ino}"


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes its place when the block ends well, and is removed when it does not.

    The bytes are on the disk before the name changes, so that a crash leaves either the old file or the new one.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
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


def require_folder(path: Path) -> None:
    """Raises SurgeryError when the folder of a file to be written is not there."""
    if not path.parent.is_dir():
        raise SurgeryError(f"The folder {path.parent} does not exist.", f"Make it: mkdir -p {path.parent}")
