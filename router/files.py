"""Files that somebody names: read within bounds, regular ones alone; and written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def read_file(path: Path, most_bytes: int) -> bytes:
    """A file's bytes. Raises OSError, also for a FIFO, which would be waited for, a device, or a larger file."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    with path.open("rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {most_bytes // 2**20} MiB", str(path))
    return content


@contextmanager
def written_beside(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Paths to write to, one beside each of `paths`; they take their places when the block ends well, one right after
    the other, and are removed when it does not. The bytes are on the disk before a name changes. Raises OSError."""
    beside = tuple(path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in paths)
    try:
        yield beside
        for one in beside:
            with one.open("rb") as file:
                os.fsync(file.fileno())
        for one, path in zip(beside, paths, strict=True):
            one.replace(path)
    finally:
        for one in beside:
            one.unlink(missing_ok=True)


def parse_json(content: bytes) -> Any:
    """A JSON document in UTF-8. Raises ValueError, also for one that is nested too deeply, or repeats a key."""
    try:
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=_distinct, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it has a key twice")
    return found


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number")
