"""Files hashed in the background: what is found, and what the child gives way to."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coe.engine.errors import EngineError
from coe.engine.spec import LoadSpec
from coe.engine.swap.fingerprints import cached_fingerprints, fingerprint_file, read_weights, with_fingerprints
from coe.engine.swap.groups import Contender, find_groups
from coe.engine.swap.hashing import hash_file
from coe.server.runtime import hashing
from coe.server.runtime.hashing import Hashing
from coe.surgery.cut.cut import cut
from coe.surgery.parent import Parent
from fakes.child_modules import write_module
from fakes.random_moe import random_mask, write_random_moe

pytestmark = pytest.mark.slow  # a process for each file

# The child that stands in for the real one tells its process id where the other tells how many bytes there are.
BEGINS = 'report({"done": 0, "total": os.getpid()})\n'


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two cuts of one parent that do not say so."""
    parent = Parent.open(write_random_moe(tmp_path / "parent.gguf"))
    found = []
    for seed, name in enumerate("ab"):
        found.append(tmp_path / f"{name}.gguf")
        cut(parent, random_mask(parent, 4, seed=seed), found[-1], provenance=False)
    return found


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has another `main` run in the place of the one that hashes."""

    def use(main: str) -> None:
        monkeypatch.setattr(hashing, "_PROCESS", write_module(tmp_path, monkeypatch, BEGINS + main))

    return use


async def test_fingerprints_taken_in_the_background_are_found_by_every_reader(files: list[Path]) -> None:
    contenders = [Contender(path.stem, LoadSpec(path)) for path in files]
    before = await find_groups(contenders)
    assert before.unhashed == tuple(files)
    told: list[Path] = []

    async def on_hashed(path: Path) -> None:
        told.append(path)

    work = Hashing(before.unhashed, lambda: False, on_hashed=on_hashed)
    work.start()
    await work.wait()
    assert told == files
    assert (work.progress.n_done, work.progress.failed) == (2, ())
    after = await find_groups(contenders)
    assert after.unhashed == ()
    assert after.groups[0].pairs[0].changed_bytes < before.groups[0].pairs[0].changed_bytes / 2


def test_in_the_background_the_same_is_found(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for in_background in (False, True):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache-{in_background}"))
        told: list[int] = []
        fingerprint_file(files[0], told.append, in_background=in_background)
        found.append((cached_fingerprints([files[0]]), sum(told)))
    assert found[0] == found[1]


def test_a_specialist_takes_up_what_has_become_known_once(files: list[Path]) -> None:
    one = read_weights(files[0])
    assert with_fingerprints(one) is None
    fingerprint_file(files[0])
    knows = with_fingerprints(one)
    assert knows is not None
    assert knows.keys == read_weights(files[0]).keys
    assert with_fingerprints(knows) is None


def test_a_file_that_cannot_be_hashed_is_told_with_a_remedy(
    tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[Any] = []
    with pytest.raises(EngineError, match="cannot be read") as caught:
        hash_file(tmp_path / "absent.gguf", reports.append)
    assert caught.value.remedy
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(EngineError, match="could not be hashed") as caught:
        hash_file(files[0], reports.append)
    assert "Make room" in caught.value.remedy
    assert [set(report) for report in reports] == [{"done", "total"}]


async def test_what_fails_is_remembered_and_the_others_are_hashed(files: list[Path], tmp_path: Path) -> None:
    work = Hashing([tmp_path / "absent.gguf", files[0]], lambda: False)
    work.start()
    await work.wait()
    ((path, why),) = work.progress.failed
    assert path.name == "absent.gguf"
    assert "cannot be read" in why
    assert cached_fingerprints([files[0]]) is not None


async def test_it_stands_still_while_requests_are_served(tmp_path: Path, stand_in: Callable[[str], None]) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    stand_in(f"open({str(gate)!r}).read()")
    busy, looked, go = True, asyncio.Event(), asyncio.Event()

    async def pause() -> None:
        looked.set()
        await go.wait()
        go.clear()

    work = Hashing([tmp_path / "x.gguf"], lambda: busy, pause=pause)
    work.start()
    await looked.wait()
    pid = work.progress.total_bytes
    await asyncio.to_thread(os.waitid, os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
    busy = False
    looked.clear()
    go.set()
    await looked.wait()
    await asyncio.to_thread(os.waitid, os.P_PID, pid, os.WCONTINUED | os.WNOWAIT)
    await asyncio.to_thread(gate.write_text, "")
    await work.wait()
    assert (work.progress.n_done, work.progress.failed) == (1, ())


async def test_closing_ends_a_process_even_while_it_stands_still(
    tmp_path: Path, stand_in: Callable[[str], None]
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    stand_in(f"open({str(gate)!r}).read()")
    looked = asyncio.Event()

    async def pause() -> None:
        looked.set()
        await asyncio.Event().wait()

    work = Hashing([tmp_path / "x.gguf"], lambda: True, pause=pause)
    work.start()
    await looked.wait()
    pid = work.progress.total_bytes
    await work.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(("deaths", "failed"), [(1, 0), (9, 1)])
async def test_a_process_that_died_is_started_again_once(
    tmp_path: Path, stand_in: Callable[[str], None], deaths: int, failed: int
) -> None:
    starts = tmp_path / "starts"
    stand_in(f"""
with open({str(starts)!r}, "a+") as log:
    log.write("x")
    log.seek(0)
    if len(log.read()) <= {deaths}:
        log.flush()
        os._exit(9)
""")
    work = Hashing([tmp_path / "x.gguf"], lambda: False)
    work.start()
    await work.wait()
    assert starts.read_text() == "xx"
    assert len(work.progress.failed) == failed
    assert all("without an answer" in why for _, why in work.progress.failed)


async def test_a_process_that_hangs_though_it_may_work_is_given_up(
    tmp_path: Path, stand_in: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coe.server.runtime.hashing._SILENT_S", 0.0)
    stand_in("import signal; os.kill(os.getpid(), signal.SIGSTOP)")
    work = Hashing([tmp_path / "x.gguf"], lambda: False)
    work.start()
    await work.wait()
    assert "without an answer" in work.progress.failed[0][1]


async def test_without_files_there_is_nothing_to_do() -> None:
    work = Hashing([], lambda: False)
    work.start()
    await work.wait()
    await work.close()
    assert work.progress == hashing.Hashed()
