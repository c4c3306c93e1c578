"""Which of the router's modules may import which."""

import ast
from pathlib import Path

import coe.router

PACKAGE = Path(coe.router.__file__).parent


def imported(path: Path) -> set[str]:
    """Modules that a file imports: relative ones with their dots, others by their full names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found |= {module, *(f"{module.rstrip('.')}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_no_serving_module_imports_training_or_its_packages() -> None:
    for path in PACKAGE.glob("*.py"):
        names = {name.lstrip(".").partition(".")[0] for name in imported(path)}
        assert not names & {"training", "sklearn", "scipy", "matplotlib", "joblib"}, path.name


def test_the_router_imports_nothing_else_of_the_project_and_itself_relatively() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert not {name for name in imported(path) if name == "coe" or name.startswith("coe.")}, path.name
