"""The reference roster's text, section by section."""

from __future__ import annotations

import re
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
REFERENCE = TOP / "specialists.yaml"
SAMPLES = sorted((TOP / "docs" / "rosters").glob("*.yaml"))


def explained(key: str, text: str) -> bool:
    """Whether a key, in use or commented out, stands in the text with a comment behind it."""
    return re.search(rf"(?m)^\s*#?(- )?{key}:.*\s#\s*\S", text) is not None


def section_text(name: str) -> str:
    found = re.search(rf"(?ms)^{name}:.*?(?=^\w|\Z)", REFERENCE.read_text())
    assert found is not None, f"the reference has no section {name}"
    return found[0]


def block_text(name: str, text: str) -> str:
    """The first block of that name within a section's text, with the line of its name."""
    found = re.search(rf"(?m)^( *){name}:.*\n(?:\1 +\S.*\n)+", text)
    assert found is not None, f"there is no block {name}"
    return found[0]


def without(name: str, text: str) -> str:
    """A section's text without the blocks of that name, of which the first line stays."""
    return re.sub(rf"(?m)^(( *){name}:.*\n(?:\2 +#.*\n)*)(?:\2 +\S.*\n)+", r"\1", text)


def explanation(key: str, text: str) -> str:
    """What the comment behind a key says, over all its lines, without marks of what is assumed; "" for no comment."""
    found = re.search(rf"(?m)^\s*#?(?:- )?{key}:[^#\n]*(?:\"[^\"\n]*\")?[^#\n]*\s# *(.*(?:\n\s*# {{3,}}\S.*)*)", text)
    if found is None:
        return ""
    words = " ".join(re.sub(r"\n\s*#", " ", found[1]).split())
    return re.sub(r"^assumed(: [^.]*)?(\. |$)|\. assumed$", "", words)
