"""Entries that are built: how a roster writes them, and what is wrong with some."""

from __future__ import annotations

from pathlib import Path

import pytest

from coe.server.roster.models import BoundSection, BuildSection, RecipeSection, Roster
from coe.surgery.build.job import BUILT
from coe.surgery.judge.values import Bound
from coe.surgery.plan import criteria
from coe.surgery.plan.recipes import RECIPES, Recipe, settings_of
from fakes.reference_roster import explained, section_text
from fakes.rosters import load, problems_of

ENTRY = "  - name: law\n    domains: [law]\n    cpu_expert_layers: all\n    system_prompt: Be just.\n"
PARENT = "parent: {model: big, file: big.gguf}\n"


def roster_text(*build: str, top: str = PARENT, entry: str = "") -> str:
    lines = "".join(f"      {line}\n" for line in build)
    return f"{top}specialists:\n{ENTRY}{entry}    build:\n{lines}"


def messages(folder: Path, text: str) -> list[str]:
    return [str(problem) for problem in problems_of(folder, text)]


def warnings(folder: Path, text: str) -> str:
    return " ".join(map(str, load(folder, text).warnings))


def law(roster: Roster) -> BuildSection:
    found = roster.find("law")
    assert found is not None
    assert found.build is not None
    return found.build


def test_the_smallest_build_takes_the_defaults(tmp_path: Path) -> None:
    build = law(load(tmp_path, roster_text("corpus: [law.jsonl]", "experts: 64")))
    assert build.recipe == RecipeSection(name="three-pass")
    assert build.bound == BoundSection()
    assert (build.when, build.answer, build.parent) == ("idle", False, None)


def test_short_forms_are_what_they_stand_for(tmp_path: Path) -> None:
    build = law(load(tmp_path, roster_text(
        "corpus: [law.jsonl]", "experts: 64", "recipe: v7", "bound: 2", "parent: other.gguf")))  # fmt: skip
    assert build.recipe == RecipeSection(name="v7")
    assert build.bound.standard_errors == 2
    assert build.parent is not None
    assert build.parent.file == "other.gguf"


def test_what_is_not_built_yet_says_how_to_build_it(tmp_path: Path) -> None:
    roster = load(tmp_path, roster_text("corpus: [law.jsonl]", "experts: 64"))
    location = roster.locate(roster.specialists[0])
    assert location.path is None
    assert location.remedy == f"Run: coe build law --roster {roster.path}"
    built = tmp_path / "models" / BUILT / "law.gguf"
    built.parent.mkdir(parents=True)
    built.write_bytes(b"x")
    assert roster.locate(roster.specialists[0]).path == built


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (["experts: 64"], "corpus"),
        (["corpus: []", "experts: 64"], "corpus"),
        (["corpus: [a.txt]"], "experts"),
        (["corpus: [a.txt]", "experts: many"], "experts"),
        (["corpus: [a.txt]", "experts: 64", "recipe: guessing"], "three-pass or drop-map"),
        (["corpus: [a.txt]", "experts: 64", "recipe: {name: top-k, cap: 3}"], "a setting of three-pass, not of top-k"),
        (["corpus: [a.txt]", "experts: 64", "recipe: {alpha: 2}"], "a setting of drop-map, not of three-pass"),
        (["corpus: [a.txt]", "experts: 64", "recipe: v6", "reasoning: [b.txt]"], "reads no reasoning traces"),
        (["corpus: [a.txt]", "experts: 64", "colour: red"], "colour"),
        (["corpus: [a.txt]", "experts: 64", "bound: -1"], "bound"),
        (["corpus: [a.txt]", "experts: 64", "when: later"], "idle or now"),
        (["corpus: [a.txt]", "experts: 64", "parent: {repo: a/b}"], "pattern"),
    ],
)
def test_a_wrong_build_is_told_what_to_write(tmp_path: Path, build: list[str], says: str) -> None:
    found = messages(tmp_path, roster_text(*build))
    assert any(says in message and "build" in message for message in found), found


@pytest.mark.parametrize(
    ("written", "key", "line"),
    [
        (("recipe:", "  name: v7", "  cap: 6"), "recipe.cap", 12),
        (("recipe: best",), "recipe.name", 10),
        (("bound:", "  loss: 2"), "bound.loss", 11),
    ],
)
def test_a_wrong_recipe_or_bound_is_an_error_of_its_line(
    tmp_path: Path, written: tuple[str, ...], key: str, line: int
) -> None:
    (found,) = problems_of(tmp_path, roster_text("corpus: [a.jsonl]", "experts: 64", *written))
    assert (found.key, found.line) == (f"specialists[0].build.{key}", line)


def test_a_build_needs_a_parent_and_no_file_beside_it(tmp_path: Path) -> None:
    asked = ("corpus: [a.jsonl]", "experts: 64")
    assert "no parent" in messages(tmp_path, roster_text(*asked, top=""))[0]
    assert "one source" in messages(tmp_path, roster_text(*asked, entry="    file: law.gguf\n"))[0]
    assert messages(tmp_path, roster_text(*asked, "parent: own.gguf", top="")) == []


def test_building_on_demand_without_a_build_is_a_doubt_told_once(tmp_path: Path) -> None:
    entries = "".join(f"  - {{name: {name}, domains: [law], file: {name}.gguf}}\n" for name in "ab")
    (said,) = load(tmp_path, f"defaults: {{on_missing: build}}\nspecialists:\n{entries}").warnings
    assert said.key == "defaults.on_missing"
    assert "cannot be built" in said.message


def test_a_corpus_that_nothing_can_judge_is_a_doubt(tmp_path: Path) -> None:
    assert "kept aside" in warnings(tmp_path, roster_text("corpus: [a.txt]", "experts: 64"))
    assert "kept aside" not in warnings(tmp_path, roster_text("corpus: [a.jsonl]", "experts: 64"))


def test_the_roster_knows_the_recipes_and_criteria_that_there_are() -> None:
    for name, method in RECIPES.items():
        assert RecipeSection(name=name).value == Recipe(name, method)
        assert RecipeSection.model_fields.keys() >= set(settings_of(name))
    written = RecipeSection.model_fields["criterion"].annotation.__args__[0].__args__  # type: ignore[union-attr]
    assert set(written) == set(criteria.CRITERIA)
    assert BoundSection().value == Bound()


def test_the_reference_explains_every_key_of_a_build() -> None:
    text = section_text("specialists")
    assert [key for key in BuildSection.model_fields if not explained(key, text)] == []
