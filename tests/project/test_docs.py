"""What the documents say is run: snippets, sample rosters, links."""

from __future__ import annotations

import ast
import json
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
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
MAPS = [ROOT / "CONTRIBUTING.md", ROOT / "docs/architecture.md", ROOT / "docs/request.md"]  # that name code
PACKAGES = ("engine", "router", "surgery", "server", "demo")


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
    assert json.loads(result.stdout).get("error") is None
    assert ('"embedding"' if "/v1/embeddings" in command else '"confidence"') in result.stdout


@pytest.mark.parametrize("snippet", blocks(ROOT / "README.md", "python"))
def test_python_snippets_run(snippet: str, demo_college: ServerProcess) -> None:
    snippet = snippet.replace("http://127.0.0.1:8000", demo_college.url)
    result = subprocess.run(
        [sys.executable, "-c", snippet], capture_output=True, text=True, timeout=120, env={**os.environ}
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def named_code(document: Path) -> list[str]:
    """What stands between backticks and is a path, a name in a file (`path.py:Class.method`), or a module (`coe.x`)."""
    prose = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    spans = re.findall(r"`([^`\s]+)`", prose)
    return [s for s in spans if re.fullmatch(r"coe(\.\w+)+|[\w.-]+/[\w./-]*|[\w./-]+\.(py|yaml)(:[\w.]+)?", s)]


def exists(name: str) -> bool:
    """Whether the tree has it. Nothing is imported."""
    if name.startswith("coe."):
        name = name.removeprefix("coe.").replace(".", "/")
        return (ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file()
    path, _, inside = name.partition(":")
    if not inside:
        return (ROOT / path).exists()
    if not (ROOT / path).is_file():
        return False
    body: list[ast.stmt] = ast.parse((ROOT / path).read_text()).body
    for part in inside.split("."):
        found = [statement for statement in body if part in _names(statement)]
        if not found:
            return False
        body = getattr(found[0], "body", [])
    return True


def _names(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {statement.name}
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


@pytest.mark.parametrize("document", MAPS, ids=lambda path: path.name)
def test_what_a_document_names_of_the_code_exists(document: Path) -> None:
    names = named_code(document)
    assert names
    assert [name for name in names if not exists(name)] == []


@pytest.mark.parametrize(
    "name", ["engine/none.py", "engine/spec.py:Absent", "engine/spec.py:LoadSpec.absent", "coe.none"]
)
def test_a_name_that_is_gone_would_be_noticed(name: str, tmp_path: Path) -> None:
    document = tmp_path / "document.md"
    document.write_text(f"`engine/spec.py:LoadSpec.title` and `{name}` and `coe.engine.spec`")
    assert [found for found in named_code(document) if not exists(found)] == [name]


def test_the_map_has_every_package() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    packages = [path.parent.relative_to(ROOT) for top in PACKAGES for path in (ROOT / top).rglob("__init__.py")]
    assert [str(package) for package in packages if f"| `{package}/` |" not in text] == []


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
    names = [path.relative_to(ROOT) for path in DOCUMENTS if path.name != "README.md"]
    assert [str(name) for name in names if f"({name})" not in readme] == []


@pytest.mark.parametrize("document", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_make_targets_that_a_document_names_exist(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"(?:^|`)make ([\w-]+)", document.read_text(), re.MULTILINE)
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_readme_begins_with_the_two_commands() -> None:
    [first, *_] = blocks(ROOT / "README.md", "sh")
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make serve", "make test"]
