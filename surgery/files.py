"""Bounded reading of what somebody else may have written, and the check of an output's place."""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from coe.engine.files import cached_of as cached_of
from coe.engine.files import read_bounded
from coe.engine.files import sha256_of as sha256_of
from coe.engine.text import quoted

from .errors import SurgeryError

_DEEPEST: Final = 64  # levels of a JSON document; ours have six


def read_json(path: Path, most_bytes: int) -> Any:
    """A JSON document that somebody else may have written.

    Raises OSError where there is no such regular file or it is larger, ValueError for what is no JSON, has a key twice
    (one of the values would be lost), numbers that are none, or is nested too deeply.
    """
    try:
        text = read_bounded(path, most_bytes).decode("utf-8-sig")
        found = json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    level, depth = [found], 0
    while level:  # what reads and writes it recursively takes several frames a level
        depth += 1
        if depth > _DEEPEST:
            raise ValueError("it is nested too deeply")
        inner = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
    return found


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"it has the key {quoted(twice)} twice")
    return found


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number of JSON")


def read_arrays(path: Path, most_file_bytes: int, most_bytes: int) -> dict[str, NDArray[Any]]:
    """The arrays of an .npy (under "") or .npz that somebody else may have written; nothing in it is executed.

    most_bytes: of all arrays together, unpacked.
    Raises OSError where there is no such regular file or it is larger, ValueError for what is no such file.
    """
    content = io.BytesIO(read_bounded(path, most_file_bytes))
    try:
        if zipfile.is_zipfile(content):
            with zipfile.ZipFile(content) as archive:
                unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > most_bytes:
                raise ValueError(f"it unpacks to {unpacked:,} bytes, and {most_bytes:,} are the most")
        content.seek(0)
        found = np.load(content, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return {"": found}
        with found:
            return {name: found[name] for name in found.files}
    except ValueError:
        raise
    # numpy, zipfile and the decompressors raise what they like on a damaged archive; MemoryError for a shape of 10^15.
    except Exception as error:
        raise ValueError(f"it is damaged ({type(error).__name__})") from error


def require_output(path: Path, inputs: Iterable[Path] = ()) -> None:
    """Raises SurgeryError when a file cannot be written there, or would take the place of one that is read."""
    if not path.parent.is_dir():
        raise SurgeryError(f"The folder {path.parent} does not exist.", f"Make it: mkdir -p {path.parent}")
    if path.exists() and not path.is_file():
        raise SurgeryError(f"{path} is no file that could be replaced.", "Give the output another name.")
    for source in inputs:
        if path.resolve() == source.resolve() or (path.exists() and source.exists() and path.samefile(source)):
            raise SurgeryError(f"{path} is itself read.", "Give the output another name.")
