"""`coe check --remote`: rosters whose models are on a hub, of which headers alone are fetched."""

from __future__ import annotations

import asyncio
import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from gguf import GGMLQuantizationType as Type
from rich.console import Console

from coe.engine.pool.memory import predict
from coe.engine.spec import LoadSpec
from coe.server.commands.check import check_roster
from coe.server.commands.check_remote import check_ahead
from coe.server.commands.pull import headers, ranges
from coe.server.commands.pull.errors import PullError
from coe.server.commands.pull.files import Repository
from coe.surgery.cut.cut import cut
from coe.surgery.mask import Mask
from coe.surgery.parent import Parent
from fakes.hub import FakeHub, interrupted, played
from fakes.random_moe import random_mask, write_random_moe

pytestmark = pytest.mark.model

CODER = "someone/coder-GGUF"
WHOLE = "someone/parent-GGUF"
SHAPE: dict[str, Any] = {"experts": 8, "layers": 2, "embedding": 128, "expert_ff": 256}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with played(FakeHub(), monkeypatch) as fake:
        yield fake


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in; headers of small models are looked for in small steps."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(ranges, "HEADER_STEPS", (2**12, 2**14, 2**16, 2**18))
    monkeypatch.setattr(ranges, "_GAP_BYTES", 256)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def parent(folder: Path, hub: FakeHub) -> Parent:
    """A parent that lies here, outside the models folder, and on the hub; there also half of it as a specialist."""
    found = Parent.open(write_random_moe(folder / "whole.gguf", **SHAPE))
    hub.repositories[WHOLE] = {"whole.gguf": found.path.read_bytes()}
    cut(found, random_mask(found, 4), folder / "half.gguf")
    hub.repositories[CODER] = {"half.gguf": (folder / "half.gguf").read_bytes()}
    return found


def entry(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "domains": ["coding"], "context_tokens": 1024, **more}


def on_hub(name: str, repo: str = CODER, pattern: str = "*.gguf", **more: Any) -> dict[str, Any]:
    return entry(name, repo=repo, pattern=pattern, **more)


def roster(folder: Path, *entries: dict[str, Any], **more: Any) -> Path:
    pool = {"vram_budget": "1 GiB"} | more.pop("pool", {})
    content = {"version": 1, "models_dir": "models", "pool": pool, "specialists": list(entries), **more}
    path = folder / "specialists.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def checked(path: Path, *, width: int = 300, dry_run: bool = True, token: str | None = None) -> tuple[int, str]:
    """Exit status, and what was printed."""
    out = io.StringIO()
    console = Console(file=out, width=width)
    return check_ahead(path, token, dry_run=dry_run, out=console, err=Console(file=io.StringIO())), out.getvalue()


def line_of(name: str, printed: str) -> list[str]:
    """A specialist's row, word by word."""
    return next(line.split() for line in printed.splitlines() if line.startswith(f"{name} "))


def test_an_entry_on_the_hub_is_predicted_as_its_file_is(parent: Parent, hub: FakeHub, folder: Path) -> None:
    path = roster(folder, on_hub("coder"))
    code, remote = checked(path)
    assert code == 1, "nothing can be served before it is fetched"
    assert "not here: " in remote
    assert "1 of 1 can be served when they are fetched. Run: coe pull coder" in remote
    assert hub.sent_bytes < len(hub.repositories[CODER]["half.gguf"]) / 4
    there = folder / "models" / "someone--coder-GGUF"
    there.mkdir(parents=True)
    (folder / "half.gguf").rename(there / "half.gguf")
    code, local = checked(path)
    assert code == 0
    sizes = line_of("coder", local)[2:10]  # size, weights, KV, compute, each with its unit
    assert " ".join(sizes) in " ".join(line_of("coder", remote))


def test_without_the_option_the_hub_is_not_asked(parent: Parent, hub: FakeHub, folder: Path) -> None:
    out = io.StringIO()
    assert check_roster(roster(folder, on_hub("coder")), dry_run=True, out=Console(file=out, width=300)) == 1
    assert line_of("coder", out.getvalue())[1] == "absent"
    assert hub.revisions == hub.downloads == []


def test_a_second_look_fetches_nothing(parent: Parent, hub: FakeHub, folder: Path) -> None:
    path = roster(folder, on_hub("coder"))
    _, first = checked(path)
    hub.downloads.clear()
    _, second = checked(path)
    assert hub.downloads == []
    assert line_of("coder", first)[:7] == line_of("coder", second)[:7]


def test_masks_of_a_parent_on_the_hub_share_a_resident_and_what_a_change_moves_is_told(
    parent: Parent, hub: FakeHub, folder: Path
) -> None:
    for seed, name in enumerate(("math", "law")):
        random_mask(parent, 4, seed=seed).save(folder / f"{name}.json")
    path = roster(
        folder,
        entry("math", mask="math.json"),
        entry("law", mask="law.json"),
        on_hub("coder"),
        parent={"model": "someone/whole", "repo": WHOLE, "pattern": "*.gguf"},
    )
    code, said = checked(path)
    assert code == 1
    assert "its parent is not here" in said
    assert "to fetch: math, law are made of it." in said
    assert "Sharing a resident: math, law, coder" in said
    assert "math and law" in said
    assert "3 of 3 can be served when they are fetched" in said
    assert not (folder / "models").exists()
    assert hub.sent_bytes < len(hub.repositories[WHOLE]["whole.gguf"]) / 2


def mask_of(name: str, **more: Any) -> dict[str, Any]:
    return entry(name, mask_of={"repo": CODER, "pattern": "half*"}, **more)


@pytest.mark.parametrize("here", [True, False], ids=["parent here", "parent on the hub"])
def test_what_will_be_a_mask_is_predicted_by_how_many_experts_it_keeps(
    here: bool, parent: Parent, hub: FakeHub, folder: Path
) -> None:
    random_mask(parent, 4).save(folder / "mask.json")
    whole = {"file": str(parent.path)} if here else {"repo": WHOLE, "pattern": "*.gguf"}
    path = roster(folder, mask_of("coder"), mask_of("other"), parent={"model": "someone/whole", **whole})
    sent = hub.sent_bytes
    _, said = checked(path)
    assert hub.sent_bytes - sent < 200_000, "headers, and of a parent the routers"
    assert ("its mask is not here" if here else "neither mask nor parent is here") in said
    assert "Sharing a resident: coder, other. What a change moves is known once their masks are there." in said
    assert "2 of 2 can be served when they are fetched. Run: coe pull coder other" in said
    assert not (folder / "models").exists()
    with_masks = roster(
        folder,
        entry("coder", mask="mask.json"),
        entry("other", mask="mask.json"),
        parent={"model": "someone/whole", "file": str(parent.path)},
    )
    _, local = checked(with_masks)
    sizes = " ".join(line_of("coder", local)[4:8])  # weights and KV, each with its unit
    assert sizes in " ".join(line_of("coder", said))


def test_what_will_be_a_mask_is_fitted_as_its_mask_will_be(parent: Parent, hub: FakeHub, folder: Path) -> None:
    whole = {"repo": WHOLE, "pattern": "*.gguf"}
    path = roster(folder, mask_of("coder", experts="fit"), parent={"model": "someone/whole", **whole})
    _, said = checked(path)
    assert "experts (fit): coder: each layer keeps 8 of 8 experts" in said
    random_mask(parent, 8).save(folder / "mask.json")
    masked = entry("coder", mask="mask.json", experts=8)
    _, local = checked(roster(folder, masked, parent={"model": "whole", "file": str(parent.path)}))
    assert " ".join(line_of("coder", local)[4:8]) in " ".join(line_of("coder", said))
    _, said = checked(
        roster(folder, mask_of("coder", experts="fit"), parent={"model": "someone/gone", **whole, "repo": "a/b"})
    )
    assert "each layer keeps" not in said, "of a parent that is not known"


def test_a_published_specialist_that_is_not_there_is_told_with_its_reason(
    parent: Parent, hub: FakeHub, folder: Path
) -> None:
    gone = entry("gone", mask_of={"repo": "someone/gone", "pattern": "*"})
    _, said = checked(roster(folder, gone, mask_of("coder"), parent={"model": "whole", "file": str(parent.path)}))
    assert "gone: not looked at on the hub." in said
    assert "1 of 2 can be served when they are fetched. Run: coe pull coder" in said


def test_a_mask_of_another_quantisation_is_known_by_the_routers_on_the_hub(
    parent: Parent, hub: FakeHub, folder: Path
) -> None:
    random_mask(parent, 4).save(folder / "math.json")
    hub.repositories[WHOLE]["whole.gguf"] = write_random_moe(
        folder / "other.gguf", **SHAPE, quantised=Type.Q8_0
    ).read_bytes()
    source = {"model": "someone/whole", "repo": WHOLE, "pattern": "*.gguf"}
    _, said = checked(roster(folder, entry("math", mask="math.json"), parent=source))
    assert line_of("math", said)[-2:] == ["when", "fetched"]
    hub.repositories[WHOLE]["whole.gguf"] = write_random_moe(folder / "third.gguf", **SHAPE, seed=1).read_bytes()
    _, said = checked(roster(folder, entry("math", mask="math.json"), parent=source))
    assert "The mask was made for" in said
    assert "another model or checkpoint" in said


def test_a_mask_that_names_its_parents_file_alone_is_known_by_the_hubs_hash(
    parent: Parent, hub: FakeHub, folder: Path
) -> None:
    made = random_mask(parent, 4)
    content = made.to_json()
    del content["parent"]["router_sha256"]
    (folder / "math.json").write_text(json.dumps(content))
    assert Mask.load(folder / "math.json").parent.router_sha256 == ""
    source = {"model": "someone/whole", "repo": WHOLE, "pattern": "*.gguf"}
    _, said = checked(roster(folder, entry("math", mask="math.json"), parent=source))
    assert line_of("math", said)[-2:] == ["when", "fetched"]


def test_what_fits_takes_in_what_is_here_and_what_is_not(parent: Parent, hub: FakeHub, folder: Path) -> None:
    (folder / "models").mkdir()
    write_random_moe(folder / "models" / "own.gguf", **SHAPE, seed=3)
    path = roster(folder, on_hub("coder"), entry("own", file="own.gguf"), pool={"vram_budget": "200 MiB"})
    code, said = checked(path)
    assert code == 0
    assert "distinct residents: 2." in said
    assert "1 of 2 can be served." in said
    assert "1 of 2 can be served when they are fetched" in said


def test_one_that_is_over_the_budget_is_told_before_it_is_fetched(parent: Parent, hub: FakeHub, folder: Path) -> None:
    code, said = checked(roster(folder, on_hub("coder"), pool={"vram_budget": "20 MiB"}))
    assert code == 1
    assert "not here: " in said
    assert "no: over the budget" in said
    assert "the budget is 20 MiB" in said
    assert "when they are fetched" not in said


def test_sizes_alone_need_no_dry_run(parent: Parent, hub: FakeHub, folder: Path) -> None:
    code, said = checked(roster(folder, on_hub("coder")), dry_run=False)
    assert code == 1
    assert "not here: " in said
    assert "when fetched: size not predicted" in said


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"gated": {CODER}}, "Accept its licence"),
        ({"ignore_ranges": True}, "only as a whole"),
        ({"broken": True}, "cannot be reached"),
        ({"totals": [12345]}, "changed on the hub"),
        ({"wanted_token": "hf_secret"}, "--token"),
    ],
)
def test_what_cannot_be_looked_at_is_one_line_and_the_rest_goes_on(
    fault: dict[str, Any], says: str, parent: Parent, hub: FakeHub, folder: Path
) -> None:
    for name, value in fault.items():
        setattr(hub, name, value)
    write_random_moe(folder / "own.gguf", **SHAPE, seed=3)
    code, said = checked(roster(folder, on_hub("coder"), entry("own", file=str(folder / "own.gguf"))), dry_run=False)
    assert code == 0
    [line] = [line for line in said.splitlines() if line.startswith("coder: not looked at on the hub.")]
    assert says in line
    assert line_of("coder", said)[-2:] == ["no:", "absent"]
    assert "1 of 2 can be served." in said


def test_a_hub_out_of_reach_is_waited_for_and_said_once_for_all(
    parent: Parent, hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    asked: list[str] = []
    honest = headers.look_up

    def look_up(endpoint: str, repo: str, *more: Any) -> Repository | PullError:
        asked.append(repo)
        return honest(endpoint, repo, *more)

    monkeypatch.setattr(headers, "look_up", look_up)
    code, said = checked(roster(folder, on_hub("coder"), on_hub("other", repo=WHOLE)), dry_run=False)
    assert code == 1
    [line] = [line for line in said.splitlines() if "cannot be reached" in line]
    assert line.startswith("coder, other: not looked at on the hub.")
    assert "check again" in line
    assert asked == [CODER]


def test_the_token_goes_to_the_hub_alone(parent: Parent, hub: FakeHub, folder: Path) -> None:
    hub.wanted_token, hub.elsewhere = "hf_secret", True
    _, said = checked(roster(folder, on_hub("coder")), token="hf_secret", dry_run=False)
    assert "when fetched" in said
    assert hub.downloads
    assert all("authorization" not in headers for headers in hub.downloads)


def test_a_pin_that_the_hub_contradicts_is_told(parent: Parent, hub: FakeHub, folder: Path) -> None:
    _, said = checked(roster(folder, on_hub("coder", sha256="0" * 64)), dry_run=False)
    assert "the roster pins 0000" in said
    assert hub.downloads == []


def test_several_files_that_match_are_named(parent: Parent, hub: FakeHub, folder: Path) -> None:
    hub.repositories[CODER]["other.gguf"] = b"GGUF"
    _, said = checked(roster(folder, on_hub("coder")), dry_run=False)
    assert "finds 2 models" in said
    assert "Narrow `pattern` in the roster" in said


def test_a_split_model_is_predicted_with_all_its_parts(hub: FakeHub, folder: Path) -> None:
    (folder / "split").mkdir()
    first = write_random_moe(folder / "split" / "s.gguf", **SHAPE, parts=3)
    hub.repositories[CODER] = {f"Q8/{path.name}": path.read_bytes() for path in sorted(first.parent.iterdir())}
    whole = asyncio.run(predict(LoadSpec(first, context_tokens=1024))).footprint
    _, said = checked(roster(folder, on_hub("coder")))
    row = " ".join(line_of("coder", said))
    assert f"{whole.weights_bytes / 2**20:.1f}" in row or f"{whole.weights_bytes / 2**20:.0f} MiB" in row
    assert row.endswith("when fetched")


@pytest.mark.parametrize(
    ("at", "value", "says"),
    [
        (8, struct.pack("<Q", 2**62), "tensors, which the file has no room for"),
        (24, struct.pack("<Q", 2**50), "does not fit into the file"),
    ],
)
def test_headers_that_lie_are_refused_by_their_first_bytes(
    at: int, value: bytes, says: str, parent: Parent, hub: FakeHub, folder: Path
) -> None:
    content = hub.repositories[CODER]["half.gguf"]
    hub.repositories[CODER]["half.gguf"] = content[:at] + value + content[at + len(value) :]
    _, said = checked(roster(folder, on_hub("coder")), dry_run=False)
    assert says in said
    assert hub.sent_bytes <= 2**12


def test_a_specialist_that_is_built_of_a_parent_on_the_hub_is_estimated(
    parent: Parent, hub: FakeHub, folder: Path
) -> None:
    (folder / "corpus.txt").write_text("\n\n".join(f"Paragraph {n} tells of {n * n} things." for n in range(60)))
    build = {"corpus": ["corpus.txt"], "experts": 4}
    source = {"model": "someone/whole", "repo": WHOLE, "pattern": "*.gguf"}
    _, said = checked(roster(folder, entry("law", build=build), parent=source))
    assert "to be built" in said
    assert "to fetch: law is made of it." in said
    _, said = checked(roster(folder, entry("law", build=build), parent=source, pool={"vram_budget": "1 MiB"}))
    assert "It would take about" in said
    assert "the budget is 1.0 MiB. Keep fewer experts, or raise it." in said
    own = {**build, "parent": {"repo": WHOLE, "pattern": "*.gguf"}}
    _, said = checked(roster(folder, entry("law", build=own)))
    assert "to be built" in said


def test_a_cache_folder_that_cannot_be_written_is_said(
    parent: Parent, hub: FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "file"))
    _, said = checked(roster(folder, on_hub("coder")), dry_run=False)
    assert "XDG_CACHE_HOME" in said
    assert hub.downloads == []


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_a_terminal(width: int, parent: Parent, hub: FakeHub, folder: Path) -> None:
    _, said = checked(roster(folder, on_hub("coder")), width=width)
    table = said[: said.index("tools:")].splitlines()
    assert all(len(line) <= width for line in table)
    assert "…" not in said


def test_ctrl_c_ends_it_with_a_line(parent: Parent, hub: FakeHub, folder: Path) -> None:
    """In a process of its own, which is interrupted while its request waits for an answer."""
    path = str(roster(folder, on_hub("coder")))
    status, said = interrupted(hub, ["-m", "coe.server.cli", "check", path, "--remote"])
    assert status == 130, said
    assert "Stopped. What was fetched is kept" in said
    assert "Traceback" not in said
