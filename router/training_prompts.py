"""Training data written for this project: prompts that heads are fitted on, whose words the speller knows."""

from __future__ import annotations

import hashlib
from pathlib import Path

PROMPTS = Path(__file__).parent / "prompts"


def shipped_prompts() -> list[tuple[str, str]]:
    """The training prompts written for this project, as (label, text); one file a label, one line a prompt."""
    return [
        (path.stem, line.replace("\\n", "\n"))
        for path in sorted(PROMPTS.glob("*.txt"))
        for line in path.read_text("utf-8").splitlines()
        if line.strip()
    ]


def prompts_digest() -> str:
    """What the shipped prompts hash to: embeddings of other prompts are of no use."""
    text = "\0".join(f"{label}\0{text}" for label, text in shipped_prompts())
    return hashlib.sha256(text.encode()).hexdigest()
