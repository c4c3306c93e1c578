"""`coe inspect hf:...`: a model on a hub, of which the header alone is fetched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from coe.engine.files import cache_folder
from coe.server.cli import app
from coe.server.commands.pull import headers, ranges
from coe.server.commands.pull.pruning import prune
from fakes.hub import FakeHub, played
from fakes.random_moe import write_random_moe

pytestmark = pytest.mark.model

REPO = "someone/parent-GGUF"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with played(FakeHub(), monkeypatch) as fake:
        yield fake


@pytest.fixture
def parent(tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A parent that lies here and on the hub."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(ranges, "HEADER_STEPS", (2**12, 2**14, 2**16, 2**18))
    monkeypatch.chdir(tmp_path)
    path = write_random_moe(tmp_path / "whole.gguf", experts=8, embedding=128, expert_ff=256)
    hub.repositories[REPO] = {"README.md": b"# whole", "whole.gguf": path.read_bytes()}
    return path


def inspected(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["inspect", *arguments])


def without_memory(printed: str) -> list[str]:
    """The lines but for memory: two dry runs' own processes differ by some KiB."""
    return [" ".join(line.split()[:-4]) if "MiB" in line else line for line in printed.splitlines()]


def test_a_model_on_the_hub_is_shown_as_a_file_here_is(
    parent: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote, local = inspected(f"hf:{REPO}"), inspected("whole.gguf")
    assert remote.exit_code == local.exit_code == 0
    *shown, last = without_memory(remote.stdout)
    assert shown == without_memory(local.stdout)
    assert "were fetched of someone/parent-GGUF" in remote.stdout
    assert last
    assert hub.sent_bytes < parent.stat().st_size / 4
    hub.downloads.clear()
    [commit] = cache_folder().glob("headers/*/*")
    os.utime(commit, (0, 0))
    with monkeypatch.context() as patched:  # else it would go before it is looked at, having been used last in 1970
        patched.setattr(headers, "prune", lambda folder: None)
        assert "0 MiB of" in inspected(f"hf:{REPO}/whole.gguf").stdout
    assert hub.downloads == []
    prune(commit.parent.parent)
    assert commit.exists(), "a look is a use"


def test_of_several_models_the_list_says_how_to_name_one(parent: Path, hub: FakeHub) -> None:
    content = parent.read_bytes()
    hub.repositories[REPO] |= {
        "Q8/big-00001-of-00002.gguf": content,
        "Q8/big-00002-of-00002.gguf": b"GGUF",
        "half-00001-of-00003.gguf": b"GGUF",
    }
    listed = inspected(f"hf:{REPO}")
    assert listed.exit_code == 0
    assert "holds 3 models:" in listed.stdout
    assert "Q8/big-*-of-00002.gguf, 2 files" in listed.stdout
    assert "half-*-of-00003.gguf, not complete" in listed.stdout
    assert f'coe inspect "hf:{REPO}/Q8/big-*-of-00002.gguf"' in listed.stdout
    assert hub.downloads == []
    assert inspected(f"hf:{REPO}/w*").exit_code == 0


def test_the_name_that_the_list_gives_finds_a_split_model(parent: Path, hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "split").mkdir()
    first = write_random_moe(tmp_path / "split" / "s.gguf", parts=2)
    hub.repositories[REPO] |= {f"x/{path.name}": path.read_bytes() for path in first.parent.iterdir()}
    assert "x/s-*-of-00002.gguf" in inspected(f"hf:{REPO}").stdout
    found = inspected(f"hf:{REPO}/x/s-*-of-00002.gguf")
    assert found.exit_code == 0, found.output
    assert "8 experts" in found.stdout


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("hf:nobody/nothing", "no repository nobody/nothing"),
        (f"hf:{REPO}@v9", "no revision v9"),
        (f"hf:{REPO}/absent*", "Its GGUF files: whole.gguf"),
        (f"hf:{REPO}/README.md", "is not a GGUF file"),
        ("hf:", "names no repository"),
    ],
)
def test_what_cannot_be_shown_is_one_line(address: str, says: str, parent: Path) -> None:
    found = inspected(address)
    assert found.exit_code == 1
    assert found.exception is None or isinstance(found.exception, SystemExit)
    assert says in found.stderr
    assert "roster" not in found.stderr


def test_a_hub_without_ranges_sends_nothing_whole(parent: Path, hub: FakeHub) -> None:
    hub.ignore_ranges = True
    found = inspected(f"hf:{REPO}")
    assert found.exit_code == 1
    assert "only as a whole" in found.stderr
    assert len(hub.downloads) == 1


def test_a_body_that_is_cut_goes_on_where_it_was_cut(parent: Path, hub: FakeHub) -> None:
    hub.cuts = [1000]
    assert inspected(f"hf:{REPO}").exit_code == 0
    assert hub.ranges[:2] == ["bytes=0-4095", "bytes=1000-4095"]


def test_a_size_that_no_disk_holds_is_refused(parent: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from coe.server.commands.pull import files, headers

    found = headers.look_up

    def huge(*arguments: object) -> files.Repository:
        repository = found(*arguments)  # type: ignore[arg-type]
        assert isinstance(repository, files.Repository)
        bloated = tuple(files.HubFile(file.path, 2**62, file.sha256) for file in repository.files)
        return files.Repository(repository.name, repository.revision, bloated)

    monkeypatch.setattr(headers, "look_up", huge)
    result = inspected(f"hf:{REPO}")
    assert result.exit_code == 1
    assert "XDG_CACHE_HOME" in result.stderr or "changed on the hub" in result.stderr
    assert not isinstance(result.exception, MemoryError | OSError)
