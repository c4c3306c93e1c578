"""A parent's identity: the SHA-256 of its bytes and of its routers, and its experts; masks are bound to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coe.engine.gguf.header import Header
from coe.engine.gguf.reader import read_split

from .architectures import MOST, Experts, experts_of
from .files import cached_of, sha256_of
from .weights import Weights, router_sha256


@dataclass(frozen=True)
class Identity:
    """What a mask or a profile remembers of its parent.

    sha256: of the file's bytes; of a split parent, of its parts' bytes one after the other.
    layers: block numbers that have a router, ascending.
    router_sha256: of its routers (`weights.router_sha256`): the same for other quantisations of the same checkpoint;
                   "" where it is not known, as in what was written before there was one.
    """

    name: str  # general.name, else the file's name
    sha256: str
    architecture: str
    layers: tuple[int, ...]
    n_expert: int
    n_used: int
    n_groups: int = 1
    router_sha256: str = ""

    def is_checkpoint_of(self, other: Identity) -> bool:
        """Whether both are of one checkpoint, in whatever quantisation: the same file, or the same routers."""
        return self.sha256 == other.sha256 or (self.router_sha256 != "" and self.router_sha256 == other.router_sha256)

    @classmethod
    def from_json(cls, content: Any) -> Identity:
        """The identity that a mask or a profile has written down. Raises ValueError, saying what is wrong with it."""
        if not isinstance(content, Mapping) or not {"name", "sha256", "architecture", "layers"} <= content.keys():
            raise ValueError("its parent is not described")
        layers, texts = content["layers"], [content[key] for key in ("name", "sha256", "architecture")]
        texts.append(content.get("router_sha256", ""))
        counts = [content.get("n_expert"), content.get("n_used"), content.get("n_groups", 1)]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("its parent's name, hashes and architecture must be texts")
        if not isinstance(layers, list | tuple) or not all(_is_count(layer) for layer in layers):
            raise ValueError("its parent's layers must be numbers of blocks")
        if list(layers) != sorted(set(layers)):
            raise ValueError("its parent's layers must be ascending")
        if not all(_is_count(count) and count for count in counts):
            raise ValueError("its parent's experts must be counted")
        return cls(
            texts[0],
            texts[1],
            texts[2],
            tuple(layers),
            int(content["n_expert"]),
            int(content["n_used"]),
            int(content.get("n_groups", 1)),
            texts[3],
        )


def _is_count(value: Any) -> bool:
    """Whether it is a number of experts or blocks that a model may have: masks and profiles are as large as that."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST


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
        """The hashes of file and routers, of an unchanged file from the cache. progress: called with bytes read."""
        experts = self.experts
        return Identity(
            self.name,
            sha256_of(self.paths, progress),
            experts.architecture.name,
            experts.layers,
            experts.n_expert,
            experts.n_used,
            experts.n_groups,
            self.router_sha256(),
        )

    def router_sha256(self) -> str:
        """The hash of its routers, from the cache while the file is unchanged: they are 43 MB of Gemma 4 26B-A4B."""
        return cached_of(
            self.paths, "router_sha256", lambda: router_sha256(Weights.of(self.headers), self.experts.layers)
        )
