"""Specialists of one parent cut by their masks, in a process of its own: `python -m coe.surgery.cut_masks`.

Reads {"parent": FILE, "cuts": [{"mask": FILE, "out": FILE}, ...]} from its standard input and writes a JSON list to its
standard output: null for a file that was written, else what was wrong and what to do about it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from coe.engine.errors import EngineError

from .cut import cut
from .errors import SurgeryError
from .mask import Mask
from .parent import Parent


def cut_one(parent: Parent, mask: Path, out: Path) -> tuple[str, str] | None:
    """Write one specialist and remove what other masks of its name have left; None, or what was wrong and a remedy."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        cut(parent, Mask.load(mask), out)
        stem = out.stem.rpartition("-")[0]
        for old in out.parent.glob(f"{stem}-????????????.gguf"):
            if old != out:
                old.unlink(missing_ok=True)
    except (SurgeryError, EngineError) as error:
        return error.message, error.remedy
    except OSError as error:
        return f"{out} cannot be written: {error.strerror or error}.", "Set models_dir to a folder that can be."
    return None


def main() -> None:
    """Entry point of the process."""
    asked = json.load(sys.stdin)
    try:
        parent = Parent.open(Path(asked["parent"]))
        told = [cut_one(parent, Path(one["mask"]), Path(one["out"])) for one in asked["cuts"]]
    except (SurgeryError, EngineError) as error:
        told = [(error.message, error.remedy)] * len(asked["cuts"])
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
