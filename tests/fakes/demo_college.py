"""The demo's specialists in a roster of a test's own: masks of one parent, that share a resident."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coe.server.roster.builtin import demo_roster
from fakes.server_process import write_roster

DOMAINS = ("math", "chemistry", "python")
PARENT = demo_roster().parent / "college-parent.gguf"


MASKS = {name: demo_roster().parent / "masks" / f"{name}.json" for name in DOMAINS}


def college_roster(
    folder: Path,
    parent: Path = PARENT,
    masks: Mapping[str, Path] | None = None,
    published: Mapping[str, Mapping[str, Any]] | None = None,
    **sections: Any,
) -> Path:
    """Masks of the parent, the demo's where none are given, and SmolLM2 for the rest. published: `mask_of` of entries,
    in place of masks."""
    sources: dict[str, Mapping[str, Any]] = {name: {"mask": str(mask)} for name, mask in (masks or MASKS).items()}
    if published is not None:
        sources = {name: {"mask_of": of} for name, of in published.items()}
    entries: dict[str, Mapping[str, Any]] = {
        name: {"package": None, "pattern": None, "domains": [name], **source} for name, source in sources.items()
    }
    entries["general"] = {}
    pool = {"vram_budget": "2 GiB", "ram_budget": "16 MiB", "most_shared": 1, "check_swaps": True}
    defaults = {"thinking": "off", "max_tokens": 64, **sections.pop("defaults", {})}
    written = {"model": "college", "file": str(parent)}
    sections["pool"] = {**pool, **sections.get("pool", {})}
    return write_roster(folder, entries, models_dir="models", parent=written, defaults=defaults, **sections)
