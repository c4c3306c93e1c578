"""promptfoo, which comes from npm: `make test-promptfoo` installs it in .build, with a Node that is new enough."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from fakes.server_process import GIVE_UP_S

COMMANDS = Path(__file__).parents[2] / ".build/promptfoo/node_modules/.bin"
PATH = os.pathsep.join([str(COMMANDS), os.environ.get("PATH", "")])
COMMAND = shutil.which("promptfoo", path=PATH)
pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(COMMAND is None, reason="promptfoo is not installed: `make test-promptfoo` installs it"),
]

LETTER = {"type": "object", "properties": {"letter": {"enum": ["a", "b"]}}, "required": ["letter"]}
SHAPE = {"type": "json_schema", "json_schema": {"name": "reply", "schema": LETTER}}


def evaluated(url: str, folder: Path, tests: list[dict[str, Any]]) -> tuple[int, list[dict[str, Any]]]:
    """The exit code, and the results in the order of the tests."""
    prompts = [
        {"label": "plain", "raw": "{{question}}"},
        {"label": "json", "raw": "{{question}}", "config": {"response_format": SHAPE}},
    ]
    providers = [{"id": "openai:chat:auto", "config": {"apiBaseUrl": url, "apiKey": "anything"}}]
    config = {"prompts": prompts, "providers": providers, "tests": tests}
    (folder / "promptfooconfig.yaml").write_text(yaml.safe_dump(config))
    quiet = {"PROMPTFOO_DISABLE_TELEMETRY": "1", "PROMPTFOO_DISABLE_UPDATE": "1", "PROMPTFOO_CONFIG_DIR": str(folder)}
    done = subprocess.run(
        [str(COMMAND), "eval", "--no-cache", "--no-progress-bar", "--output", str(folder / "results.json")],
        cwd=folder, capture_output=True, text=True, check=False, timeout=2 * GIVE_UP_S,
        env={"PATH": PATH, "HOME": str(folder), **quiet},
    )  # fmt: skip
    assert (folder / "results.json").exists(), done.stdout + done.stderr
    results = json.loads((folder / "results.json").read_text())["results"]["results"]
    return done.returncode, sorted(results, key=lambda one: (one["testIdx"], one["promptIdx"]))


def test_answers_are_judged_by_what_they_contain_and_by_their_shape(base_url: str, tmp_path: Path) -> None:
    alphabet = {"vars": {"question": "Say the alphabet."}, "prompts": ["plain"]}
    letter = {"vars": {"question": "Say a letter."}, "prompts": ["json"]}
    code, (right, wrong, shaped) = evaluated(
        base_url,
        tmp_path,
        [
            {**alphabet, "assert": [{"type": "icontains", "value": "b"}]},
            {**alphabet, "assert": [{"type": "contains", "value": "Ω"}]},
            {**letter, "assert": [{"type": "is-json", "value": LETTER}]},
        ],
    )
    assert [one["success"] for one in (right, wrong, shaped)] == [True, False, True]
    assert code == 100  # its code where a test fails
    assert right["response"]["tokenUsage"]["total"] > 0
