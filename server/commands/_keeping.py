"""Writing over a file that somebody may have changed: what was there is kept beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from coe.engine.files import written_beside

_MOST_COPIES: Final = 10_000


def write_keeping(path: Path, text: str, *, mode: int, private: bool = False) -> Path | None:
    """Write a text file whole; gives the copy of what was there, None where there was nothing or it said the same.

    mode: of a new file; one that is there keeps its own. private: others get no rights, to the copy neither, whatever
    the file had. Raises OSError.
    """
    path = path.resolve()  # the file behind a link, and not the link, is what is replaced
    path.parent.mkdir(parents=True, exist_ok=True)
    copy = None
    if path.exists():
        before, mode = path.read_bytes(), path.stat().st_mode & (0o600 if private else 0o777)
        if before == text.encode():
            return None
        copy = _free_name(path)
        _write(copy, before, mode)
    _write(path, text.encode(), mode)
    return copy


def _write(path: Path, content: bytes, mode: int) -> None:
    with written_beside(path, private=True) as beside:
        beside.write_bytes(content)
        beside.chmod(mode)


def _free_name(path: Path) -> Path:
    """Where a copy of a file goes: no older copy is lost."""
    names = (path.with_name(f"{path.name}.bak{number or ''}") for number in range(_MOST_COPIES))
    return next(name for name in names if not name.exists())
