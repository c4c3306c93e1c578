"""`coe pull --masks`: masks of published specialists, all of a roster at once, against the hub's double."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from coe.engine import files
from coe.engine.units import size_text
from coe.server.cli import app
from coe.server.commands.check import check_roster
from coe.surgery import parent as parents
from coe.surgery.cut.cut import cut
from coe.surgery.mask import Mask
from coe.surgery.parent import Parent
from fakes.hub import COMMIT, FakeHub, interrupted, played
from fakes.published_college import Pulled, file_of, mask_of, publish, repository, small_steps
from fakes.random_moe import random_mask, write_random_moe

NAMES = ("law", "math", "physics", "python")
SHAPE = {"experts": 8, "layers": 3, "embedding": 128, "expert_ff": 256}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with played(FakeHub(), monkeypatch) as fake:
        yield fake


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parent:
    small_steps(monkeypatch, tmp_path / "cache")
    (tmp_path / "models").mkdir()
    return Parent.open(write_random_moe(tmp_path / "models" / "parent.gguf", **SHAPE))


@pytest.fixture
def masks(hub: FakeHub, parent: Parent, tmp_path: Path) -> dict[str, Mask]:
    """Masks whose specialists lie on the hub, each in a repository of its own."""
    made = {name: random_mask(parent, 4, seed=number) for number, name in enumerate(NAMES)}
    publish(hub, parent, made, tmp_path)
    return made


@pytest.fixture
def college(tmp_path: Path, masks: dict[str, Mask]) -> Pulled:
    entries = {name: {"mask_of": mask_of(name)} for name in NAMES}
    return Pulled(tmp_path, {"model": "random", "file": "parent.gguf"}, entries)


def kept(folder: Path) -> list[Path]:
    """What lies in the cache of what was fetched."""
    return [path for path in (folder / "cache" / "coe" / "ranges").rglob("*") if path.is_file()]


# --- all at once ----------------------------------------------------------------------------------------------------


def test_all_masks_of_a_roster_are_fetched_at_once(hub: FakeHub, college: Pulled, masks: dict[str, Mask]) -> None:
    assert college.pull(masks=True) == 0
    assert {name: college.mask(name).keep for name in NAMES} == {name: mask.keep for name, mask in masks.items()}
    assert len({college.path(name) for name in NAMES}) == len(NAMES)
    whole = sum(len(hub.repositories[repository(name)][file_of(name)]) for name in NAMES)
    assert hub.sent_bytes < whole / 4
    assert f"4 masks: {size_text(hub.sent_bytes)} of {size_text(whole)} were fetched." in college.said
    assert "law: " in college.said
    assert "4 of 8 experts, one compared: the same bytes" in college.said
    assert kept(college.folder) == []


def test_a_mask_remembers_what_it_was_read_off(college: Pulled) -> None:
    college.pull(masks=True)
    source = college.mask("law").provenance.recipe["source"]
    assert (source["repository"], source["revision"]) == (repository("law"), COMMIT)
    assert list(source["files"]) == [file_of("law")]


def test_pull_alone_fetches_the_parent_and_the_masks(hub: FakeHub, college: Pulled, masks: dict[str, Mask]) -> None:
    content = (college.folder / "models" / "parent.gguf").read_bytes()
    (college.folder / "models" / "parent.gguf").unlink()
    hub.repositories["maker/parent-GGUF"] = {"parent-Q8_0.gguf": content}
    college.parent = {"model": "random", "repo": "maker/parent-GGUF", "pattern": "*"}
    assert "coe pull parent --masks" in college.roster.locate(college.roster.specialists[0]).remedy
    assert college.pull(masks=True) == 1
    assert "law, math, physics, python: Masks are read off beside their parent. Not downloaded" in college.said
    assert "Run: coe pull parent --masks" in college.said
    assert hub.downloads == []
    assert college.pull() == 0
    assert college.mask("math").keep == masks["math"].keep
    assert "Masks, of some MiB each: 4." in college.said


@pytest.mark.parametrize("names", [("parent",), ("law",)])
def test_the_parent_is_fetched_first_where_it_is_missing(
    hub: FakeHub, college: Pulled, names: tuple[str, ...], masks: dict[str, Mask]
) -> None:
    """By its name beside --masks, or as what a named specialist needs."""
    content = (college.folder / "models" / "parent.gguf").read_bytes()
    (college.folder / "models" / "parent.gguf").unlink()
    hub.repositories["maker/parent-GGUF"] = {"parent-Q8_0.gguf": content}
    college.parent = {"model": "random", "repo": "maker/parent-GGUF", "pattern": "*"}
    assert college.pull(*names, masks=names == ("parent",)) == 0
    assert college.mask("law").keep == masks["law"].keep
    assert college.path("math").exists() == (names == ("parent",))


def test_a_name_fetches_its_mask_and_leaves_a_parent_alone_that_is_there(
    hub: FakeHub, college: Pulled, masks: dict[str, Mask]
) -> None:
    assert college.pull("law", "python") == 0
    assert [name for name in NAMES if college.path(name).exists()] == ["law", "python"]
    assert "parent" not in college.said


def test_a_name_with_masks_fetches_its_model_too(hub: FakeHub, college: Pulled) -> None:
    hub.repositories["maker/other"] = {"other.gguf": b"GGUF other"}
    college.entries["other"] = {"repo": "maker/other", "pattern": "*"}
    assert college.pull(masks=True) == 0
    assert not (college.folder / "models" / "maker--other").exists()
    assert college.pull("other", masks=True) == 0
    assert (college.folder / "models" / "maker--other" / "other.gguf").exists()


def test_entries_of_one_model_share_its_mask_and_other_patterns_do_not_collide(
    hub: FakeHub, college: Pulled, parent: Parent, masks: dict[str, Mask]
) -> None:
    hub.repositories[repository("law")]["law-Q4.gguf"] = hub.repositories[repository("math")][file_of("math")]
    college.entries = {
        "law": {"mask_of": mask_of("law")},
        "strict-law": {"mask_of": mask_of("law"), "system_prompt": "Be strict."},
        "other-law": {"mask_of": mask_of("law", pattern="*q4*")},
        "old-law": {"mask_of": mask_of("law", revision="v1")},
    }
    assert college.pull(masks=True) == 0
    assert "law, strict-law: " in college.said
    assert college.path("law") == college.path("strict-law")
    assert len({college.path(name) for name in college.entries}) == 3
    assert college.mask("law").keep == masks["law"].keep
    assert college.mask("other-law").keep == masks["math"].keep
    assert set(hub.revisions) == {"", "v1"}
    assert kept(college.folder) == []


def test_a_roster_without_such_entries_has_none_to_fetch(hub: FakeHub, tmp_path: Path) -> None:
    college = Pulled(tmp_path, {"model": "random", "file": "parent.gguf"}, {"law": {"file": "law.gguf"}})
    assert college.pull(masks=True) == 0
    assert "No entry of the roster says `mask_of`" in college.said


# --- what is there ----------------------------------------------------------------------------------------------------


def test_masks_of_unchanged_models_are_not_fetched_again(hub: FakeHub, college: Pulled) -> None:
    college.pull(masks=True)
    before = {name: college.path(name).stat().st_mtime_ns for name in NAMES}
    hub.downloads.clear()
    hub.repositories[repository("law")]["README.md"] = b"# law, explained better"
    assert college.pull(masks=True) == 0
    assert hub.downloads == []
    assert college.said.count("already there") == 4
    assert {name: college.path(name).stat().st_mtime_ns for name in NAMES} == before


def test_a_model_that_changed_gives_a_new_mask(hub: FakeHub, college: Pulled, masks: dict[str, Mask]) -> None:
    college.pull(masks=True)
    hub.repositories[repository("law")][file_of("law")] = hub.repositories[repository("math")][file_of("math")]
    assert college.pull(masks=True) == 0
    assert college.mask("law").keep == masks["math"].keep
    assert college.said.count("already there") == 3


def test_a_mask_of_another_parent_is_read_off_anew(
    hub: FakeHub, college: Pulled, parent: Parent, masks: dict[str, Mask], tmp_path: Path
) -> None:
    """As where the roster's parent was changed: it was another's, and is this one's now."""
    college.pull("law")
    content = json.loads(college.path("law").read_text())
    content["parent"] |= {"sha256": "0" * 64, "router_sha256": "0" * 64}
    college.path("law").write_text(json.dumps(content))
    assert college.pull("law") == 0
    assert college.mask("law").parent == parent.identity()


@pytest.mark.parametrize("damaged", ["", "{}", '{"schema": 1}'])
def test_what_is_no_mask_is_replaced(college: Pulled, masks: dict[str, Mask], damaged: str) -> None:
    college.path("law").parent.mkdir(parents=True)
    college.path("law").write_text(damaged)
    assert college.pull("law") == 0
    assert college.mask("law").keep == masks["law"].keep


def test_a_model_outside_lfs_is_known_by_its_commit(hub: FakeHub, college: Pulled) -> None:
    hub.outside_lfs = True
    college.pull("law")
    hub.downloads.clear()
    assert college.pull("law") == 0
    assert hub.downloads == []
    content = college.path("law").read_text()
    college.path("law").write_text(content.replace(COMMIT, "0" * 40))
    assert college.pull("law") == 0
    assert hub.downloads


def test_the_parent_is_hashed_once_for_all_masks(
    hub: FakeHub, college: Pulled, monkeypatch: pytest.MonkeyPatch, parent: Parent, tmp_path: Path
) -> None:
    """Before any is fetched: of several at a time each would hash it."""
    computed: list[str] = []
    cached_once = files._cached_once

    def counted(paths: tuple[Path, ...], what: str, key: str, compute: Callable[[], str]) -> str:
        def computing() -> str:
            computed.append(what)
            assert not hub.downloads or len(computed) > 2
            return compute()

        return cached_once(paths, what, key, computing)

    monkeypatch.setattr(files, "_cached_once", counted)
    monkeypatch.setattr(files, "_hashed", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))
    assert college.pull(masks=True) == 0
    assert sorted(computed) == ["router_sha256", "sha256"]
    monkeypatch.setattr(files, "_hashed", {})  # another process, later
    assert college.pull(masks=True) == 0
    assert sorted(computed) == ["router_sha256", "sha256"]
    os.utime(parent.path)  # it may have changed
    assert Parent.open(parent.path).identity().router_sha256
    assert sorted(computed) == ["router_sha256", "router_sha256", "sha256", "sha256"]


def test_routers_are_read_once_while_the_file_is_as_it_was(parent: Parent, monkeypatch: pytest.MonkeyPatch) -> None:
    first = parent.identity()

    def never(*_: object) -> str:
        raise AssertionError("the routers were read again")

    monkeypatch.setattr(parents, "router_sha256", never)
    assert parent.identity() == first
    monkeypatch.setattr(files, "_hashed", {})
    assert parent.identity() == first
    os.utime(parent.path)
    with pytest.raises(AssertionError, match="read again"):
        parent.identity()


# --- failures ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_fetched_is_told_at_the_end_and_the_others_are_there(
    hub: FakeHub, college: Pulled, masks: dict[str, Mask], tmp_path: Path
) -> None:
    stranger = Parent.open(write_random_moe(tmp_path / "stranger.gguf", **SHAPE, seed=1))
    out = tmp_path / "strange.gguf"
    cut(stranger, random_mask(stranger, 4), out)
    hub.repositories[repository("law")][file_of("law")] = out.read_bytes()
    del hub.repositories[repository("math")]
    hub.gated.add(repository("physics"))
    assert college.pull(masks=True) == 1
    assert [name for name in NAMES if college.path(name).exists()] == ["python"]
    assert college.mask("python").keep == masks["python"].keep
    at_end = college.said.splitlines()[-4:]
    assert at_end[-1] == "3 of 4 masks could not be fetched; the others are there."
    told = {line.split(":")[0]: line for line in at_end[:-1]}
    assert "another model. Give the parent that it was cut from" in told["law"]
    assert f"coe mask-of 'hf:{repository('law')}/*q8_0*' --parent {college.folder}/models/parent.gguf" in told["law"]
    assert f"-o {college.path('law')}" in told["law"]
    assert f"no repository {repository('math')}" in told["math"]
    assert "Correct `repo` in the roster" in told["math"]
    assert "Accept its licence" in told["physics"]


def test_a_mask_that_was_accepted_by_hand_is_left_alone(
    hub: FakeHub, college: Pulled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that a mismatch names, with --nearest, writes a mask that the next pull takes for its own."""
    stranger = Parent.open(write_random_moe(tmp_path / "stranger.gguf", **SHAPE, seed=1))
    out = tmp_path / "strange.gguf"
    cut(stranger, random_mask(stranger, 4), out)
    hub.repositories[repository("law")][file_of("law")] = out.read_bytes()
    college.path("law").parent.mkdir(parents=True)
    command = ["mask-of", f"hf:{repository('law')}/*q8_0*", "--parent", str(tmp_path / "models" / "parent.gguf")]
    result = CliRunner().invoke(app, [*command, "-o", str(college.path("law")), "--nearest", "0.01"])
    assert result.exit_code == 0, result.output
    assert college.pull("law") == 0
    assert "already there" in college.said


def test_a_hub_without_ranges_is_refused_with_the_other_way(hub: FakeHub, college: Pulled) -> None:
    hub.ignore_ranges = True
    assert college.pull(masks=True) == 1
    assert "only as a whole" in college.said
    assert "Write `repo` and `pattern` in place of `mask_of`" in college.said


def test_a_hub_out_of_reach_is_said_once(hub: FakeHub, college: Pulled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert college.pull(masks=True) == 1
    assert college.said.count("cannot be reached") == 1
    assert "law, math, physics, python: The hub at http://127.0.0.1:1 cannot be reached" in college.said


def test_a_parent_that_has_no_experts_is_said(college: Pulled, smollm2: Path) -> None:
    college.parent["file"] = str(smollm2)
    assert college.pull(masks=True) == 1
    assert "parent: " in college.said
    assert "no experts" in college.said


def test_masks_that_cannot_be_written_are_said_with_their_folder(college: Pulled) -> None:
    (college.folder / "models" / "masks").write_text("a file where the folder should be")
    assert college.pull(masks=True) == 1
    assert f"{college.folder}/models/masks" in college.said


def test_what_was_fetched_is_not_fetched_again(hub: FakeHub, college: Pulled, masks: dict[str, Mask]) -> None:
    college.entries = {"law": {"mask_of": mask_of("law")}}

    def break_down() -> None:
        hub.broken = len(hub.downloads) > 4

    hub.before_download = break_down
    assert college.pull(masks=True) == 1
    assert "pull again: it goes on where it stopped" in college.said
    hub.before_download, hub.broken = None, False
    header = hub.ranges[:2]  # one after the other; the others run side by side
    hub.downloads.clear()
    assert college.pull(masks=True) == 0
    assert hub.downloads
    assert not set(header) & set(hub.ranges)
    assert college.mask("law").keep == masks["law"].keep
    assert kept(college.folder) == []


def test_ctrl_c_ends_requests_that_wait_and_keeps_what_came(
    hub: FakeHub, college: Pulled, masks: dict[str, Mask]
) -> None:
    """In a process of its own. No answer comes before that process has ended."""
    command = ["-c", STEPS, "pull", "--masks", "--roster", str(college.roster.path)]
    status, said = interrupted(hub, command, downloads=9, answers=False)
    assert status == 130, said
    assert "the same command goes on" in said
    assert "Traceback" not in said
    assert not college.path("python").exists()
    assert any(json.loads(path.read_text())["there"] for path in kept(college.folder) if path.suffix == ".ranges")
    assert college.pull(masks=True) == 0
    assert {name: college.mask(name).keep for name in NAMES} == {name: mask.keep for name, mask in masks.items()}


STEPS = """
from coe.server.commands.pull import download, ranges
ranges.HEADER_STEPS = (2**12, 2**14, 2**16, 2**18)
ranges._GAP_BYTES = 256
download._TIMEOUT = None  # nothing but being ended ends a request
from coe.server.cli import main
main()
"""


# --- before they are there --------------------------------------------------------------------------------------------


def check(college: Pulled) -> str:
    out = StringIO()
    check_roster(college.roster.path, out=Console(file=out, width=400), dry_run=False)
    return out.getvalue()


def test_masks_that_are_missing_are_told_once_with_the_command(college: Pulled) -> None:
    said = check(college)
    assert "law, math, physics, python: Its mask has not been fetched yet. Run: coe pull --masks" in said
    (college.folder / "models" / "parent.gguf").unlink()
    said = check(college)
    assert "Neither its mask nor its parent is there. Of the parent: There is no file" in said
    assert "Then: coe pull --masks" in said
    college.parent = {"model": "random", "repo": "maker/parent-GGUF", "pattern": "*"}
    assert "Run: coe pull parent --masks" in check(college)


def test_no_specialist_whose_mask_is_missing_is_exported(college: Pulled) -> None:
    path = college.roster.path
    result = CliRunner().invoke(app, ["export", "law", "--for", "gguf", "--roster", str(path)])
    assert result.exit_code == 1
    assert "coe pull --masks" in " ".join(result.output.split())
