"""What `experts: fit` comes to: how many experts the demo's masks keep at five budgets, what that takes and answers.

    python benchmarks/expert_fit.py

Budgets are chosen between what a resident takes with an eighth of the experts, and with all of them. For each: what was
predicted, the worker's resident memory once its cache is full, and the share of right answers of every specialist to
held-out questions of its own domain. The demo's parent is so small that most of a worker is llama.cpp itself.

Target: no worker more than 5 % over its budget. At this size it is all but its weights, and where two processes map one
library, both count it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Final

import _bench
from memory import measure

from coe.demo.asking import ask_cut
from coe.demo.make_masks import exam_of
from coe.demo.shipped import FOLDER, PARENT
from coe.engine.pool.places import HOST, Memory
from coe.server.commands.demo import with_own_models
from coe.server.roster.load import load_roster
from coe.server.roster.models import Roster
from coe.server.runtime.availability import Servable
from coe.server.runtime.resolve import resolve
from coe.surgery.mask import Mask
from coe.surgery.parent import Parent

TARGET: Final = 0.05
_BUDGETS: Final = 5
_MIB: Final = 2**20
_PLENTY: Final = Memory.at(HOST, 2**50)


def masks_of(roster: Roster) -> dict[str, Mask]:
    """Domain -> its mask: the demo's, by the names of their files."""
    found = (Path(one.mask) for one in roster.specialists if one.mask is not None)
    return {path.stem: Mask.load(path) for path in found}


async def resident(roster: Roster, budget: Memory) -> Servable:
    """The resident that the roster's masks share."""
    masks = [one.name for one in roster.specialists if one.mask is not None]
    item = (await resolve(roster, budget)).availability[masks[0]]
    assert isinstance(item, Servable), item
    return item


def total(item: Servable) -> int:
    """What is predicted for it."""
    assert item.footprint is not None
    return item.footprint.total_bytes


def accuracy(masks: dict[str, Mask], count: int) -> dict[str, float]:
    """Domain -> share of right answers at home, with so many experts a layer."""
    parent = Parent.open(PARENT)
    found = {}
    for domain, mask in masks.items():
        answers = ask_cut(parent, mask.keeping(count), exam_of(domain))
        found[domain] = sum(answer.right for answer in answers) / len(answers)
    return found


async def run(folder: Path) -> tuple[list[list[str]], list[str]]:
    """The table's rows, and what missed its target."""
    whole = load_roster(with_own_models(FOLDER / "specialists.yaml", folder))
    masks = tuple(one for one in whole.specialists if one.mask is not None)
    roster = whole.model_copy(
        update={
            "specialists": tuple(one.model_copy(update={"experts": "fit"}) for one in masks),
            "fallback": None,
            "pool": whole.pool.model_copy(update={"ram_budget": 0, "preload": ()}),
        }
    )
    n_expert = Parent.open(PARENT).experts.n_expert
    ends = []
    for count in (n_expert // 8, n_expert):
        ends.append(total(await resident(roster.with_experts({one.name: count for one in masks}), _PLENTY)))
    rows, missed = [], []
    for at in range(_BUDGETS):
        budget = int((ends[0] + (ends[1] - ends[0]) * at / (_BUDGETS - 1)) * 1.012)
        found = await resolve(roster, Memory.at(HOST, budget))
        (fit,) = found.fits
        item = found.availability[masks[0].name]
        assert isinstance(item, Servable), item
        real = (await measure(item.spec, on_gpu=False, specialist=item.entry.name)).full
        right = await asyncio.to_thread(accuracy, masks_of(whole), fit.chosen)
        if real > budget * (1 + TARGET):
            missed.append(f"{budget / _MIB:.1f} MiB: the worker takes {real / _MIB:.1f}")
        sizes = (budget, item.footprint.weights_bytes if item.footprint else 0, total(item), real)
        mean = sum(right.values()) / len(right)
        rows.append(
            [
                f"{sizes[0] / _MIB:.2f}",
                f"{fit.chosen} of {n_expert}",
                *(f"{size / _MIB:.2f}" for size in sizes[1:]),
                f"{mean:.1%}",
                ", ".join(f"{domain} {share:.0%}" for domain, share in right.items()),
            ]
        )
        print(f"  {budget / _MIB:.2f} MiB: {fit.chosen} experts, {mean:.1%} right", flush=True)
    return rows, missed


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    print(_bench.describe_machine(1))
    with tempfile.TemporaryDirectory(prefix="coe-fit-") as folder:
        rows, missed = asyncio.run(run(Path(folder)))
    head = ["budget, MiB", "experts", "weights, MiB", "predicted, MiB", "real, MiB", "right at home", "by domain"]
    print(_bench.table(head, rows))
    sys.exit(_bench.report(missed))


if __name__ == "__main__":
    main()
