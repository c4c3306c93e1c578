"""Who a parent is: its bytes' hash and its experts. Masks and profiles are bound to it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from coe.engine.gguf_header import Header, read_split

from .architectures import Experts, experts_of
from .errors import SurgeryError

_CHUNK: Final = 8 * 2**20


@dataclass(frozen=True)
class Identity:
    """What a mask or a profile remembers of its parent.

    sha256: of the file's bytes; of a split parent, of its parts' bytes one after the other.
    layers: block numbers that have a router, ascending.
    """

    name: str  # general.name, else the file's name
    sha256: str
    architecture: str
    layers: tuple[int, ...]
    n_expert: int
    n_used: int
    n_groups: int = 1


@dataclass(frozen=True)
class Parent:
    """A parent on disk: all its parts, their headers, and its experts. Nothing of its data is read."""

    path: Path
    headers: tuple[Header, ...]
    experts: Experts

    @classmethod
    def open(cls, path: Path) -> Parent:
        """Read the headers.

        Raises ModelFileError for a file that cannot be read, ArchitectureError for one that has no experts that the
        table knows.
        """
        headers = tuple(read_split(path))
        return cls(path, headers, experts_of(headers))

    @property
    def name(self) -> str:
        """general.name, else the file's name without its ending."""
        return str(self.headers[0].metadata.get("general.name") or self.path.stem)

    @property
    def paths(self) -> tuple[Path, ...]:
        """All parts, in order."""
        return tuple(header.path for header in self.headers)

    def identity(self, progress: Callable[[int], None] | None = None) -> Identity:
        """Hash the file, or take the hash of an unchanged file from the cache. progress: called with bytes read."""
        experts = self.experts
        return Identity(
            self.name,
            sha256_of(self.paths, progress),
            experts.architecture.name,
            experts.layers,
            experts.n_expert,
            experts.n_used,
            experts.n_groups,
        )


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
