"""What serving may import: the layers of the packages are held by tests/project/test_contract.py."""

import ast
from pathlib import Path

import coe.router

TRAINING_ONLY = {"sklearn", "scipy", "matplotlib", "joblib"}


def imported(path: Path) -> set[str]:
    """Top-level names of the packages that a file imports, within functions too."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return {name.partition(".")[0] for name in plain | named}


def test_no_serving_module_imports_what_only_training_needs() -> None:
    for path in Path(coe.router.__file__).parent.glob("*.py"):
        assert not imported(path) & TRAINING_ONLY, path.name
