"""The cards' claims put to the tiny parent: `python -m coe.demo.experiment [--quick] [--folder F] [--parent GGUF ...]`.

Every piece of the work is kept as JSON in the folder as soon as it is there, and not done again: interrupt it as you
like. In the end docs/experiments.md and its plots are written anew from the pieces; `report` says how.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console

from coe.engine.files import cache_folder

from ..shipped import PARENT
from .design import FULL, QUICK
from .report import write
from .results import run


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small part of it, in a minute or two")
    parser.add_argument("--folder", type=Path, default=cache_folder() / "experiment", help="where pieces are kept")
    parser.add_argument("--parent", type=Path, nargs="+", default=[PARENT], help="parents of other training seeds")
    docs = Path(__file__).resolve().parents[2] / "docs"
    parser.add_argument("--docs", type=Path, default=docs, help="where experiments.md is written")
    given = parser.parse_args()
    console = Console(highlight=False, emoji=False)
    began = time.perf_counter()
    plan = QUICK if given.quick else FULL
    results = [run(path, plan, given.folder, lambda line: console.print(line, markup=False)) for path in given.parent]
    path = write(results, plan, given.docs)
    console.print(f"{path} ({time.perf_counter() - began:.0f} s)", markup=False)


if __name__ == "__main__":
    main()
