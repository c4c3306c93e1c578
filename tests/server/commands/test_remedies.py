"""What commands say of a roster that cannot be served as it is: each sentence once, the entry and the key named, and
commands that mean this roster when they are copied."""

from __future__ import annotations

import re
import shlex
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from coe.server.cli import app
from coe.server.commands.check import check_roster
from coe.server.roster.builtin import demo_roster, own_roster, roster_option
from coe.server.roster.load import load_roster

DEMO = demo_roster().parent
HERE = {"model": "m", "file": str(DEMO / "college-parent.gguf")}
PARENTS: dict[str, dict[str, Any]] = {
    "file": {"model": "m", "file": "/nowhere/x.gguf"},
    "repo": {"model": "m", "repo": "o/p", "pattern": "*q4*.gguf"},
}


def entries(**mask: Any) -> list[dict[str, Any]]:
    """All kinds of specialists that are made of the parent. mask: further keys of the one that is a mask."""
    general = str(DEMO / "masks" / "general.json")
    return [
        {"name": "math", "mask": general, "domains": ["math"], **mask},
        {"name": "alone", "mask": general, "domains": ["math"], "share": False},
        {"name": "published", "mask_of": {"repo": "a/b", "pattern": "*"}, "domains": ["math"]},
        {"name": "built", "build": {"corpus": ["x.jsonl"], "experts": 32, "answer": True}, "domains": ["math"]},
    ]


def write(path: Path, parent: dict[str, Any], specialists: list[dict[str, Any]]) -> Path:
    (path.parent / "x.jsonl").write_text("{}")
    path.write_text(yaml.safe_dump({"models_dir": "models", "parent": parent, "specialists": specialists}))
    return path


def checked(path: Path, *, dry_run: bool = True) -> str:
    out = StringIO()
    check_roster(path, dry_run=dry_run, out=Console(file=out, width=400))
    return out.getvalue()


def line_of(name: str, said: str) -> str:
    """What is said of a specialist, below the table."""
    return next(line for line in said.splitlines() if re.match(rf"[\w, ]*\b{name}\b[\w, ]*: ", line))


def row_of(name: str, said: str) -> str:
    return next(line for line in said.splitlines() if line.startswith(f"{name} "))


@pytest.mark.model
@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("parent", PARENTS.values(), ids=PARENTS)
def test_of_a_parent_that_is_not_there_each_sentence_is_said_once(
    parent: dict[str, Any], dry_run: bool, tmp_path: Path
) -> None:
    said = checked(write(tmp_path / "r.yaml", parent, entries()), dry_run=dry_run)
    for name in ("math", "alone", "published", "built"):
        _, _, why = line_of(name, said).partition(": ")
        sentences = re.split(r"(?<=\.) ", why)
        assert len(set(sentences)) == len(sentences), why
        assert "parent" in why
        assert " no: " in row_of(name, said)
    assert "before it is built" not in said


@pytest.mark.model
@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize(
    ("experts", "says"),
    [(999, "has 64 experts a layer, not 999"), (2, "too few"), (0.01, "too few")],
)
def test_a_number_of_experts_that_cannot_be_is_told_by_entry_and_key(
    experts: float, says: str, dry_run: bool, tmp_path: Path
) -> None:
    said = checked(write(tmp_path / "r.yaml", HERE, entries(experts=experts)[:1]), dry_run=dry_run)
    assert line_of("math", said).startswith(f"math: experts: {experts} cannot be. ")
    assert says in line_of("math", said)
    assert " no: " in row_of("math", said)
    assert "to be cut" not in said


@pytest.mark.model
def test_a_mask_without_a_ranking_and_a_build_are_told_in_the_same_way(tmp_path: Path) -> None:
    keep = tmp_path / "keep.json"
    done = CliRunner().invoke(app, ["mask", str(DEMO / "masks" / "math.json"), "--as", "keep-list", "-o", str(keep)])
    assert done.exit_code == 0
    mask, _, _, built = entries(experts=40)
    mask["mask"] = str(keep)
    built["build"]["experts"] = 999
    said = checked(write(tmp_path / "r.yaml", HERE, [mask, built]))
    assert line_of("math", said).startswith(
        "math: experts: 40 cannot be. The mask keeps 32 experts a layer and ranks none"
    )
    assert line_of("built", said).startswith("built: experts: 999 cannot be. ")
    assert " no: " in row_of("built", said)


# --- commands that mean this roster ---------------------------------------------------------------------------------


def test_a_printed_command_names_the_roster_where_it_is_not_the_one_that_is_taken(tmp_path: Path) -> None:
    assert roster_option(Path("specialists.yaml")) == roster_option(Path("./specialists.yaml")) == ""
    assert roster_option(Path("my.yaml")) == " --roster my.yaml"
    assert roster_option(demo_roster()) == " --roster demo"
    odd = tmp_path / "my roster's.yaml"
    assert shlex.split(roster_option(odd)) == ["--roster", str(odd)]


def test_the_option_is_read_as_it_is_printed(tmp_path: Path) -> None:
    for path in (demo_roster(), Path("specialists.yaml"), tmp_path / "a b.yaml"):
        words = shlex.split(roster_option(path))
        assert own_roster(Path(words[1]) if words else None) == path


@pytest.mark.parametrize("name", ["my roster.yaml", "specialists.yaml"])
def test_all_remedies_of_a_roster_mean_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = {"repo": "c/d", "pattern": "*"}
    of_its_own = {"name": "other", "build": {"corpus": ["x.jsonl"], "experts": 4, "answer": True, "parent": own}}
    fetched = {"name": "whole", "domains": ["math"], **own}
    roster = load_roster(write(Path(name), PARENTS["repo"], [*entries(), of_its_own, fetched]))
    option = "" if name == "specialists.yaml" else f" --roster {shlex.quote(name)}"
    remedies = {one.name: roster.locate(one).remedy for one in roster.specialists}
    assert remedies["published"] == f"Run: coe pull parent --masks{option}"
    assert remedies["built"] == f"Run: coe build built{option}"
    assert remedies["whole"] == f"Run: coe pull whole{option}"
    assert roster.parent is not None
    assert roster.parent.location(roster.models_path).remedy == f"Run: coe pull parent{option}"
    other = roster.specialists[-2]
    assert other.build is not None
    assert other.build.parent is not None
    assert other.build.parent.find_file(roster.models_path, "other").remedy == f"Run: coe pull other{option}"
    said = checked(Path(name), dry_run=False)
    commands = re.findall(r"coe (?:pull|build)[^.`]*", said.replace("roster.yaml", "roster_yaml"))
    assert commands
    assert all(("--roster" in command) == bool(option) for command in commands), commands


@pytest.mark.parametrize("command", ["pull", "build"])
def test_commands_that_fetch_or_build_take_the_folders_roster_and_say_so(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    assert "specialists.yaml in this folder when left out" in CliRunner().invoke(app, [command, "--help"]).stdout
    alone = CliRunner().invoke(app, [command])
    assert alone.exit_code == 1
    assert "specialists.yaml" in alone.output
    assert "no such file" in CliRunner().invoke(app, [command, "--roster", "mine.yaml"]).output
    assert "no such file" not in CliRunner().invoke(app, [command, "nobody", "--roster", "demo"]).output


@pytest.mark.parametrize("command", ["serve", "route", "bench", "export"])
def test_commands_that_serve_take_the_demo_and_say_so(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = " ".join(CliRunner().invoke(app, [command, "--help"]).stdout.split())
    assert "`demo`, the built-in one, when left out" in shown
