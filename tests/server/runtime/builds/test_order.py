"""What a roster entry with `build:` becomes as a build order."""

from __future__ import annotations

from pathlib import Path

import pytest

from coe.server.runtime.builds.order import machine_of, order_of
from coe.surgery.build.job import BUILT
from coe.surgery.errors import BuildError
from coe.surgery.judge.values import Bound
from coe.surgery.plan.methods import ThreePass
from coe.surgery.plan.recipes import Recipe
from fakes.rosters import load

ROSTER = """
parent: {model: big, file: big.gguf}
specialists:
  - name: law
    domains: [law]
    cpu_expert_layers: all
    system_prompt: Be just.
    build:
"""


def roster_text(*build: str) -> str:
    return ROSTER + "".join(f"      {line}\n" for line in build)


def placed(folder: Path) -> None:
    (folder / "models").mkdir()
    (folder / "models" / "big.gguf").write_bytes(b"x")
    for name in ("law.jsonl", "cases.txt", "think.txt", "exam.jsonl"):
        (folder / name).write_text("x")


def test_an_order_has_absolute_paths_and_all_that_was_written(tmp_path: Path) -> None:
    placed(tmp_path)
    roster = load(tmp_path, roster_text(
        "corpus: [law=law.jsonl, cases.txt]", "experts: 64", "reasoning: [think.txt]", "questions: [exam.jsonl]",
        "recipe: {name: three-pass, cap: 6, criterion: reap}", "bound: {loss: 0.02}", "quantize: Q4_K_M"))  # fmt: skip
    order = order_of(roster, roster.specialists[0])
    assert order.parent == tmp_path / "models" / "big.gguf"
    assert order.corpus == (f"law={tmp_path / 'law.jsonl'}", str(tmp_path / "cases.txt"))
    assert order.reasoning == (str(tmp_path / "think.txt"),)
    assert order.questions == (tmp_path / "exam.jsonl",)
    assert order.out == tmp_path / "models" / BUILT / "law.gguf"
    assert order.recipe == Recipe("three-pass", ThreePass(reasoning_cap=6), "reap")
    assert order.bound == Bound(loss=0.02)
    assert (order.system, order.quantize) == ("Be just.", "Q4_K_M")
    assert machine_of(roster, roster.specialists[0]).cpu_expert_layers == -1


@pytest.mark.parametrize(("asked", "keys", "devices"), [
    ("auto", "", ()), ("[CUDA1]", "", ("CUDA1",)), ("[CUDA1]", "gpu_layers: 0", ()),
])  # fmt: skip
def test_a_build_keeps_to_the_cards_that_the_roster_names(
    tmp_path: Path, asked: str, keys: str, devices: tuple[str, ...]
) -> None:
    placed(tmp_path)
    roster = load(
        tmp_path, roster_text("corpus: [law.jsonl]", "experts: 64") + f"    {keys}\npool: {{devices: {asked}}}\n"
    )
    assert machine_of(roster, roster.specialists[0]).devices == devices


@pytest.mark.parametrize("absent", ["models/big.gguf", "law.jsonl", "think.txt", "exam.jsonl"])
def test_what_is_not_there_is_named_before_anything_begins(tmp_path: Path, absent: str) -> None:
    placed(tmp_path)
    (tmp_path / absent).unlink()
    roster = load(
        tmp_path,
        roster_text("corpus: [law=law.jsonl]", "experts: 64", "reasoning: [think.txt]", "questions: [exam.jsonl]"),
    )
    with pytest.raises(BuildError, match=Path(absent).name):
        order_of(roster, roster.specialists[0])
