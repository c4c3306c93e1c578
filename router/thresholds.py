"""The file of thresholds that a roster names: the confidence that a question of each domain must reach, as JSON.

`coe.router.training.thresholds` fits them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .domains import canonical
from .errors import RouterError
from .files import parse_json, read_file, written_beside

_MOST_BYTES = 2**20


class ThresholdsError(RouterError):
    """A file of thresholds is missing or says something that is none."""


def save_thresholds(path: Path, thresholds: Mapping[str, float], about: Mapping[str, Any]) -> None:
    """Write the file, with how the thresholds were found."""
    text = json.dumps({"thresholds": dict(thresholds), "about": dict(about)}, indent=2)
    with written_beside(path) as (beside,):
        beside.write_text(f"{text}\n", "utf-8")


def load_thresholds(path: Path) -> dict[str, float]:
    """Read what `save_thresholds` wrote: domain -> threshold. Raises ThresholdsError."""
    remedy = "write it with `coe fit-thresholds`, or remove `router.thresholds` from the roster"
    try:
        found = parse_json(read_file(path, _MOST_BYTES))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ThresholdsError(f"the thresholds {path} cannot be read: {why}; {remedy}") from error
    thresholds = found.get("thresholds") if isinstance(found, dict) else None
    if not isinstance(thresholds, dict):
        raise ThresholdsError(f'{path} has no "thresholds"; {remedy}')
    for domain, value in thresholds.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ThresholdsError(f"{path}: the threshold of {domain!r} is {value!r}, not a number from 0 to 1")
    return {canonical(domain): float(value) for domain, value in thresholds.items()}


def threshold_problems(thresholds: Collection[str], labels: Collection[str]) -> list[str]:
    """Thresholds for domains that no question is sorted into, a sentence each."""
    return [
        f'there is a threshold for "{domain}", which is no domain here: it does nothing; '
        "write another file of thresholds with `coe fit-thresholds` and this roster"
        for domain in thresholds
        if domain not in labels
    ]
