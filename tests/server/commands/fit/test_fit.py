"""`coe fit` as a person types it: local files, and repositories on a hub of which headers alone are fetched."""

from __future__ import annotations

import asyncio
import io
import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from gguf import GGMLQuantizationType as Type
from rich.console import Console
from typer.testing import CliRunner

from coe.engine.errors import ModelFileError
from coe.engine.gguf.header import expert_bytes
from coe.engine.gguf.reader import read_split
from coe.engine.pool.memory import Prediction, predict
from coe.engine.pool.places import Memory
from coe.engine.spec import Footprint, LoadSpec, untrained_note
from coe.server.cli import app
from coe.server.commands._speeds import Placed, Speed, keep_speeds
from coe.server.commands.fit import predicting
from coe.server.commands.fit.command import show
from coe.server.commands.fit.predicting import Candidate, Predictor
from coe.server.commands.fit.values import Row, Table, Way
from coe.server.commands.pull import ranges
from coe.server.runtime import predictions
from coe.surgery.cut.cut import cut
from coe.surgery.errors import CutError
from coe.surgery.parent import Parent
from fakes.hub import FakeHub, interrupted, played
from fakes.pool_world import both, host
from fakes.random_moe import random_mask, write_random_moe

pytestmark = pytest.mark.model

REPO = "someone/parent-GGUF"
SHAPE: dict[str, Any] = {"experts": 8, "layers": 2, "embedding": 256, "expert_ff": 512}
MIB = 2**20


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with played(FakeHub(), monkeypatch) as fake:
        yield fake


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in; headers of small models are looked for in small steps."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(ranges, "HEADER_STEPS", (2**12, 2**14, 2**16, 2**18))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def parent(folder: Path) -> Path:
    return write_random_moe(folder / "parent-Q8_0.gguf", **SHAPE, quantised=Type.Q8_0)


def coe(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["fit", *arguments])


def done(*arguments: str) -> str:
    result = coe(*arguments)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def values(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(done(*arguments, "--json"))
    return found


def refused(*arguments: str) -> str:
    result = coe(*arguments)
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    lines = [line for line in result.stderr.splitlines() if line.strip() and not any(mark in line for mark in "━╸")]
    assert len(lines) == 1, result.stderr
    return lines[0]


# --- by llama.cpp's own dry runs ------------------------------------------------------------------------------------


@pytest.mark.host("sums of the host's memory")
def test_fewer_experts_take_what_the_cut_file_takes(parent: Path, folder: Path) -> None:
    found = values(str(parent), "--vram", "10 GiB", "--context", "1024")
    whole, *cuts = found["rows"]
    assert whole["way"] == "whole"
    assert whole["file_bytes"] == parent.stat().st_size
    assert [row["experts"] for row in cuts] == [7, 6, 5, 4]
    of_parent = Parent.open(parent)
    cut(of_parent, random_mask(of_parent, 4), folder / "cut.gguf", provenance=False)
    spec = LoadSpec(folder / "cut.gguf", context_tokens=1024, parallel=1, mmap=False)
    real = asyncio.run(predict(spec)).footprint
    half = cuts[-1]
    assert half["file_bytes"] == (folder / "cut.gguf").stat().st_size
    [need] = half["needs"]
    assert need["bytes"]["host"] == pytest.approx(real.total_bytes, abs=4 * MIB)  # the process itself varies
    assert whole["needs"][0]["bytes"]["host"] > need["bytes"]["host"] + (parent.stat().st_size - half["file_bytes"]) / 2
    assert need["residents"] == 10 * 2**30 // need["bytes"]["host"]


@pytest.mark.host("sums of the host's memory")
def test_a_repository_is_shown_whole_in_each_quantisation_and_by_headers_alone(hub: FakeHub, folder: Path) -> None:
    kinds = (Type.F16, Type.Q8_0)
    files = {f"x-{kind.name}.gguf": write_random_moe(folder / kind.name, **SHAPE, quantised=kind) for kind in kinds}
    hub.repositories[REPO] = {name: path.read_bytes() for name, path in files.items()} | {"mmproj-x.gguf": b"no"}
    found = values(f"hf:{REPO}", "--vram", "10 GiB", "--context", "1024")
    assert [(row["model"], row["way"]) for row in found["rows"]] == [
        ("x-F16.gguf", "whole"),
        ("x-Q8_0.gguf", "whole"),
    ]
    assert [row["file_bytes"] for row in found["rows"]] == [path.stat().st_size for path in files.values()]
    assert found["verdict"].startswith("F16 fits whole at 1k.")
    assert hub.sent_bytes < sum(map(len, hub.repositories[REPO].values())) / 4
    hub.downloads.clear()
    assert values(f"hf:{REPO}/*q8_0*", "--vram", "10 GiB", "--context", "1024")["rows"][0]["model"] == "x-Q8_0.gguf"
    assert hub.downloads == []


def test_a_dense_model_is_shown_whole(smollm2: Path, folder: Path) -> None:
    found = values(str(smollm2), "--vram", "10 GiB", "--context", "1024")
    [row] = found["rows"]
    assert row["way"] == "whole"
    assert row["of_experts"] == 0
    assert "is dense: it has no experts" in found["remarks"][0]
    assert "It has no experts to cut." in found["verdict"]


# --- by dry runs that cost nothing ----------------------------------------------------------------------------------


class Played:
    """Dry runs of a machine with a card: the experts' bytes by the header, 10 MiB besides, and a byte a token."""

    def __init__(self) -> None:
        self.specs: list[LoadSpec] = []
        self.on_gpu = True

    async def predict(self, spec: LoadSpec, *_: Any) -> Prediction:
        self.specs.append(spec)
        per_layer = expert_bytes(read_split(spec.path))
        away = per_layer if spec.cpu_expert_layers < 0 else per_layer[: spec.cpu_expert_layers]
        sizes = Footprint(sum(per_layer) - sum(away) + 10 * MIB, spec.context_tokens, 0, 0, 1 + sum(away))
        return Prediction(sizes, {}, on_gpu=self.on_gpu, expert_bytes=tuple(per_layer))


@pytest.fixture
def dry_runs(monkeypatch: pytest.MonkeyPatch) -> Played:
    found = Played()
    monkeypatch.setattr(predictions, "predict", found.predict)
    return found


def rows(budget: Memory, folder: Path, *paths: Path, speeds: tuple[Speed, ...] = ()) -> tuple[Row, ...]:
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    predictor = Predictor(budget, (1024, 4096), scratch, speeds)
    found = asyncio.run(predictor.rows([Candidate(path.stem, path) for path in paths]))
    assert not list(scratch.iterdir())
    return found


def room_for(path: Path, experts: float, context: int = 1024) -> int:
    """Bytes of a card that hold so many of the experts, and what is beside them."""
    return int(sum(expert_bytes(read_split(path))) * experts / SHAPE["experts"]) + 10 * MIB + context


def test_on_a_card_as_few_layers_as_needed_leave_their_experts_in_host_memory(
    dry_runs: Played, parent: Path, folder: Path
) -> None:
    _, offloaded, *_ = rows(both(room_for(parent, 4.5), 2**30), folder, parent)
    assert offloaded.way is Way.OFFLOADED
    assert [need.cpu_expert_layers for need in offloaded.needs.values()] == [1, 1]
    assert offloaded.fits(1024, both(room_for(parent, 4.5), 2**30))
    _, offloaded, *_ = rows(both(room_for(parent, 1.5), 2**30), folder, parent)
    assert [need.cpu_expert_layers for need in offloaded.needs.values()] == [2, 2]


def test_without_a_card_no_experts_are_offloaded(dry_runs: Played, parent: Path, folder: Path) -> None:
    dry_runs.on_gpu = False
    found = rows(host(room_for(parent, 4.5)), folder, parent)
    assert all(row.way is not Way.OFFLOADED for row in found)


def test_the_most_experts_that_fit_are_found_with_each_context(dry_runs: Played, parent: Path, folder: Path) -> None:
    budget = both(room_for(parent, 5) + 100, 2**30)  # 5 with 1,024 tokens, 4 with 4,096
    other = write_random_moe(folder / "small.gguf", **{**SHAPE, "expert_ff": 32})
    cuts = [row for row in rows(budget, folder, parent, other) if row.way is Way.CUT]
    assert [(row.model.title, row.n_keep) for row in cuts] == [("parent-Q8_0", 5), ("parent-Q8_0", 4)]
    assert [row.fits(1024, budget) for row in cuts] == [True, True]
    assert [row.fits(4096, budget) for row in cuts] == [False, True]
    assert not any(spec.path.stem.endswith("-7") for spec in dry_runs.specs), "more than fit are not tried"


def test_dry_runs_and_not_the_sum_decide_how_many_fit(
    dry_runs: Played, parent: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = dry_runs.predict

    async def dearer(spec: LoadSpec, *_: Any) -> Prediction:
        """Cuts take a mebibyte more than their parent."""
        found = await honest(spec)
        extra = 0 if spec.path == parent else MIB
        return replace(found, footprint=replace(found.footprint, compute_bytes=extra))

    monkeypatch.setattr(predictions, "predict", dearer)
    other = write_random_moe(folder / "small.gguf", **{**SHAPE, "expert_ff": 32})
    budget = both(room_for(parent, 5, 4096) + 100, 2**30)
    cuts = [row for row in rows(budget, folder, parent, other) if row.way is Way.CUT]
    assert cuts[0].n_keep < 5
    assert cuts[0].fits(1024, budget)


def test_one_model_alone_has_its_whole_ladder(dry_runs: Played, parent: Path, folder: Path) -> None:
    found = rows(both(2**30, 2**30), folder, parent)
    assert [(row.way, row.n_keep) for row in found] == [
        (Way.WHOLE, 8), (Way.CUT, 7), (Way.CUT, 6), (Way.CUT, 5), (Way.CUT, 4)
    ]  # fmt: skip


def test_of_several_models_those_that_fit_whole_are_not_cut(dry_runs: Played, parent: Path, folder: Path) -> None:
    other = write_random_moe(folder / "other.gguf", **SHAPE)
    found = rows(both(2**30, 2**30), folder, parent, other)
    assert [row.way for row in found] == [Way.WHOLE, Way.WHOLE]
    assert len(dry_runs.specs) == 4


def test_groups_of_experts_are_kept_whole(dry_runs: Played, folder: Path) -> None:
    shape = {**SHAPE, "architecture": "deepseek2", "experts": 16, "groups": 4, "groups_used": 2}
    path = write_random_moe(folder / "groups.gguf", **shape)
    found = rows(both(2**30, 2**30), folder, path)
    assert [row.n_keep for row in found] == [16, 12, 8]


def test_measured_speeds_stand_beside_the_same_placement(dry_runs: Played, parent: Path, folder: Path) -> None:
    size = parent.stat().st_size
    speeds = (
        Speed(Placed(parent.name, size), 41.0),
        Speed(Placed(parent.name, size, 4), 55.0),
        Speed(Placed(parent.name, size, cpu_expert_layers=1), 12.0),
        Speed(Placed(parent.name, size + 1, 5), 99.0),
    )
    found = rows(both(room_for(parent, 4.5), 2**30), folder, parent, speeds=speeds)
    assert {(row.way, row.n_keep): row.tokens_per_s for row in found if row.tokens_per_s} == {
        (Way.WHOLE, 8): 41.0,
        (Way.OFFLOADED, 8): 12.0,
        (Way.CUT, 4): 55.0,
    }


def test_a_model_that_llama_cpp_refuses_is_told_and_the_others_are_shown(
    dry_runs: Played, parent: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = dry_runs.predict
    other = write_random_moe(folder / "other.gguf", **SHAPE)

    async def predict_one(spec: LoadSpec, *_: Any) -> Prediction:
        if spec.path == other:
            raise ModelFileError("llama.cpp does not load it.", "Take another.")
        return await honest(spec)

    monkeypatch.setattr(predictions, "predict", predict_one)
    predictor = Predictor(both(2**30, 2**30), (1024,), folder)
    found = asyncio.run(predictor.rows([Candidate("parent", parent), Candidate("other", other)]))
    assert [row.model.title for row in found] == ["parent", "other"]
    assert predictor.remarks == (
        "other: what it takes in memory is not known. llama.cpp does not load it. Take another.",
    )


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_and_its_verdict_fit_a_terminal(
    width: int, dry_runs: Played, parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    dry_runs.on_gpu = False
    said = done(str(parent), "--vram", "10 GiB")
    table = said.splitlines()[1:7]
    assert table[0].split() == ["model", "experts", "file", "at", "16k", "fit", "at", "64k", "fit"]
    assert all(len(line) <= width for line in table)
    assert "…" not in said
    assert said.splitlines()[-1].startswith("parent-Q8_0 fits whole at 16k and 64k.")
    assert "llama.cpp has no GPU here" in said


@pytest.mark.parametrize("budget", ["0", "-1GiB", "3"])
def test_a_budget_that_can_be_none_is_refused_before_anything_is_looked_at(
    budget: str, dry_runs: Played, parent: Path
) -> None:
    result = coe(str(parent), "--vram", budget)
    assert result.exit_code == 2
    assert "--vram" in result.stderr
    assert "GiB`" in result.stderr
    assert dry_runs.specs == []


def test_a_context_beyond_what_the_model_was_trained_for_is_said_once(
    dry_runs: Played, parent: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = dry_runs.predict

    async def noted(spec: LoadSpec, *_: Any) -> Prediction:
        """With the note that llama.cpp's dry run has, in the words of a roster."""
        found = await honest(spec)
        notes = tuple(filter(None, [untrained_note(spec.context_tokens, 4096), "another note"]))
        return replace(found, footprint=replace(found.footprint, notes=notes))

    monkeypatch.setattr(predictions, "predict", noted)
    contexts = ("--context", "4096", "--context", "8192", "--context", "16384")
    found = values(str(parent), "--vram", "10 GiB", *contexts)
    assert found["remarks"] == [
        "parent-Q8_0 was trained for 4,096 tokens: beyond that, at 8k and 16k, answers suffer.",
        "another note.",
    ]
    assert found["rows"][0]["trained_tokens"] == 4096
    assert found["verdict"].startswith("parent-Q8_0 fits whole at 4k. ")


@pytest.mark.parametrize("width", [80, 120])
def test_rows_of_a_card_fit_a_terminal(width: int, dry_runs: Played, parent: Path, folder: Path) -> None:
    budget = both(room_for(parent, 4) + 2048, 2**30)  # half of the experts, and a little more with the shorter context
    found = rows(budget, folder, parent, speeds=(Speed(Placed(parent.name, parent.stat().st_size), 41.4),))
    out = io.StringIO()
    show(Table(budget, (1024, 4096), found, on_gpu=True), Console(file=out, width=width))
    said = out.getvalue().splitlines()
    assert "VRAM with one conversation" in said[0]
    table = said[1 : len(found) + 2]
    assert table[2].split()[:3] == ["all,", "CPU", "1/2"]
    assert table[1].split()[-1] == "41"
    assert all(len(line) <= width for line in table)
    assert said[-1].startswith("parent-Q8_0 does not fit whole at 1k.")
    assert "CPU 6/8" in said[len(found) + 2]


def test_a_full_disk_leaves_the_rows_of_the_whole_model(
    dry_runs: Played, parent: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise CutError("The disk is full.", "Make room.")

    monkeypatch.setattr(predicting, "write_outline", full)
    predictor = Predictor(both(2**30, 2**30), (1024,), folder)
    found = asyncio.run(predictor.rows([Candidate("parent", parent)]))
    assert [row.way for row in found] == [Way.WHOLE]
    assert predictor.remarks == ("parent is shown whole alone. The disk is full. Make room.",)


def test_an_architecture_that_cannot_be_cut_is_shown_whole(dry_runs: Played, parent: Path, folder: Path) -> None:
    content = parent.read_bytes().replace(b"gemma4", b"gemmaX")
    (folder / "other.gguf").write_bytes(content)
    [row] = rows(both(2**30, 2**30), folder, folder / "other.gguf")
    assert (row.way, row.n_keep) == (Way.WHOLE, 8)


def test_speeds_that_bench_kept_are_shown(dry_runs: Played, parent: Path) -> None:
    keep_speeds([Speed(Placed(parent.name, parent.stat().st_size), 41.4)])
    said = done(str(parent), "--vram", "10 GiB")
    assert "tokens/s" in said
    assert " 41" in next(line for line in said.splitlines() if line.startswith("parent-Q8_0"))


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("absent.gguf",), "No such file"),
        ((".",), "It is a folder"),
        (("hf:half",), "names no repository"),
        (("hf:nobody/nothing",), "no repository nobody/nothing"),
        ((f"hf:{REPO}/absent*",), "Its GGUF files: x.gguf"),
    ],
)
def test_addresses_that_lead_nowhere(arguments: tuple[str, ...], says: str, hub: FakeHub, folder: Path) -> None:
    hub.repositories[REPO] = {"x.gguf": b"GGUF"}
    assert says in refused(*arguments, "--vram", "1 GiB")


@pytest.mark.parametrize("size", ["15", "much", "-1"])
def test_a_size_without_a_unit_is_asked_about(size: str, parent: Path) -> None:
    result = coe(str(parent), "--vram", size)
    assert result.exit_code == 2
    assert "--vram" in result.stderr


def test_of_a_repository_what_cannot_be_looked_at_is_left_out(dry_runs: Played, hub: FakeHub, parent: Path) -> None:
    content = parent.read_bytes()
    hub.repositories[REPO] = {
        "x-Q8_0.gguf": content,
        "x-lying.gguf": content[:8] + struct.pack("<Q", 2**62) + content[16:],
        "x-text.gguf": b"<html>",
        "x-split-00001-of-00002.gguf": content,
    }
    found = values(f"hf:{REPO}", "--vram", "10 GiB", "--context", "1024")
    assert {row["model"] for row in found["rows"]} == {"x-Q8_0.gguf"}
    said = " ".join(found["remarks"])
    assert "lying is left out." in said
    assert "has no room for" in said
    assert "text is left out." in said
    assert "It lacks part 2." in said


def test_a_repository_of_which_nothing_can_be_looked_at_is_one_line(hub: FakeHub, parent: Path) -> None:
    hub.repositories[REPO] = {"x-Q8_0.gguf": parent.read_bytes(), "x-Q4.gguf": b"GGUF"}
    hub.ignore_ranges = True
    assert "only as a whole" in refused(f"hf:{REPO}", "--vram", "1 GiB")
    hub.repositories[REPO].pop("x-Q4.gguf")
    assert "only as a whole" in refused(f"hf:{REPO}", "--vram", "1 GiB")


def test_a_repository_of_too_many_models_asks_for_a_pattern(hub: FakeHub, folder: Path) -> None:
    hub.repositories[REPO] = {f"x-{n}.gguf": b"GGUF" for n in range(49)}
    assert "Give a pattern that finds fewer" in refused(f"hf:{REPO}", "--vram", "1 GiB")
    assert hub.downloads == []


def test_a_token_goes_to_the_hub_alone(dry_runs: Played, hub: FakeHub, parent: Path) -> None:
    hub.repositories[REPO] = {"x.gguf": parent.read_bytes()}
    hub.wanted_token, hub.elsewhere = "hf_secret", True
    assert "--token" in refused(f"hf:{REPO}", "--vram", "1 GiB")
    done(f"hf:{REPO}", "--vram", "10 GiB", "--context", "1024", "--token", "hf_secret")
    assert hub.downloads
    assert all("authorization" not in headers for headers in hub.downloads)


def test_ctrl_c_is_one_line(hub: FakeHub, parent: Path) -> None:
    """In a process of its own, which is interrupted while its request waits for an answer."""
    hub.repositories[REPO] = {"x.gguf": parent.read_bytes()}
    status, said = interrupted(hub, ["-m", "coe.server.cli", "fit", f"hf:{REPO}", "--vram", "1 GiB"])
    assert status == 130, said
    assert "Stopped. What was fetched is kept" in said
    assert "Traceback" not in said
