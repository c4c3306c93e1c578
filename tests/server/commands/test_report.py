"""`coe doctor --report`: each part is in the file, also one that failed, and nothing that says who and where one is."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from coe.engine.spec import Device
from coe.server.commands import report
from coe.server.commands._anonymous import anonymous, anonymous_text, personal_words
from coe.server.commands.doctor import Facts

MIB = 2**20


def written(folder: Path, parts: dict[str, report.Part]) -> tuple[int, dict[str, Any], str]:
    """The exit status, the file, and all that was printed."""
    out = io.StringIO()
    console = Console(file=out, width=200)
    status = report.write_report(folder / "report.json", console, console, parts=parts)
    return status, json.loads((folder / "report.json").read_text()), out.getvalue()


# --- what is decided ------------------------------------------------------------------------------------------


def test_a_machine_without_a_card_has_the_host_alone() -> None:
    assert list(report.placements(has_card=False, layers=4, has_experts=True)) == ["host", "host, q8_0 cache"]


def test_every_placement_that_makes_sense_is_tried_on_a_card() -> None:
    found = report.placements(has_card=True, layers=30, has_experts=True)
    assert found == {
        "all layers": {},
        "half of the layers": {"gpu_layers": 15},
        "experts on the CPU": {"cpu_expert_layers": -1},
        "q8_0 cache": {"kv_type": "q8_0"},
        "host": {"gpu_layers": 0},
    }
    assert "experts on the CPU" not in report.placements(has_card=True, layers=30, has_experts=False)
    assert "half of the layers" not in report.placements(has_card=True, layers=1, has_experts=False)


def test_what_lies_on_a_card_is_compared_and_without_one_what_lies_on_the_host() -> None:
    footprint = {"weights_bytes": 10 * MIB, "kv_bytes": 3 * MIB, "compute_bytes": 2 * MIB}
    card = {"Vulkan0": {"model": 10 * MIB, "KV": 3 * MIB, "compute": 2 * MIB}}
    host = {"CPU": {"model": 7 * MIB}, "Vulkan_Host": {"compute": MIB}, "CPU_Mapped": {"model": MIB}}
    found = report.compared(footprint, {**card, **host}, has_card=True)
    assert found["weights"] == {"predicted_bytes": 10 * MIB, "real_bytes": 10 * MIB}
    assert found["compute"] == {"predicted_bytes": 2 * MIB, "real_bytes": 2 * MIB}
    alone = {"CPU": {"model": 7 * MIB, "output": MIB}}
    assert report.compared(footprint, alone, has_card=False)["weights"]["real_bytes"] == 7 * MIB
    assert report.compared(footprint, alone, has_card=False)["compute"]["real_bytes"] == MIB
    assert report.compared(footprint, alone, has_card=True)["weights"]["real_bytes"] == 0, "nothing lies on the card"


def test_a_swap_is_told_beside_a_load() -> None:
    changes = [{"changed_bytes": 50, "moved_bytes": 100, "seconds": s} for s in (0.02, 0.01, 0.5)]
    found = report.swap_figures(changes, 2.0)
    assert found is not None
    assert (found["seconds"], found["load_to_swap"], found["bytes_per_s"]) == (0.02, 100.0, 5000.0)
    assert report.swap_figures([], 2.0) is None


def test_settings_of_drivers_and_llama_cpp_are_told_and_no_others() -> None:
    environment = {"GGML_VK_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1", "HOME": "/home/ann", "HF_TOKEN": "x"}
    assert report.settings_of(environment) == {"CUDA_VISIBLE_DEVICES": "1", "GGML_VK_VISIBLE_DEVICES": "0"}


# --- what is left out -----------------------------------------------------------------------------------------

PLANTED = {
    "USER": "annabelle",
    "HF_TOKEN": "hf_abcdefghijklmnop",
    "OPENAI_API_KEY": "sk-proj-0123456789abcdef",
    "COE_ADMIN_KEYS": "a-key-of-mine",
    "LD_LIBRARY_PATH": "/home/annabelle/lib",
}


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setattr("socket.gethostname", lambda: "venus.example.org")
    return personal_words(PLANTED, home=Path("/srv/people/bella"))


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("cannot open /home/annabelle/models/x.gguf: no", "cannot open PATH: no"),
        ("-DCMAKE_CUDA_COMPILER=/usr/local/cuda/bin/nvcc", "-DCMAKE_CUDA_COMPILER=PATH"),
        ("File '/srv/my models/a b.gguf' is gone", "File 'PATH' is gone"),
        ("~/.cache/coe/demo/models, and /tmp", "PATH, and PATH"),
        (r"C:\Users\Annabelle\x.gguf here", "PATH here"),
        ("on venus.example.org and venus: annabelle, bella", "on HOST and HOST: USER, USER"),
        ("key a-key-of-mine, hf_abcdefghijklmnop and sk-proj-0123456789abcdef", "key SECRET, SECRET and SECRET"),
        ("from https://ann:pw@mirror.example.org/whl?sig=1", "from URL"),
        ("peer 192.168.1.17 and 02:42:ac:11:00:02", "peer ADDRESS and ADDRESS"),
    ],
)
def test_what_says_who_and_where_one_is_is_replaced(words: dict[str, str], said: str, left: str) -> None:
    assert anonymous_text(said, words) == left


@pytest.mark.parametrize(
    "said",
    [
        "NVIDIA GeForce RTX 4090/PCIe/SSE2",
        "12.5 tokens/s, 3 of 4",
        "llvmpipe (LLVM 15.0.6, 256 bits)",
        "Linux 6.1.0-18-amd64 x86_64",
        "CPU : SSE3 = 1 | AVX2 = 1 | OPENMP = 1",
        "bellamy and venusian",
        "gpu_layers: 0, kv_type: q8_0",
    ],
)
def test_what_says_nothing_of_the_kind_stays(words: dict[str, str], said: str) -> None:
    assert anonymous_text(said, words) == said


def test_nothing_planted_is_found_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("socket.gethostname", lambda: "venus.example.org")
    facts = Facts(
        devices=(Device("Vulkan0", "A card of annabelle on venus", "gpu", 1, 2),),
        system_info="built in /home/annabelle/src",
        demo_model=Path("/home/annabelle/demo.gguf"),
        checkout=Path("/home/annabelle/coe"),
        built_from="https://user:secret@mirror.example.org/whl/cu124",
        versions={"llama-cpp-python": None},
    )

    def fails(told: Any) -> Any:
        raise OSError(f"[Errno 2] No such file: '/home/annabelle/x' with {PLANTED['HF_TOKEN']} at 10.1.2.3")

    parts: dict[str, report.Part] = {
        "build": lambda told: report.build(facts),
        "devices": lambda told: [vars(device) for device in facts.devices],
        "placements": fails,
        "bench": lambda told: {"annabelle": {"failed": "http://venus.example.org:8000 does not answer"}},
    }
    status, _, printed = written(tmp_path, parts)
    text = (tmp_path / "report.json").read_text()
    assert status == 1
    for planted in (
        "annabelle",
        "venus",
        "example.org",
        "/home",
        "hf_",
        "sk-proj",
        "a-key-of-mine",
        "10.1.2.3",
        "user:",
    ):
        assert planted not in text, planted
    assert '"cu124"' in text
    assert "No such file" in printed
    assert "hf_" not in printed


def test_this_machines_own_names_are_among_those_left_out() -> None:
    found = personal_words()
    assert set(found.values()) <= {"HOST", "USER", "SECRET"}
    assert "HOST" in found.values()


def test_all_json_types_are_gone_through() -> None:
    value = {"a": ["/x/y", 1, None, True, ("ann",)], "ann": {"b": 1.5}}
    assert anonymous(value, {"ann": "USER"}) == {"a": ["PATH", 1, None, True, ["USER"]], "USER": {"b": 1.5}}


# --- what is written ------------------------------------------------------------------------------------------


def test_a_part_that_fails_is_in_the_report_and_ends_nothing(tmp_path: Path) -> None:
    asked = []

    def fails(told: Any) -> Any:
        raise report.ReportError("the card is gone")

    def works(told: Any) -> Any:
        asked.append("bench")
        return {}

    status, told, printed = written(tmp_path, {"placements": fails, "bench": works})
    assert status == 1
    assert told == {"report": report.FORMAT, "placements": {"failed": "ReportError: the card is gone"}, "bench": {}}
    assert asked == ["bench"]
    assert "Failed: placements: ReportError: the card is gone" in printed


def test_what_was_measured_is_kept_when_a_later_part_is_interrupted(tmp_path: Path) -> None:
    def interrupted(told: Any) -> Any:
        raise KeyboardInterrupt

    out = Console(file=io.StringIO())
    parts = {"devices": lambda told: [], "placements": interrupted}
    with pytest.raises(KeyboardInterrupt):
        report.write_report(tmp_path / "report.json", out, out, parts=parts)
    assert json.loads((tmp_path / "report.json").read_text()) == {"report": report.FORMAT, "devices": []}


def test_failures_are_found_wherever_they_are() -> None:
    told = {
        "build": {"failed": "one"},
        "placements": [{"model": "m", "placement": "host"}, {"model": "m", "placement": "all", "failed": "two"}],
        "bench": {"math": {"failed": "three"}},
    }
    assert report.failures(told) == ["build: one", "placements, m all: two", "bench, math: three"]


def test_progress_is_shown_part_by_part(tmp_path: Path) -> None:
    def slow(told: report.Told) -> Any:
        told("all layers")
        return []

    _, _, printed = written(tmp_path, {"placements": slow})
    assert re.search(r"placements\s*\n.*placements: all layers", printed)


def test_a_file_that_cannot_be_written_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    def measured(told: Any) -> Any:
        raise AssertionError("it was measured")

    out = Console(file=io.StringIO())
    for file in (tmp_path, tmp_path / "none" / "report.json"):
        assert report.write_report(file, out, out, parts={"bench": measured}) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.server
def test_this_machine_is_measured_on_each_of_its_placements(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(file=out, width=200)
    assert report.write_report(tmp_path / "report.json", console, console) == 0, out.getvalue()
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["build"]["llama.cpp"]
    assert told["devices"]
    placements = {(entry["model"], entry["placement"]) for entry in told["placements"]}
    assert {model for model, _ in placements} == {"the demo's college", "SmolLM2"}
    for entry in told["placements"]:
        assert entry["compared"]["kv"]["real_bytes"] > 0
        assert entry["buffers"]
        assert (entry["swap"] is not None) == (entry["model"] == "the demo's college")
    assert all(figures["first_ms"] for figures in told["bench"].values())
    assert {"math", "general"} <= told["bench"].keys()
    assert str(Path.home()) not in (tmp_path / "report.json").read_text()
    assert "load:swap" in out.getvalue()
