"""A test without a marker is fast: it cannot load a model, nor start a process of this project."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path

import pytest
from random_model import Shape, write_random_model

from coe.engine.llama.model import Model
from coe.engine.pool.resident import WorkerResident
from coe.engine.spec import LoadSpec
from fakes.server_process import ServerProcess, write_roster
from fakes.weight import MARKERS, is_fast

ROOT = Path(__file__).resolve().parents[2]


def test_a_fast_test_cannot_load_a_model(tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "model.gguf", Shape())
    with pytest.raises(pytest.fail.Exception, match="loads a model"):
        Model(LoadSpec(path))


def test_a_fast_test_cannot_start_a_server(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"starts a process of coe\.server\.cli"):
        ServerProcess(write_roster(tmp_path, {"general": {}}))


async def test_a_fast_test_cannot_start_a_worker() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"starts a process of coe\.engine\.worker"):
        await WorkerResident.spawn()


def test_a_fast_test_that_waits_for_what_was_refused_ends() -> None:
    async def wait() -> None:
        with contextlib.suppress(pytest.fail.Exception):
            await WorkerResident.spawn()
        await asyncio.Event().wait()

    with pytest.raises(pytest.fail.Exception, match="starts a process"):
        asyncio.run(wait())


def test_a_fast_test_may_start_what_is_not_the_projects() -> None:
    assert subprocess.run([sys.executable, "-c", "pass"], check=False).returncode == 0


@pytest.mark.model
def test_a_marked_test_may_load_one(tmp_path: Path) -> None:
    Model(LoadSpec(write_random_model(tmp_path / "model.gguf", Shape()))).close()


def test_fixtures_bring_their_markers(request: pytest.FixtureRequest) -> None:
    by_name = {item.name: item for item in request.session.items}
    assert is_fast(request.node)
    for item in by_name.values():
        names = set(getattr(item, "fixturenames", ()))
        if "smollm2" in names or "new_engine" in names:
            assert item.get_closest_marker("model"), item.nodeid
        if names & {"demo_college", "one_room"}:
            assert item.get_closest_marker("server"), item.nodeid


def test_test_fast_leaves_out_every_marker() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert f'-m "{" and ".join(f"not {marker}" for marker in MARKERS)}"' in makefile
