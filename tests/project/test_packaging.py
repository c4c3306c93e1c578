"""What a wheel and the pipeline would do, as far as it can be read off their files."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
TOP = {name: ROOT / folder for name, folder in SETUPTOOLS["package-dir"].items()}
WORKFLOWS = sorted((ROOT / ".github").rglob("*.yml"))


def ci() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    return loaded


def test_every_folder_of_code_is_in_the_wheel() -> None:
    folders = {
        ".".join([name, *path.parent.relative_to(top).parts])
        for name, top in TOP.items()
        for path in top.rglob("__init__.py")
    }
    assert set(SETUPTOOLS["packages"]) == folders


@pytest.mark.parametrize("name", TOP)
def test_every_package_says_that_it_is_typed(name: str) -> None:
    assert (TOP[name] / "py.typed").is_file()
    assert "py.typed" in SETUPTOOLS["package-data"][name]


@pytest.mark.parametrize("name", SETUPTOOLS["package-data"])
def test_data_in_the_wheel_exist(name: str) -> None:
    top, *rest = name.removeprefix("coe.").split(".")
    folder = TOP[f"coe.{top}"].joinpath(*rest)
    assert [pattern for pattern in SETUPTOOLS["package-data"][name] if not any(folder.glob(pattern))] == []


def test_the_pipeline_may_read_and_nothing_else() -> None:
    assert ci()["permissions"] == {"contents": "read"}
    assert "cancel-in-progress" in ci()["concurrency"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_actions_of_others_are_pinned_to_a_version(workflow: Path) -> None:
    used = re.findall(r"uses: (\S+)", workflow.read_text())
    assert used
    for action in used:
        assert action.startswith("./") or re.search(r"@v\d+\.\d+\.\d+$", action), action
        assert not action.startswith("./") or (ROOT / action / "action.yml").is_file()


def test_the_pipeline_runs_fast_tests_on_every_supported_python_and_all_on_the_oldest() -> None:
    jobs = ci()["jobs"]
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    versions = jobs["fast"]["strategy"]["matrix"]["python"]
    assert versions[0] == oldest
    assert versions == [f"3.{minor}" for minor in range(int(oldest.split(".")[1]), 15)]
    action = yaml.safe_load((ROOT / ".github/actions/install/action.yml").read_text())
    assert action["inputs"]["python"]["default"] == oldest


def test_the_pipeline_and_the_hooks_run_targets_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    texts = [*(path.read_text() for path in WORKFLOWS), (ROOT / ".pre-commit-config.yaml").read_text()]
    targets = {target for text in texts for target in re.findall(r"(?:run|entry): make ([\w-]+)", text)}
    assert targets == {"install", "lint", "test-fast", "test-device"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    assert "ruff format --check" in makefile
