"""What `coe bench` keeps of its figures for `coe fit`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from coe.server.commands._speeds import Placed, Speed, keep_speeds, known_speeds, with_new
from coe.server.commands.bench import Card, placement
from coe.server.roster.load import load_roster
from coe.surgery.parent import Parent
from fakes.random_moe import random_mask, write_random_moe


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "coe" / "speeds.json"


def speed(file: str = "a.gguf", per_s: float = 40.0, **placed: int) -> Speed:
    return Speed(Placed(file, 100, **placed), per_s, 500.0)


def test_speeds_are_kept_by_file_size_and_placement(cache: Path) -> None:
    assert known_speeds() == ()
    keep_speeds([speed(), speed(cpu_expert_layers=3, per_s=9)])
    keep_speeds([speed(per_s=41), speed("b.gguf")])
    assert known_speeds() == (speed(cpu_expert_layers=3, per_s=9), speed(per_s=41), speed("b.gguf"))
    assert cache.stat().st_mode & 0o077 == 0


def test_the_oldest_go_where_there_are_too_many() -> None:
    many = [speed(f"{n}.gguf") for n in range(500)]
    assert with_new(many, [speed("new.gguf")]) == (*many[1:], speed("new.gguf"))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"schema": 2, "speeds": []}',
        '{"schema": 1}',
        '{"schema": 1, "speeds": [{"placed": 3}]}',
        "[" * 9999,
    ],
)
def test_a_damaged_file_costs_what_it_held_and_nothing_else(content: str, cache: Path) -> None:
    keep_speeds([speed()])
    cache.write_text(content)
    assert known_speeds() == ()
    keep_speeds([speed()])
    assert known_speeds() == (speed(),)


def test_numbers_that_are_none_are_not_taken(cache: Path) -> None:
    keep_speeds([speed()])
    content = json.loads(cache.read_text())
    content["speeds"][0]["placed"]["n_bytes"] = "many"
    cache.write_text(json.dumps(content))
    assert known_speeds() == ()


def test_a_specialist_is_placed_by_its_file_or_by_its_mask_and_parent(tmp_path: Path) -> None:
    parent = write_random_moe(tmp_path / "parent.gguf")
    random_mask(Parent.open(parent), 4).save(tmp_path / "law.json")
    content = {
        "version": 1,
        "models_dir": str(tmp_path),
        "parent": {"model": "x/parent", "file": "parent.gguf"},
        "specialists": [
            {"name": "whole", "file": "parent.gguf", "domains": ["math"], "gpu_layers": 3},
            {"name": "law", "mask": "law.json", "domains": ["law"]},
            {"name": "gone", "file": "gone.gguf", "domains": ["coding"]},
        ],
    }
    path = tmp_path / "specialists.yaml"
    path.write_text(yaml.safe_dump(content))
    roster, size = load_roster(path), parent.stat().st_size
    assert placement(roster, Card("whole", (), 0, "", 2)) == Placed("parent.gguf", size, 0, 3, 2)
    assert placement(roster, Card("law", (), 0, "")) == Placed("parent.gguf", size, 4)
    assert placement(roster, Card("gone", (), 0, "")) is None
    assert placement(roster, Card("nobody", (), 0, "")) is None
