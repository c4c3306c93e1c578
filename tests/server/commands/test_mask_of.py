"""`coe mask-of` as a person types it: local files, and models on a hub of which only ranges are fetched."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from gguf import GGMLQuantizationType as Type
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from coe.engine.gguf.reader import read_split
from coe.server.cli import app
from coe.server.commands.pull import download, ranges
from coe.server.commands.pull.errors import PullError
from coe.server.commands.pull.files import WantedModel, hub_address
from coe.server.commands.pull.ranges import Span, joined, missing
from coe.surgery.cut.cut import cut
from coe.surgery.files import sha256_of
from coe.surgery.mask import Mask
from coe.surgery.parent import Parent
from fakes.full_disk import files_of_at_most
from fakes.hub import COMMIT, FakeHub, interrupted, played
from fakes.random_moe import random_mask, write_random_moe

REPO = "someone/half-GGUF"
FILE = "half-Q8_0.gguf"
DEMO = Path(__file__).parents[3] / "demo"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with played(FakeHub({REPO: {"README.md": b"# half"}}), monkeypatch) as fake:
        yield fake


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in; headers of small models are looked for in small steps."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(ranges, "HEADER_STEPS", (2**12, 2**14, 2**16, 2**18))
    monkeypatch.setattr(ranges, "_GAP_BYTES", 256)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def parent(folder: Path) -> Parent:
    shape = {"experts": 8, "layers": 3, "embedding": 128, "expert_ff": 256}
    return Parent.open(write_random_moe(folder / "parent.gguf", **shape))


@pytest.fixture
def mask(parent: Parent, hub: FakeHub) -> Mask:
    """The mask of a specialist that lies on the hub."""
    made = random_mask(parent, 4)
    hub.repositories[REPO][FILE] = cut_bytes(parent, made)
    return made


def cut_bytes(parent: Parent, mask: Mask) -> bytes:
    out = parent.path.with_name("cut.gguf")
    cut(parent, mask, out)
    content = out.read_bytes()
    out.unlink()
    return content


def coe(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["mask-of", *arguments, "--parent", "parent.gguf"])


def done(*arguments: str) -> str:
    result = coe(*arguments)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def refused(*arguments: str) -> str:
    """The one line of a command that does not work; no mask was written, and no mask that was there is gone."""
    before = Path("mask.json").read_bytes() if Path("mask.json").exists() else None
    result = coe(*arguments)
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    lines = [line for line in result.stderr.splitlines() if line.strip() and not any(mark in line for mark in "━╸")]
    assert len(lines) == 1, result.stderr
    assert (Path("mask.json").read_bytes() if Path("mask.json").exists() else None) == before
    return lines[0]


def kept(folder: Path) -> list[Path]:
    """What lies in the cache of what was fetched."""
    return [path for path in (folder / "cache" / "coe" / "ranges").rglob("*") if path.is_file()]


# --- local files ----------------------------------------------------------------------------------------------------


def test_what_is_left_of_masks_that_never_came_goes_once_it_is_old(mask: Mask, folder: Path) -> None:
    old = folder / "cache" / "coe" / "ranges" / "some--one" / "abc"
    old.mkdir(parents=True)
    (old / "m.gguf").write_bytes(b"GGUF")
    os.utime(old, (0, 0))
    done(f"hf:{REPO}", "-o", "mask.json")
    assert not old.exists()


def test_a_local_specialist_becomes_a_mask(parent: Parent, folder: Path) -> None:
    mask = random_mask(parent, 4)
    cut(parent, mask, folder / "s.gguf")
    said = done("s.gguf", "-o", "won.json")
    assert "4 of 8 experts in 3 layers of Random gemma4; the router's rows were found to the byte" in said
    assert "the same bytes" in said
    assert "coe cut parent.gguf won.json" in said
    won = Mask.load(folder / "won.json")
    assert won.keep == mask.keep
    assert won.provenance.recipe["source"] == {"file": "s.gguf", "sha256": sha256_of((folder / "s.gguf",))}
    cut(parent, won, folder / "again.gguf", provenance=False)
    cut(parent, mask, folder / "once.gguf", provenance=False)
    assert (folder / "again.gguf").read_bytes() == (folder / "once.gguf").read_bytes()


def test_what_is_read_is_not_written_over(parent: Parent, folder: Path) -> None:
    cut(parent, random_mask(parent, 4), folder / "s.gguf")
    assert "is itself read" in refused("s.gguf", "-o", "s.gguf")
    assert "is itself read" in refused("s.gguf", "-o", "parent.gguf")
    assert "does not exist" in refused("s.gguf", "-o", "nowhere/mask.json")


def test_a_specialist_of_another_parent_is_one_line(parent: Parent, folder: Path) -> None:
    (folder / "mask.json").write_text("the old mask")
    write_random_moe(folder / "s.gguf", experts=4, layers=3, embedding=128, expert_ff=256, seed=1)
    assert "another model" in refused("s.gguf")
    assert "absent.gguf cannot be read: No such file" in refused("absent.gguf")


# --- the hub --------------------------------------------------------------------------------------------------------


def test_only_the_header_and_the_router_of_a_repository_are_fetched(
    hub: FakeHub, mask: Mask, parent: Parent, folder: Path
) -> None:
    said = done(f"hf:{REPO}")
    won = Mask.load(folder / "mask.json")
    assert won.keep == mask.keep
    assert won.parent == parent.identity()
    content = hub.repositories[REPO][FILE]
    assert hub.sent_bytes < len(content) / 4
    assert all(asked is not None for asked in hub.ranges)
    assert "were fetched of someone/half-GGUF" in said
    recipe = won.provenance.recipe
    [digest] = recipe["source"]["files"].values()
    assert recipe["source"] == {"repository": REPO, "revision": COMMIT, "files": {FILE: digest}}
    assert len(digest) == 64
    assert kept(folder) == []
    assert not (folder / "cache" / "coe" / "ranges" / "someone--half-GGUF").exists()


@pytest.mark.parametrize("path", sorted((DEMO / "masks").glob("*.json")), ids=lambda path: path.stem)
def test_every_mask_of_the_demo_is_won_back_from_a_hub(path: Path, hub: FakeHub, folder: Path) -> None:
    (folder / "parent.gguf").symlink_to(DEMO / "college-parent.gguf")
    parent, mask = Parent.open(folder / "parent.gguf"), Mask.load(path)
    hub.repositories[REPO][FILE] = cut_bytes(parent, mask)
    done(f"hf:{REPO}/{FILE}")
    assert Mask.load(folder / "mask.json").keep == mask.keep
    assert hub.sent_bytes < len(hub.repositories[REPO][FILE]) / 4


def test_a_split_specialist_of_another_quantisation_is_won_back(hub: FakeHub, folder: Path) -> None:
    shape: dict[str, Any] = {"experts": 8, "layers": 3, "embedding": 256, "expert_ff": 256}
    write_random_moe(folder / "parent.gguf", **shape, quantised=Type.F16)
    (folder / "q8").mkdir()
    first = write_random_moe(folder / "q8" / "half-Q8_0.gguf", **shape, quantised=Type.Q8_0, parts=3)
    parts = {f"Q8_0/{header.path.name}": header.path.read_bytes() for header in read_split(first)}
    hub.repositories[REPO] = {**parts, "half-Q4_K_M.gguf": b"no"}
    said = done(f"hf:{REPO}/*Q8_0*")
    assert "the same experts; with the mask they are in your parent's quantisation" in said
    assert "it was not cut" in said
    won = Mask.load(folder / "mask.json")
    assert won.keep == Mask.everything(won.parent).keep
    assert list(won.provenance.recipe["source"]["files"]) == list(parts)
    assert hub.sent_bytes < sum(map(len, parts.values())) / 4


def test_a_revision_is_asked_for(hub: FakeHub, mask: Mask, folder: Path) -> None:
    done(f"hf:{REPO}@v1/{FILE}")
    assert hub.revisions == ["v1"]
    assert "no revision v9" in refused(f"hf:{REPO}@v9/{FILE}")


def test_the_token_goes_to_the_hub_alone(hub: FakeHub, mask: Mask, folder: Path) -> None:
    hub.wanted_token, hub.elsewhere = "hf_secret", True
    assert "--token" in refused(f"hf:{REPO}")
    done(f"hf:{REPO}", "--token", "hf_secret")
    assert hub.downloads
    assert all("authorization" not in headers for headers in hub.downloads)
    assert Mask.load(folder / "mask.json").keep == mask.keep


def test_a_range_that_is_cut_goes_on_where_it_was_cut(hub: FakeHub, mask: Mask, folder: Path) -> None:
    hub.cuts = [1000]
    done(f"hf:{REPO}")
    assert hub.ranges[:2] == ["bytes=0-4095", "bytes=1000-4095"]
    assert Mask.load(folder / "mask.json").keep == mask.keep


def test_a_server_error_is_tried_again(hub: FakeHub, mask: Mask, folder: Path) -> None:
    hub.failures = [503, 429]
    done(f"hf:{REPO}")
    assert Mask.load(folder / "mask.json").keep == mask.keep


def test_what_was_fetched_is_not_fetched_again(hub: FakeHub, mask: Mask, folder: Path) -> None:
    def break_down() -> None:
        hub.broken = len(hub.downloads) > 4

    hub.before_download = break_down
    assert "give the command again: it goes on where it stopped" in refused(f"hf:{REPO}")
    assert len(kept(folder)) == 2
    hub.before_download, hub.broken = None, False
    header = hub.ranges[:2]  # one after the other; the others run side by side
    hub.downloads.clear()
    done(f"hf:{REPO}")
    assert hub.downloads
    assert not set(header) & set(hub.ranges)
    assert Mask.load(folder / "mask.json").keep == mask.keep
    assert kept(folder) == []


def test_a_record_that_is_damaged_costs_nothing_but_a_new_start(hub: FakeHub, mask: Mask, folder: Path) -> None:
    hub.failures = [503] * 3
    refused(f"hf:{REPO}")
    [sparse] = [path for path in kept(folder) if path.name == FILE]
    record = sparse.with_name(f".{FILE}.ranges")
    for damaged in ("", "[]", '{"there": [[0, 99999999999]]}', '{"of": 1, "etag": 2, "there": [["a", 2]]}'):
        record.write_text(damaged)
        hub.failures = [503] * 3
        refused(f"hf:{REPO}")
    done(f"hf:{REPO}")
    assert Mask.load(folder / "mask.json").keep == mask.keep


def test_a_hub_without_ranges_is_not_read_whole(hub: FakeHub, mask: Mask) -> None:
    hub.ignore_ranges = True
    line = refused(f"hf:{REPO}")
    assert f"gives {REPO}/{FILE} only as a whole" in line
    assert "coe pull" in line
    assert len(hub.downloads) == 1


@pytest.mark.parametrize("etags", [True, False])
def test_a_file_that_changes_between_requests_is_refused(hub: FakeHub, mask: Mask, etags: bool, folder: Path) -> None:
    hub.etags = etags
    content = hub.repositories[REPO][FILE]
    hub.changes = {3: {FILE: content[::-1] + (b"" if etags else b"longer")}}
    assert "changed on the hub while it was read" in refused(f"hf:{REPO}")
    hub.repositories[REPO][FILE] = content
    done(f"hf:{REPO}")
    assert Mask.load(folder / "mask.json").keep == mask.keep


def test_nothing_of_a_file_that_changed_is_used(hub: FakeHub, mask: Mask, parent: Parent, folder: Path) -> None:
    """The hub still lists it as it was: what lies here cannot be told by its hash."""
    hub.listed_sha256[FILE] = "0" * 64
    other = random_mask(parent, 4, seed=1)
    assert other.keep != mask.keep
    hub.changes = {3: {FILE: cut_bytes(parent, other)}}
    assert "changed on the hub" in refused(f"hf:{REPO}")
    assert [path.name for path in kept(folder)] == [FILE]
    done(f"hf:{REPO}")
    assert Mask.load(folder / "mask.json").keep == other.keep


def test_every_range_is_asked_of_the_file_that_the_first_was_of(hub: FakeHub, mask: Mask) -> None:
    done(f"hf:{REPO}")
    first, *others = [headers.get("if-range") for headers in hub.downloads]
    assert first is None
    assert others
    assert all(etag == f'"{hashlib.sha256(hub.repositories[REPO][FILE]).hexdigest()}"' for etag in others)


def test_a_length_that_is_not_the_listed_one_is_refused(hub: FakeHub, mask: Mask) -> None:
    hub.totals = [12345]
    assert "it has 12,345 bytes" in refused(f"hf:{REPO}")


def test_a_file_that_became_shorter_is_refused(hub: FakeHub, mask: Mask) -> None:
    hub.etags = False
    hub.changes = {2: {FILE: b"GGUF"}}
    assert "it is shorter now" in refused(f"hf:{REPO}")


def test_several_models_are_listed(hub: FakeHub, mask: Mask) -> None:
    hub.repositories[REPO]["half-Q4_K_M.gguf"] = b"GGUF"
    line = refused(f"hf:{REPO}")
    assert "half-Q4_K_M.gguf, half-Q8_0.gguf" in line
    assert "hf:OWNER/REPO/FILE.gguf" in line
    assert "roster" not in line
    assert hub.downloads == []
    done(f"hf:{REPO}/*q8_0*")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("hf:nobody/nothing", "no repository nobody/nothing"),
        ("hf:" + REPO + "/absent.gguf", "Its GGUF files: half-Q8_0.gguf"),
        ("hf:half", "names no repository"),
        ("hf:", "names no repository"),
        ("hf:some one/half", "no repository's name"),
        ("hf:" + REPO + "/README.md", "is not a GGUF file"),
    ],
)
def test_addresses_that_lead_nowhere(address: str, says: str, hub: FakeHub, mask: Mask) -> None:
    line = refused(address)
    assert says in line
    assert "roster" not in line


def test_a_gated_repository_asks_for_licence_and_token(hub: FakeHub, mask: Mask) -> None:
    hub.gated.add(REPO)
    assert "Accept its licence" in refused(f"hf:{REPO}")


def test_a_hub_out_of_reach_is_said(hub: FakeHub, mask: Mask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert "http://127.0.0.1:1 cannot be reached" in refused(f"hf:{REPO}")


def test_a_part_that_is_missing_is_named(hub: FakeHub, mask: Mask) -> None:
    hub.repositories[REPO] = {"half-00001-of-00002.gguf": b"GGUF"}
    assert "lacks part 2" in refused(f"hf:{REPO}")


def lying(content: bytes, at: int, value: bytes) -> bytes:
    return content[:at] + value + content[at + len(value) :]


@pytest.mark.parametrize(
    ("at", "value", "says"),
    [
        (8, struct.pack("<Q", 2**62), "tensors, which the file has no room for"),
        (16, struct.pack("<Q", 2**40), "metadata values, which the file has no room for"),
        (24, struct.pack("<Q", 2**50), "does not fit into the file"),
        (4, struct.pack("<I", 9), "version 9"),
    ],
)
def test_headers_that_lie_are_refused_by_their_first_bytes(
    at: int, value: bytes, says: str, hub: FakeHub, mask: Mask
) -> None:
    hub.repositories[REPO][FILE] = lying(hub.repositories[REPO][FILE], at, value)
    assert says in refused(f"hf:{REPO}")
    assert hub.sent_bytes <= 2**12


def test_tensors_beyond_the_file_are_refused(hub: FakeHub, mask: Mask) -> None:
    hub.repositories[REPO][FILE] = hub.repositories[REPO][FILE][:-4096]
    assert f"{REPO}/{FILE} is truncated" in refused(f"hf:{REPO}")


def test_a_header_without_end_is_given_up(hub: FakeHub, mask: Mask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "HEADER_STEPS", (256, 512))
    assert "longer than 512 bytes" in refused(f"hf:{REPO}")
    assert hub.sent_bytes <= 512


def test_a_parent_that_cannot_be_is_refused_before_the_router_is_fetched(
    hub: FakeHub, mask: Mask, folder: Path
) -> None:
    write_random_moe(folder / "parent.gguf", experts=8, layers=3, embedding=64)
    assert "another width" in refused(f"hf:{REPO}")
    assert hub.sent_bytes <= 2**16


def test_a_file_system_without_holes_is_told_of(hub: FakeHub, mask: Mask, folder: Path) -> None:
    with files_of_at_most(100_000):  # no file may be longer, holes or not
        line = refused(f"hf:{REPO}")
    assert "has no room" in line
    assert "XDG_CACHE_HOME" in line
    assert hub.downloads == []


def test_a_disk_that_fills_up_keeps_what_has_come(
    hub: FakeHub, mask: Mask, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = os.pwrite, []

    def full(file: int, data: Any, at: int) -> int:
        if len(written) >= 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append((at, len(data)))
        return write(file, data, at)

    monkeypatch.setattr(os, "pwrite", full)
    assert "has no room" in refused(f"hf:{REPO}")
    monkeypatch.setattr(os, "pwrite", write)
    record = next(path for path in kept(folder) if path.name.endswith(".ranges"))
    there = json.loads(record.read_text())["there"]
    assert sum(end - begin for begin, end in there) == sum(count for _, count in written)
    done(f"hf:{REPO}")
    assert Mask.load(folder / "mask.json").keep == mask.keep


def test_two_commands_do_not_fetch_the_same_file(hub: FakeHub, mask: Mask, folder: Path) -> None:
    lines: list[str] = []

    def second() -> None:
        hub.before_download = None
        lines.append(refused(f"hf:{REPO}", "-o", "other.json"))

    hub.before_download = second
    done(f"hf:{REPO}")
    assert "Another command is fetching" in lines[0]


def test_ctrl_c_keeps_what_has_come(hub: FakeHub, mask: Mask, folder: Path) -> None:
    """In a process of its own, which is interrupted while its third request waits for an answer that never comes."""
    command = ["-c", STEPS, "mask-of", f"hf:{REPO}", "--parent", "parent.gguf"]
    status, said = interrupted(hub, command, downloads=3, answers=False)
    assert status == 130, said
    assert "the same command goes on" in said
    assert "Traceback" not in said
    assert not (folder / "mask.json").exists()
    record = next(path for path in kept(folder) if path.name.endswith(".ranges"))
    assert json.loads(record.read_text())["there"]
    hub.downloads.clear()
    done(f"hf:{REPO}")
    assert "bytes=0-4095" not in hub.ranges
    assert Mask.load(folder / "mask.json").keep == mask.keep


def test_the_other_requests_are_ended_when_one_fails(
    hub: FakeHub, mask: Mask, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of eight that run side by side one is refused; the others' answers come when that was told, and no sooner."""
    monkeypatch.setattr(download, "_TIMEOUT", None)
    enough, go_on = threading.Event(), threading.Event()
    waited_for: list[bool] = []

    def wait() -> None:
        n_headers = 3  # steps to this header's end, one after the other
        if len(hub.downloads) == n_headers + 1:
            enough.wait()
            hub.gated.add(REPO)
        elif len(hub.downloads) > n_headers:
            if len(hub.downloads) >= n_headers + 8:
                enough.set()
            if not go_on.wait(60):
                waited_for.append(True)

    hub.before_download = wait
    assert "Accept its licence" in refused(f"hf:{REPO}")
    assert not waited_for
    asked = len(hub.downloads)
    go_on.set()
    hub.gated.clear()
    hub.before_download = None
    done(f"hf:{REPO}")
    assert len(hub.downloads) > asked + 8, "there was more to ask for"
    assert Mask.load(folder / "mask.json").keep == mask.keep


STEPS = """
from coe.server.commands.pull import download, ranges
ranges.HEADER_STEPS = (2**12, 2**14, 2**16, 2**18)
download._TIMEOUT = None  # nothing but being ended ends a request
from coe.server.cli import main
main()
"""


# --- spans and addresses ----------------------------------------------------------------------------------------------

SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).map(lambda pair: (min(pair), max(pair))), max_size=8)


def numbers(spans: list[Span]) -> set[int]:
    return {number for begin, end in spans for number in range(begin, end)}


@given(SPANS)
def test_joined_spans_are_the_same_bytes_in_order_and_apart(spans: list[Span]) -> None:
    found = joined(spans)
    assert numbers(found) == numbers(spans)
    assert all(left[1] < right[0] for left, right in itertools.pairwise(found))


@given(SPANS, st.integers(0, 10))
def test_a_gap_is_bridged_and_nothing_beyond(spans: list[Span], gap: int) -> None:
    found = joined(spans, gap)
    assert numbers(found) >= numbers(spans)
    assert all(right[0] - left[1] > gap for left, right in itertools.pairwise(found))
    assert {edge for span in found for edge in span} <= {edge for span in spans for edge in span}


@given(SPANS, SPANS)
def test_what_is_missing_is_what_is_wanted_and_not_there(wanted: list[Span], there: list[Span]) -> None:
    assert numbers(missing(wanted, joined(there))) == numbers(wanted) - numbers(there)


def test_addresses_of_the_hub() -> None:
    assert hub_address("hf:a/b") == WantedModel("hf:a/b", "a/b", "*.gguf")
    assert hub_address("hf:a/b/Q4/c.gguf") == WantedModel("hf:a/b/Q4/c.gguf", "a/b", "Q4/c.gguf")
    assert hub_address("hf:a/b@v1/*Q4*") == WantedModel("hf:a/b@v1/*Q4*", "a/b", "*Q4*", "v1")
    with pytest.raises(PullError, match="names no repository"):
        hub_address("hf:a")
