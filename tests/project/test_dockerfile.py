"""The Dockerfile cannot be run where the tests run, so what can be read off it is checked."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from pathlib import Path

import pytest

from coe.engine.private import NO_TELEMETRY

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("cpu", "cuda")


def stages() -> dict[str, list[str]]:
    """Each stage's instructions, by the stage's name; comments are gone and continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, list[str]] = {}
    name = ""
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("FROM "):
            name = line.split()[-1]
        found.setdefault(name, []).append(line)
    return found


def only(instructions: list[str], word: str) -> str:
    [instruction] = [line for line in instructions if line.startswith(f"{word} ")]
    return instruction


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_serves_to_the_outside_as_a_plain_user(target: str) -> None:
    instructions = stages()[target]
    assert only(instructions, "USER").split()[1] not in ("root", "0")
    assert '"coe", "serve", "--host", "0.0.0.0"' in only(instructions, "CMD")
    assert only(instructions, "EXPOSE").split()[1] == "8000"
    assert "/models" in only(instructions, "VOLUME")


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_checks_its_health_without_curl(target: str) -> None:
    check = only(stages()[target], "HEALTHCHECK")
    assert ":8000/ready" in check  # /health is well while the pool hangs
    assert "curl" not in check


@pytest.mark.parametrize("target", TARGETS)
def test_each_target_serves_with_keys_and_reports_to_nobody(target: str) -> None:
    assert "insecure" not in " ".join(stages()[target]).lower()  # so without keys set, it makes its own
    set_to = dict(word.split("=", 1) for word in only(stages()[target], "ENV").split()[1:])
    assert set_to.items() >= NO_TELEMETRY.items()


def test_the_image_built_without_a_target_is_the_one_for_the_cpu() -> None:
    assert list(stages())[-1] == "cpu"


def test_what_is_copied_exists_and_reaches_the_builder() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    copied = [line.split()[1] for lines in stages().values() for line in lines if line.startswith("COPY ")]
    files = [name for name in copied if not name.startswith("--from=") and name != "."]
    assert files
    for name in files:
        assert (ROOT / name).exists(), name
        assert name in let_in


def test_the_builder_gets_all_that_an_installation_reads() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = set(project["tool"]["setuptools"]["package-dir"].values())
    needed = {"pyproject.toml", "tools", project["project"]["readme"], *project["project"]["license-files"], *folders}
    assert {name for name in needed if not any(fnmatch.fnmatch(name, pattern) for pattern in let_in)} == set()


def test_every_version_is_the_installers_and_so_pyprojects() -> None:
    text = (ROOT / "Dockerfile").read_text()
    builders = [lines for name, lines in stages().items() if name.startswith("build-")]
    assert len(builders) == len(TARGETS)
    for lines in builders:
        assert "tools/install.py" in " ".join(lines)
        assert "--portable" in " ".join(lines)
    assert "==" not in text  # no second place for a pin
    assert "pip install" not in text


def test_builder_and_runtime_of_a_target_have_the_same_python() -> None:
    for target in TARGETS:
        built = re.sub("-devel", "", stages()[f"build-{target}"][0].split()[1])
        runs = re.sub("-runtime", "", stages()[target][0].split()[1])
        assert built == runs


@pytest.mark.parametrize("stage", ["build-cpu", "build-cuda"])
def test_the_image_has_what_a_server_needs_and_the_demo(stage: str) -> None:
    [command] = [line for line in stages()[stage] if "tools/install.py" in line]
    assert "--extras demo --" in command
