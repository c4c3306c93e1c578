"""The reference roster's text, section by section."""

from __future__ import annotations

import re
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
REFERENCE = TOP / "specialists.yaml"


def explained(key: str, text: str) -> bool:
    """Whether a key, in use or commented out, stands in the text with a comment behind it."""
    return re.search(rf"(?m)^\s*#?(- )?{key}:.*\s#\s*\S", text) is not None


def section_text(name: str) -> str:
    found = re.search(rf"(?ms)^{name}:.*?(?=^\w|\Z)", REFERENCE.read_text())
    assert found is not None, f"the reference has no section {name}"
    return found[0]
