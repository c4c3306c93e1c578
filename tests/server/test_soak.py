"""The short form of `make soak`: half a minute of changes under mixed load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.server
@pytest.mark.slow
def test_changes_under_load_leave_texts_and_memory_as_they_were() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "soak_changes.py"), "--quick"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all well" in done.stdout
