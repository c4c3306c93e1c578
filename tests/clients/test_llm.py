"""llm, Simon Willison's command line and library, with a model of its extra-openai-models.yaml."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fakes.habits import ASKED, DONE, Adder, question

llm = pytest.importorskip("llm", reason="llm is not installed: `make test-clients` installs it")
pytestmark = pytest.mark.clients


@pytest.fixture
def folder(base_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a user writes into llm's folder."""
    entry = {
        "model_id": "college",
        "model_name": "auto",
        "api_base": base_url,
        "supports_tools": True,
        "supports_schema": True,
    }
    (tmp_path / "extra-openai-models.yaml").write_text(yaml.safe_dump([entry]))
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def command(folder: Path) -> Callable[..., str]:
    """Runs `llm ...` and gives what it prints."""

    def run(*arguments: str) -> str:
        ended = subprocess.run(
            [sys.executable, "-m", "llm", *arguments],
            capture_output=True, text=True, env=dict(os.environ), check=False, timeout=180, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    return run


def history() -> list[Any]:
    """Sums that were done by the tool, and the one to do."""
    from llm.parts import ToolCallPart, ToolResultPart, assistant, tool_message, user

    found: list[Any] = []
    for a, b in DONE:
        id_ = f"call_{a}"
        found += [
            user(question(a, b)),
            assistant(ToolCallPart("add", {"a": a, "b": b}, tool_call_id=id_)),
            tool_message(ToolResultPart("add", str(a + b), tool_call_id=id_)),
            assistant(str(a + b)),
        ]
    return [*found, user(question(*ASKED))]


def test_a_prompt_and_its_continuation(command: Callable[..., str]) -> None:
    assert command("prompt", "-m", "college", "Say the alphabet.").strip()
    assert command("prompt", "-c", "And of Italy?").strip()


def test_an_answer_by_a_schema(command: Callable[..., str]) -> None:
    answer = json.loads(command("prompt", "-m", "college", "--schema", "name, age int", "Ann is 31 years old."))
    assert isinstance(answer["age"], int)


def test_a_tool_is_offered_on_the_command_line(command: Callable[..., str]) -> None:
    functions = "def add(a: int, b: int) -> int:\n    return a + b\n"
    assert command("prompt", "-m", "college", "--functions", functions, "Say the alphabet.").strip()


@pytest.mark.parametrize("stream", [False, True])
def test_a_chain_calls_its_tool_and_ends(folder: Path, stream: bool) -> None:
    adder = Adder()
    chain = llm.get_model("college").chain(messages=history(), tools=[adder.add], stream=stream)
    assert str(sum(ASKED)) in chain.text()
    assert adder.calls == [ASKED]


def test_an_endpoint_without_an_entry(command: Callable[..., str], base_url: str) -> None:
    assert "auto" in command("openai", "endpoint", base_url, "--models")
    assert command("openai", "endpoint", base_url, "Say the alphabet.", "-m", "auto").strip()
