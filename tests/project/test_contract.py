"""The layers: which module may import which, which modules run without llama.cpp, and that imports form no circle.

Imports are read from the source (ast), those inside functions too; those for type checkers alone do not count.
"""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from fakes.server_process import ServerProcess

ROOT = Path(__file__).parents[2]

# Each package with the packages that it may import.
PACKAGES: Mapping[str, Sequence[str]] = {
    "engine": (),
    "router": (),
    "surgery": ("engine",),
    "demo": ("engine", "surgery"),  # the trained parent, and what was measured on it
    "server": ("engine", "router", "surgery", "demo"),
}

# Each layer of a package with the layers that it may import beside itself; "" are the package's own files.
LAYERS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "engine": {
        "": (),
        "llama": ("",),
        "gguf": ("", "llama"),
        "swap": ("", "llama", "gguf"),
        "generate": ("", "llama", "gguf", "swap"),
        "worker": ("", "llama", "gguf", "swap", "generate"),
        "pool": ("", "swap"),  # it runs in the server's process
    },
    "router": {"": (), "training": ("",)},
    "surgery": {
        "": (),
        "judge": ("",),
        "profile": ("", "judge"),
        "plan": ("", "judge", "profile"),
        "cut": ("", "judge", "profile", "plan"),
        "recover": ("",),
        "verify": ("", "judge", "profile", "plan", "cut"),
        "study": ("", "judge", "profile", "plan", "cut", "verify"),
        "build": ("", "judge", "profile", "plan", "cut", "verify", "study"),
    },
    "server": {
        "roster": (),
        "runtime": ("roster",),
        "api": ("roster", "runtime"),
        "commands": ("roster", "runtime", "api"),
        "": ("roster", "runtime", "api", "commands"),  # the command line
    },
    "demo": {"": (), "parent": ("",), "experiment": ("",)},
}

# Packages that the server's process runs, and those that llama.cpp runs in.
SERVING = ("engine.pool", "server.runtime", "server.api")
LLAMA_CPP = ("engine.llama", "engine.generate", "engine.worker")


@dataclass(frozen=True)
class Import:
    """One import of a module of ours by another, both without the leading `coe.`."""

    importer: str
    imported: str
    relative: bool

    def __str__(self) -> str:
        return f"{self.importer} -> {self.imported}"


@functools.cache
def modules() -> Mapping[str, Path]:
    """All modules by name, packages included."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def imports() -> Sequence[Import]:
    """Every import of ours by ours."""
    return tuple(one for name, path in modules().items() for one in _imports_of(name, path))


def _imports_of(name: str, path: Path) -> Iterator[Import]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in _without_type_checking(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            ours = [alias.name.removeprefix("coe.") for alias in node.names if alias.name.startswith("coe.")]
            yield from (Import(name, imported, relative=False) for imported in ours)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                base = package.split(".")[: len(package.split(".")) - node.level + 1]
                source = ".".join([*base, *([source] if source else [])])
            elif source.startswith("coe."):
                source = source.removeprefix("coe.")
            else:
                continue
            for alias in node.names:
                whole = f"{source}.{alias.name}"
                yield Import(name, whole if whole in modules() else source, relative=bool(node.level))


def _without_type_checking(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        yield child
        yield from _without_type_checking(child)


def top(name: str) -> str:
    """The package of a module."""
    return name.partition(".")[0]


def layer(name: str) -> str:
    """The layer of a module in its package; "" for a file of the package itself."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and ".".join(parts[:2]) not in _files() else ""


@functools.cache
def _files() -> frozenset[str]:
    return frozenset(name for name, path in modules().items() if path.name != "__init__.py")


def within(name: str, packages: Sequence[str]) -> bool:
    """Whether a module is of one of these packages."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Sets of modules that import each other, by whatever way (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph.get(name, ())):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            at = stack.index(name)
            component, stack[at:] = sorted(stack[at:]), []
            if len(component) > 1:
                found.append(component)

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found


def test_packages_import_downwards_only() -> None:
    upward = [one for one in imports() if top(one.imported) not in (top(one.importer), *PACKAGES[top(one.importer)])]
    assert [str(one) for one in upward] == []


@pytest.mark.parametrize("package", LAYERS)
def test_layers_import_downwards_only(package: str) -> None:
    allowed = LAYERS[package]
    assert {layer(name) for name in modules() if top(name) == package} <= {*allowed}, "a layer that has no place yet"
    inside = [one for one in imports() if top(one.importer) == top(one.imported) == package]
    upward = [one for one in inside if layer(one.imported) not in (layer(one.importer), *allowed[layer(one.importer)])]
    assert [str(one) for one in upward] == []


def test_what_serves_never_imports_what_runs_llama_cpp() -> None:
    wrong = [one for one in imports() if within(one.importer, SERVING) and within(one.imported, LLAMA_CPP)]
    assert [str(one) for one in wrong] == []


def test_imports_are_relative_inside_a_package_and_absolute_between_packages() -> None:
    wrong = [one for one in imports() if one.relative != (top(one.importer) == top(one.imported))]
    assert [str(one) for one in wrong] == []


def test_no_modules_import_each_other() -> None:
    graph: dict[str, set[str]] = {name: set() for name in modules()}
    for one in imports():
        graph[one.importer].add(one.imported)
    assert circles(graph) == []


def test_importing_what_serves_loads_no_llama_cpp() -> None:
    names = [name for name in modules() if within(name, (*SERVING, "server.roster"))] + ["server.commands.serve"]
    program = f"""
import importlib, sys
for name in {names}:
    importlib.import_module(f"coe.{{name}}")
    assert not any(loaded.split(".")[0] == "llama_cpp" for loaded in sys.modules), name
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
def test_a_server_that_serves_has_no_llama_cpp_in_its_memory(college: ServerProcess) -> None:
    college.chat().raise_for_status()
    mapped = Path(f"/proc/{college.process.pid}/maps").read_text()
    assert "libpython" in mapped or "python" in mapped
    assert [line for line in mapped.splitlines() if "libllama" in line or "libggml" in line] == []


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": set(), "c": {"a", "b"}}) == []
