"""Texts that repeat themselves for a reason, as people ask for them: what no loop guard should end.

Each kind is a function of a random generator, so that a seed gives a text and another seed another one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Final

from _honest_data import DATA
from _honest_fresh import FRESH as FRESH
from _honest_prose import PROSE

KINDS: Final[dict[str, Callable[[random.Random], str]]] = {**PROSE, **DATA}


def texts(kind: str, seeds: range) -> Iterator[str]:
    """The texts of a kind, one a seed."""
    for seed in seeds:
        yield {**KINDS, **FRESH}[kind](random.Random(f"{kind} {seed}"))
