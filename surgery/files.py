"""SHA-256 of large files, cached; and the check of an output's place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from coe.engine.files import cache_folder, private_folder, stamp, written_beside

from .errors import SurgeryError

_CHUNK: Final = 8 * 2**20


def sha256_of(paths: tuple[Path, ...], progress: Callable[[int], None] | None = None) -> str:
    """SHA-256 of the files' bytes, one after the other; cached by path, size and time of change.

    progress: called with the number of bytes of each piece read.
    """
    key = hashlib.sha256("\n".join(stamp(path) for path in paths).encode()).hexdigest()
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
        private_folder(cache_folder())
        private_folder(cached.parent)
        with written_beside(cached, private=True) as beside:
            beside.write_text(json.dumps({"sha256": found, "files": [str(path) for path in paths]}))
    except OSError:  # a cache that cannot be written costs time and nothing else
        pass
    return found


def require_output(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Raises SurgeryError when a file cannot be written there, or would take the place of one that is read."""
    if not path.parent.is_dir():
        raise SurgeryError(f"The folder {path.parent} does not exist.", f"Make it: mkdir -p {path.parent}")
    if path.exists() and not path.is_file():
        raise SurgeryError(f"{path} is no file that could be replaced.", "Give the output another name.")
    for source in inputs:
        if path.resolve() == source.resolve() or (path.exists() and source.exists() and path.samefile(source)):
            raise SurgeryError(f"{path} is itself read.", "Give the output another name.")
