"""`coe check`: what can be served, what fits together, and what is printed."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from coe.engine.errors import ModelFileError, ModelTemplateError
from coe.engine.pool import memory
from coe.engine.pool.memory import Hardware
from coe.engine.pool.places import Memory
from coe.engine.spec import Device, Footprint, LoadSpec, ToolForm
from coe.router.head import HeadError
from coe.router.head_file import SHIPPED, load_head
from coe.server.commands.check import check_roster, models_dir_doubt, print_errors, print_report
from coe.server.roster.load import load_roster
from coe.server.roster.models import Roster
from coe.server.roster.source import RosterError
from coe.server.runtime.availability import Footprints, Servable, Unavailable, availability, locate
from coe.server.runtime.college import supervisor_of
from coe.server.runtime.what_fits import (
    ResidentPlan,
    assign,
    budget_doubts,
    fit_in_order,
    maximal_sets,
    most_that_fit,
    page_cache_bytes,
    residents,
    together,
)
from fakes.demo_college import college_roster
from fakes.pool_world import CARD, both, host
from fakes.server_process import write_roster

GIB = 2**30


def roster_of(folder: Path, text: str, present: dict[str, int]) -> Roster:
    for name, size in present.items():
        (folder / "models").mkdir(exist_ok=True)
        (folder / "models" / name).write_bytes(b"x" * size)
    path = folder / "specialists.yaml"
    path.write_text(text)
    return load_roster(path)


def entries(**files: str) -> str:
    return "specialists:\n" + "".join(
        f"  - {{name: {name}, file: {file}, domains: [math]}}\n" for name, file in files.items()
    )


def gibs(**sizes: int) -> Footprints:
    """A prediction: the file's stem in gibibytes of weights, 1 GiB of KV."""

    def predict(spec: LoadSpec) -> Footprint:
        return Footprint(weights_bytes=sizes[spec.path.stem] * GIB, kv_bytes=GIB, compute_bytes=0)

    return predict


def plans(*sizes: int) -> list[ResidentPlan]:
    return [ResidentPlan((f"r{index}",), host(size)) for index, size in enumerate(sizes)]


def test_a_thinking_policy_that_the_model_cannot_carry_out_makes_it_unavailable(tmp_path: Path) -> None:
    roster = roster_of(tmp_path, entries(a="a.gguf", b="b.gguf"), {"a.gguf": 1, "b.gguf": 1})
    judged = availability(
        locate(roster), gibs(a=1, b=1), host(8 * GIB), lambda spec: {"a": "a model that does not think"}
    )
    assert isinstance(judged["b"], Servable)
    refused = judged["a"]
    assert isinstance(refused, Unavailable)
    assert refused.reason == "a model that does not think"


def test_a_model_without_chats_and_what_else_a_dry_run_notes_are_told(tmp_path: Path) -> None:
    roster = roster_of(tmp_path, entries(a="a.gguf", b="b.gguf"), {"a.gguf": 1, "b.gguf": 1})
    fault = ModelTemplateError("The model file carries no chat template.", "Take another.")

    def noted(spec: LoadSpec) -> Footprint:
        return Footprint(GIB, GIB, 0, notes=("context_tokens 9 is more than the 8 it was trained for",))

    judged = availability(
        locate(roster), noted, host(8 * GIB), chat_faults=lambda spec: fault if spec.path.stem == "a" else None
    )
    out = StringIO()
    assert print_report(roster, judged, host(8 * GIB), Console(file=out, width=200)) == 0
    printed = out.getvalue()
    assert "completions only" in printed
    assert "warning: a: It answers no chats. The model file carries no chat template. Take another." in printed
    assert "warning: b: context_tokens 9 is more than the 8" in printed
    assert "warning: b: It answers no chats" not in printed


def test_what_becomes_of_tools_is_told_and_native_ones_that_cannot_be_are_refused(tmp_path: Path) -> None:
    asked = {"a": "auto", "b": "auto", "c": "native", "d": "native", "e": "generic", "f": "ignore", "g": "refuse"}
    listed = [
        {"name": name, "file": f"{name}.gguf", "domains": ["math"], "tools": tools} for name, tools in asked.items()
    ]
    path = tmp_path / "specialists.yaml"
    path.write_text(yaml.safe_dump({"version": 1, "models_dir": str(tmp_path), "specialists": listed}))
    for name in asked:
        (tmp_path / f"{name}.gguf").write_bytes(b"x")
    roster = load_roster(path)
    forms = {"a": ToolForm("gemma4"), "c": ToolForm("gemma4")}
    judged = availability(
        locate(roster),
        gibs(**dict.fromkeys(asked, 1)),
        host(8 * GIB),
        tool_forms=lambda spec: forms.get(spec.path.stem, ToolForm(None, "the chat template knows no tools")),
    )
    told = {name: item.tools for name, item in judged.items() if isinstance(item, Servable)}
    generic = "generic (the chat template knows no tools)"
    assert told == {
        "a": "gemma4", "b": generic, "c": "gemma4", "e": "generic (the roster says so)", "f": "ignored", "g": "refused"
    }  # fmt: skip
    refused = judged["d"]
    assert isinstance(refused, Unavailable)
    assert "the chat template knows no tools" in refused.reason
    assert "tools: generic" in refused.remedy
    out = StringIO()
    print_report(roster, judged, host(8 * GIB), Console(file=out, width=200))
    assert "tools: gemma4: a, c" in out.getvalue()
    assert f"tools: {generic}: b" in out.getvalue()


def test_what_auto_leaves_of_the_experts_in_host_memory_is_told(tmp_path: Path) -> None:
    listed = entries(a="a.gguf", b="b.gguf", c="c.gguf", d="d.gguf").replace("}", ", cpu_expert_layers: auto}", 3)
    roster = roster_of(tmp_path, listed, dict.fromkeys(("a.gguf", "b.gguf", "c.gguf", "d.gguf"), 1))
    located = locate(roster)
    chosen = {"a": 12, "b": 1, "c": 0}
    loads = {
        name: replace(roster.find(name).load_spec(tmp_path / f"{name}.gguf"), cpu_expert_layers=layers)  # type: ignore[union-attr]
        for name, layers in chosen.items()
    }
    judged = availability(
        located, lambda spec: Footprint(1, 1, 1, host_bytes=7 * GIB), both(8 * GIB, 8 * GIB), loads=loads
    )
    out = StringIO()
    print_report(roster, judged, both(8 * GIB, 8 * GIB), Console(file=out, width=200))
    printed = [line for line in out.getvalue().splitlines() if line.startswith("experts")]
    took = "stay in host memory, which takes 7.00 GiB of it"
    assert printed == [
        f"experts (cpu_expert_layers: auto): a: those of the first 12 layers {took}",
        f"experts (cpu_expert_layers: auto): b: those of the first layer {took}",
        "experts (cpu_expert_layers: auto): c: none has to stay in host memory",
    ]


def test_a_specialist_is_served_when_its_file_is_there_and_fits(tmp_path: Path) -> None:
    roster = roster_of(tmp_path, entries(a="a.gguf", b="b.gguf", c="c.gguf"), {"a.gguf": 1, "b.gguf": 1})
    judged = availability(locate(roster), gibs(a=7, b=20), host(8 * GIB))
    assert isinstance(judged["a"], Servable)
    big, absent = judged["b"], judged["c"]
    assert isinstance(big, Unavailable)
    assert "20.00 GiB weights + 1.00 GiB KV + 0 MiB compute = 21.00 GiB" in big.reason
    assert "8.00 GiB" in big.reason
    assert big.remedy == "It lacks 13.00 GiB: choose a smaller quantisation, or raise pool.vram_budget."
    assert isinstance(absent, Unavailable)
    assert "c.gguf" in absent.reason
    assert absent.remedy


def test_a_load_that_is_exactly_the_budget_fits(tmp_path: Path) -> None:
    roster = roster_of(tmp_path, entries(a="a.gguf"), {"a.gguf": 1})
    assert isinstance(availability(locate(roster), gibs(a=7), host(8 * GIB))["a"], Servable)
    assert isinstance(availability(locate(roster), gibs(a=7), host(8 * GIB - 1))["a"], Unavailable)


def test_a_load_that_lacks_little_is_told_to_shorten_its_context(tmp_path: Path) -> None:
    roster = roster_of(tmp_path, entries(a="a.gguf"), {"a.gguf": 1})
    judged = availability(locate(roster), gibs(a=7), host(8 * GIB - 1))["a"]
    assert isinstance(judged, Unavailable)
    assert judged.remedy == "Lower context_tokens or cache_tokens, or set kv_type to q8_0."
    (told,) = roster.specialists
    narrow = told.model_copy(update={"kv_type": "q8_0"})
    roster = roster.model_copy(update={"specialists": (narrow,)})
    judged = availability(locate(roster), gibs(a=7), host(8 * GIB - 1))["a"]
    assert isinstance(judged, Unavailable)
    assert judged.remedy == "Lower context_tokens or cache_tokens."


@pytest.mark.parametrize(
    ("movable", "helps"),
    [
        (3, "keep experts in host memory (cpu_expert_layers)"),
        (2, "put fewer layers on the GPU (gpu_layers)"),
        (0, "put fewer layers on the GPU (gpu_layers)"),
    ],
)
def test_what_is_too_large_for_a_card_is_told_what_can_still_leave_it(tmp_path: Path, movable: int, helps: str) -> None:
    """movable: GiB of experts that are on the card."""
    roster = roster_of(tmp_path, entries(a="a.gguf"), {"a.gguf": 1})
    budget = both(24 * GIB, 64 * GIB)
    judged = availability(locate(roster), on_card(27, 0), budget, movable_experts=lambda spec: movable * GIB)["a"]
    assert isinstance(judged, Unavailable)
    rest = "choose a smaller quantisation, or raise pool.vram_budget"
    assert judged.remedy == f"It lacks 3.00 GiB: {helps}, {rest}."


def test_an_unreadable_file_makes_only_its_own_specialist_unavailable(tmp_path: Path) -> None:
    roster = roster_of(tmp_path, entries(a="a.gguf", b="b.gguf"), {"a.gguf": 1, "b.gguf": 1})

    def predict(spec: LoadSpec) -> Footprint:
        if spec.path.stem == "a":
            raise ModelFileError("a.gguf is cut short.", "Fetch it again.")
        return Footprint(1, 1, 1)

    judged = availability(locate(roster), predict, host(GIB))
    assert isinstance(judged["b"], Servable)
    assert isinstance(judged["a"], Unavailable)
    assert (judged["a"].reason, judged["a"].remedy) == ("a.gguf is cut short.", "Fetch it again.")


def test_specialists_of_one_file_are_predicted_once_and_share_a_resident(tmp_path: Path) -> None:
    roster = roster_of(tmp_path, entries(a="m.gguf", b="m.gguf", c="n.gguf"), {"m.gguf": 10, "n.gguf": 5})
    asked: list[LoadSpec] = []

    def predict(spec: LoadSpec) -> Footprint:
        asked.append(spec)
        return Footprint(GIB, 0, 0)

    judged = availability(locate(roster), predict, None)
    assert len(asked) == 2
    assert [plan.title for plan in residents(judged)] == ["a + b", "c"]
    assert page_cache_bytes(judged) == 15


def test_without_predictions_whatever_is_there_can_be_served(tmp_path: Path) -> None:
    roster = roster_of(tmp_path, entries(a="a.gguf", b="b.gguf"), {"a.gguf": 1})
    judged = availability(locate(roster), None, 1)
    assert isinstance(judged["a"], Servable)
    assert isinstance(judged["b"], Unavailable)
    assert residents(judged) == ()


def test_residents_are_taken_in_roster_order_as_long_as_they_fit() -> None:
    assert [plan.title for plan in fit_in_order(plans(4, 9, 5, 1), host(10))] == ["r0", "r2", "r3"]


def test_maximal_sets_fit_and_take_no_further_resident() -> None:
    found = maximal_sets(plans(4, 9, 5, 1), host(10))
    assert found is not None
    assert [{plan.title for plan in chosen} for chosen in found] == [{"r0", "r2", "r3"}, {"r1", "r3"}]


def test_too_many_residents_are_not_tried_in_every_combination() -> None:
    assert maximal_sets(plans(*range(1, 40)), host(10)) is None
    assert most_that_fit(plans(*range(1, 40)), host(10)) == 4  # 1 + 2 + 3 + 4


@given(sizes=st.lists(st.integers(1, 20), max_size=8), budget=st.integers(1, 40))
def test_the_largest_maximal_set_has_as_many_as_fit_at_best(sizes: list[int], budget: int) -> None:
    found = maximal_sets(plans(*sizes), host(budget))
    assert found is not None
    assert max(map(len, found), default=0) == most_that_fit(plans(*sizes), host(budget))
    assert all(together(chosen).fits_in(host(budget)) for chosen in found)
    assert together(fit_in_order(plans(*sizes), host(budget))).fits_in(host(budget))


def on_card(card: int, beside: int) -> Footprints:
    """Of GiB on the card, and in host memory beside it."""
    return lambda spec: Footprint(card * GIB, 0, 0, host_bytes=beside * GIB)


def test_experts_in_host_memory_are_held_against_what_the_host_has(tmp_path: Path) -> None:
    roster = roster_of(tmp_path, entries(a="a.gguf"), {"a.gguf": 1})
    budget = both(24 * GIB, 8 * GIB)
    judged = availability(locate(roster), on_card(4, 13), budget)["a"]
    assert isinstance(judged, Unavailable)
    assert judged.reason == (
        f"It needs 13.00 GiB of host memory beside what it takes of {CARD}; pool.host_budget is 8.00 GiB."
    )
    assert judged.remedy == "Put more layers on the GPU (gpu_layers), or raise pool.host_budget."
    (one,) = locate(roster)
    for fields, key in (({"cpu_expert_layers": 9}, "cpu_expert_layers"), ({"gpu_layers": 0}, "gpu_layers")):
        load = replace(one.entry.load_spec(tmp_path / "a.gguf"), **fields)
        judged = availability([one], on_card(4, 13), budget, loads={"a": load})["a"]
        assert isinstance(judged, Unavailable)
        assert f"({key}), or raise pool.host_budget" in judged.remedy
    assert isinstance(availability(locate(roster), on_card(4, 8), budget)["a"], Servable)
    short_of_both = availability(locate(roster), on_card(25, 13), budget)["a"]
    assert isinstance(short_of_both, Unavailable)
    assert "25.00 GiB" in short_of_both.reason


def test_what_fits_together_fits_at_each_place(tmp_path: Path) -> None:
    small, big = (ResidentPlan((name,), memory) for name, memory in (("small", both(4, 2)), ("big", both(4, 9))))
    other = ResidentPlan(("other",), both(4, 2))
    assert fit_in_order([big, small, other], both(24, 10)) == (big,)
    assert maximal_sets([big, small, other], both(24, 10)) == ((small, other), (big,))
    assert most_that_fit([big, small, other], both(24, 10)) == 2
    roster = roster_of(tmp_path, entries(a="a.gguf", b="b.gguf"), {"a.gguf": 1, "b.gguf": 1})
    out = StringIO()
    budget = both(24 * GIB, 16 * GIB)
    print_report(roster, availability(locate(roster), on_card(4, 9), budget), budget, Console(file=out, width=200))
    assert f"Budget 24.00 GiB of {CARD} + 16.00 GiB of host" in out.getvalue()
    assert f"In roster order these fit together: a (4.00 GiB of {CARD} + 9.00 GiB of host)." in out.getvalue()


def test_pins_that_leave_no_room_for_others_are_doubted(tmp_path: Path) -> None:
    text = entries(a="a.gguf", b="b.gguf").replace("{name: a,", "{pin: true, name: a,")
    roster = roster_of(tmp_path, text, {"a.gguf": 1, "b.gguf": 1})
    judged = availability(locate(roster), gibs(a=5, b=5), host(8 * GIB))
    assert any("b can never load" in doubt for doubt in budget_doubts(roster, judged, host(8 * GIB)))
    assert budget_doubts(roster, judged, host(12 * GIB)) == ()


def test_preloads_that_do_not_fit_together_and_an_absent_fallback_are_doubted(tmp_path: Path) -> None:
    text = "pool: {preload: [a, b]}\nfallback: c\n" + entries(a="a.gguf", b="b.gguf", c="c.gguf")
    roster = roster_of(tmp_path, text, {"a.gguf": 1, "b.gguf": 1})
    judged = availability(locate(roster), gibs(a=5, b=5), host(8 * GIB))
    doubts = budget_doubts(roster, judged, host(8 * GIB))
    assert any("pool.preload: together 12.00 GiB" in doubt for doubt in doubts)
    assert any("whatever is warm answers" in doubt for doubt in doubts)


def run(path: Path, footprints: Footprints | None, budget: Memory | None) -> tuple[int, str]:
    out = StringIO()
    console = Console(file=out, width=200)
    try:
        roster = load_roster(path)
    except RosterError as error:
        return print_errors(error, console), out.getvalue()
    code = print_report(roster, availability(locate(roster), footprints, budget), budget, console)
    return code, out.getvalue()


def test_a_wrong_roster_prints_every_error_with_its_line_and_fails(tmp_path: Path) -> None:
    path = tmp_path / "specialists.yaml"
    path.write_text(entries(a="a.gguf") + "colour: [red]\nport: 1\n")
    code, printed = run(path, None, None)
    assert code == 1
    assert "specialists.yaml:3: colour: unknown key." in printed
    assert "specialists.yaml:4: port: unknown key." in printed
    assert "2 errors." in printed


def test_a_roster_that_can_be_served_in_part_says_what_and_what_fits(tmp_path: Path) -> None:
    text = entries(a="a.gguf", b="b.gguf", c="c.gguf", d="d.gguf")
    path = roster_of(tmp_path, text, {"a.gguf": 1, "b.gguf": 1, "c.gguf": 1}).path
    code, printed = run(path, gibs(a=5, b=5, c=40), host(8 * GIB))
    assert code == 0
    assert "2 of 4 can be served." in printed
    assert "At most 1 fit at once." in printed
    assert "c: It needs 40.00 GiB weights" in printed
    assert "d: There is no file" in printed
    assert "warm page cache" in printed


@pytest.mark.parametrize("present", [{}, {"a.gguf": 1}])
def test_a_roster_with_nothing_to_serve_fails(tmp_path: Path, present: dict[str, int]) -> None:
    path = roster_of(tmp_path, entries(a="a.gguf"), present).path
    code, printed = run(path, gibs(a=40), host(8 * GIB))
    assert code == 1
    assert "Nothing in this roster can be served" in printed


def test_an_unknown_budget_is_said(tmp_path: Path) -> None:
    path = roster_of(tmp_path, entries(a="a.gguf", b="b.gguf"), {"a.gguf": 1, "b.gguf": 1}).path
    code, printed = run(path, gibs(a=5, b=5), None)
    assert code == 0
    assert "all residents together take 12.00 GiB" in printed


def test_what_looks_like_markup_is_printed_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "specialists.yaml"
    path.write_text('specialists:\n  - {name: a, file: "[red].gguf", domains: [math]}\n')
    assert "[red].gguf" in run(path, None, None)[1]
    path.write_text('specialists:\n  - {name: "[red]", file: a.gguf}\n')
    assert "'[red]' is not a name" in run(path, None, None)[1]


def doubt_of(roster: Roster) -> str | None:
    return models_dir_doubt(roster, availability(locate(roster), None, None))


FETCHED = "specialists:\n  - {name: a, repo: somebody/a, pattern: a.gguf, domains: [math]}\n"


def test_a_models_folder_that_cannot_be_written_to_is_doubted_where_something_will(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roster = roster_of(tmp_path, "models_dir: here/models\n" + FETCHED, {})
    assert doubt_of(roster) is None, "the folder is made when it is needed"
    (tmp_path / "here").write_text("a file")
    doubt = doubt_of(roster)
    assert doubt is not None
    assert doubt.startswith(f"{tmp_path / 'here'} is no folder, and a would be fetched")
    (tmp_path / "here").unlink()
    monkeypatch.setattr("os.access", lambda place, mode: place != tmp_path)
    assert f"{tmp_path} cannot be written to" in (doubt_of(roster) or "")
    files_only = roster_of(tmp_path, "models_dir: here/models\n" + entries(a="a.gguf"), {})
    assert doubt_of(files_only) is None


def test_a_models_folder_out_of_reach_is_doubted_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roster = roster_of(tmp_path, "models_dir: locked/models\n" + FETCHED, {})
    judged = availability(locate(roster), None, None)
    locked = tmp_path / "locked"
    locked.mkdir()
    look = os.stat

    def stat(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if locked in Path(os.fspath(path)).parents:
            raise PermissionError(13, "Permission denied")
        return look(path, *arguments, **options)

    monkeypatch.setattr("os.stat", stat)  # tests may run as root, to whom every folder is open
    monkeypatch.setattr("os.access", lambda place, mode: place != locked)
    assert f"{locked} cannot be written to" in (models_dir_doubt(roster, judged) or "")


def test_a_models_folder_that_has_all_need_not_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda place, mode: False)
    assert doubt_of(roster_of(tmp_path, FETCHED, {})) is not None
    (tmp_path / "models" / "somebody--a").mkdir(parents=True)
    assert doubt_of(roster_of(tmp_path, FETCHED, {"somebody--a/a.gguf": 1})) is None


def checked(roster: Path, *, dry_run: bool = False) -> tuple[int, str]:
    out = StringIO()
    code = check_roster(roster, dry_run=dry_run, out=Console(file=out, width=200))
    return code, out.getvalue()


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuple(Device(f"CUDA{n}", "a card", "gpu", 8 * GIB, 8 * GIB) for n in range(2))

    async def hardware() -> Hardware:
        return Hardware(found, "")

    monkeypatch.setattr(memory, "hardware", hardware)


@pytest.mark.usefixtures("two_cards")
def test_a_card_that_is_not_there_is_told_as_a_mistake(tmp_path: Path) -> None:
    roster = roster_of(tmp_path, entries(a="a.gguf") + "pool: {devices: [cuda0]}\n", {"a.gguf": 1})
    code, printed = checked(roster.path, dry_run=True)
    assert code == 1
    assert printed.startswith("pool.devices names cuda0; llama.cpp sees CUDA0, CUDA1 here. Name cards as")


@pytest.mark.model
@pytest.mark.usefixtures("two_cards")
def test_what_its_settings_keep_from_being_served_does_not_wait_to_be_cut(tmp_path: Path) -> None:
    roster = college_roster(tmp_path, defaults={"tensor_split": [1, 1, 1]})
    code, printed = checked(roster, dry_run=True)
    assert code == 1
    assert "to be cut" not in printed
    assert "before it is built" not in printed
    assert "math, chemistry, python, general: tensor_split has 3 parts" in printed


def without_description(head: Path) -> None:
    shutil.copy(SHIPPED, head)


def damaged(head: Path) -> None:
    shutil.copy(SHIPPED.with_suffix(".json"), head.with_suffix(".json"))
    head.write_bytes(SHIPPED.read_bytes()[:1000])


def foreign(head: Path) -> None:
    np.savez(head, numbers=np.arange(3))
    head.with_suffix(".json").write_text("[]")


@pytest.mark.parametrize("write", [without_description, damaged, foreign])
def test_a_head_that_cannot_be_read_is_an_error(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "own.npz")
    with pytest.raises(HeadError) as refused:
        load_head(tmp_path / "own.npz")
    roster = write_roster(tmp_path, {"law": {"domains": ["law"]}}, router={"encoder": "none", "head": "own.npz"})
    code, printed = checked(roster)
    assert code == 1
    assert printed.strip() == str(refused.value)


def test_a_head_that_can_be_read_is_none(tmp_path: Path) -> None:
    for suffix in (".npz", ".json"):
        shutil.copy(SHIPPED.with_suffix(suffix), tmp_path / f"own{suffix}")
    roster = write_roster(tmp_path, {"law": {"domains": ["law"]}}, router={"encoder": "none", "head": "own.npz"})
    assert checked(roster)[0] == 0


def test_an_encoder_that_is_switched_off_is_pointed_out(tmp_path: Path) -> None:
    code, printed = checked(write_roster(tmp_path, {"law": {"domains": ["law"]}}, router={"encoder": "none"}))
    assert code == 0
    (line,) = [line for line in printed.splitlines() if "router.encoder" in line]
    assert line.startswith("warning: ")
    assert "n-grams alone" in line


def test_a_threshold_for_a_domain_that_is_none_is_doubted_as_the_server_doubts_it(tmp_path: Path) -> None:
    """A domain counts when it is built in, or when different examples teach it."""
    verbs = ("set", "reef", "trim", "fold", "mend", "hoist", "furl", "dry", "buy", "wash")
    roster = write_roster(
        tmp_path,
        {
            "sail": {"domains": ["sailing"], "examples": [f"How do I {verb} a sail?" for verb in verbs]},
            "knit": {"domains": ["knitting"], "examples": ["How do I knit?"] * 10},
        },
        router={"encoder": "none", "thresholds": "fitted.json"},
    )
    wanted = dict.fromkeys(("math", "sailing", "knitting", "astrology"), 0.7)
    (tmp_path / "fitted.json").write_text(json.dumps({"thresholds": wanted}))
    supervisor = supervisor_of(load_roster(roster))
    asyncio.run(supervisor.start())
    supervisor.close()
    code, printed = checked(roster)
    assert code == 0
    said = [line for line in printed.splitlines() if "there is a threshold" in line]
    theirs = [warning for warning in supervisor.warnings if "there is a threshold" in warning]
    assert said == [f"warning: router.thresholds: {warning}" for warning in theirs]
    assert [("knitting" in line, "astrology" in line) for line in said] == [(True, False), (False, True)]


def printed(roster: Roster, found: dict[str, Servable | Unavailable], budget: Memory) -> str:
    out = StringIO()
    print_report(roster, found, budget, Console(file=out, width=200))
    return out.getvalue()


def test_the_verdict_is_what_hinders_it_not_what_else_is_known(tmp_path: Path) -> None:
    roster = roster_of(
        tmp_path, entries(math="small.gguf", law="big.gguf", gone="gone.gguf"), {"small.gguf": 1, "big.gguf": 1}
    )
    refused = availability(
        locate(roster), gibs(small=1, big=9), host(4 * GIB), lambda spec: {"math": "It cannot close its block."}
    )
    text = printed(roster, refused, host(4 * GIB))
    verdicts = {line.split()[0]: line for line in text.splitlines() if " no: " in line}
    assert "no: its settings do not fit" in verdicts["math"]
    assert "no: over the budget" in verdicts["law"]
    assert "no: absent" in verdicts["gone"]


def test_what_is_to_be_pulled_is_said_once(tmp_path: Path) -> None:
    text = "specialists:\n" + "".join(
        f'  - {{name: {name}, repo: owner/one, pattern: "*{name}*", domains: [math]}}\n' for name in ("a", "b", "c")
    )
    roster = roster_of(tmp_path, text, {})
    said = printed(roster, availability(locate(roster), gibs(), host(GIB)), host(GIB))
    assert said.count("Not downloaded") == 1
    assert "Run: coe pull a b c" in said


class TestSeveralCards:
    BUDGET = Memory({"CUDA0": 10, "CUDA1": 8})

    @staticmethod
    def plan(name: str, size: int) -> ResidentPlan:
        return ResidentPlan((name,), Memory.at("CUDA0", size), ("CUDA0", "CUDA1"))

    def test_each_resident_goes_where_the_most_room_is(self) -> None:
        plans = [self.plan("a", 6), self.plan("b", 6), self.plan("c", 4)]
        assert fit_in_order(plans, self.BUDGET) == tuple(plans)
        assert together(plans, self.BUDGET) == Memory({"CUDA0": 10, "CUDA1": 6})

    def test_all_ways_are_tried_before_it_is_said_that_they_do_not_fit(self) -> None:
        small, large = self.plan("a", 6), self.plan("b", 9)
        assert assign([small, large], self.BUDGET) == (Memory.at("CUDA1", 6), Memory.at("CUDA0", 9))
        assert assign([large, large], self.BUDGET) is None

    def test_they_are_told_as_they_will_lie(self) -> None:
        plans = [self.plan("a", 3), self.plan("b", 3)]
        assert together(plans, self.BUDGET) == Memory({"CUDA0": 3, "CUDA1": 3}), "not one beside the other"

    @given(st.lists(st.integers(1, 10), max_size=5), st.lists(st.integers(1, 12), min_size=1, max_size=3))
    def test_a_way_is_found_where_there_is_one(self, sizes: list[int], room: list[int]) -> None:
        budget = Memory({f"CUDA{n}": n_bytes for n, n_bytes in enumerate(room)})
        plans = [ResidentPlan((f"r{n}",), Memory.at("CUDA0", size), budget.cards) for n, size in enumerate(sizes)]
        plans.append(ResidentPlan(("fixed",), Memory(dict.fromkeys(budget.cards, 1))))
        ways = itertools.product(*(plan.options for plan in plans))
        found = assign(plans, budget)
        assert (found is not None) == any(Memory.total(way).fits_in(budget) for way in ways)
        if found is not None:
            assert Memory.total(found).fits_in(budget)
            assert all(memory in plan.options for memory, plan in zip(found, plans, strict=True))

    def test_sets_that_nobody_would_read_are_not_looked_for(self) -> None:
        """Of cards that take two of them each, all combinations of four and more would be tried out to the end."""
        budget = Memory({f"CUDA{n}": 24 for n in range(4)})
        plans = [ResidentPlan((f"r{n}",), Memory.at("CUDA0", 11 + n % 3), budget.cards) for n in range(12)]
        assert maximal_sets(plans, budget, 8) is None
        assert maximal_sets(plans[:4], budget, 8) == (tuple(plans[:4]),)

    def test_sets_are_maximal_over_all_cards(self) -> None:
        a, b, c = self.plan("a", 6), self.plan("b", 8), self.plan("c", 5)
        assert maximal_sets([a, b, c], self.BUDGET) == ((a, b), (a, c), (b, c))
        assert most_that_fit([a, b, c], self.BUDGET) == 2

    def test_what_is_spread_over_them_takes_of_each(self) -> None:
        spread = ResidentPlan(("d",), Memory({"CUDA0": 5, "CUDA1": 5}))
        assert fit_in_order([spread, self.plan("a", 4), self.plan("b", 4)], self.BUDGET)[1:] == (self.plan("a", 4),)
