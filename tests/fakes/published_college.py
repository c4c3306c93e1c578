"""Specialists of one parent as their makers publish them, each cut into a file in a repository of the hub's double."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from coe.server.commands.pull import ranges
from coe.server.commands.pull.command import pull
from coe.server.roster.load import load_roster
from coe.server.roster.models import Roster
from coe.surgery.cut.cut import cut
from coe.surgery.mask import Mask
from coe.surgery.parent import Parent
from fakes.hub import FakeHub


def small_steps(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Headers of small models are looked for in small steps, in a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setattr(ranges, "HEADER_STEPS", (2**12, 2**14, 2**16, 2**18))
    monkeypatch.setattr(ranges, "_GAP_BYTES", 256)


def cut_bytes(parent: Parent, mask: Mask, folder: Path) -> bytes:
    """The file of the specialist that a mask makes."""
    out = folder / "cut.gguf"
    cut(parent, mask, out)
    content = out.read_bytes()
    out.unlink()
    return content


def repository(name: str) -> str:
    return f"maker/{name}-GGUF"


def file_of(name: str) -> str:
    return f"{name}-Q8_0.gguf"


def publish(hub: FakeHub, parent: Parent, masks: Mapping[str, Mask], folder: Path) -> None:
    """A repository for each mask, with its specialist's file in it."""
    for name, mask in masks.items():
        hub.repositories[repository(name)] = {
            "README.md": f"# {name}".encode(),
            file_of(name): cut_bytes(parent, mask, folder),
        }


def mask_of(name: str, **more: Any) -> dict[str, Any]:
    """An entry's `mask_of`."""
    return {"repo": repository(name), "pattern": "*q8_0*", **more}


class Pulled:
    """A roster of published specialists in a folder of its own, and `coe pull` for it."""

    def __init__(self, folder: Path, parent: Mapping[str, Any], entries: Mapping[str, Mapping[str, Any]]) -> None:
        self.folder, self.parent = folder, dict(parent)
        self.entries = {name: dict(entry) for name, entry in entries.items()}
        self.said = ""

    @property
    def roster(self) -> Roster:
        specialists = [{"name": name, "domains": ["math"], **entry} for name, entry in self.entries.items()]
        path = self.folder / "specialists.yaml"
        path.write_text(yaml.safe_dump({"version": 1, "parent": self.parent, "specialists": specialists}))
        return load_roster(path)

    def path(self, name: str) -> Path:
        """Where the roster has the mask of a specialist."""
        specialist = self.roster.find(name)
        assert specialist is not None
        assert specialist.mask is not None
        return Path(specialist.mask)

    def mask(self, name: str) -> Mask:
        return Mask.load(self.path(name))

    def pull(self, *names: str, masks: bool = False) -> int:
        self.said, status = pulled(self.roster, *names, masks=masks)
        return status


def pulled(roster: Roster, *names: str, masks: bool = False) -> tuple[str, int]:
    """What `coe pull` says, and its exit status."""
    console = Console(width=400, force_terminal=False)
    with console.capture() as capture:
        status = pull(roster, names, yes=True, token=None, console=console, confirm=lambda question: False, masks=masks)
    return capture.get(), status
