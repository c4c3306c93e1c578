"""Speeds that `coe bench` measured on this machine, in a file of the cache folder: of which file, placed how."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from coe.engine.files import cache_folder, private_folder, read_bounded, written_beside

_SCHEMA: Final = 1
_MOST: Final = 500  # the oldest go first
_MOST_BYTES: Final = 2**20


@dataclass(frozen=True)
class Placed:
    """A model as it was loaded.

    file, n_bytes: of a split model its first file's name, and the bytes of all. n_keep: experts a layer of a mask that
    is filled or cut from that file; 0 for the file as it is. cpu_expert_layers, gpu_layers: as in LoadSpec.
    """

    file: str
    n_bytes: int
    n_keep: int = 0
    gpu_layers: int = -1
    cpu_expert_layers: int = 0


@dataclass(frozen=True)
class Speed:
    """What was measured of it, in tokens a second: written by one stream, and read of a prompt."""

    placed: Placed
    tokens_per_s: float
    prompt_tokens_per_s: float | None = None


def known_speeds() -> tuple[Speed, ...]:
    """All that are kept, the oldest first; none where the file is not there or is not ours."""
    try:
        content = json.loads(read_bounded(_place(), _MOST_BYTES))
        if content["schema"] != _SCHEMA:
            return ()
        return tuple(_speed(one) for one in content["speeds"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ()


def keep_speeds(found: Iterable[Speed]) -> None:
    """Keep speeds; of what was measured before, the new one counts. Raises OSError."""
    kept = with_new(known_speeds(), tuple(found))
    private_folder(cache_folder())
    with written_beside(_place(), private=True) as beside:
        beside.write_text(json.dumps({"schema": _SCHEMA, "speeds": [asdict(one) for one in kept]}))


def with_new(before: Sequence[Speed], new: Sequence[Speed]) -> tuple[Speed, ...]:
    """Old and new ones, each placement once, as many as are kept."""
    by_placement = {one.placed: one for one in before if one.placed not in {other.placed for other in new}}
    by_placement |= {one.placed: one for one in new}
    return tuple(by_placement.values())[-_MOST:]


def _place() -> Path:
    return cache_folder() / "speeds.json"


def _speed(content: Any) -> Speed:
    placed = content["placed"]
    numbers = {name: placed[name] for name in ("n_bytes", "n_keep", "gpu_layers", "cpu_expert_layers")}
    prompt = content["prompt_tokens_per_s"]
    if not isinstance(placed["file"], str) or not all(type(number) is int for number in numbers.values()):
        raise ValueError("no speed of ours")
    return Speed(
        Placed(placed["file"], **numbers), float(content["tokens_per_s"]), None if prompt is None else float(prompt)
    )
