"""What the documents say is run: snippets, sample rosters, links."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coe.server.roster.load import load_roster
from fakes.server_process import ServerProcess

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])


def blocks(document: Path, language: str) -> list[str]:
    """Code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(), re.DOTALL)


def curls() -> Iterator[str]:
    for document in DOCUMENTS:
        for block in blocks(document, "sh"):
            joined = block.replace("\\\n", " ")
            yield from (line for line in joined.splitlines() if line.startswith("curl "))


def test_there_are_snippets_to_run() -> None:
    assert len(list(curls())) >= 2
    assert blocks(ROOT / "README.md", "python")


@pytest.mark.parametrize("command", list(curls()))
def test_curl_lines_get_an_answer(command: str, demo_college: ServerProcess) -> None:
    command = command.replace("http://127.0.0.1:8000", demo_college.url)
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=True)
    assert '"error"' not in result.stdout
    assert '"confidence"' in result.stdout


@pytest.mark.parametrize("snippet", blocks(ROOT / "README.md", "python"))
def test_python_snippets_run(snippet: str, demo_college: ServerProcess) -> None:
    snippet = snippet.replace("http://127.0.0.1:8000", demo_college.url)
    result = subprocess.run(
        [sys.executable, "-c", snippet], capture_output=True, text=True, timeout=120, env={**os.environ}
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


@pytest.mark.parametrize("sample", [b for d in DOCUMENTS for b in blocks(d, "yaml") if "specialists:" in b])
def test_sample_rosters_are_sound(sample: str, tmp_path: Path) -> None:
    path = tmp_path / "roster.yaml"
    path.write_text(sample)
    assert load_roster(path).specialists


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", document.read_text())
    missing = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert not missing


def test_every_document_is_reached_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    unreached = [path.name for path in (ROOT / "docs").glob("*.md") if f"docs/{path.name}" not in readme]
    assert not unreached


def test_make_targets_that_the_readme_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
