"""The names that docs/surgery.md promises, and the modules that it points to, are there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "surgery.md").read_text()
STEPS = TEXT[TEXT.index("| step | command | function |") :].partition("\n\n")[0]
FUNCTIONS = re.findall(r"`(coe\.surgery(?:\.\w+)+)`", STEPS)


def test_every_step_names_its_function() -> None:
    rows = STEPS.splitlines()[2:]
    assert rows
    assert all("`coe.surgery." in row for row in rows)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_step_s_function_is_where_the_docs_say(name: str) -> None:
    module, _, function = name.rpartition(".")
    assert callable(getattr(importlib.import_module(module), function))


def test_modules_that_the_docs_point_to_exist() -> None:
    named = set(re.findall(r"`(surgery/\S+?\.py)`", TEXT))
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []
