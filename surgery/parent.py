"""A parent's identity: the SHA-256 of its bytes, and its experts. Masks and profiles are bound to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from coe.engine.gguf.header import Header
from coe.engine.gguf.reader import read_split

from .architectures import Experts, experts_of
from .files import sha256_of


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
