"""`coe launch` with a stand-in for the client: what it gets, what it gives back, and what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from fakes.server_process import GIVE_UP_S, ServerProcess, write_roster

# Says what it was given, then does what the test wants of it.
_STAND_IN = """#!{python}
import json, os, signal, sys, pathlib
folder = os.environ.get("CONTINUE_GLOBAL_DIR")
files = {{str(p): p.read_text() for p in pathlib.Path(folder).rglob("*") if p.is_file()}} if folder else {{}}
about = {{"argv": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ), "files": files,
          "mode": oct(os.stat(folder).st_mode & 0o777) if folder else "",
          "ignores": signal.getsignal(signal.SIGINT) is signal.SIG_IGN}}
pathlib.Path({report!r}).write_text(json.dumps(about))
if "wait" in sys.argv:
    signal.signal(signal.SIGINT, lambda *_: sys.exit(7))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(8))
    print("waiting", flush=True)
    signal.pause()
if "die" in sys.argv:
    os.kill(os.getpid(), signal.SIGKILL)
if "echo" in sys.argv:
    print(sys.stdin.readline().upper(), end="")
sys.exit(int(sys.argv[-1]) if sys.argv[-1].isdigit() else 0)
"""


@dataclass(frozen=True)
class Stage:
    """A home, a project, and a stand-in for Continue's `cn` in PATH. temporary: where temporary folders are made."""

    home: Path
    project: Path
    temporary: Path
    report: Path
    url: str

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "COE_", "CONTINUE"))}
        path = f"{self.home.parent / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return {**kept, "HOME": str(self.home), "TMPDIR": str(self.temporary), "PATH": path, "COLUMNS": "400", **more}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "coe.server.cli", "launch", "continue", "--url", self.url, *arguments]

    def run(self, *arguments: str, said: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments),
            input=said,
            capture_output=True,
            text=True,
            timeout=GIVE_UP_S,
            cwd=self.project,
            env=self.environment(**environment),
            check=False,
        )

    def told(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = json.loads(self.report.read_text())
        return found

    def left(self) -> list[Path]:
        return [path for top in (self.home, self.project, self.temporary) for path in top.rglob("*")]


@pytest.fixture
def stage(tmp_path: Path, demo_college: ServerProcess) -> Stage:
    home, project, temporary = (tmp_path / name for name in ("home", "project", "temporary"))
    found = Stage(home, project, temporary, tmp_path / "report.json", demo_college.url)
    for folder in (found.home, found.project, found.temporary, tmp_path / "bin"):
        folder.mkdir()
    stand_in = tmp_path / "bin/cn"
    stand_in.write_text(_STAND_IN.format(python=sys.executable, report=str(found.report)))
    stand_in.chmod(0o755)
    return found


def test_a_client_gets_its_settings_arguments_folder_and_terminal_and_nothing_is_left(stage: Stage) -> None:
    done = stage.run("--", "-p", "echo", said="hello\n", COE_ADMIN_KEYS="admin", COE_API_KEYS="mine,other")
    assert (done.returncode, done.stdout) == (0, "HELLO\n"), done.stderr
    told = stage.told()
    [(path, text)] = told["files"].items()
    models = yaml.safe_load(text)["models"]
    assert told["argv"] == ["--config", path, "-p", "echo"]
    assert told["cwd"] == str(stage.project)
    assert told["mode"] == "0o700"
    assert not told["ignores"]
    assert (models[0]["model"], models[0]["apiBase"], models[0]["apiKey"]) == ("auto", f"{stage.url}/v1", "mine")
    assert models[0]["capabilities"] == ["tool_use"]
    assert {"math", "chemistry"} <= {model["model"] for model in models}
    assert not {"COE_ADMIN_KEYS", "COE_API_KEYS"} & told["env"].keys()
    assert not Path(path).exists()
    assert stage.left() == []


@pytest.mark.parametrize(("word", "code"), [("3", 3), ("die", 128 + signal.SIGKILL)])
def test_its_exit_code_is_passed_on(stage: Stage, word: str, code: int) -> None:
    assert stage.run("--", word).returncode == code
    assert stage.left() == []


@pytest.mark.parametrize(
    ("number", "everybody", "code"), [(signal.SIGINT, True, 7), (signal.SIGTERM, False, 8)], ids=["ctrl-c", "term"]
)
def test_a_signal_ends_the_client_and_then_the_folder_goes(
    stage: Stage, number: signal.Signals, everybody: bool, code: int
) -> None:
    """A Ctrl-C reaches all of a terminal's foreground; what a supervisor sends reaches us alone."""
    with subprocess.Popen(
        stage.command("--", "wait"),
        stdout=subprocess.PIPE,
        cwd=stage.project,
        env=stage.environment(),
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        if everybody:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        assert process.wait(GIVE_UP_S) == code
    assert stage.left() == []


def test_a_client_that_is_missing_is_named_with_how_to_get_it(stage: Stage) -> None:
    done = stage.run(PATH="/nowhere")
    assert done.returncode == 1
    assert "npm install -g @continuedev/cli" in done.stderr
    assert "no cn in PATH" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_where_no_server_answers_the_remedy_is_to_start_one(stage: Stage) -> None:
    done = stage.run("--url", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "coe serve" in done.stderr
    assert not stage.report.exists()
    assert stage.left() == []


def test_print_shows_the_settings_and_starts_nothing(stage: Stage) -> None:
    done = stage.run("--print", "--key", "secret key", "--", "-p", "a b", PATH="/nowhere")
    assert done.returncode == 0, done.stderr
    assert f"{stage.url}/v1" in done.stdout
    assert "export CONTINUE_GLOBAL_DIR=/FOLDER" in done.stdout
    assert done.stdout.splitlines()[-1] == "cn --config /FOLDER/config.yaml -p 'a b'"
    assert "secret" not in done.stdout
    assert stage.left() == []


def test_save_changes_the_clients_own_file_and_says_which(stage: Stage) -> None:
    config = stage.home / ".continue/config.yaml"
    config.parent.mkdir()
    config.write_text("name: mine  # really\nmodels:\n  - name: other\n    provider: x\n")
    done = stage.run("--save", "--model", "math", "--", "5")
    assert done.returncode == 5, done.stderr
    assert f"{config} (as it was: {config}.bak)" in done.stderr
    assert stage.told()["argv"] == ["--config", str(config), "5"]
    saved = yaml.safe_load(config.read_text())
    assert (saved["name"], saved["models"][0]["model"], saved["models"][-1]["name"]) == ("mine", "math", "other")
    assert "# really" in config.read_text()
    assert "provider: x" in config.with_name("config.yaml.bak").read_text()
    assert list(stage.temporary.iterdir()) == []


def test_a_file_that_others_could_read_is_closed_when_the_key_is_saved_and_that_is_said(stage: Stage) -> None:
    config = stage.home / ".continue/config.yaml"
    config.parent.mkdir()
    config.write_text("name: mine\n")
    config.chmod(0o644)
    done = stage.run("--save", "--key", "open sesame")
    assert done.returncode == 0, done.stderr
    assert "open sesame" in config.read_text()
    assert {path.stat().st_mode & 0o777 for path in config.parent.iterdir()} == {0o600}
    assert f"Others could read {config}" in done.stderr


def test_save_and_print_show_what_would_be_put_where_and_write_nothing(stage: Stage) -> None:
    config = stage.home / ".continue/config.yaml"
    config.parent.mkdir()
    config.write_text("name: mine\napiKey: of-another\n")
    done = stage.run("--save", "--print")
    assert done.returncode == 0, done.stderr
    assert f"put into {config}" in done.stdout
    assert "of-another" not in done.stdout
    assert config.read_text() == "name: mine\napiKey: of-another\n"


def test_a_file_that_cannot_be_merged_into_is_left_and_nothing_started(stage: Stage) -> None:
    config = stage.home / ".continue/config.yaml"
    config.parent.mkdir()
    config.write_text("models: [\n")
    done = stage.run("--save")
    assert done.returncode == 1
    assert str(config) in done.stderr
    assert config.read_text() == "models: [\n"
    assert not stage.report.exists()


def test_a_model_that_is_not_there_and_a_client_that_is_not_known(stage: Stage) -> None:
    done = stage.run("--model", "poetry")
    assert done.returncode == 1
    assert "'poetry'" in done.stderr
    assert "auto, math" in done.stderr


def test_a_key_is_sent_and_asked_for(stage: Stage, tmp_path: Path) -> None:
    roster = write_roster(tmp_path / "keyed", {"general": {}})
    with ServerProcess(roster, env={"COE_API_KEYS": "open sesame"}) as server:
        without = stage.run("--url", server.url)
        assert without.returncode == 1
        assert "wants a key" in without.stderr
        assert stage.run("--url", server.url, COE_API_KEYS="open sesame").returncode == 0
    [text] = stage.told()["files"].values()
    assert {model["apiKey"] for model in yaml.safe_load(text)["models"]} == {"open sesame"}
