"""What of models that were looked at on the hub stays in the cache folder: which go is a pure decision over frozen
values (least recently used first), and one function carries it out."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MOST_BYTES: Final = 2 * 2**30  # on the disk: headers of a hundred models with large vocabularies, and parents' routers
MOST_AGE_S: Final = 90 * 86_400.0
_IN_USE_S: Final = 3_600.0  # another command may be at work with it, and goes on reading it


@dataclass(frozen=True)
class Kept:
    """What is kept of a repository at one commit. n_bytes: on the disk, holes left out. used_s: when it was last looked
    at, by the clock of the files."""

    folder: Path
    n_bytes: int
    used_s: float


def to_remove(
    kept: Sequence[Kept], now_s: float, *, most_bytes: int = MOST_BYTES, most_age_s: float = MOST_AGE_S
) -> list[Path]:
    """The folders that go, least recently used first: those unused for too long, and as many more as bring the others
    below the bound. What was used within the last hour stays, and counts."""
    left = sum(one.n_bytes for one in kept)
    gone = []
    for one in sorted(kept, key=lambda one: one.used_s):
        age_s = now_s - one.used_s
        if age_s > _IN_USE_S and (age_s > most_age_s or left > most_bytes):
            gone.append(one.folder)
            left -= one.n_bytes
    return gone


def prune(cache: Path, now_s: float | None = None) -> None:
    """Remove from a folder of repositories, each with a folder a commit, what `to_remove` says. What cannot be removed
    stays, and is no error: it is tried again the next time."""
    for folder in to_remove(list(_kept_in(cache)), time.time() if now_s is None else now_s):
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another commit of the repository is there
            folder.parent.rmdir()


def mark_used(folder: Path) -> None:
    """Remember that what lies there was looked at now."""
    with suppress(OSError):
        os.utime(folder)


def _kept_in(cache: Path) -> Iterator[Kept]:
    for folder in cache.glob("*/*"):
        with suppress(OSError):  # another command has removed it meanwhile
            if folder.is_dir() and not folder.is_symlink():
                files = [path.lstat() for path in folder.rglob("*")]
                yield Kept(folder, sum(one.st_blocks * 512 for one in files), folder.stat().st_mtime)
