"""Recipes as they are written: read once into values, written back, and what is no setting refused."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from coe.surgery.errors import MaskError
from coe.surgery.plan.criteria import CRITERIA
from coe.surgery.plan.methods import DropMap, ThreePass, TopK
from coe.surgery.plan.presets import PRESETS
from coe.surgery.plan.recipes import RECIPES, Recipe, named, settings_of


def method_of(**settings: Any) -> Any:
    return Recipe.from_settings(settings).method


def needs_norms(**settings: Any) -> bool:
    return Recipe.from_settings(settings).needs_norms


def test_recipes_have_names() -> None:
    assert named("three-pass") == ThreePass()
    assert named("v7") == PRESETS["v7"].method
    with pytest.raises(MaskError, match="top-k, three-pass, drop-map, v6, v7, v7-coderx"):
        named("best")


def test_recipes_of_the_roster_become_those_of_planning() -> None:
    assert method_of(name="top-k") == TopK()
    assert method_of(name="three-pass", cap=6, criterion="reap") == ThreePass(reasoning_cap=6)
    assert method_of(name="drop-map", weights={"law": 2.0}, alpha=0.0) == DropMap({"law": 2.0}, 0.0)
    v7 = method_of(name="v7", protect_top=8)
    assert isinstance(v7, DropMap)
    assert v7.protect_top == 8
    assert v7.weights["targeted_gpqa"] == 1.5


def test_norms_are_collected_only_where_they_are_read() -> None:
    assert not needs_norms(name="three-pass")
    assert needs_norms(name="three-pass", criterion="reap")
    assert needs_norms(name="three-pass", pin_super_experts=True)
    assert needs_norms(name="drop-map")
    assert not needs_norms(name="drop-map", alpha=0.0)
    for criterion in CRITERIA.values():
        assert needs_norms(name="top-k", criterion=criterion.name) == criterion.needs_norms


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "three-pass", "pin_super_experts": False},
        {"name": "three-pass", "criterion": "reap", "pin_super_experts": True, "cap": 6},
        {"name": "v7", "pin_super_experts": False, "protect_top": 8},
        {"name": "drop-map", "pin_super_experts": False, "weights": {"law": 2.0}, "alpha": 0.0, "breadth": 1.0},
        {"name": "top-k", "pin_super_experts": False},
    ],
)
def test_a_recipe_comes_back_as_it_was_written(settings: dict[str, Any]) -> None:
    """Word for word, since a step's fingerprint is made of it: what was planned before is not planned again."""
    assert Recipe.from_settings(settings).to_settings() == settings


def test_a_setting_of_the_usual_value_makes_no_other_recipe() -> None:
    assert Recipe.from_settings({"name": "three-pass", "cap": 3}) == Recipe.from_settings({"name": "three-pass"})
    assert Recipe.from_settings({}) == Recipe()


@pytest.mark.parametrize("name", RECIPES)
def test_the_settings_of_a_name_are_those_that_it_can_be_given(name: str) -> None:
    assert ("cap" in settings_of(name)) == (name == "three-pass")
    for key in ("cap", "alpha", "colour"):
        if key not in settings_of(name):
            with pytest.raises(MaskError, match=f"`{key}` is no setting of the recipe {name}"):
                Recipe.from_settings({"name": name, key: 1})


def test_an_order_is_typed_without_numpy_or_llama_cpp() -> None:
    """A roster types its builds whenever any command starts."""
    code = "import sys, coe.surgery.build.job; print({'numpy', 'scipy', 'llama_cpp'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "set()"
