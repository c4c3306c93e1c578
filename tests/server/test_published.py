"""`coe serve` with published specialists (`mask_of`): refused with the remedy, pulled, answering."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from coe.surgery.mask import Mask
from coe.surgery.parent import Parent
from fakes.demo_college import DOMAINS, MASKS, PARENT, college_roster
from fakes.hub import FakeHub, played
from fakes.published_college import mask_of, publish, small_steps
from fakes.server_process import ServerProcess, run_coe

pytestmark = pytest.mark.server

QUESTION = "What is 39 + 25?"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A hub on which the demo's specialists are published."""
    with played(FakeHub(), monkeypatch) as fake:
        small_steps(monkeypatch, tmp_path / "cache")
        masks = {name: Mask.load(path) for name, path in MASKS.items()}
        publish(fake, Parent.open(PARENT), masks, tmp_path)
        yield fake


def test_published_specialists_are_pulled_while_the_server_runs_and_answer_as_the_demos_masks_do(
    hub: FakeHub, tmp_path: Path
) -> None:
    with ServerProcess(college_roster(tmp_path / "theirs")) as server:
        wanted = {name: server.chat(QUESTION, model=name, max_tokens=20) for name in DOMAINS}
    roster = college_roster(tmp_path, published={name: mask_of(name) for name in DOMAINS})
    with ServerProcess(roster) as server:
        refused = server.chat(QUESTION, model="math", max_tokens=20)
        assert refused.status_code == 503
        assert "Its mask has not been fetched yet. Run: coe pull --masks" in refused.json()["error"]["message"]
        listed = {one["id"]: one for one in server.http.get("/v1/models").json()["data"]}
        assert "coe pull --masks" in str(listed["math"])
        pulled = run_coe("pull", "--masks", "--roster", str(roster), env=dict(os.environ))
        assert pulled.returncode == 0, pulled.stdout + pulled.stderr
        assert "3 masks: " in pulled.stdout
        for name in DOMAINS:
            answer = server.chat(QUESTION, model=name, max_tokens=20)
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"] == wanted[name].json()["choices"]
        assert len(server.workers()) == 1, "one resident is all of them"


def test_a_published_specialist_by_itself_is_cut_from_its_mask(hub: FakeHub, tmp_path: Path) -> None:
    roster = college_roster(tmp_path, published={"math": mask_of("math")}, defaults={"share": False})
    assert run_coe("pull", "math", "--roster", str(roster)).returncode == 0
    with ServerProcess(roster) as server:
        assert server.chat(QUESTION, model="math", max_tokens=20).status_code == 200
    assert list((tmp_path / "models" / "cut").glob("math-*.gguf"))


def test_a_server_whose_roster_lacks_the_parent_too_names_both(hub: FakeHub, tmp_path: Path) -> None:
    roster = college_roster(tmp_path, parent=tmp_path / "absent.gguf", published={"math": mask_of("math")})
    with ServerProcess(roster) as server:
        message = server.chat(QUESTION, model="math", max_tokens=20).json()["error"]["message"]
    assert "Neither its mask nor its parent is there" in message
    assert "Then: coe pull --masks" in message
